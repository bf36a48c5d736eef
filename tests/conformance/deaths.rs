//! Peers of one host that are killed at any step. Their death is detected within milliseconds, after all
//! messages they sent, and no resource of either end stays.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use towline::{Connection, Endpoint, Error, ErrorKind, Listener, Wait};

use crate::backends::Row;
use crate::content::{assert_message, message};
use crate::mixed::{Random, lengths, seeds};
use crate::peer::{Home, Peer, SENT_COUNT, echo};
use crate::polls::{eventually, in_time, within};
use crate::suite::cases;
use crate::usage;

cases! {
    CROSS_PROCESS - CROSS_HOST:
        #[core] a_killed_peer_is_detected_within_milliseconds,
        messages_of_a_killed_peer_are_still_received,
        killed_peers_leave_nothing_on_their_host,
        a_survivor_frees_all_resources;
}

const KILLS: usize = 200;
/// Limit for 99 of 100 kills. A quiet machine needs a tenth of it; the case prints its times.
const DETECTION_TIME: Duration = Duration::from_millis(100);
const WAITS: [Wait; 3] = [Wait::Adaptive, Wait::Sleep, Wait::Spin];

/// Receives and checks messages until the end. Returns their count, the error, and its time.
async fn receive_all(connection: Connection, seed: usize) -> (usize, Error, Instant) {
    for at in 0.. {
        match connection.recv().await {
            Ok(taken) => assert_message(&taken, at, &lengths(seed, at)),
            Err(end) => return (at, end, Instant::now()),
        }
    }
    unreachable!("the peer is killed")
}

async fn a_killed_peer_is_detected_within_milliseconds(row: &'static Row) {
    let mut ends: Vec<(Endpoint, Listener)> = Vec::new();
    for wait in WAITS {
        let endpoint = row.builder().wait(wait).build().unwrap();
        let listener = endpoint.listen(&row.address()).await.unwrap();
        ends.push((endpoint, listener));
    }
    let (_other_peer, other) = Peer::serving(row).await;
    let other = ends[0].0.connect(&other).await.unwrap();
    let (mut times, mut received) = (Vec::new(), 0);
    for seed in seeds(0..KILLS) {
        let mut random = Random::new(seed, 200);
        let (_, listener) = &ends[seed % WAITS.len()];
        let mut peer = Peer::start("send-until-lost", row, Home::Here, &listener.address().to_string());
        let connection = in_time("the peer", listener.accept()).await.unwrap();
        in_time("the seed", connection.deliver(message(seed, &[]))).await.unwrap();
        let taking = tokio::spawn(receive_all(connection.clone(), seed));
        let sending = tokio::spawn(async move {
            loop {
                if let Err(failed) =
                    connection.send(message(seed, &[[100, 5000, 100_000][seed / 3 % 3]])).await
                {
                    return failed.error;
                }
            }
        });
        tokio::time::sleep(Duration::from_micros(random.below(10_000) as u64)).await;
        let killed_at = peer.kill();
        let (count, end, detected) = within(Duration::from_secs(2), "the end", taking).await.unwrap();
        assert_eq!(end.kind(), ErrorKind::PeerLost, "seed {seed}: {end}");
        let end = within(Duration::from_secs(2), "the end", sending).await.unwrap();
        assert_eq!(end.kind(), ErrorKind::PeerLost, "seed {seed}: {end}");
        received += count;
        times.push(detected.saturating_duration_since(killed_at));
        if seed % 10 == 0 {
            echo(&other, 20_000).await;
        }
    }
    times.sort();
    let p99 = times[times.len() * 99 / 100 - usize::from(times.len() > 1)];
    println!(
        "{} deaths detected: p50 {:?}, p99 {p99:?}, last {:?}",
        times.len(),
        times[times.len() / 2],
        times.last()
    );
    assert!(received > 0, "messages arrived before the kills");
    assert!(p99 < DETECTION_TIME, "p99 is {p99:?}");
    for (endpoint, _) in &ends {
        eventually("all memory is back", || endpoint.pool().stats().in_use_bytes == 0).await;
    }
}

async fn messages_of_a_killed_peer_are_still_received(row: &'static Row) {
    let endpoint = row.endpoint();
    let listener = endpoint.listen(&row.address()).await.unwrap();
    for delay in [0, 1, 30] {
        let mut peer = Peer::start("send-and-stay", row, Home::Here, &listener.address().to_string());
        let connection = in_time("the peer", listener.accept()).await.unwrap();
        assert_eq!(peer.line().await, "sent");
        peer.kill();
        tokio::time::sleep(Duration::from_millis(delay)).await;
        for at in 0..SENT_COUNT {
            assert_message(&in_time("what was sent", connection.recv()).await.unwrap(), at, &[at * 500]);
        }
        let end = in_time("the end", connection.recv()).await.unwrap_err();
        assert_eq!(end.kind(), ErrorKind::PeerLost, "{end}");
    }
}

