//! Real networks between two hosts' worth of namespaces: routes that lead nowhere, cables that are cut.

use std::time::{Duration, Instant};

use crate::addresses::how;
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

/// Three heartbeats and what a busy machine adds.
const LOSS_TIME: Duration = Duration::from_secs(3);

/// How long a busy machine delays what an idle peer prints.
const DELAY: Duration = Duration::from_secs(1);

struct Hosts {
    namespaces: Namespaces,
    /// The left host's address, the right host's, one on the cable that nobody has, one off the cable.
    left: String,
    right: String,
    nobody: String,
    elsewhere: String,
}

impl Hosts {
    fn new(row: &Row) -> Self {
        let ipv6 = row.address.contains('[');
        let [left, right, nobody] = if ipv6 { IPV6 } else { IPV4 };
        let scheme = row.address().scheme();
        // Those of a UCX name devices that a namespace has not.
        let options = row.address.split_once('?').filter(|_| scheme.to_string() != "ucx");
        let options = options.map(|(_, options)| format!("?{options}")).unwrap_or_default();
        let address = |host: &str, port: u16| format!("{scheme}://{host}:{port}{options}");
        Self {
            namespaces: Namespaces::new(),
            left: address(left, 0),
            right: address(right, 0),
            nobody: address(nobody, 7000),
            elsewhere: address(ELSEWHERE[usize::from(ipv6)], 7000),
        }
    }

    /// A peer at the left that serves, and one at the right that has talked with it.
    async fn talking(&self, row: &Row) -> (Peer, Peer) {
        let (server, address) =
            Peer::listening("serve", row, Home::Network(&self.namespaces.left), &self.left).await;
        let mut client =
            Peer::start("converse", row, Home::Network(&self.namespaces.right), &address.to_string());
        assert_eq!(client.line().await, "well");
        (server, client)
    }

    /// How an attempt from the right to connect there ends, and after how long.
    async fn attempt(&self, row: &Row, address: &str) -> (String, Duration) {
        let mut client = Peer::start("connect", row, Home::Network(&self.namespaces.right), address);
        let (kind, time, _) = how(&mut client).await;
        (kind, time)
    }
}

async fn peers_of_two_namespaces_exchange_messages(row: &'static Row) {
    let hosts = Hosts::new(row);
    let (server, mut client) = hosts.talking(row).await;
    // An orderly world: the client goes on, and then its peer is killed.
    drop(server);
    assert_eq!(client.line().await, "PeerLost PeerLost");
    client.assert_done().await;
}

async fn a_cut_cable_is_a_lost_peer(row: &'static Row) {
    let hosts = Hosts::new(row);
    let (_server, mut client) = hosts.talking(row).await;
    // In the middle of a transfer.
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
    // The end that nothing reaches is the connector of one connection and the acceptor of the other.
    let [mut from_left, mut from_right] =
        [idle(row, [right, left], &hosts.right).await, idle(row, [left, right], &hosts.left).await];
    tokio::time::sleep(IDLE_HEARTBEAT * 5 / 4).await;
    let began = Instant::now();
    hosts.namespaces.mute_left();
    let ([right_1, left_1], [left_2, right_2]) = (&mut from_left, &mut from_right);
    let ends =
        tokio::join!(lost(left_1, began), lost(right_1, began), lost(left_2, began), lost(right_2, began));
    for (left, right) in [(ends.0, ends.1), (ends.2, ends.3)] {
        assert!(right < IDLE_HEARTBEAT * 7 / 2 + DELAY, "nothing reaches the right end");
        assert!(left < right + DELAY, "what the right end sends last reaches the left end");
    }
}

/// A listener and its connector in these namespaces, connected by an idle connection.
async fn idle(row: &Row, [there, here]: [&str; 2], at: &str) -> [Peer; 2] {
    let (mut listener, address) = Peer::listening("idle-listen", row, Home::Network(there), at).await;
    let mut connector = Peer::start("idle", row, Home::Network(here), &address.to_string());
    assert_eq!(connector.line().await, "well");
    assert_eq!(listener.line().await, "well");
    [listener, connector]
}

/// How long after `began` an idle peer has lost the other end.
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
    // A peer's connect time is 2 s; the kernel may find out sooner that nobody is there.
    let (kind, time) = hosts.attempt(row, &hosts.nobody).await;
    assert!(kind == "TimedOut" || kind == "Unavailable", "{kind}");
    assert!(time < Duration::from_secs(4), "{time:?}");
    // A cable without a far end.
    hosts.namespaces.cut();
    let left = hosts.left.replace(":0", ":7000");
    let (kind, time) = hosts.attempt(row, &left).await;
    assert!(kind == "TimedOut" || kind == "Unavailable", "{kind}");
    assert!(time < Duration::from_secs(4), "{time:?}");
}
