//! Two processes with the same or with different versions of UCX.

use std::time::{Duration, Instant};

use towline::ErrorKind;
use ucx_sys::Library;

use crate::echoing::Server;
use crate::libraries::Installed;
use crate::over_ucx::{LENS, POSIX, SHM, TCP, assert_echoes, endpoint, run};
use crate::polls::in_time;

/// Far below any time-out.
const AT_ONCE: Duration = Duration::from_secs(1);

pub(crate) fn the_same_version_in_another_process_is_a_peer(installed: &Installed) {
    for address in [TCP, SHM] {
        let (mut server, address) = Server::start(&installed.libucp, address);
        run(async {
            let endpoint = endpoint(installed);
            let connection = in_time("a connection", endpoint.connect(&address)).await.unwrap();
            assert_echoes(&connection, &LENS).await;
            in_time("the end", connection.close()).await.unwrap();
        });
        assert!(server.0.wait().unwrap().success());
    }
}

/// 1.13 and 1.22 report each other unreachable over `tcp`, and misread each other's shared memory.
pub(crate) fn another_version_is_refused_with_the_reason(installed: &Installed) {
    for address in [SHM, POSIX] {
        let (_server, address) = Server::start(&installed.other, address);
        run(async {
            let began = Instant::now();
            let refused = endpoint(installed).connect(&address).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
            let (why, ours) = (refused.to_string(), Library::open().unwrap().version());
            assert!(why.contains(&format!("the connector's UCX {ours} and the acceptor's 1.")), "{why}");
            assert!(why.contains("of different versions") && why.contains("?versions=any"), "{why}");
            assert!(began.elapsed() < AT_ONCE, "it took {:?}", began.elapsed());
        });
    }
}
