//! The table: one row joins a backend.

use std::sync::Arc;

use towline::backend::{self, Backend, Shm, Ucx};
use towline::{Address, Builder, Caps, Connection, Endpoint, Listener, Pool};
use towline_tests::libraries;

use crate::encrypted;
use crate::suite::Need;
use crate::threaded::Threaded;

/// One backend as the cases see it.
pub(crate) struct Row {
    /// The first word of its cases' names.
    pub(crate) name: &'static str,
    /// Where to listen for it.
    pub(crate) address: &'static str,
    /// What an endpoint of it is made of.
    pub(crate) backends: fn() -> Vec<Arc<dyn Backend>>,
    /// What its links promise; selects the cases.
    pub(crate) caps: Caps,
    /// What the machine must have for it.
    pub(crate) environment: Option<Need>,
    /// The files whose cases it runs, where all would only say what a sibling row says.
    pub(crate) only: Option<&'static [&'static str]>,
    /// Files and cases (`file::case`) that make no sense for it, though its links promise what they need.
    pub(crate) but: &'static [&'static [&'static str]],
}

const TCP: Caps = Caps::ONE_SIDED
    .union(Caps::SOFT_REVOKE)
    .union(Caps::CROSS_PROCESS)
    .union(Caps::CROSS_HOST)
    .union(Caps::NAMED_DESTINATION)
    .union(Caps::FLOW_CONTROL);

pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "mem",
        address: "mem://",
        backends: all,
        caps: Caps::ONE_SIDED
            .union(Caps::SOFT_REVOKE)
            .union(Caps::MOVES_OWNERSHIP)
            .union(Caps::ANY_PLACE)
            .union(Caps::FLOW_CONTROL),
        environment: None,
        only: None,
        but: &[],
    },
    Row {
        name: "threaded",
        address: "mem://",
        backends: Threaded::alone,
        caps: Caps::FLOW_CONTROL,
        environment: None,
        only: None,
        but: &[],
    },
    Row {
        name: "shm",
        address: "shm://127.0.0.1:0",
        backends: all,
        caps: Caps::ONE_SIDED
            .union(Caps::SOFT_REVOKE)
            .union(Caps::CROSS_PROCESS)
            .union(Caps::LENDS)
            .union(Caps::FLOW_CONTROL),
        environment: None,
        only: None,
        but: &[],
    },
    Row {
        name: "tcp",
        address: "tcp://127.0.0.1:0",
        backends: all,
        caps: TCP,
        environment: None,
        only: None,
        but: &[],
    },
    Row {
        name: "tcp+crc",
        address: "tcp://127.0.0.1:0?integrity=crc32c",
        backends: all,
        caps: TCP,
        environment: None,
        // Where payload goes, in every way it goes there.
        only: Some(&["messages", "taking", "one_sided", "mixed", "copies"]),
        but: &[],
    },
    Row {
        name: "tcp+streams",
        address: "tcp://127.0.0.1:0?streams=3",
        backends: all,
        caps: TCP,
        environment: None,
        only: None,
        but: &[],
    },
    Row {
        name: "tls",
        address: "tls://127.0.0.1:0",
        backends: all,
        caps: TCP,
        environment: None,
        only: None,
        but: &[],
    },
    Row {
        name: "tls+streams",
        address: "tls://127.0.0.1:0?streams=3",
        backends: all,
        caps: TCP,
        environment: None,
        // Where payload goes, and how a stream's end is told.
        only: Some(&["messages", "taking", "one_sided", "mixed", "ending", "streams"]),
        but: &[],
    },
    Row {
        name: "tcp6",
        address: "tcp://[::1]:0",
        backends: all,
        caps: TCP,
        environment: Some(Need::Ipv6),
        only: None,
        but: &[],
    },
    // Each case runs with each UCX once, and where payload goes, and how connections end, over each transport of each.
    Row {
        name: "ucx1.13+tcp",
        address: UCX_TCP,
        backends: ucx_older,
        caps: TCP,
        environment: Some(Need::Ucx),
        only: None,
        but: &[UCX_BUT, UCX_OLDER_TCP_BUT],
    },
    Row {
        name: "ucx1.22+shm",
        address: UCX_SHM,
        backends: ucx_newer,
        caps: TCP,
        environment: Some(Need::Ucx),
        only: None,
        but: &[UCX_BUT],
    },
    Row {
        name: "ucx1.13+shm",
        address: UCX_SHM,
        backends: ucx_older,
        caps: TCP,
        environment: Some(Need::Ucx),
        only: Some(UCX_AGAIN),
        but: &[UCX_BUT],
    },
    Row {
        name: "ucx1.22+tcp",
        address: UCX_TCP,
        backends: ucx_newer,
        caps: TCP,
        environment: Some(Need::Ucx),
        only: Some(UCX_AGAIN),
        but: &[UCX_BUT],
    },
];

