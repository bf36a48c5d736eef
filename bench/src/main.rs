//! The `towline` command.

#![expect(
    unsafe_code,
    reason = "the standard library sets a variable of its own process by unsafe code alone"
)]

use std::env;
use std::process::ExitCode;

/// The signal by which UCX is told to log more, SIGHUP by default. UCX replaces its handler when it is loaded.
const UCX_DEBUG_SIGNAL: &str = "UCX_DEBUG_SIGNO";

fn main() -> ExitCode {
    // The library restores the handler, but a SIGHUP that arrives before that would be lost.
    if env::var_os(UCX_DEBUG_SIGNAL).is_none() {
        // SAFETY: L7: no other thread has been started.
        unsafe { env::set_var(UCX_DEBUG_SIGNAL, "0") };
    }
    towline_bench::run()
}
