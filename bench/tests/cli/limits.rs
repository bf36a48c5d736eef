//! The command with small limits: on file sizes and memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::against::needs;
use crate::bench::{SHORT, rows};
use crate::cluster::scheduler_by;
use crate::command::{Finished, Running, spawn, towline};

/// Returns a command that runs after `limit` in a shell, with `arguments`.
fn limited(limit: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{limit}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_towline")]);
    command.args(arguments);
    command
}

fn bench(limit: &str, line: &str) -> Finished {
    let words: Vec<&str> = ["bench"].into_iter().chain(line.split_whitespace()).chain(SHORT).collect();
    spawn(&mut limited(limit, &words)).finish()
}

/// Returns the entry of a backend in a document of `info`.
fn of(info: &Finished, name: &str) -> Value {
    info.exits_with(0);
    let document = info.document();
    let backends = document["backends"].as_array().unwrap();
    backends.iter().find(|backend| backend["name"] == name).unwrap().clone()
}

/// Less than a ring needs, in the shell's units of 512 or 1024 bytes.
const NO_RING: [&str; 2] = ["ulimit -f 0", "ulimit -f 100"];
/// Enough for a ring, and less than an arena's segment.
const A_RING: &str = "ulimit -f 800";
const REASON: &str = "limit on the size of files";

#[test]
fn a_limit_on_file_size_costs_shm_and_nothing_else() {
    for limit in NO_RING {
        let shm = of(&spawn(&mut limited(limit, &["info", "--json"])).finish(), "shm");
        assert_eq!(shm["state"], "unavailable", "{limit}: {shm}");
        assert!(shm["reason"].as_str().unwrap().contains(REASON), "{limit}: {shm}");
        assert!(shm["remedy"].as_str().unwrap().contains("ulimit -f"), "{limit}: {shm}");
        let measured = rows(&bench(limit, "--transport auto --pattern latency,bandwidth --size 8,1M --json"));
        assert!(measured.iter().all(|row| row["path"] == "tcp"), "{limit}: {measured:?}");
        let refused = bench(limit, "--transport shm");
        refused.is_wrong_usage(REASON);
    }
    assert_eq!(of(&spawn(&mut limited(A_RING, &["info", "--json"])).finish(), "shm")["state"], "ready");
    let measured = rows(&bench(A_RING, "--transport auto --pattern bandwidth --size 64K,4M --json"));
    assert!(measured.iter().all(|row| row["path"] == "shm"), "{measured:?}");
}

#[test]
fn a_missing_place_is_refused_with_its_option() {
    for option in ["--place", "--from", "--to"] {
        let refused = bench(NO_RING[0], &format!("--transport mem {option} arena"));
        refused.is_wrong_usage(&format!("{option}: this machine has no memory in `arena`: "));
    }
}

#[test]
fn sizes_beyond_the_file_size_limit_are_refused() {
    let refused = bench(A_RING, "--transport shm --pattern bandwidth --size 4M --place arena");
    refused.exits_with(1);
    assert!(refused.err.contains(REASON), "{}", refused.err);
}

#[test]
fn a_scheduler_with_a_limit_on_file_size_outlives_its_local_peers() {
    for limit in NO_RING {
        let (scheduler, address, _) = scheduler_by(&mut limited(limit, &[]));
        for _ in 0..2 {
            towline(&["top", &address, "--once", "--interval", "0.1"]).exits_with(0);
        }
        drop(scheduler);
    }
}

#[test]
fn a_file_beyond_the_limit_on_file_size_is_a_failed_run_that_names_both() {
    const LIMIT: &str = "limit on the size of files is 0 bytes";
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("run.json");
    let name = file.display().to_string();
    for (option, line) in [
        ("--json-file", "info --json-file"),
        ("--html", "bench --transport mem --pattern latency --html"),
        ("--save-histograms", "bench --transport mem --pattern latency --save-histograms"),
    ] {
        fs::write(&file, "an older run").unwrap();
        let bench = line.starts_with("bench");
        let words = line.split_whitespace().chain([&name[..]]).chain(SHORT.into_iter().filter(|_| bench));
        let finished = spawn(&mut limited("ulimit -f 0", &words.collect::<Vec<_>>())).finish();
        finished.exits_with(1);
        assert!(finished.err.contains(&format!("{option} {name}: ")), "{line}: {}", finished.err);
        assert!(finished.err.contains(LIMIT), "{line}: {}", finished.err);
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            0,
            "{line}: neither older nor half a document"
        );
    }
    for line in [&["info"][..], &["info", "--json"]] {
        let mut command = limited("ulimit -f 0", line);
        command.stdout(fs::File::create(&file).unwrap()).stderr(std::process::Stdio::piped());
        let finished = Running(command.spawn().unwrap()).finish();
        finished.exits_with(1);
        assert!(finished.err.contains("on stdout") && finished.err.contains(LIMIT), "{}", finished.err);
    }
}

