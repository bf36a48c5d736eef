//! Peers of one host in different namespaces, or of different users.

use rustix::process::Signal;
use towline::Address;

use crate::backends::Row;
use crate::namespaces::{IPV4, Namespaces};
use crate::peer::{Home, Peer};
use crate::suite::cases;

cases! {
    CROSS_PROCESS - CROSS_HOST, netns:
        peers_in_other_process_and_mount_namespaces_share_memory,
        peers_in_other_network_namespaces_use_another_path,
        a_process_without_proc_uses_another_path,
        another_user_connects_or_gets_the_reason;
}

/// The reason of shared memory if the two have no network in common.
const NOT_FOUND: &str = "its socket is not visible from here";
/// The user id that a namespace shows for unmapped users.
const NOBODY: u32 = 65_534;

async fn peers_in_other_process_and_mount_namespaces_share_memory(row: &'static Row) {
    for (server_home, client_home) in
        [(Home::Here, Home::Processes), (Home::Processes, Home::Here), (Home::Processes, Home::Processes)]
    {
        let (server, address) = Peer::listening("serve", row, server_home, row.address).await;
        let mut client = Peer::start("choose", row, client_home, &address.to_string());
        assert_eq!(client.line().await.split(':').next(), Some("shm"), "{server_home:?} {client_home:?}");
        assert_eq!(client.line().await, "ready");
        client.assert_done().await;
        let mut client = Peer::start("exchange", row, client_home, &address.to_string());
        assert_eq!(client.line().await, "ready");
        server.signal(Signal::KILL);
        assert_eq!(client.line().await, "PeerLost PeerLost");
        client.assert_done().await;
    }
}

async fn peers_in_other_network_namespaces_use_another_path(row: &'static Row) {
    let namespaces = Namespaces::new();
    let (left, right) = (Home::Network(&namespaces.left), Home::Network(&namespaces.right));
    let at = format!("towline://{}:0", IPV4[0]);
    let (_server, address) = Peer::listening("serve", row, left, &at).await;
    let mut client = Peer::start("choose", row, right, &address.to_string());
    let line = client.line().await;
    assert!(line.starts_with("tcp: ") && line.contains(NOT_FOUND), "{line}");
    assert_eq!(client.line().await, "ready");
    client.assert_done().await;

    let by_shm: Address = format!("shm://{}:{}", address.host(), address.port()).parse().unwrap();
    let mut client = Peer::start("choose", row, right, &by_shm.to_string());
    let line = client.line().await;
    assert!(line.starts_with("Unavailable: ") && line.contains(NOT_FOUND), "{line}");
    client.assert_done().await;

    // Two peers on the left still use shared memory.
    let mut client = Peer::start("choose", row, left, &address.to_string());
    assert!(client.line().await.starts_with("shm: "), "both are in one network namespace");
    assert_eq!(client.line().await, "ready");
}

async fn a_process_without_proc_uses_another_path(row: &'static Row) {
    for (server_home, client_home, end) in [
        (Home::Here, Home::WithoutProc, "this process"),
        (Home::WithoutProc, Home::Here, "the peer"),
        (Home::WithoutProc, Home::WithoutProc, "this process"),
    ] {
        let (_server, address) = Peer::listening("serve", row, server_home, "towline://127.0.0.1:0").await;
        let mut client = Peer::start("choose", row, client_home, &address.to_string());
        let line = client.line().await;
        assert!(line.starts_with(&format!("tcp: {end} does not know which host it is on")), "{line}");
        assert!(line.contains("mount /proc"), "{line}");
        assert_eq!(client.line().await, "ready");
        client.assert_done().await;
    }
}

async fn another_user_connects_or_gets_the_reason(row: &'static Row) {
    for (server_home, client_home) in [
        (Home::Here, Home::User(NOBODY)),
        (Home::User(NOBODY), Home::Here),
        (Home::User(NOBODY), Home::User(NOBODY - 1)),
    ] {
        let (_server, address) = Peer::listening("serve", row, server_home, row.address).await;
        let mut client = Peer::start("choose", row, client_home, &address.to_string());
        let line = client.line().await;
        println!("{server_home:?} to {client_home:?}: {line}");
        if line.starts_with("shm: ") {
            assert_eq!(client.line().await, "ready");
        } else {
            assert!(line.starts_with("Unavailable: shm: "), "{line}");
        }
        client.assert_done().await;
    }
}
