//! What is logged of peers. The target of these events is part of the interface: `towline::peer`, whatever module they come from.

use std::fmt::Display;

use crate::backend::path::Path;
use crate::error::{Error, ErrorKind};

const PEER: &str = "towline::peer";

/// A connection stands, at either end.
pub(crate) fn connected(connection: u64, path: &Path) {
    tracing::info!(target: PEER, address = %path.address(), path = %path.chosen(), connection, "peer connected");
    for candidate in path.candidates() {
        let (transport, state, reason) = (candidate.name, candidate.state, &candidate.reason);
        tracing::debug!(target: PEER, connection, %transport, ?state, %reason, "candidate");
    }
}

/// A connection has ended, and `why`.
pub(crate) fn ended(connection: u64, path: &Path, why: &Error) {
    let address = path.address();
    if why.kind() == ErrorKind::Closed {
        tracing::info!(target: PEER, %address, connection, "peer left");
    } else {
        tracing::info!(target: PEER, %address, connection, error = %why, "peer lost");
    }
}

/// A listener did not accept whoever came from there.
pub(crate) fn refused(from: impl Display, error: &Error) {
    tracing::info!(target: PEER, %from, %error, "peer refused");
}
