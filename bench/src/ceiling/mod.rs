//! The ceilings beside our figures, measured in the same run on the same memory.

pub(crate) mod eventfd;
pub(crate) mod memcpy;
pub(crate) mod socket;
#[cfg(feature = "tls")]
pub(crate) mod tls_socket;
#[cfg(not(feature = "tls"))]
pub(crate) mod without_tls_socket;
#[cfg(not(feature = "tls"))]
pub(crate) use without_tls_socket as tls_socket;

use crate::failure::Failure;

/// Runs `work` on another thread, so that this one can still handle an interruption.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Failure::run(format!("a ceiling: {error}")))
}