/// Resources of the host that a process has.
#[derive(Debug, Default)]
struct Resources {
    /// Anonymous memory, by inode.
    memory: BTreeSet<u64>,
    /// Sockets, by inode.
    sockets: BTreeSet<u64>,
    /// Open or shared files with a name in a file system.
    named: BTreeSet<String>,
}

impl Resources {
    /// Reads the resources of a live process, as far as this process may.
    fn of(process: impl AsRef<Path>) -> Self {
        let mut resources = Self::default();
        let descriptors = fs::read_dir(process.as_ref().join("fd")).into_iter().flatten().flatten();
        for descriptor in descriptors {
            let Ok(target) = fs::read_link(descriptor.path()) else { continue };
            let target = target.to_string_lossy().into_owned();
            let inode = fs::metadata(descriptor.path()).map(|found| found.ino()).unwrap_or_default();
            if target.starts_with("/memfd:") {
                resources.memory.insert(inode);
            } else if target.starts_with("socket:") {
                resources.sockets.insert(inode);
            } else if target.starts_with('/') && target != "/dev/null" {
                resources.named.insert(target);
            }
        }
        let maps = fs::read_to_string(process.as_ref().join("maps")).unwrap_or_default();
        for line in maps.lines() {
            let fields: Vec<_> = line.split_ascii_whitespace().collect();
            let [_, access, _, _, inode, name, ..] = fields[..] else { continue };
            if name.starts_with("/memfd:") {
                resources.memory.insert(inode.parse().unwrap());
            } else if access.ends_with('s') && name != "/dev/zero" {
                resources.named.insert(name.to_owned());
            }
        }
        resources
    }

    /// Returns the anonymous memory of all processes of this host.
    fn memory_of_all() -> BTreeSet<u64> {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let numbered = processes.filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok());
        numbered.flat_map(|process| Self::of(process.path()).memory).collect()
    }
}

/// Returns the Unix sockets of this host, by inode.
fn unix_sockets() -> BTreeSet<u64> {
    let table = fs::read_to_string("/proc/net/unix").unwrap();
    table.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().nth(6)?.parse().ok()).collect()
}

async fn killed_peers_leave_nothing_on_their_host(row: &'static Row) {
    let (mut server, address) = Peer::serving(row).await;
    let mut client = Peer::start("exchange", row, Home::Here, &address.to_string());
    assert_eq!(client.line().await, "ready");
    let both = [&server, &client].map(|peer| Resources::of(format!("/proc/{}", peer.id())));
    // Both inherit what this program's parent left open.
    let inherited = Resources::of("/proc/self");
    for resources in &both {
        let named: Vec<_> = resources.named.difference(&inherited.named).collect();
        assert!(named.is_empty(), "named files: {named:?}");
    }
    let memory = both.iter().flat_map(|resources| resources.memory.difference(&inherited.memory).copied());
    let memory: BTreeSet<u64> = memory.collect();
    assert!(memory.len() >= 2, "a segment of either end: {both:?}");
    let sockets: BTreeSet<u64> = both.iter().flat_map(|resources| resources.sockets.clone()).collect();
    assert!(!sockets.is_disjoint(&unix_sockets()), "they are connected by a socket");
    client.kill();
    server.kill();
    eventually("no socket is left", || sockets.is_disjoint(&unix_sockets())).await;
    eventually("no process has their memory", || memory.is_disjoint(&Resources::memory_of_all())).await;
}

async fn a_survivor_frees_all_resources(row: &'static Row) {
    let endpoint = row.endpoint();
    let listener = endpoint.listen(&row.address()).await.unwrap();
    let here = || Resources::of("/proc/self").memory;
    let (mut descriptors, mut memory) = (0, BTreeSet::new());
    // The first round creates what is created once.
    for round in 0..4 {
        let mut peers: Vec<Peer> = Vec::new();
        let mut connections: Vec<Connection> = Vec::new();
        for seed in 0..4 {
            peers.push(Peer::start("send-until-lost", row, Home::Here, &listener.address().to_string()));
            let connection = in_time("the peer", listener.accept()).await.unwrap();
            in_time("the seed", connection.deliver(message(seed, &[]))).await.unwrap();
            assert_message(&in_time("a message", connection.recv()).await.unwrap(), 0, &lengths(seed, 0));
            connections.push(connection);
        }
        if round > 0 {
            assert!(here().len() > memory.len() && usage::descriptors() > descriptors, "it shares memory");
        }
        for peer in &mut peers {
            peer.kill();
        }
        for connection in &connections {
            while connection.recv().await.is_ok() {}
        }
        if round > 0 {
            // Before the application drops its lost connections.
            eventually("their mappings are killed_at", || {
                let maps = fs::read_to_string("/proc/self/maps").unwrap();
                !maps.contains("/memfd:towline-ring")
            })
            .await;
        }
        drop((peers, connections));
        if round == 0 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            (descriptors, memory) = (usage::descriptors(), here());
        }
        eventually("as many descriptors as before", || usage::descriptors() <= descriptors).await;
        eventually("as much memory as before", || here().len() <= memory.len()).await;
        eventually("all memory is back", || endpoint.pool().stats().in_use_bytes == 0).await;
    }
}
