//! Blocks a thread on a future, within a deadline.

use std::cell::RefCell;
use std::future::Future;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};

use crate::error::{Error, ErrorKind, Failed, Result};
use crate::platform::process::Own;

thread_local! {
    /// Runs nothing by itself. It gives a waiting thread a reactor to sleep on.
    static RUNTIME: RefCell<Option<Own<Runtime>>> = const { RefCell::new(None) };
}

/// Blocks the thread until `work` ends, or `deadline` has passed and `work` is dropped.
///
/// # Errors
/// `TimedOut` after `deadline`; `Invalid` within an async runtime, or in a thread that ends.
pub(super) fn wait<T>(deadline: Option<Duration>, work: impl Future<Output = T>) -> Result<T> {
    if Handle::try_current().is_ok() {
        let why = "a blocking call would stop the async runtime of this thread: await the async API instead";
        return Err(Error::new(ErrorKind::Invalid, why));
    }
    let waited = RUNTIME.try_with(|runtime| {
        let mut runtime = runtime.borrow_mut();
        // A forked child's copy shares its reactor with the parent.
        let runtime = match runtime.take_if(|known| known.process().is_this()) {
            Some(known) => runtime.insert(known),
            None => {
                let made = Builder::new_current_thread().enable_all().build().map_err(Error::io)?;
                runtime.insert(Own::new(made))
            }
        };
        match deadline {
            None => Ok(runtime.block_on(work)),
            Some(deadline) => runtime
                .block_on(async { tokio::time::timeout(deadline, work).await })
                .map_err(|_| timed_out(deadline)),
        }
    });
    waited.unwrap_or_else(|_| Err(Error::new(ErrorKind::Invalid, "this thread has ended")))
}

fn timed_out(deadline: Duration) -> Error {
    Error::new(ErrorKind::TimedOut, format!("not done within {} s", deadline.as_secs_f64()))
}

/// Like [`wait`], for `work` that owns `memory`. The memory is returned unless the operation continues
/// detached.
pub(super) fn wait_with<M, T>(
    deadline: Option<Duration>,
    memory: M,
    work: impl AsyncFnOnce(M) -> Result<T, Failed<M>>,
) -> Result<T, Failed<Option<M>>> {
    let mut unused = Some(memory);
    let begin = async {
        match unused.take() {
            Some(memory) => work(memory).await,
            None => unreachable!("a future is run once"),
        }
    };
    match wait(deadline, begin) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(failed)) => Err(Failed { error: failed.error, returned: Some(failed.returned) }),
        Err(error) => Err(Failed { error, returned: unused }),
    }
}
