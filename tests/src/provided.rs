//! Folders that `cargo xtask install` creates below the build output.

use std::env;
use std::path::{Path, PathBuf};

/// Returns the path of the folder with this name. It may not exist.
#[must_use]
pub fn folder(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a package of a workspace");
    root.join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into())).join(name)
}
