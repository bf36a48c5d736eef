//! What a machine may lack: a test that cannot run here skips with its reason, and fails where its need is required.

use libtest_mimic::{Completion, Failed};

/// A comma list of needs whose lack is a failure.
const REQUIRE: &str = "TOWLINE_REQUIRE";

/// The end of a test that cannot run for the lack of `need`, and why.
///
/// # Errors
/// Where `TOWLINE_REQUIRE` asks for it.
pub fn skip(need: &str, reason: &str) -> Result<Completion, Failed> {
    let required = std::env::var(REQUIRE).unwrap_or_default();
    if required.split(',').any(|word| word.trim() == need) {
        return Err(format!("{REQUIRE} asks for {need}, and there is none: {reason}").into());
    }
    Ok(Completion::ignored_with(format!("needs {need}: {reason}")))
}
