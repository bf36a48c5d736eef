//! The result of posting an operation: the header's macros on `ucs_status_ptr_t`, as a type.

use std::ffi::c_void;
use std::ptr::NonNull;

use crate::{UCS_ERR_LAST, ucs_status_ptr_t, ucs_status_t};

/// The result of a function whose name ends in `_nbx`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Posted {
    /// Completed: the callback is not called, and there is nothing to free.
    Done,
    /// Not started: the callback is not called, and there is nothing to free.
    Failed(ucs_status_t),
    /// In flight: a later progress call calls the callback, and `ucp_request_free` frees this.
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
    fn null_status_and_request_are_distinguished() {
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
