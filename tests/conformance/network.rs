//! Real networks between two hosts' worth of namespaces: routes that lead nowhere, cables that are cut.

use std::time::{Duration, Instant};

use crate::addresses::how;
use crate::backends::Row;
use crate::namespaces::{ELSEWHERE, IPV4, IPV6, Namespaces};
use crate::peer::{HEARTBEAT, Home, Peer};
use crate::suite::cases;

cases! {
    CROSS_HOST, netns:
        peers_of_two_namespaces_talk,
        a_cut_cable_is_a_lost_peer,
        a_host_without_a_route_is_unavailable,
        a_host_that_does_not_answer_times_out;
}

/// Three heartbeats and what a busy machine adds.
const LOSS_TIME: Duration = Duration::from_secs(3);

struct Hosts {
    namespaces: Namespaces,
    /// The left host's address, the right one's, one on the cable that nobody has, one off the cable.
    left: String,
    nobody: String,
    elsewhere: String,
}

impl Hosts {
    fn new(row: &Row) -> Self {
        let ipv6 = row.address.contains('[');
        let [left, _, nobody] = if ipv6 { IPV6 } else { IPV4 };
        let scheme = row.address().scheme();
        let address = |host: &str, port: u16| format!("{scheme}://{host}:{port}");
        Self {
            namespaces: Namespaces::new(),
            left: address(left, 0),
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

async fn peers_of_two_namespaces_talk(row: &'static Row) {
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
