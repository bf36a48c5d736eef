//! Names with several addresses, names that are not resolved in time, and addresses for which the kernel
//! reports little.

use std::net::TcpListener;
use std::time::Duration;

use towline::{Address, ErrorKind};

use crate::backends::Row;
use crate::content::{assert_message, message};
use crate::namespaces::{IPV4, IPV6, LINK_LOCAL, MANY, Namespaces, SWALLOWING, set};
use crate::need;
use crate::peer::{Home, Peer};
use crate::polls::in_time;
use crate::suite::cases;

cases! {
    CROSS_HOST, netns:
        a_name_is_reached_although_other_addresses_drop_packets,
        a_connect_error_names_each_address_and_its_failure,
        an_unanswered_name_lookup_ends_at_its_limit,
        a_name_is_bound_at_one_reported_address,
        a_lack_of_local_ports_is_reported,
        a_port_without_a_listener_does_not_connect_to_itself,
        a_link_local_address_needs_its_zone;
    CROSS_HOST:
        every_interface_is_bound_completely_or_not_at_all;
}

/// Time that an attempt may take beyond its limit, on a busy machine.
const SLACK: Duration = Duration::from_secs(4);

/// Reads a peer's attempt: the outcome, the time, and the address or the error text.
pub(crate) async fn attempt(peer: &mut Peer) -> (String, Duration, String) {
    let line = peer.line().await;
    let mut parts = line.splitn(3, ' ');
    let mut next = || parts.next().unwrap().to_owned();
    let (kind, time_ms, text) = (next(), next(), next());
    (kind, Duration::from_millis(time_ms.parse().unwrap()), text)
}

/// Returns the left end's address in the row's address family, without brackets.
fn left(row: &Row) -> &'static str {
    let ipv6 = row.address.contains('[');
    if ipv6 { IPV6[0].trim_matches(['[', ']']) } else { IPV4[0] }
}

fn at(row: &Row, host: &str, port: u16) -> String {
    Address::new(row.address().scheme(), host, port).unwrap().to_string()
}

/// Returns lines of a hosts file for [`MANY`].
fn many<'a>(addresses: impl IntoIterator<Item = &'a str>) -> String {
    addresses.into_iter().map(|address| format!("{address} {MANY}\n")).collect()
}

async fn a_name_is_reached_although_other_addresses_drop_packets(row: &'static Row) {
    let namespaces = Namespaces::new();
    let (_server, address) =
        Peer::listening("serve", row, Home::Network(&namespaces.left), &at(row, left(row), 0)).await;
    namespaces.name(&many(SWALLOWING.into_iter().chain([left(row)])));
    let right = Home::Network(&namespaces.right);
    let mut client = Peer::start("connect", row, right, &at(row, MANY, address.port()));
    // A peer's connect time is 2 s; either of the other addresses alone would use all of it.
    let (outcome, _, text) = attempt(&mut client).await;
    assert_eq!(outcome, "connected", "{text}");
}

async fn a_connect_error_names_each_address_and_its_failure(row: &'static Row) {
    let namespaces = Namespaces::new();
    let right = Home::Network(&namespaces.right);
    let good = left(row);
    for (addresses, expected) in [
        (vec![SWALLOWING[0], SWALLOWING[1], good], "Refused"),
        (SWALLOWING.to_vec(), "TimedOut"),
        (vec![SWALLOWING[0]], "TimedOut"),
        (vec![good], "Refused"),
    ] {
        namespaces.name(&many(addresses.clone()));
        let mut client = Peer::start("connect", row, right, &at(row, MANY, 7000));
        let (kind, time, text) = attempt(&mut client).await;
        assert_eq!(kind, expected, "{text}");
        assert!(time < Duration::from_secs(2) + SLACK, "{time:?}");
        for address in addresses {
            let named = Address::new(row.address().scheme(), address, 7000).unwrap().to_string();
            let named = named.split("://").nth(1).unwrap();
            let (_, rest) = text.split_once(&format!("{named}: ")).expect(&text);
            let outcome = rest.split("; ").next().unwrap();
            let reason = if address == good { "no listener at that address" } else { "no answer within " };
            assert!(outcome.contains(reason), "{address}: {outcome:?} of {text}");
        }
    }
}

