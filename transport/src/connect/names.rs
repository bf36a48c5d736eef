//! The listeners at `mem` names of this process.

use std::collections::HashMap;
use std::sync::MutexGuard;

use tokio::io::DuplexStream;
use tokio::sync::mpsc;

use crate::error::{Error, ErrorKind, Result};
use crate::platform::mutex::Mutex;
use crate::platform::process::PerProcess;

/// The buffer of each direction of a handshake within the process, in bytes.
pub(crate) const STREAM_LEN: usize = 64 << 10;

/// The listeners at `mem` names of this process.
static NAMES: PerProcess<Mutex<HashMap<String, mpsc::Sender<DuplexStream>>>> =
    PerProcess::new(Mutex::default);

/// Returns the names in use, each with the queue of its listener.
pub(crate) fn listener_names() -> MutexGuard<'static, HashMap<String, mpsc::Sender<DuplexStream>>> {
    NAMES.get().lock()
}

/// Passes a stream to the listener at a `mem` name.
///
/// # Errors
/// `Refused` if the process has no listener at `name`.
pub(crate) async fn connect_stream(name: &str, stream: DuplexStream) -> Result<()> {
    let refused = || Error::new(ErrorKind::Refused, "no listener of that name in this process");
    let listener = listener_names().get(name).cloned().ok_or_else(refused)?;
    listener.send(stream).await.map_err(|_| refused())
}
