//! Code of others: what functions, their values and their errors do is run here, so that a panic fails one run and nothing else.
//!
//! Each step has a guard of its own. A destructor that panics while another panic unwinds ends the process, so nothing that has
//! a destructor of others is still held when the next step begins.

use std::any::Any;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::Failure;

/// Runs `code`; a panic is its failure.
pub(crate) fn guarded<T>(code: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(code)).unwrap_or_else(|payload| {
        let failure = Failure::from_panic(&*payload);
        discard_payload(payload);
        Err(failure)
    })
}

/// Drops `value`; a panic of its destructor is a failure.
pub(crate) fn discard<T>(value: T) -> Result<(), Failure> {
    guarded(|| {
        drop(value);
        Ok(())
    })
}

/// Drops what a panic carried. What its destructor panics with in turn is left where it is.
pub(crate) fn discard_payload(payload: Box<dyn Any + Send>) {
    if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        mem::forget(another);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    /// Panics with another of itself when it is dropped.
    struct PanicsOnDrop;

    impl Drop for PanicsOnDrop {
        fn drop(&mut self) {
            std::panic::panic_any(Self);
        }
    }

    #[test]
    fn a_payload_that_panics_for_ever_is_dropped_once() {
        let failure = guarded::<()>(|| std::panic::panic_any(PanicsOnDrop)).unwrap_err();
        assert_eq!(failure.kind, ErrorKind::Panicked);
        assert_eq!(discard(PanicsOnDrop).unwrap_err().kind, ErrorKind::Panicked);
        assert_eq!(guarded(|| Ok(1)), Ok(1));
    }
}
