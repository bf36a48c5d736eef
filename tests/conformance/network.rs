//! Networks between two namespaces: missing routes, and cables that are cut.

use std::time::{Duration, Instant};

use crate::addresses::attempt;
use crate::backends::Row;
use crate::namespaces::{ELSEWHERE, IPV4, IPV6, Namespaces};
use crate::peer::{HEARTBEAT, Home, IDLE_HEARTBEAT, Peer};
use crate::suite::cases;

cases! {
    CROSS_HOST, netns:
        peers_of_two_namespaces_exchange_messages,
        a_cut_cable_is_a_lost_peer,
        both_ends_of_an_idle_connection_detect_one_dead_direction,
        a_host_without_a_route_is_unavailable,
        a_host_that_does_not_answer_times_out;
}

/// Three heartbeats, and a busy machine's delay.
const LOSS_TIME: Duration = Duration::from_secs(3);

/// A busy machine's delay of what an idle peer prints.
const DELAY: Duration = Duration::from_secs(1);

struct Hosts {
    namespaces: Namespaces,
    /// Addresses of the left host, the right host, no host on the cable, and a host off the cable.
    left: String,
    right: String,
    unused: String,
    elsewhere: String,
}

impl Hosts {
    fn new(row: &Row) -> Self {
        let ipv6 = row.address.contains('[');
        let [left, right, unused] = if ipv6 { IPV6 } else { IPV4 };
        let scheme = row.address().scheme();
        // Options of a UCX address name devices that a namespace lacks.
        let options = row.address.split_once('?').filter(|_| scheme.to_string() != "ucx");
        let options = options.map(|(_, options)| format!("?{options}")).unwrap_or_default();
        let address = |host: &str, port: u16| format!("{scheme}://{host}:{port}{options}");
        Self {
            namespaces: Namespaces::new(),
            left: address(left, 0),
            right: address(right, 0),
            unused: address(unused, 7000),
            elsewhere: address(ELSEWHERE[usize::from(ipv6)], 7000),
        }
    }

    /// Starts a server at the left, and a client at the right that has exchanged messages with it.
    async fn exchanging(&self, row: &Row) -> (Peer, Peer) {
        let (server, address) =
            Peer::listening("serve", row, Home::Network(&self.namespaces.left), &self.left).await;
        let mut client =
            Peer::start("exchange", row, Home::Network(&self.namespaces.right), &address.to_string());
        assert_eq!(client.line().await, "ready");
        (server, client)
    }

    /// Returns how a connect from the right ends, and after how long.
    async fn attempt(&self, row: &Row, address: &str) -> (String, Duration) {
        let mut client = Peer::start("connect", row, Home::Network(&self.namespaces.right), address);
        let (kind, time, _) = attempt(&mut client).await;
        (kind, time)
    }
}

async fn peers_of_two_namespaces_exchange_messages(row: &'static Row) {
    let hosts = Hosts::new(row);
    let (server, mut client) = hosts.exchanging(row).await;
    // The client continues until its peer is killed.
    drop(server);
    assert_eq!(client.line().await, "PeerLost PeerLost");
    client.assert_done().await;
}

async fn a_cut_cable_is_a_lost_peer(row: &'static Row) {
    let hosts = Hosts::new(row);
    let (_server, mut client) = hosts.exchanging(row).await;
    // During a transfer.
    tokio::time::sleep(HEARTBEAT).await;
    let began = Instant::now();
    hosts.namespaces.cut();
    assert_eq!(client.line().await, "PeerLost PeerLost");
    assert!(began.elapsed() < LOSS_TIME, "lost after {:?}", began.elapsed());
    client.assert_done().await;
}

async fn both_ends_of_an_idle_connection_detect_one_dead_direction(row: &'static Row) {
    let hosts = Hosts::new(row);
    let Namespaces { left, right } = &hosts.namespaces;
    // The end that receives nothing is the connector of one connection and the acceptor of the other.
    let [mut from_left, mut from_right] =
        [idle(row, [right, left], &hosts.right).await, idle(row, [left, right], &hosts.left).await];
    tokio::time::sleep(IDLE_HEARTBEAT * 5 / 4).await;
    let began = Instant::now();
    hosts.namespaces.mute_left();
    let ([right_1, left_1], [left_2, right_2]) = (&mut from_left, &mut from_right);
    let ends =
        tokio::join!(lost(left_1, began), lost(right_1, began), lost(left_2, began), lost(right_2, began));
    for (left, right) in [(ends.0, ends.1), (ends.2, ends.3)] {
        assert!(right < IDLE_HEARTBEAT * 7 / 2 + DELAY, "the right end receives nothing");
        assert!(left < right + DELAY, "the right end closes at the left end");
    }
}

/// Starts a listener and its connector in these namespaces. Their connection is idle.
async fn idle(row: &Row, [there, here]: [&str; 2], at: &str) -> [Peer; 2] {
    let (mut listener, address) = Peer::listening("idle-listen", row, Home::Network(there), at).await;
    let mut connector = Peer::start("idle", row, Home::Network(here), &address.to_string());
    assert_eq!(connector.line().await, "ready");
    assert_eq!(listener.line().await, "ready");
    [listener, connector]
}

/// Returns how long after `began` an idle peer loses the other end.
async fn lost(peer: &mut Peer, began: Instant) -> Duration {
    let end = peer.line().await;
    assert!(end.starts_with("PeerLost"), "{end}");
    println!("{:?}: {end}", began.elapsed());
    began.elapsed()
}

async fn a_host_without_a_route_is_unavailable(row: &'static Row) {
    let hosts = Hosts::new(row);
    let (kind, time) = hosts.attempt(row, &hosts.elsewhere).await;
    assert_eq!(kind, "Unavailable");
    assert!(time < Duration::from_secs(1), "{time:?}");
}

async fn a_host_that_does_not_answer_times_out(row: &'static Row) {
    let hosts = Hosts::new(row);
    // A peer's connect time is 2 s. The kernel may report the missing host earlier.
    let (kind, time) = hosts.attempt(row, &hosts.unused).await;
    assert!(kind == "TimedOut" || kind == "Unavailable", "{kind}");
    assert!(time < Duration::from_secs(4), "{time:?}");
    // A cut cable.
    hosts.namespaces.cut();
    let left = hosts.left.replace(":0", ":7000");
    let (kind, time) = hosts.attempt(row, &left).await;
    assert!(kind == "TimedOut" || kind == "Unavailable", "{kind}");
    assert!(time < Duration::from_secs(4), "{time:?}");
}
