//! The two UCX versions that `cargo xtask install` provides.

use std::env;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use crate::provided;

/// A UCX on this machine.
#[derive(Debug)]
pub struct Installed {
    /// Path of its `libucp`.
    pub libucp: PathBuf,
    /// Another path of it, by which other code in the process might load it.
    pub alias: PathBuf,
    /// The folder of its headers, which may be missing.
    pub headers: PathBuf,
    /// The minor versions that it may have.
    pub minor_versions: RangeInclusive<u32>,
    /// Path of the other version's `libucp`.
    pub other: PathBuf,
}

/// Finds one of the versions.
pub type Find = fn() -> Result<Installed, String>;
/// Both versions.
pub const BOTH: [(&str, Find); 2] = [("older", older), ("newer", newer)];

/// Finds the UCX of the package `libucx0`.
///
/// # Errors
/// The package is not installed.
pub fn older() -> Result<Installed, String> {
    let (libucp, other) = (package()?, wheel()?.join(LIBUCP));
    let alias = libucp.canonicalize().map_err(|error| format!("{}: {error}", libucp.display()))?;
    Ok(Installed { libucp, alias, headers: "/usr/include".into(), minor_versions: 13..=21, other })
}

/// Finds the UCX of the wheel.
///
/// # Errors
/// The wheel was not fetched.
pub fn newer() -> Result<Installed, String> {
    let (wheel, other) = (wheel()?, package()?);
    let (libucp, alias) = (wheel.join(LIBUCP), wheel.join("lib/libucp.so"));
    Ok(Installed { libucp, alias, headers: wheel.join("include"), minor_versions: 22..=22, other })
}

/// Returns the `libucp` of the package `libucx0`.
fn package() -> Result<PathBuf, String> {
    let folders =
        [format!("/usr/lib/{}-linux-gnu", env::consts::ARCH), "/usr/lib64".into(), "/usr/lib".into()];
    let mut libraries = folders.iter().map(|folder| Path::new(folder).join("libucp.so.0"));
    libraries.find(|library| library.exists()).ok_or_else(|| "the package libucx0 is not installed".into())
}

const LIBUCP: &str = "lib/libucp.so.0";

/// Returns the folder of the wheel that `xtask/src/wheel.rs` fetches.
fn wheel() -> Result<PathBuf, String> {
    let wheel = provided::folder("libucx-cu12-1.22.0/libucx");
    if wheel.join(LIBUCP).is_file() { Ok(wheel) } else { Err(format!("{} was not fetched", wheel.display())) }
}
