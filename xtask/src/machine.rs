//! The emulated machine with an RDMA device that tests run in (docs/design/0025-rdma-machine.md): an
//! emulator, a kernel with its modules, and the RDMA libraries. All of it is unpacked from Debian packages
//! below the build output; nothing is installed.

use std::env::consts::ARCH;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::packages;
use crate::process::{Outcome, run, target_directory};

/// Its name in `TOWLINE_REQUIRE`.
pub(crate) const NAME: &str = "rdma";
/// The package that depends on the newest full kernel. The cloud kernel lacks two needed modules, RXE and 9P.
const KERNEL: &str = "linux-image-amd64";
/// The emulator's packages, unpacked even if the machine has them. Their missing dependencies are added.
const EMULATOR: [&str; 5] =
    ["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios", "ipxe-qemu"];
/// Packages that the guest has besides the host's files.
const GUEST: [&str; 2] = ["busybox-static", "ibverbs-providers"];
/// The modules that the guest's kernel loads, each after its dependencies.
const MODULES: [&str; 26] = [
    "crc32_generic",
    "crc32c_generic",
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "9pnet",
    "9pnet_virtio",
    "netfs",
    "fscache",
    "9p",
    "overlay",
    "dummy",
    "ib_core",
    "ib_uverbs",
    "ib_umad",
    "ib_cm",
    "iw_cm",
    "configfs",
    "rdma_cm",
    "rdma_ucm",
    "udp_tunnel",
    "ip6_udp_tunnel",
    "crc32c-intel",
    "rdma_rxe",
];
/// The guest's first process. Its arguments are a script of the host and that script's arguments.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for module in $(cat /modules); do insmod "/lib/$module.ko" || echo "no module $module"; done
for files in host guest; do
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,ro,cache=loose,noatime $files /$files
done
exec sh "/host$@"
"#;
/// Mount points in the guest's initial file system.
const PLACES: [&str; 6] = ["proc", "dev", "host", "guest", "written", "whole"];

/// Returns the machine's folder. `tests/rdma/machine.rs` uses the same path.
pub(crate) fn folder() -> PathBuf {
    target_directory().join("rdma-vm")
}

/// Returns true if the machine exists and was made by this recipe.
pub(crate) fn is_there() -> bool {
    fs::read_to_string(folder().join("recipe")).is_ok_and(|made| made == recipe())
}

fn recipe() -> String {
    format!("{KERNEL} {EMULATOR:?} {GUEST:?} {MODULES:?} {PLACES:?}\n{INIT}")
}

/// Makes the machine unless it exists. It appears only once it is complete.
pub(crate) fn fetch(deadline: Instant) -> Outcome {
    if is_there() {
        return Ok(());
    }
    if ARCH != "x86_64" {
        return Err(format!("an emulated RDMA machine is available on x86_64 only, not on {ARCH}"));
    }
    let partial = folder().with_added_extension("partial");
    for old in [&partial, &folder()] {
        if old.exists() {
            fs::remove_dir_all(old).map_err(|error| format!("{}: {error}", old.display()))?;
        }
    }
    packages::update(deadline);
    let kernel = partial.join("kernel");
    packages::unpack(&[newest_kernel()?], &kernel, deadline)?;
    packages::unpack(&emulator()?, &partial.join("emulator"), deadline)?;
    packages::unpack(&GUEST.map(str::to_owned), &partial.join("guest"), deadline)?;
    let made = assemble(&partial, &kernel).map_err(|error| format!("{}: {error}", partial.display()))?;
    pack(&made, &partial.join("initrd"), deadline)?;
    let finished = || {
        fs::remove_dir_all(&kernel)?;
        fs::remove_dir_all(&made)?;
        fs::write(partial.join("recipe"), recipe())?;
        fs::rename(&partial, folder())
    };
    finished().map_err(|error| format!("{}: {error}", partial.display()))
}

/// Returns the package that [`KERNEL`] depends on today.
fn newest_kernel() -> Result<String, String> {
    let said = said(Command::new("apt-cache").args(["depends", KERNEL]))?;
    let mut depends = said.lines().filter_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    let version = depends.next().ok_or_else(|| format!("{KERNEL} depends on no kernel"))?;
    Ok(format!("linux-image-{version}"))
}

/// Returns the emulator's packages and those that apt-get would install with them. A real installation might
/// remove packages, so none is made.
fn emulator() -> Result<Vec<String>, String> {
    let plan = ["--simulate", "install", "--no-install-recommends", EMULATOR[0]];
    let said = said(Command::new("apt-get").arg("--quiet").args(plan))?;
    let lacking = said.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next());
    let mut packages: Vec<_> = EMULATOR.into_iter().chain(lacking).map(str::to_owned).collect();
    packages.sort_unstable();
    packages.dedup();
    Ok(packages)
}

/// Runs a command and returns its output.
fn said(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("{name}: {}", text(&output.stderr)))
    }
}

/// Moves the kernel to its boot path, and collects the guest's initial files in a folder of their own.
fn assemble(partial: &Path, kernel: &Path) -> io::Result<PathBuf> {
    let missing = |what: &str| io::Error::new(io::ErrorKind::NotFound, format!("the kernel has no {what}"));
    let image = files(&kernel.join("boot"))?.into_iter().find(|file| name(file).starts_with("vmlinuz-"));
    fs::rename(image.ok_or_else(|| missing("image"))?, partial.join("vmlinuz"))?;
    let first = partial.join("first");
    for place in PLACES.into_iter().chain(["bin", "lib"]) {
        fs::create_dir_all(first.join(place))?;
    }
    let modules = files(&kernel.join("lib/modules"))?;
    for module in MODULES {
        let file = format!("{module}.ko");
        let found = modules.iter().find(|found| name(found) == file).ok_or_else(|| missing(&file))?;
        fs::copy(found, first.join("lib").join(&file))?;
    }
    fs::write(first.join("modules"), MODULES.join("\n"))?;
    fs::write(first.join("init"), INIT)?;
    fs::set_permissions(first.join("init"), fs::Permissions::from_mode(0o755))?;
    // On the host, /bin is a link, which a folder of the guest would hide.
    fs::rename(partial.join("guest/bin/busybox"), first.join("bin/busybox"))?;
    fs::remove_dir(partial.join("guest/bin"))?;
    Ok(first)
}

/// Packs a folder into an initrd archive.
fn pack(folder: &Path, archive: &Path, deadline: Instant) -> Outcome {
    let mut command = Command::new("sh");
    command.args(["-c", "cd \"$1\" && find . | bin/busybox cpio -o -H newc > \"$2\"", "sh"]);
    run(command.arg(folder).arg(archive), deadline)
}

/// Returns all files below a folder.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.append(&mut files(&entry.path())?);
        } else {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}
