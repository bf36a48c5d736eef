//! Both ends report the same socket addresses, whichever path carries the data.

use std::net::{IpAddr, SocketAddr};

use towline::{Address, Connection, Scheme, Token, blocking};

use crate::backends::{Row, connect_pair};
use crate::polls::in_time;
use crate::suite::cases;

cases! {
    ANY:
        both_ends_report_the_same_addresses;
    CROSS_HOST:
        a_listener_of_both_families_reports_each_peer_in_its_own;
}

fn assert_mirrored(near: &Connection, far: &Connection) -> (SocketAddr, SocketAddr) {
    let [local, peer] = [near.local_address(), near.peer_address()].map(|at| at.expect("a socket address"));
    assert_eq!((far.local_address(), far.peer_address()), (Some(peer), Some(local)));
    let twin = blocking::Connection::from(near.clone());
    assert_eq!((twin.local_address(), twin.peer_address()), (Some(local), Some(peer)));
    (local, peer)
}

async fn both_ends_report_the_same_addresses(row: &'static Row) {
    let mut pair = row.pair().await;
    if row.address().scheme() == Scheme::Mem {
        for end in [&pair.a, &pair.b] {
            assert_eq!((end.local_address(), end.peer_address()), (None, None));
        }
        // The same path, established over a socket.
        pair.listener = pair.far.listen(&"towline://127.0.0.1:0".parse().unwrap()).await.unwrap();
        (pair.a, pair.b) = connect_pair(&pair.near, &pair.listener).await;
    }
    let host: IpAddr = pair.listener.address().host().trim_matches(['[', ']']).parse().unwrap();
    let (local, peer) = assert_mirrored(&pair.a, &pair.b);
    assert_eq!((peer.ip(), peer.port()), (host, pair.listener.address().port()));
    assert_eq!(local.ip(), host);
    assert_ne!(local.port(), peer.port());
    // Another connection has an address of its own, and the first keeps its own after its end.
    let (a, b) = connect_pair(&pair.near, &pair.listener).await;
    assert_eq!(assert_mirrored(&a, &b).1, peer);
    assert_ne!(a.local_address(), Some(local));
    in_time("close", pair.a.close()).await.unwrap();
    in_time("the end", pair.b.closed()).await;
    assert_eq!(assert_mirrored(&pair.a, &pair.b), (local, peer));
}

async fn a_listener_of_both_families_reports_each_peer_in_its_own(row: &'static Row) {
    let at = |host: &str, port| {
        let address = Address::new(row.address().scheme(), host, port).unwrap();
        row.address()
            .options()
            .fold(address, |address, (key, value)| address.with_option(key, value).unwrap())
    };
    // Beyond loopback a listener needs a token.
    let endpoint = || row.builder().token(Token::from_bytes("both families").unwrap()).build().unwrap();
    let (near, far) = (endpoint(), endpoint());
    let listener = far.listen(&at("*", 0)).await.unwrap();
    let mut hosts = vec!["127.0.0.1"];
    if std::net::TcpListener::bind("[::1]:0").is_ok() {
        hosts.push("::1");
    }
    for host in hosts {
        let address = at(host, listener.address().port());
        let (a, b) = tokio::join!(near.connect(&address), listener.accept());
        let (local, peer) = assert_mirrored(&a.unwrap(), &b.unwrap());
        assert_eq!([local.ip(), peer.ip()].map(|ip| ip.to_string()), [host; 2]);
    }
}
