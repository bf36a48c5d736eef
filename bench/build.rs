//! Sets `TOWLINE_COMMIT` for a release build in a clone. Without git or the repository, it stays unset and the build goes on.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=TOWLINE_COMMIT");
    let var = |name| std::env::var(name).ok();
    // The builder may have set it. Development builds leave it unset: else every commit would rebuild the crate.
    if var("TOWLINE_COMMIT").is_some() || var("PROFILE").as_deref() != Some("release") {
        return;
    }
    let Some(folder) = var("CARGO_MANIFEST_DIR").map(PathBuf::from) else { return };
    if let Some(commit) = commit(&folder) {
        println!("cargo::rustc-env=TOWLINE_COMMIT={commit}");
    }
}

fn commit(folder: &Path) -> Option<String> {
    let top = git(folder, &["rev-parse", "--show-toplevel"])?;
    // The folder may be vendored in another project's repository.
    if Path::new(&top).canonicalize().ok()? != folder.parent()?.canonicalize().ok()? {
        return None;
    }
    let log = folder.join(git(folder, &["rev-parse", "--git-path", "logs/HEAD"])?);
    if log.exists() {
        println!("cargo::rerun-if-changed={}", log.display());
    }
    git(folder, &["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"])
}

fn git(folder: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).current_dir(folder).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
