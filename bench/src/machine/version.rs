//! `towline --version`: the version, the commit, and the libraries that the transports found.

use towline::{BackendReport, BackendState, Endpoint};

use crate::failure::Failure;
use crate::terminal::print::print;

/// The package's version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit of this binary: the variable `TOWLINE_COMMIT` at build time, or found by git in a release
/// build.
pub(crate) const COMMIT: Option<&str> = option_env!("TOWLINE_COMMIT");

/// Prints the version, the commit and the libraries.
pub(crate) fn run() -> Result<(), Failure> {
    let endpoint = Endpoint::new()?;
    print(|out| {
        writeln!(out, "towline {VERSION}")?;
        writeln!(out, "commit   {}", COMMIT.unwrap_or("unknown: built without TOWLINE_COMMIT"))?;
        for BackendReport { name, state } in endpoint.backends() {
            let library = || endpoint.inventory(name).and_then(|inventory| inventory.library);
            match state {
                BackendState::Ready { version: Some(version), .. } => {
                    let file = library().map(|file| format!(", {}", file.display())).unwrap_or_default();
                    writeln!(out, "{name:<8} {version}{file}")?;
                }
                BackendState::Unavailable { reason, .. } => writeln!(out, "{name:<8} not found: {reason}")?,
                _ => {}
            }
        }
        Ok(())
    })
}
