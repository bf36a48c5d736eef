//! Guards around user code. Functions, their values and their errors run in here, so that a panic fails only
//! one attempt.
//!
//! Each step has a guard of its own. A destructor that panics while another panic unwinds ends the process.
//! So no value with a user's destructor is alive when the next step begins.

use std::any::Any;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::Failure;

/// Runs `code`. A panic becomes a failure.
pub(crate) fn guarded<T>(code: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(code)).unwrap_or_else(|payload| {
        let failure = Failure::from_panic(&*payload);
        discard_payload(payload);
        Err(failure)
    })
}

/// Drops `value`. A panic of its destructor becomes a failure.
pub(crate) fn discard<T>(value: T) -> Result<(), Failure> {
    guarded(|| {
        drop(value);
        Ok(())
    })
}

/// Drops the payload of a panic. If its destructor panics in turn, the second payload is leaked.
pub(crate) fn discard_payload(payload: Box<dyn Any + Send>) {
    if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        mem::forget(another);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    /// Panics with another instance of itself when it is dropped.
    struct PanicsOnDrop;

    impl Drop for PanicsOnDrop {
        fn drop(&mut self) {
            std::panic::panic_any(Self);
        }
    }

    #[test]
    fn panicking_panic_payload_is_dropped_once() {
        let failure = guarded::<()>(|| std::panic::panic_any(PanicsOnDrop)).unwrap_err();
        assert_eq!(failure.kind, ErrorKind::Panicked);
        assert_eq!(discard(PanicsOnDrop).unwrap_err().kind, ErrorKind::Panicked);
        assert_eq!(guarded(|| Ok(1)), Ok(1));
    }
}
