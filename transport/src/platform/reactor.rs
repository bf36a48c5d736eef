//! A descriptor that is registered with the caller's tokio reactor, together with its owner.

#![expect(unsafe_code, reason = "tokio cannot see that the owner travels with the registration")]

use std::os::fd::{AsFd, AsRawFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The owner of a registered descriptor.
#[derive(Debug)]
pub(crate) struct Owner<T>(T);

impl<T: AsFd> Owner<T> {
    pub(crate) fn descriptor(&self) -> &T {
        &self.0
    }
}

impl<T: AsFd> AsRawFd for Owner<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Registers `owner`'s descriptor with the reactor of the current runtime. `None` without a runtime, or if
/// registration fails. Panics, in tokio, on a runtime that was built without I/O.
pub(crate) fn register<T: AsFd>(owner: T, interest: Interest) -> Option<AsyncFd<Owner<T>>> {
    tokio::runtime::Handle::try_current().ok()?;
    // SAFETY: M7: the registration owns `owner`, which keeps its descriptor open (`AsFd`) and never changes
    // it, until the registration is dropped.
    unsafe { AsyncFd::register_with_interest(Owner(owner), interest) }.ok()
}
