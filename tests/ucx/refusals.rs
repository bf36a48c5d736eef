//! The errors and notes of an endpoint over UCX.

use std::time::{Duration, Instant};

use towline::ErrorKind;
use ucx_sys::Library;

use crate::libraries::Installed;
use crate::over_ucx::{POSIX, SHM, TCP, at, endpoint, pair, run};
use crate::polls::in_time;

/// Far below any time-out.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Checks that `listen` and `connect` with this address fail at once, with this kind and these words.
fn assert_refused(installed: &Installed, address: &str, kind: ErrorKind, words: &[&str]) {
    run(async {
        let endpoint = endpoint(installed);
        let began = Instant::now();
        let listening = endpoint.listen(&at(address)).await.unwrap_err();
        let connecting = endpoint.connect(&at(&address.replace(":0", ":9"))).await.unwrap_err();
        for refused in [listening, connecting] {
            assert_eq!(refused.kind(), kind, "{refused}");
            for word in words {
                assert!(refused.to_string().contains(word), "{word}: {refused}");
            }
        }
        assert!(began.elapsed() < AT_ONCE, "it took {:?}", began.elapsed());
    });
}

pub(crate) fn a_setting_that_ucx_lacks_is_named(installed: &Installed) {
    let address = format!("{TCP}&TYPO=1");
    assert_refused(installed, &address, ErrorKind::Invalid, &["has no setting TYPO", "ucx_info -cf"]);
}

/// The older UCX takes settings of several transports only from the environment.
pub(crate) fn a_setting_that_ucx_takes_from_the_environment_alone_is_refused(installed: &Installed) {
    let address = format!("{TCP}&TCP_ALLOC=heap");
    let ucx = Library::open_at(&installed.libucp).unwrap();
    if ucx.version().minor < 17 {
        let words = ["TCP_ALLOC", "set ALLOC, for all", "UCX_TCP_ALLOC=heap in the environment", "1.17"];
        return assert_refused(installed, &address, ErrorKind::Invalid, &words);
    }
    run(async { endpoint(installed).listen(&at(&address)).await.map(drop).unwrap() });
}

pub(crate) fn a_value_that_ucx_refuses_is_named(installed: &Installed) {
    let address = format!("{TCP}&RNDV_THRESH=much");
    assert_refused(installed, &address, ErrorKind::Invalid, &["RNDV_THRESH=much"]);
}

pub(crate) fn an_endpoint_with_a_second_copy_is_refused(installed: &Installed) {
    crate::opening::load(&installed.other);
    let [loaded, other] = [&installed.other, &installed.libucp].map(|file| file.display().to_string());
    assert_refused(installed, TCP, ErrorKind::Unavailable, &[&loaded, &other, "a second copy of UCX"]);
}

pub(crate) fn ends_without_a_common_transport_are_refused_with_the_reason(installed: &Installed) {
    run(async {
        let (near, far) = (endpoint(installed), endpoint(installed));
        let listener = far.listen(&at(TCP)).await.unwrap();
        let port = listener.address().port();
        let began = Instant::now();
        let posix = at(&format!("ucx://127.0.0.1:{port}?TLS=posix"));
        let refused = in_time("an answer", near.connect(&posix)).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
        let why = refused.to_string();
        assert!(why.contains("no transport of both ends leads to the peer"), "{why}");
        assert!(why.contains("Destination is unreachable"), "{why}");
        assert!(began.elapsed() < AT_ONCE, "it took {:?}", began.elapsed());
    });
}

pub(crate) fn a_connection_reports_its_transport(installed: &Installed) {
    let expected = [(TCP, "tcp/lo", false), (SHM, "sysv/memory", false), (POSIX, "posix/memory", true)];
    for (address, transport, leaves_segments) in expected {
        run(async {
            let pair = pair(installed, address).await;
            for end in [&pair.a, &pair.b] {
                assert_eq!(end.path().chosen(), "ucx");
                let notes = end.explain().await.notes.concat();
                assert!(notes.contains("UCX uses "), "{notes}");
                assert!(notes.contains(transport), "{notes}");
                assert_eq!(notes.contains("leaves segments in /dev/shm"), leaves_segments, "{notes}");
            }
        });
    }
}
