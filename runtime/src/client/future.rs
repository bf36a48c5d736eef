//! A handle to the result of a task.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::driver::ClientDriver;
use crate::error::Result;
use crate::protocol::Key;

/// A handle to a result that a worker has or will have. It can be passed as an argument of other tasks,
/// without being fetched.
///
/// Clones are handles to the same result. Dropping the last handle releases the result: it stays only until
/// the tasks submitted before that need it are done.
pub struct Future<T> {
    handle: Arc<Handle>,
    result: PhantomData<fn() -> T>,
}

#[derive(Debug)]
struct Handle {
    driver: Arc<ClientDriver>,
    key: Key,
}

impl<T> Future<T> {
    pub(crate) fn new(driver: Arc<ClientDriver>, key: Key) -> Self {
        Self { handle: Arc::new(Handle { driver, key }), result: PhantomData }
    }

    pub(crate) fn key(&self) -> Key {
        self.handle.key
    }

    /// Waits until a worker has the result. Cancel-safe.
    ///
    /// # Errors
    /// The task's error or panic, or that of a task that it depends on; see [`ErrorKind`](crate::ErrorKind).
    pub async fn done(&self) -> Result<()> {
        self.handle.driver.done(self.key()).await.map(drop)
    }

    /// Waits for the result and fetches it directly from a worker that has it. Cancel-safe.
    ///
    /// # Errors
    /// As [`done`](Self::done); `Invalid` if the bytes do not decode as a `T`.
    pub async fn result(&self) -> Result<T>
    where
        T: DeserializeOwned,
    {
        self.handle.driver.value(self.key()).await?.read()
    }

    /// Cancels the task and all that depend on it, unless it is done: they end with `Cancelled`. A function
    /// that is already running runs to its end, and its result is discarded.
    pub fn cancel(&self) {
        self.handle.driver.cancel(self.key());
    }

    /// Releases the result, as dropping the last handle does.
    pub fn release(self) {}
}

impl<T> Clone for Future<T> {
    fn clone(&self) -> Self {
        Self { handle: self.handle.clone(), result: PhantomData }
    }
}

impl<T> fmt::Debug for Future<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Future").field(&self.handle.key).finish()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.driver.release(self.key);
    }
}
