//! The settings of UCX, their effects, and the transports that UCX reports.

use std::ffi::{CStr, CString};

use ucx_sys::{Library, Setting, UCS_ERR_INVALID_PARAM, UCS_OK};

use crate::config::Config;
use crate::libraries::Installed;
use crate::node::Node;

pub(crate) fn a_setting_is_known_if_it_can_be_set(installed: &Installed) {
    let ucx = Library::open_at(&installed.libucp).unwrap();
    let config = Config::new(ucx);
    let of_all = [
        // Settings of `ucp`, of all of UCX, of one transport, of several, of the connection manager.
        (c"TLS", c"tcp"),
        (c"RNDV_THRESH", c"64k"),
        (c"LOG_LEVEL", c"fatal"),
        (c"TCP_TX_SEG_SIZE", c"16k"),
        (c"POSIX_ERROR_HANDLING", c"y"),
        (c"MM_ERROR_HANDLING", c"y"),
        (c"CM_REUSEADDR", c"y"),
    ];
    for (name, value) in of_all {
        if let Some(name) = taken_as(ucx, name) {
            assert_eq!(config.set(&name, value), UCS_OK, "{name:?}");
        }
    }
    for (name, expected) in [(c"TLS", c"TLS"), (c"MM_ERROR_HANDLING", c"MM_ERROR_HANDLING")] {
        assert_eq!(taken_as(ucx, name).as_deref(), Some(expected));
    }
    for name in ["", "TCP", "NO_SUCH_SETTING", "UCX_TLS", "tls", "LOG_FILE", "MEM_EVENTS", "ERROR_SIGNALS"] {
        assert_eq!(ucx.setting(name), Setting::Unknown, "{name}");
    }
    assert_eq!(config.set(c"RNDV_THRESH", c"much"), UCS_ERR_INVALID_PARAM);
    // Older versions accept unknown settings, hence the check of the name.
    let version = ucx.version();
    let accepts_all = (version.minor, version.release) < (20, 1);
    let expected = if accepts_all { UCS_OK } else { UCS_ERR_INVALID_PARAM };
    assert_eq!(config.set(c"NO_SUCH_SETTING", c"1"), expected);
}

pub(crate) fn transports_are_reported_with_their_devices(installed: &Installed) {
    let node = Node::new(Library::open_at(&installed.libucp).unwrap());
    assert_eq!(node.transports(), ["tcp/lo"]);
    assert_eq!(node.transports_in_use(), ["tcp/lo"]);
}

pub(crate) fn a_setting_of_a_transport_has_its_effect(installed: &Installed) {
    let ucx = Library::open_at(&installed.libucp).unwrap();
    let in_use = |error_handling| {
        let tls = (c"TLS", c"posix,tcp");
        let node = Node::with(ucx, &[tls, (c"NET_DEVICES", c"lo"), (c"MM_ERROR_HANDLING", error_handling)]);
        assert_eq!(sorted(node.transports()), ["posix/memory", "tcp/lo"]);
        sorted(node.transports_in_use())
    };
    assert_eq!(in_use(c"n"), ["tcp/lo"]);
    assert!(in_use(c"y").contains(&"posix/memory".to_owned()));
    // A value that does not parse has the effect of none.
    assert_eq!(in_use(c"perhaps"), ["tcp/lo"]);
    // The limit on headers follows from the segment length.
    let header_len_max = |segment_len| {
        let name = taken_as(ucx, c"TCP_TX_SEG_SIZE").unwrap();
        let tcp = [(c"TLS", c"tcp"), (c"NET_DEVICES", c"lo"), (&*name, segment_len)];
        Node::with(ucx, &tcp).header_len_max
    };
    let [short, long] = [c"4k", c"32k"].map(header_len_max);
    assert!(short < 4 << 10 && long > 16 << 10, "{short} {long}");
}

/// Returns the name by which a setting is set, or `None` if it is set for the process only.
fn taken_as(ucx: &Library, name: &CStr) -> Option<CString> {
    match ucx.setting(name.to_str().unwrap()) {
        Setting::Named(name) => Some(CString::new(name).unwrap()),
        Setting::OfProcess(_) => None,
        Setting::Unknown => panic!("{name:?} is unknown"),
    }
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort_unstable();
    names
}