async fn an_unanswered_name_lookup_ends_at_its_limit(row: &'static Row) {
    let namespaces = Namespaces::new();
    namespaces.name("");
    let right = Home::Network(&namespaces.right);
    let address = at(row, MANY, 7000);
    for (role, limit) in [("bind", Duration::from_secs(2)), ("time-out", Duration::from_secs(1))] {
        let mut peer = Peer::start(role, row, right, &address);
        let (kind, time, text) = attempt(&mut peer).await;
        assert_eq!(kind, "TimedOut", "{text}");
        assert!(text.contains("name was not resolved within") && text.contains(&address), "{text}");
        assert!(time >= limit && time < limit + SLACK, "{time:?}");
        if role == "time-out" {
            // A detached thread still waits for the name server, for at least 9 s more.
            let gone_ms: u64 = peer.line().await.parse().unwrap();
            assert!(gone_ms < 4000, "the endpoint's thread ended {gone_ms} ms after the endpoint");
            peer.assert_done().await;
        }
    }
}

async fn a_name_is_bound_at_one_reported_address(row: &'static Row) {
    let namespaces = Namespaces::new();
    let left = Home::Network(&namespaces.left);
    namespaces.name(&many(["::1", "127.0.0.1", "::1"]));
    let named = at(row, MANY, 7000);
    let mut first = Peer::start("bind", row, left, &named);
    let (kind, _, bound) = attempt(&mut first).await;
    assert_eq!(kind, "connected", "{bound}");
    let bound: Address = bound.parse().unwrap();
    if bound.scheme().is_encrypted() {
        // The certificate is for the name.
        assert_eq!(bound.to_string(), named);
    } else {
        assert!(["::1", "127.0.0.1"].contains(&bound.host()), "{bound}");
        let mut client = Peer::start("connect", row, left, &bound.to_string());
        assert_eq!(attempt(&mut client).await.0, "connected");
    }
    // The name's other address is free, but is not used.
    let mut second = Peer::start("bind", row, left, &named);
    let (kind, _, text) = attempt(&mut second).await;
    assert_eq!(kind, "Unavailable", "{text}");
    assert!(text.contains("the address is in use"), "{text}");

    // An address of another host is skipped, and a name is bound at one address only.
    let elsewhere = IPV4[1];
    namespaces.name(&many([elsewhere, "127.0.0.1"]));
    let mut third = Peer::start("bind", row, left, &at(row, MANY, 7001));
    let (kind, _, bound) = attempt(&mut third).await;
    assert_eq!(kind, "connected", "{bound}");
    let host = if row.address().scheme().is_encrypted() { MANY } else { "127.0.0.1" };
    assert_eq!(bound, at(row, host, 7001));
    namespaces.name(&many(["127.0.0.1", "127.0.0.1"]));
    let mut fourth = Peer::start("bind", row, left, &at(row, MANY, 7002));
    assert_eq!(attempt(&mut fourth).await.2, at(row, MANY, 7002));
}

