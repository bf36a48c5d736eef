//! Tests of the memory bounds, on a tree of files like the kernel's.

use std::fs;
use std::path::{Path, PathBuf};

use super::super::available::{AvailableMemory, MemoryBound, read_below};

const MIB: u64 = 1 << 20;

/// A folder used as `/`, deleted on drop.
struct Tree(PathBuf);

impl Tree {
    /// Creates the tree of a machine of 8 GiB, half of it available, with these mounts and groups.
    fn new(name: &str, mounts: &str, groups: &str) -> Self {
        let at = std::env::temp_dir().join(format!("towline-available-{name}-{}", std::process::id()));
        let tree = Self(at);
        let meminfo = "MemTotal:        8388608 kB\nMemFree:  100 kB\nMemAvailable:    4194304 kB\n";
        tree.write("proc/meminfo", meminfo)
            .write("proc/self/mountinfo", mounts)
            .write("proc/self/cgroup", groups);
        tree
    }

    fn write(&self, path: &str, text: &str) -> &Self {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    /// Adds a version 1 group at `path` that uses `used` MiB, `cached` of them for files.
    fn v1(&self, path: &str, limit: &str, used: u64, cached: u64) -> &Self {
        let at = format!("sys/fs/cgroup/memory{path}");
        // `inactive_file` counts this group alone; the total includes its descendants.
        let stat = format!(
            "inactive_file 1\ntotal_inactive_file {}\ntotal_active_file {}\n",
            cached * MIB / 2,
            cached * MIB / 2
        );
        self.write(&format!("{at}/memory.limit_in_bytes"), limit)
            .write(&format!("{at}/memory.usage_in_bytes"), &format!("{}\n", used * MIB))
            .write(&format!("{at}/memory.stat"), &stat)
    }

    /// As `v1`, for version 2.
    fn v2(&self, path: &str, max: &str, high: &str, used: u64, cached: u64) -> &Self {
        let at = format!("sys/fs/cgroup{path}");
        let stat = format!("anon 5\ninactive_file {}\nactive_file 0\n", cached * MIB);
        self.write(&format!("{at}/memory.max"), max)
            .write(&format!("{at}/memory.high"), high)
            .write(&format!("{at}/memory.current"), &format!("{}\n", used * MIB))
            .write(&format!("{at}/memory.stat"), &stat)
    }

    /// Asserts the bytes left, the limit, both in MiB, and the tightest bound.
    #[track_caller]
    fn assert_bound(&self, left: u64, limit: u64, bound: MemoryBound) {
        let found = read_below(&self.0).unwrap();
        assert_eq!((found.bytes / MIB, found.limit_bytes / MIB, found.bound), (left, limit, bound));
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const MOUNT_V1: &str = "\
    25 21 0:23 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
    30 25 0:28 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu\n\
    31 25 0:29 / /sys/fs/cgroup/memory rw,relatime shared:10 - cgroup cgroup rw,memory\n";
const MOUNT_V2: &str = "31 25 0:29 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
const UNLIMITED_V1: &str = "9223372036854771712\n";

fn group(path: &str) -> MemoryBound {
    MemoryBound::ControlGroup(path.into())
}

#[test]
fn without_group_limits_the_machine_is_the_bound() {
    Tree::new("none", "", "").assert_bound(4096, 8192, MemoryBound::Machine);
    let tree = Tree::new("unlimited", MOUNT_V1, "4:memory:/jobs\n1:cpu:/\n0::/\n");
    tree.v1("", UNLIMITED_V1, 3000, 0).v1("/jobs", UNLIMITED_V1, 2000, 0);
    tree.assert_bound(4096, 8192, MemoryBound::Machine);
    let tree = Tree::new("unlimited-v2", MOUNT_V2, "0::/jobs/7\n");
    tree.v2("/jobs", "max\n", "max\n", 3000, 0).v2("/jobs/7", "max\n", "max\n", 3000, 0);
    tree.assert_bound(4096, 8192, MemoryBound::Machine);
}

#[test]
fn every_ancestor_counts_in_both_versions() {
    let tree = Tree::new("v1", MOUNT_V1, "4:memory:/jobs/7\n1:cpu:/\n0::/\n");
    tree.v1("", UNLIMITED_V1, 5000, 0).v1("/jobs", "1073741824\n", 1000, 0).v1(
        "/jobs/7",
        "167772160\n",
        20,
        0,
    );
    // The group has more bytes left than its parent.
    tree.assert_bound(24, 160, group("/jobs"));
    tree.v1("/jobs", "1073741824\n", 1000, 600);
    tree.assert_bound(140, 160, group("/jobs/7"));

    let tree = Tree::new("v2", MOUNT_V2, "0::/jobs/7\n");
    tree.v2("/jobs", "1073741824\n", "max\n", 1000, 0).v2("/jobs/7", "167772160\n", "max\n", 20, 0);
    tree.assert_bound(24, 160, group("/jobs"));
    tree.v2("/jobs", "max\n", "max\n", 1000, 0);
    tree.assert_bound(140, 160, group("/jobs/7"));
    tree.v2("/jobs/7", "167772160\n", "104857600\n", 20, 0);
    tree.assert_bound(80, 100, group("/jobs/7"));
    tree.v2("/jobs/7", "167772160\n", "max\n", 200, 0);
    tree.assert_bound(0, 160, group("/jobs/7"));
}

#[test]
fn reclaimable_caches_count_as_available() {
    let tree = Tree::new("cached", MOUNT_V1, "4:memory:/a\n");
    tree.v1("/a", "167772160\n", 150, 100).assert_bound(110, 160, group("/a"));
    let tree = Tree::new("cached-v2", MOUNT_V2, "0::/a\n");
    tree.v2("/a", "167772160\n", "max\n", 150, 100).assert_bound(110, 160, group("/a"));
}

#[test]
fn a_container_finds_its_group_with_a_namespace_and_without() {
    // Without a namespace, the group's own folder is mounted, and the path is that of the host.
    let mounts = "31 25 0:29 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
    for path in ["/docker/abc", "/docker/abc/inner"] {
        let tree = Tree::new("docker", mounts, &format!("4:memory:{path}\n"));
        tree.v1("", "167772160\n", 60, 0).v1("/inner", UNLIMITED_V1, 10, 0).assert_bound(
            100,
            160,
            group("/docker/abc"),
        );
    }
    // With a namespace, paths start at the container's group; a path from outside of it has `..`.
    for path in ["/", "/../other"] {
        let tree = Tree::new("namespace", MOUNT_V2, &format!("0::{path}\n"));
        tree.v2("", "167772160\n", "max\n", 60, 0).assert_bound(100, 160, group("/"));
    }
    // A mount made before the process entered its namespace.
    let mounts = "31 25 0:29 /.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
    let tree = Tree::new("before", mounts, "0::/a\n");
    tree.v2("", "167772160\n", "max\n", 60, 0);
    assert_eq!(read_below(&tree.0).unwrap().bytes, 100 * MIB);
}

#[test]
fn unreadable_files_are_no_bound() {
    assert_eq!(read_below(Path::new("/no/such/folder")), None);
    let tree = Tree::new("odd", MOUNT_V1, "4:memory\n\nmemory:/x\n4:memory:/a\n");
    tree.write("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "many\n");
    tree.assert_bound(4096, 8192, MemoryBound::Machine);
    tree.write("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1048576\n");
    tree.assert_bound(4096, 8192, MemoryBound::Machine);
    fs::remove_file(tree.0.join("proc/meminfo")).unwrap();
    assert_eq!(read_below(&tree.0), None);
}

#[test]
fn the_bounds_of_this_process_can_be_read() {
    let memory = AvailableMemory::now().unwrap();
    assert!(memory.bytes > 0 && memory.bytes <= memory.limit_bytes, "{memory:?}");
    assert!(memory.to_string().contains(" bytes, by "), "{memory}");
    assert_eq!(AvailableMemory::bounded(4096, 8), 4096);
    assert_eq!(AvailableMemory::bounded(u64::MAX, 2), memory.limit_bytes / 2);
}
