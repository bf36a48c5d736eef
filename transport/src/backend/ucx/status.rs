//! Maps UCX statuses to error kinds.

use ucx_sys::{
    UCS_ERR_BUFFER_TOO_SMALL, UCS_ERR_CANCELED, UCS_ERR_CONNECTION_RESET, UCS_ERR_ENDPOINT_TIMEOUT,
    UCS_ERR_EXCEEDS_LIMIT, UCS_ERR_FIRST_ENDPOINT_FAILURE, UCS_ERR_FIRST_LINK_FAILURE, UCS_ERR_INVALID_ADDR,
    UCS_ERR_INVALID_PARAM, UCS_ERR_IO_ERROR, UCS_ERR_LAST_ENDPOINT_FAILURE, UCS_ERR_LAST_LINK_FAILURE,
    UCS_ERR_MESSAGE_TRUNCATED, UCS_ERR_NO_DEVICE, UCS_ERR_NO_MEMORY, UCS_ERR_NOT_CONNECTED,
    UCS_ERR_NOT_IMPLEMENTED, UCS_ERR_REJECTED, UCS_ERR_TIMED_OUT, UCS_ERR_UNREACHABLE, UCS_ERR_UNSUPPORTED,
    ucs_status_t,
};

use crate::error::ErrorKind;

/// The statuses of a lost peer. Which one occurs depends on transport, version and the requests in flight.
const LOST: [ucs_status_t; 9] = [
    UCS_ERR_IO_ERROR,
    UCS_ERR_CANCELED,
    UCS_ERR_TIMED_OUT,
    UCS_ERR_REJECTED,
    UCS_ERR_NOT_CONNECTED,
    UCS_ERR_CONNECTION_RESET,
    UCS_ERR_ENDPOINT_TIMEOUT,
    UCS_ERR_UNREACHABLE,
    UCS_ERR_MESSAGE_TRUNCATED,
];

/// Returns the kind for a status on an open connection.
pub(super) fn kind(status: ucs_status_t) -> ErrorKind {
    match status {
        status if LOST.contains(&status) => ErrorKind::PeerLost,
        UCS_ERR_LAST_LINK_FAILURE..=UCS_ERR_FIRST_LINK_FAILURE
        | UCS_ERR_LAST_ENDPOINT_FAILURE..=UCS_ERR_FIRST_ENDPOINT_FAILURE => ErrorKind::PeerLost,
        UCS_ERR_NO_MEMORY | UCS_ERR_EXCEEDS_LIMIT | UCS_ERR_BUFFER_TOO_SMALL => ErrorKind::TooLarge,
        UCS_ERR_INVALID_PARAM => ErrorKind::Invalid,
        UCS_ERR_NOT_IMPLEMENTED | UCS_ERR_UNSUPPORTED => ErrorKind::Unsupported,
        _ => ErrorKind::Io,
    }
}

/// Returns the kind for a status while opening, when no peer can be lost yet.
pub(super) fn opening_kind(status: ucs_status_t) -> ErrorKind {
    match status {
        UCS_ERR_UNREACHABLE | UCS_ERR_INVALID_ADDR | UCS_ERR_NO_DEVICE => ErrorKind::Unavailable,
        status => kind(status),
    }
}

#[cfg(test)]
mod tests {
    use ucx_sys::{UCS_ERR_BUSY, UCS_ERR_NO_RESOURCE};

    use super::*;

    #[test]
    fn every_status_of_a_dead_peer_means_peer_lost() {
        for status in LOST.into_iter().chain([-40, -50, -59, -60, -79, -80, -89]) {
            assert_eq!(kind(status), ErrorKind::PeerLost, "{status}");
        }
    }

    #[test]
    fn statuses_map_to_error_kinds() {
        let kinds = [
            (UCS_ERR_NO_MEMORY, ErrorKind::TooLarge),
            (UCS_ERR_EXCEEDS_LIMIT, ErrorKind::TooLarge),
            (UCS_ERR_INVALID_PARAM, ErrorKind::Invalid),
            (UCS_ERR_UNSUPPORTED, ErrorKind::Unsupported),
            (UCS_ERR_NOT_IMPLEMENTED, ErrorKind::Unsupported),
            (UCS_ERR_NO_RESOURCE, ErrorKind::Io),
            (UCS_ERR_BUSY, ErrorKind::Io),
            (-99, ErrorKind::Io),
        ];
        for (status, expected) in kinds {
            assert_eq!(kind(status), expected, "{status}");
        }
        assert_eq!(opening_kind(UCS_ERR_UNREACHABLE), ErrorKind::Unavailable);
        assert_eq!(opening_kind(UCS_ERR_NO_DEVICE), ErrorKind::Unavailable);
        assert_eq!(opening_kind(UCS_ERR_INVALID_PARAM), ErrorKind::Invalid);
    }
}
