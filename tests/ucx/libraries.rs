//! The two UCX that `cargo xtask install` provides.

use std::env;
use std::path::{Path, PathBuf};

/// A UCX on this machine.
#[derive(Debug, Default)]
pub(crate) struct Installed {
    /// Its `libucp`.
    pub(crate) libucp: PathBuf,
    /// Another name for it, as somebody else in the process might load it.
    pub(crate) alias: PathBuf,
    /// The folder of its headers.
    pub(crate) headers: PathBuf,
    pub(crate) minor_version: u32,
    /// The `libucp` of the other one.
    pub(crate) other: PathBuf,
}

pub(crate) type Find = fn() -> Result<Installed, String>;
pub(crate) const BOTH: [(&str, Find); 2] = [("older", older), ("newer", newer)];

/// Debian's package.
pub(crate) fn older() -> Result<Installed, String> {
    let folders =
        [format!("/usr/lib/{}-linux-gnu", env::consts::ARCH), "/usr/lib64".into(), "/usr/lib".into()];
    let libraries = folders.iter().map(|folder| Path::new(folder).join("libucp.so.0"));
    let libucp =
        libraries.into_iter().find(|library| library.exists()).ok_or("there is no package libucx0")?;
    let alias = libucp.canonicalize().map_err(|error| format!("{}: {error}", libucp.display()))?;
    Ok(Installed {
        libucp,
        alias,
        headers: "/usr/include".into(),
        minor_version: 13,
        other: wheel().join(LIBUCP),
    })
}

/// The wheel that `xtask/src/wheel.rs` fetches.
pub(crate) fn newer() -> Result<Installed, String> {
    let wheel = wheel();
    let libucp = wheel.join(LIBUCP);
    if !libucp.is_file() {
        return Err(format!("{} was not fetched", libucp.display()));
    }
    let alias = wheel.join("lib/libucp.so");
    let other = older()?.libucp;
    Ok(Installed { libucp, alias, headers: wheel.join("include"), minor_version: 22, other })
}

const LIBUCP: &str = "lib/libucp.so.0";

fn wheel() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let target = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    root.join(target).join("libucx-cu12-1.22.0/libucx")
}
