//! The result of a task, which is somewhere, or will be.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::driver::ClientDriver;
use crate::error::Result;
use crate::protocol::Key;

/// A result that some worker has, or will have. It is an argument of other tasks as it is, without coming here.
///
/// Clones are handles to the same result. When the last is dropped the result is released: it is kept only as long as tasks need
/// it that were submitted before.
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

    /// Waits until the result is with a worker. Cancel-safe.
    ///
    /// # Errors
    /// Why it will never be: the task's error or panic, or that of a task that it needs; see
    /// [`ErrorKind`](crate::ErrorKind).
    pub async fn done(&self) -> Result<()> {
        self.handle.driver.done(self.key()).await.map(drop)
    }

    /// Waits for the result and has it come here, straight from a worker that has it. Cancel-safe.
    ///
    /// # Errors
    /// As [`done`](Self::done); `Invalid` if it is no `T`.
    pub async fn result(&self) -> Result<T>
    where
        T: DeserializeOwned,
    {
        self.handle.driver.value(self.key()).await?.read()
    }

    /// Gives the task up, and all that need it, if it is not done: they end with `Cancelled`. A function that is running runs to
    /// its end, for nothing.
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
