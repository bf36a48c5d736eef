//! A child forked without `exec` from a process that uses UCX.

use std::time::{Duration, Instant};

use towline::{Endpoint, ErrorKind};
use towline_tests::forked::Forked;

use crate::libraries::Installed;
use crate::over_ucx::{SHM, TCP, assert_goes_on, endpoint, pair, run};
use crate::polls::block_on;

/// Far below any time-out.
const AT_ONCE: Duration = Duration::from_secs(1);

pub(crate) fn a_fork_of_a_process_with_ucx_is_refused_with_the_reason(installed: &Installed) {
    for address in [TCP, SHM] {
        run(async {
            let pair = pair(installed, address).await;
            assert_goes_on(&pair.a, &pair.b).await;
            let forked = Forked::new(|| {
                let began = Instant::now();
                for own in [endpoint(installed), Endpoint::builder().build().unwrap()] {
                    let refused = block_on(own.connect(pair.listener.address())).unwrap_err();
                    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
                    let why = refused.to_string();
                    assert!(why.contains("was forked from one that uses UCX"), "{why}");
                    assert!(why.contains("open the first endpoint after the fork"), "{why}");
                }
                assert!(began.elapsed() < AT_ONCE, "it took {:?}", began.elapsed());
                // A fork of the fork is refused too.
                let child = Forked::new(|| {
                    let own = endpoint(installed);
                    let refused = block_on(own.connect(pair.listener.address())).unwrap_err();
                    assert!(refused.to_string().contains("was forked from one that uses UCX"), "{refused}");
                });
                child.assert_done(AT_ONCE);
            });
            forked.assert_done(2 * AT_ONCE);
            assert_goes_on(&pair.a, &pair.b).await;
        });
    }
}
