//! What UCX is told where nobody says otherwise, and what an address may tell it.

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

/// Refuses a setting that this UCX has not got, which some versions accept without effect.
pub(super) fn check(ucx: &Library, settings: &[(String, String)]) -> Result<()> {
    let Some((name, _)) = settings.iter().find(|(name, _)| !ucx.knows_setting(name)) else { return Ok(()) };
    let why =
        format!("UCX {} has no setting {name}: `ucx_info -cf` lists them, as UCX_{name}", ucx.version());
    Err(Error::new(ErrorKind::Invalid, why))
}

/// Settings for a context: the defaults, but for those that somebody chose, and those of the address. `environment` tells what
/// the user has there for a setting.
pub(super) fn with_defaults(
    settings: &[(String, String)],
    environment: impl Fn(&str) -> Option<String>,
) -> Vec<(String, String)> {
    let given = |name: &str| settings.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    let chosen = |name: &str| given(name).or_else(|| environment(name));
    let is_shared = |name: &str| SHARED.contains(&name.trim_start_matches('^'));
    let shares = chosen("TLS").is_none_or(|tls| tls.split(',').any(is_shared));
    let defaults = DEFAULTS.iter().filter(|(name, _)| chosen(name).is_none());
    let defaults = defaults.filter(|(name, _)| shares || *name != "MM_ERROR_HANDLING");
    let defaults = defaults.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    defaults.chain(settings.iter().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As they come out, for these in the environment and these in the address.
    fn settled(environment: &[(&str, &str)], address: &[(&str, &str)]) -> Vec<String> {
        let address: Vec<_> =
            address.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let lookup = |name: &str| {
            environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        let settled = with_defaults(&address, lookup);
        settled.iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    #[test]
    fn what_the_user_has_in_the_environment_is_left_to_ucx() {
        assert_eq!(settled(&[], &[]), ["MM_ERROR_HANDLING=y", "KEEPALIVE_INTERVAL=inf"]);
        assert_eq!(settled(&[("KEEPALIVE_INTERVAL", "5s")], &[]), ["MM_ERROR_HANDLING=y"]);
        assert_eq!(settled(&[("MM_ERROR_HANDLING", "n")], &[]), ["KEEPALIVE_INTERVAL=inf"]);
        assert_eq!(settled(&[("TLS", "tcp")], &[]), ["KEEPALIVE_INTERVAL=inf"], "nothing is shared");
    }

    #[test]
    fn what_is_in_the_address_wins() {
        let of_address = settled(&[("KEEPALIVE_INTERVAL", "5s")], &[("KEEPALIVE_INTERVAL", "1s")]);
        assert_eq!(of_address, ["MM_ERROR_HANDLING=y", "KEEPALIVE_INTERVAL=1s"]);
        assert_eq!(settled(&[("TLS", "tcp")], &[("TLS", "posix,cma")])[0], "MM_ERROR_HANDLING=y");
        assert_eq!(settled(&[("TLS", "all")], &[("TLS", "tcp")]), ["KEEPALIVE_INTERVAL=inf", "TLS=tcp"]);
    }
}
