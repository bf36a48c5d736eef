//! UCX settings: Towline's defaults, and those that an address may set.

use ucx_sys::{Library, Setting};

use crate::error::{Error, ErrorKind, Result};

/// The defaults, with the transports that read them. The environment and the address take precedence. A
/// setting is left out if `TLS` names none of its transports, since UCX warns of settings that nothing reads.
const DEFAULTS: [(&str, &str, Option<&[&str]>); 4] = [
    // posix has names in the file system while its pages are allocated, and a process killed then leaves them
    // there. sysv serves as well.
    ("TLS", "^posix", None),
    // The most that one socket read returns: a packet of 64 KiB fits with its headers, and a longer one takes
    // a quarter of the calls.
    ("TCP_RX_SEG_SIZE", "256k", Some(&["all", "tcp"])),
    // Allows shared memory for endpoints with peer error handling; the control stream detects a lost peer.
    ("MM_ERROR_HANDLING", "y", Some(&["all", "sm", "shm", "mm", "posix", "sysv"])),
    // The control stream detects a silent peer, in a stated time.
    ("KEEPALIVE_INTERVAL", "inf", None),
];

/// Refuses a setting that this UCX does not have, or that cannot be set by name, which some versions accept
/// without effect.
pub(super) fn check(ucx: &Library, settings: &[(String, String)]) -> Result<()> {
    let version = ucx.version();
    settings.iter().try_for_each(|(name, value)| {
        let why = match ucx.setting(name) {
            Setting::Named(_) => return Ok(()),
            Setting::OfProcess(inherited) => format!(
                "UCX {version} cannot set {name} for one endpoint: set {}UCX_{name}={value} in the environment, or use UCX 1.17 or later",
                inherited.iter().map(|other| format!("{other}, for all transports that have it, or ")).collect::<String>()
            ),
            Setting::Unknown => {
                format!("UCX {version} has no setting {name}: `ucx_info -cf` lists them, as UCX_{name}")
            }
        };
        Err(Error::new(ErrorKind::Invalid, why))
    })
}

/// Returns the name by which this UCX takes a setting.
pub(super) fn name_for(ucx: &Library, name: &str) -> String {
    match ucx.setting(name) {
        Setting::Named(name) => name,
        Setting::OfProcess(_) | Setting::Unknown => name.to_owned(),
    }
}

/// Returns the settings for a context: the defaults that neither the address nor the environment sets, and
/// the address's own. `environment` returns the user's value of a setting.
pub(super) fn with_defaults(
    settings: &[(String, String)],
    environment: impl Fn(&str) -> Option<String>,
) -> Vec<(String, String)> {
    let given = |name: &str| settings.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    let chosen = |name: &str| given(name).or_else(|| environment(name));
    let transports = chosen("TLS").filter(|names| !names.starts_with('^'));
    let is_read = |readers: Option<&[&str]>| {
        let (Some(readers), Some(names)) = (readers, &transports) else { return true };
        names.split(',').any(|name| readers.contains(&name))
    };
    let defaults = DEFAULTS.iter().filter(|(name, _, readers)| chosen(name).is_none() && is_read(*readers));
    let defaults = defaults.map(|(name, value, _)| ((*name).to_owned(), (*value).to_owned()));
    defaults.chain(settings.iter().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the settings for these in the environment and these in the address.
    fn in_force(environment: &[(&str, &str)], address: &[(&str, &str)]) -> Vec<String> {
        let address: Vec<_> =
            address.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let lookup = |name: &str| {
            environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        let in_force = with_defaults(&address, lookup);
        in_force.iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    #[test]
    fn settings_in_the_environment_replace_defaults() {
        let [transports, segment, shared, keepalive] =
            ["TLS=^posix", "TCP_RX_SEG_SIZE=256k", "MM_ERROR_HANDLING=y", "KEEPALIVE_INTERVAL=inf"];
        assert_eq!(in_force(&[], &[]), [transports, segment, shared, keepalive]);
        assert_eq!(in_force(&[("KEEPALIVE_INTERVAL", "5s")], &[]), [transports, segment, shared]);
        assert_eq!(in_force(&[("MM_ERROR_HANDLING", "n")], &[]), [transports, segment, keepalive]);
        assert_eq!(in_force(&[("TCP_RX_SEG_SIZE", "1m")], &[]), [transports, shared, keepalive]);
        assert_eq!(in_force(&[("TLS", "tcp")], &[]), [segment, keepalive], "nothing is shared");
        assert_eq!(in_force(&[("TLS", "rc,sysv")], &[]), [shared, keepalive], "no sockets");
        assert_eq!(in_force(&[("TLS", "^cma")], &[]), [segment, shared, keepalive]);
    }

    #[test]
    fn settings_in_the_address_take_precedence() {
        let of_address = in_force(&[("KEEPALIVE_INTERVAL", "5s")], &[("KEEPALIVE_INTERVAL", "1s")]);
        assert_eq!(of_address[2..], ["MM_ERROR_HANDLING=y", "KEEPALIVE_INTERVAL=1s"]);
        assert_eq!(in_force(&[("TLS", "tcp")], &[("TLS", "posix,cma")])[0], "MM_ERROR_HANDLING=y");
        assert_eq!(
            in_force(&[("TLS", "all")], &[("TLS", "tcp")])[1..],
            ["KEEPALIVE_INTERVAL=inf", "TLS=tcp"]
        );
    }
}
