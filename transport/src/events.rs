//! Log events about peers. Their target, `towline::peer`, is part of the interface, whichever module emits
//! them.

use std::fmt::Display;

use crate::backend::path::Path;
use crate::error::{Error, ErrorKind};

const PEER: &str = "towline::peer";

/// Logs an open connection, at either end, and each candidate path.
pub(crate) fn connected(connection: u64, path: &Path) {
    tracing::info!(target: PEER, address = %path.address(), path = %path.chosen(), connection, "peer connected");
    for candidate in path.candidates() {
        let (transport, state, reason) = (candidate.name, candidate.state, &candidate.reason);
        tracing::debug!(target: PEER, connection, %transport, ?state, %reason, "candidate");
    }
}

/// Logs the end of a connection.
pub(crate) fn ended(connection: u64, path: &Path, why: &Error) {
    let address = path.address();
    if why.kind() == ErrorKind::Closed {
        tracing::info!(target: PEER, %address, connection, "peer left");
    } else {
        tracing::info!(target: PEER, %address, connection, error = %why, "peer lost");
    }
}

/// Logs a peer that a listener refused.
pub(crate) fn refused(from: impl Display, error: &Error) {
    tracing::info!(target: PEER, %from, %error, "peer refused");
}
