//! Names of this process, for `mem` addresses.

use std::collections::HashMap;
use std::sync::MutexGuard;

use tokio::io::DuplexStream;
use tokio::sync::mpsc;

use crate::error::{Error, ErrorKind, Result};
use crate::platform::mutex::Mutex;
use crate::platform::process::PerProcess;

/// Bytes that one direction of a handshake within the process may hold.
pub(crate) const STREAM_LEN: usize = 64 << 10;

/// The listeners at `mem` names of this process.
static NAMES: PerProcess<Mutex<HashMap<String, mpsc::Sender<DuplexStream>>>> =
    PerProcess::new(Mutex::default);

/// The names in use, each with the queue of its listener.
pub(crate) fn names() -> MutexGuard<'static, HashMap<String, mpsc::Sender<DuplexStream>>> {
    NAMES.get().lock()
}

/// Passes a stream to the listener of a `mem` name.
pub(crate) async fn call(name: &str, stream: DuplexStream) -> Result<()> {
    let nobody = || Error::new(ErrorKind::Refused, "nobody in this process listens there");
    let listener = names().get(name).cloned().ok_or_else(nobody)?;
    listener.send(stream).await.map_err(|_| nobody())
}
