//! The table of backends: a new row adds a backend.

use std::sync::Arc;

use towline::backend::{self, Backend, Shm, Ucx};
use towline::{Address, Builder, Caps, Connection, Endpoint, Listener, Pool};
use towline_tests::libraries;

use crate::encrypted;
use crate::suite::Need;
use crate::threaded::Threaded;

/// One backend, as the cases see it.
pub(crate) struct Row {
    /// The first part of its cases' names.
    pub(crate) name: &'static str,
    /// The address to listen at.
    pub(crate) address: &'static str,
    /// Returns the backends of an endpoint.
    pub(crate) backends: fn() -> Vec<Arc<dyn Backend>>,
    /// Capabilities of its links. They select the cases.
    pub(crate) caps: Caps,
    /// A feature that the machine must have.
    pub(crate) environment: Option<Need>,
    /// Files whose cases this row runs, where the other cases repeat a sibling row.
    pub(crate) only: Option<&'static [&'static str]>,
    /// Files and cases (`file::case`) that do not apply, although the links have their capabilities.
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
        // Every route of payload.
        only: Some(&["messages", "destinations", "one_sided", "mixed", "copies", "foreign"]),
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
        // Every route of payload, and how a stream ends.
        only: Some(&["messages", "destinations", "one_sided", "mixed", "ending", "streams", "foreign"]),
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
    // Each case runs once with each UCX. Cases of payload and of ends run over each transport of each UCX.
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
/// Raw peers use the handshake's stream, or a proxy on it. UCX does not survive a fork.
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
/// UCX 1.13 ends a process that keeps connecting to a closed worker (docs/gotchas.md).
const UCX_OLDER_TCP_BUT: &[&str] = &[
    "establishing::a_connect_cancelled_at_any_step_leaks_nothing",
    "establishing::an_accept_cancelled_at_any_step_leaks_nothing",
    "establishing::a_connector_stopped_at_any_step_leaks_nothing_at_its_peer",
    "establishing::an_acceptor_stopped_at_any_step_leaks_nothing_at_its_peer",
];
const UCX_AGAIN: &[&str] =
    &["messages", "destinations", "one_sided", "mixed", "ending", "processes", "deaths", "foreign"];

/// Two connected ends, with their endpoints.
pub(crate) struct Pair {
    /// The connecting end.
    pub(crate) a: Connection,
    /// The accepting end.
    pub(crate) b: Connection,
    pub(crate) near: Endpoint,
    pub(crate) far: Endpoint,
    pub(crate) listener: Listener,
}

/// Returns all backends. Shm reads peers' memory on every machine, whatever its probe measures.
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
    /// Returns a builder whose endpoint has a pool of its own, so that its memory in use can be counted.
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

    /// Connects two endpoints.
    pub(crate) async fn pair(&self) -> Pair {
        self.pair_with(|builder| builder).await
    }

    /// Connects two endpoints with these settings.
    pub(crate) async fn pair_with(&self, configure: impl Fn(Builder) -> Builder) -> Pair {
        let (near, far) =
            (configure(self.builder()).build().unwrap(), configure(self.builder()).build().unwrap());
        let listener = far.listen(&self.address()).await.unwrap();
        let (a, b) = connect_pair(&near, &listener).await;
        for end in [&a, &b] {
            assert_eq!(end.caps(), self.caps, "the table and {} agree on the caps", self.name);
        }
        Pair { a, b, near, far, listener }
    }
}

/// Connects `near` to `listener`. Returns the connecting end and the accepting end.
pub(crate) async fn connect_pair(near: &Endpoint, listener: &Listener) -> (Connection, Connection) {
    // Either failure panics at once, instead of leaving the other future waiting.
    tokio::join!(async { near.connect(listener.address()).await.unwrap() }, async {
        listener.accept().await.unwrap()
    })
}
