//! What a call that posts an operation came to: the macros of the header on `ucs_status_ptr_t`, as a type.

use std::ffi::c_void;
use std::ptr::NonNull;

use crate::{UCS_ERR_LAST, ucs_status_ptr_t, ucs_status_t};

/// What came back from a function whose name ends in `_nbx`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Posted {
    /// It is done: its callback is not called, and there is nothing to free.
    Done,
    /// It did not begin: its callback is not called, and there is nothing to free.
    Failed(ucs_status_t),
    /// It goes on: its callback is called in some later progress, and `ucp_request_free` takes this back.
    Pending(NonNull<c_void>),
}

impl From<ucs_status_ptr_t> for Posted {
    fn from(returned: ucs_status_ptr_t) -> Self {
        let Some(request) = NonNull::new(returned) else { return Self::Done };
        // The last hundred addresses are negative statuses.
        match returned.addr().cast_signed() {
            status if (isize::from(UCS_ERR_LAST)..0).contains(&status) => {
                Self::Failed(status as ucs_status_t)
            }
            _ => Self::Pending(request),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::UCS_ERR_NO_RESOURCE;

    #[test]
    fn null_a_status_and_a_request_are_told_apart() {
        let pointer = |value: isize| std::ptr::without_provenance_mut::<c_void>(value.cast_unsigned());
        assert_eq!(Posted::from(pointer(0)), Posted::Done);
        assert_eq!(Posted::from(pointer(-2)), Posted::Failed(UCS_ERR_NO_RESOURCE));
        assert_eq!(Posted::from(pointer(-100)), Posted::Failed(UCS_ERR_LAST));
        for request in [-101, 0x1000] {
            let request = pointer(request);
            assert_eq!(Posted::from(request), Posted::Pending(NonNull::new(request).unwrap()));
        }
    }
}