/// The library leaves signals alone, and child processes start with their defaults.
#[test]
fn child_processes_have_the_default_of_sigxfsz() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_towline"));
    command.args(["keep", "--", "sh", "-c", "ulimit -f 0; echo much > \"$0\"; echo outlived"]);
    let file = tempfile::NamedTempFile::new().unwrap();
    command.arg(file.path()).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let finished = Running(command.spawn().unwrap()).finish();
    assert!(!finished.out.contains("outlived"), "{}", finished.out);
    finished.exits_with(128 + 25);
}

/// A control group that limits memory, removed when this is dropped.
struct Group(PathBuf);

impl Group {
    /// Makes one with a limit of `mib`; `None` without the permission.
    fn new(mib: u64) -> Option<Self> {
        let name = format!("towline-{}-{mib}", std::process::id());
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let (root, limit) = match v1.is_dir() {
            true => (v1, "memory.limit_in_bytes"),
            false => (Path::new("/sys/fs/cgroup"), "memory.max"),
        };
        let group = Self(root.join(name));
        let made = fs::create_dir(&group.0)
            .and_then(|()| fs::write(group.0.join(limit), (mib << 20).to_string()))
            .and_then(|()| fs::metadata(group.0.join("cgroup.procs")));
        match made {
            Ok(_) => Some(group),
            Err(error) => {
                needs("cgroup", &format!("{}: {error}", group.0.display()));
                None
            }
        }
    }

    /// Returns the shell command that enters it.
    fn entered(&self) -> String {
        format!("echo $$ > '{}'", self.0.join("cgroup.procs").display())
    }

    /// Returns its processes that the kernel killed for lack of memory.
    fn killed(&self) -> String {
        let counters =
            ["memory.oom_control", "memory.events"].map(|name| fs::read_to_string(self.0.join(name)));
        let counters = counters.into_iter().flatten().collect::<String>();
        counters.lines().find_map(|line| line.strip_prefix("oom_kill ")).unwrap_or("unknown").to_owned()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // An ended process leaves the group a moment later.
        for _ in 0..200 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn bench_in_little_memory_runs_or_is_refused() {
    const MIB: u64 = 160;
    let Some(group) = Group::new(MIB) else { return };
    let limit = group.entered();
    let info = spawn(&mut limited(&limit, &["info", "--json"])).finish();
    info.exits_with(0);
    let host = &info.document()["host"];
    assert_eq!(host["memory_limit_bytes"], MIB << 20, "{host}");
    assert!(host["memory_available_bytes"].as_u64().unwrap() <= MIB << 20, "{host}");
    assert!(host["memory_bound"].as_str().unwrap().starts_with("the control group /"), "{host}");
    for transport in ["tcp", "shm", "mem"] {
        let refused = bench(&limit, &format!("--transport {transport} --size 64M"));
        refused.is_wrong_usage("do not fit: both ends and the ceilings need");
        // A default size that does not fit is left out; a requested one that fits is measured.
        let measured = rows(&bench(&limit, &format!("--transport {transport} --json")));
        let sizes: Vec<_> = measured.iter().map(|row| row["size_bytes"].as_u64().unwrap()).collect();
        assert_eq!(sizes, [8, 64 << 10, 1 << 20]);
        let line =
            format!("--transport {transport} --size 8M --pattern latency,bandwidth,rate,get,put --json");
        assert_eq!(rows(&bench(&limit, &line)).len(), 5);
    }
    assert_eq!(group.killed(), "0");
}
