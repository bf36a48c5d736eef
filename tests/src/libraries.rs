//! The two UCX that `cargo xtask install` provides.

use std::env;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use crate::provided;

/// A UCX on this machine.
#[derive(Debug)]
pub struct Installed {
    /// Its `libucp`.
    pub libucp: PathBuf,
    /// Another name for it, as somebody else in the process might load it.
    pub alias: PathBuf,
    /// The folder of its headers, which may be missing.
    pub headers: PathBuf,
    /// What it may be.
    pub minor_versions: RangeInclusive<u32>,
    /// The `libucp` of the other one.
    pub other: PathBuf,
}

/// Looks for one.
pub type Find = fn() -> Result<Installed, String>;
/// Both of them.
pub const BOTH: [(&str, Find); 2] = [("older", older), ("newer", newer)];

/// That of the package `libucx0`.
///
/// # Errors
/// It is not installed.
pub fn older() -> Result<Installed, String> {
    let (libucp, other) = (package()?, wheel()?.join(LIBUCP));
    let alias = libucp.canonicalize().map_err(|error| format!("{}: {error}", libucp.display()))?;
    Ok(Installed { libucp, alias, headers: "/usr/include".into(), minor_versions: 13..=21, other })
}

/// That of the wheel.
///
/// # Errors
/// It was not fetched.
pub fn newer() -> Result<Installed, String> {
    let (wheel, other) = (wheel()?, package()?);
    let (libucp, alias) = (wheel.join(LIBUCP), wheel.join("lib/libucp.so"));
    Ok(Installed { libucp, alias, headers: wheel.join("include"), minor_versions: 22..=22, other })
}

/// The `libucp` of the package `libucx0`.
fn package() -> Result<PathBuf, String> {
    let folders =
        [format!("/usr/lib/{}-linux-gnu", env::consts::ARCH), "/usr/lib64".into(), "/usr/lib".into()];
    let mut libraries = folders.iter().map(|folder| Path::new(folder).join("libucp.so.0"));
    libraries.find(|library| library.exists()).ok_or_else(|| "there is no package libucx0".into())
}

const LIBUCP: &str = "lib/libucp.so.0";

/// The folder of the wheel that `xtask/src/wheel.rs` fetches.
fn wheel() -> Result<PathBuf, String> {
    let wheel = provided::folder("libucx-cu12-1.22.0/libucx");
    if wheel.join(LIBUCP).is_file() { Ok(wheel) } else { Err(format!("{} was not fetched", wheel.display())) }
}
