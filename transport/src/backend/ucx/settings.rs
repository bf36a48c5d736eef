//! What UCX is told where nobody says otherwise, and what an address may tell it.

use std::env;

use ucx_sys::Library;

use crate::error::{Error, ErrorKind, Result};

/// Ours, and why. What the user has in the environment, or in the address, wins.
const DEFAULTS: [(&str, &str); 2] = [
    // Endpoints that report a lost peer may use shared memory all the same; a lost peer is told by the control stream.
    ("MM_ERROR_HANDLING", "y"),
    // The control stream tells of a silent peer, in a stated time.
    ("KEEPALIVE_INTERVAL", "inf"),
];

/// The names of transports that `MM_ERROR_HANDLING` is about; UCX warns of a setting that nothing reads.
const SHARED: [&str; 6] = ["all", "sm", "shm", "mm", "posix", "sysv"];

/// Settings for a context: the defaults, but for those that somebody chose, and those of the address.
pub(super) fn with_defaults(ucx: &Library, settings: &[(String, String)]) -> Result<Vec<(String, String)>> {
    if let Some((name, _)) = settings.iter().find(|(name, _)| !ucx.knows_setting(name)) {
        let why =
            format!("UCX {} has no setting {name}: `ucx_info -cf` lists them, as UCX_{name}", ucx.version());
        return Err(Error::new(ErrorKind::Invalid, why));
    }
    let given = |name: &str| settings.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    let chosen = |name: &str| given(name).or_else(|| env::var(format!("UCX_{name}")).ok());
    let shares = chosen("TLS")
        .is_none_or(|tls| tls.split(',').any(|name| SHARED.contains(&name.trim_start_matches('^'))));
    let defaults = DEFAULTS.iter().filter(|(name, _)| chosen(name).is_none());
    let defaults = defaults.filter(|(name, _)| shares || *name != "MM_ERROR_HANDLING");
    let defaults = defaults.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Ok(defaults.chain(settings.iter().cloned()).collect())
}