async fn every_interface_is_bound_completely_or_not_at_all(row: &'static Row) {
    let endpoint = row.builder().insecure(true).build().unwrap();
    let holders = [("IPv6", "[::1]:0"), ("IPv4", "127.0.0.1:0")];
    for (family, holder) in holders {
        let holder = match TcpListener::bind(holder) {
            Ok(holder) => holder,
            Err(error) => {
                need::skipped(&family.to_lowercase(), &error.to_string());
                continue;
            }
        };
        let port = holder.local_addr().unwrap().port();
        for host in ["*", "", "::"] {
            let address = Address::new(row.address().scheme(), host, port).unwrap();
            let error = in_time("listen", endpoint.listen(&address)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
            assert!(
                error.to_string().contains("the address is in use"),
                "{address} with {family} in use: {error}"
            );
        }
    }
    let every = Address::new(row.address().scheme(), "*", 0).unwrap();
    let listener = endpoint.listen(&every).await.unwrap();
    // A kernel without IPv6 binds the IPv4 wildcard address.
    assert!(["*", "0.0.0.0"].contains(&listener.address().host()), "{}", listener.address());
    let loopback = row.address();
    let reached = Address::new(loopback.scheme(), loopback.host(), listener.address().port()).unwrap();
    let near = row.endpoint();
    let (a, b) = tokio::join!(near.connect(&reached), listener.accept());
    let (a, b) = (a.unwrap(), b.unwrap());
    let (sent, taken) =
        in_time("a message", async { tokio::join!(a.deliver(message(1, &[10])), b.recv()) }).await;
    sent.unwrap();
    assert_message(&taken.unwrap(), 1, &[10]);
}

async fn a_lack_of_local_ports_is_reported(row: &'static Row) {
    let namespaces = Namespaces::new();
    let (_server, address) =
        Peer::listening("serve", row, Home::Network(&namespaces.left), &at(row, left(row), 7000)).await;
    set(&namespaces.right, "net.ipv4.ip_local_port_range", "40000 40003");
    let mut client = Peer::start("exhaust", row, Home::Network(&namespaces.right), &address.to_string());
    let (kind, _, text) = attempt(&mut client).await;
    assert_eq!(kind, "Unavailable", "{text}");
    assert!(text.contains("no local port is left"), "{text}");

    // A failure that the kernel reports the same way: no source address.
    set(&namespaces.right, "net.ipv6.conf.all.disable_ipv6", "1");
    let mut client = Peer::start("connect", row, Home::Network(&namespaces.right), &at(row, "::1", 7000));
    let (kind, _, text) = attempt(&mut client).await;
    assert_eq!(kind, "Unavailable", "{text}");
    assert!(text.contains("no address of that family"), "{text}");

    set(&namespaces.left, "net.ipv4.ip_local_port_range", "7000 7000");
    let mut listener = Peer::start("bind", row, Home::Network(&namespaces.left), &at(row, left(row), 0));
    let (kind, _, text) = attempt(&mut listener).await;
    assert_eq!(kind, "Unavailable", "{text}");
    assert!(text.contains("no port is free"), "{text}");
}

async fn a_port_without_a_listener_does_not_connect_to_itself(row: &'static Row) {
    let namespaces = Namespaces::new();
    set(&namespaces.right, "net.ipv4.ip_local_port_range", "40000 40000");
    let loopback = row.address();
    let unserved = at(row, loopback.host(), 40000);
    let mut client = Peer::start("connect", row, Home::Network(&namespaces.right), &unserved);
    let (kind, _, text) = attempt(&mut client).await;
    assert_eq!(kind, "Refused", "{text}");
    assert!(text.contains("no listener at that address"), "{text}");
}

async fn a_link_local_address_needs_its_zone(row: &'static Row) {
    let namespaces = Namespaces::new();
    let [left, right] = [&namespaces.left, &namespaces.right].map(|name| Home::Network(name));
    let zoned = at(row, &format!("{}%cable", LINK_LOCAL[0]), 0);
    let (_server, address) = Peer::listening("serve", row, left, &zoned).await;
    assert_eq!(address.host(), format!("{}%cable", LINK_LOCAL[0]));
    let mut client = Peer::start("connect", row, right, &address.to_string());
    let (kind, _, text) = attempt(&mut client).await;
    assert_eq!(kind, "connected", "{text}");

    let bare = at(row, LINK_LOCAL[0], address.port());
    for (role, home) in [("connect", right), ("bind", left)] {
        let mut peer = Peer::start(role, row, home, &bare);
        let (kind, _, text) = attempt(&mut peer).await;
        assert_eq!(kind, "Invalid", "{text}");
        assert!(text.contains("link-local") && text.contains("%eth0]"), "{text}");
        let other = bare.replace(LINK_LOCAL[0], &format!("{}%no_such", LINK_LOCAL[0]));
        let mut peer = Peer::start(role, row, home, &other);
        let (kind, _, text) = attempt(&mut peer).await;
        assert_eq!(kind, "Unavailable", "{text}");
        assert!(text.contains("no interface here is named \"no_such\""), "{text}");
    }
    // A name may resolve to such an address too.
    namespaces.name(&many([LINK_LOCAL[0]]));
    let mut client = Peer::start("connect", row, right, &at(row, MANY, address.port()));
    let (kind, _, text) = attempt(&mut client).await;
    assert_eq!(kind, "Invalid", "{text}");
    assert!(text.contains("link-local"), "{text}");
}