const UCX_TCP: &str = "ucx://127.0.0.1:0?TLS=tcp&NET_DEVICES=lo&versions=any";
const UCX_SHM: &str = "ucx://127.0.0.1:0?TLS=sysv,cma";
/// Peers by hand speak over the handshake's stream, or by way of a proxy on it; and UCX does not survive a fork.
const UCX_BUT: &[&str] = &[
    "raw_peer",
    "hostile",
    "streams",
    "floods::streams_that_never_join_block_no_peer",
    "floods::unfinished_records_share_one_budget",
    "integrity::a_flipped_bit_is_corrupt_and_ends_one_connection",
    "integrity::a_flipped_bit_in_a_put_never_reaches_the_region",
    "connect::the_towline_scheme_chooses_the_first_path_that_reaches",
    "fork::a_forked_child_can_build_endpoints",
    "fork::forks_of_a_busy_process_end_and_disturb_no_peer",
];
/// It ends a process that goes on connecting to a worker that is gone (docs/gotchas.md).
const UCX_OLDER_TCP_BUT: &[&str] = &[
    "establishing::a_connect_cancelled_at_any_step_leaks_nothing",
    "establishing::an_accept_cancelled_at_any_step_leaks_nothing",
    "establishing::a_connector_stopped_at_any_step_leaks_nothing_at_its_peer",
    "establishing::an_acceptor_stopped_at_any_step_leaks_nothing_at_its_peer",
];
const UCX_AGAIN: &[&str] = &["messages", "taking", "one_sided", "mixed", "ending", "processes", "deaths"];

/// Two connected ends, and what they came from.
pub(crate) struct Pair {
    /// The connecting end.
    pub(crate) a: Connection,
    /// The accepting end.
    pub(crate) b: Connection,
    pub(crate) near: Endpoint,
    pub(crate) far: Endpoint,
    pub(crate) listener: Listener,
}

/// All of them, with every way that shm has: a probe of this machine leaves out none.
fn all() -> Vec<Arc<dyn Backend>> {
    let reading = |backend: Arc<dyn Backend>| match backend.name() {
        "shm" => Arc::new(Shm::default().reading_always()),
        _ => backend,
    };
    backend::all().into_iter().map(reading).collect()
}

fn ucx_older() -> Vec<Arc<dyn Backend>> {
    vec![Arc::new(Ucx::default().library(libraries::older().unwrap().libucp))]
}

fn ucx_newer() -> Vec<Arc<dyn Backend>> {
    vec![Arc::new(Ucx::default().library(libraries::newer().unwrap().libucp))]
}

impl Row {
    /// Settings of an endpoint with a pool of its own, which shows what is in use.
    pub(crate) fn builder(&self) -> Builder {
        let builder =
            Endpoint::builder().backends((self.backends)()).pool(Pool::new(64 << 20)).trust_user(true);
        if self.address().scheme().is_encrypted() { builder.tls(encrypted::tls()) } else { builder }
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        self.builder().build().unwrap()
    }

    pub(crate) fn address(&self) -> Address {
        self.address.parse().unwrap()
    }

    /// Two connected endpoints.
    pub(crate) async fn pair(&self) -> Pair {
        self.pair_with(|builder| builder).await
    }

    /// Two connected endpoints with these settings.
    pub(crate) async fn pair_with(&self, ack: impl Fn(Builder) -> Builder) -> Pair {
        let (near, far) = (ack(self.builder()).build().unwrap(), ack(self.builder()).build().unwrap());
        let listener = far.listen(&self.address()).await.unwrap();
        let (a, b) = meet(&near, &listener).await;
        for end in [&a, &b] {
            assert_eq!(end.caps(), self.caps, "the table and {} agree on the caps", self.name);
        }
        Pair { a, b, near, far, listener }
    }
}

/// One more connection from `near` to `listener`: the connecting end, and the accepting one.
pub(crate) async fn meet(near: &Endpoint, listener: &Listener) -> (Connection, Connection) {
    // Whichever fails says so at once, instead of leaving the other to wait.
    tokio::join!(async { near.connect(listener.address()).await.unwrap() }, async {
        listener.accept().await.unwrap()
    })
}
