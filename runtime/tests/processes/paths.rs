//! The copies of results on their way between processes, and the memory in which they arrive.

use std::collections::BTreeMap;

use towline::Place;
use towline_runtime::Future;

use crate::cluster::{Case, Cluster, run};
use crate::functions::{COPIED, INSPECT, Inspection, MAKE, Made, MemoryKind, copied};

pub(crate) const CASES: &[Case] = &[
    ("result_in_an_arena_is_not_copied", arena),
    ("a_result_in_host_memory_is_copied_at_most_twice", host),
    ("result_keeps_its_place", places),
];

const LEN: usize = 32 << 20;
/// Allowance for copies of protocol messages and announcements, in bytes.
const PROTOCOL_BYTES_MAX: u64 = 256 << 10;

/// Makes a result at each of the two workers.
async fn one_each(cluster: &Cluster, kind: MemoryKind, len: usize) -> Vec<Future<Made>> {
    // Long enough that both workers are busy at the same time.
    let made = cluster.client.map(MAKE, [(1, len, kind, 50), (2, len, kind, 50)]).unwrap();
    let mut holders = Vec::new();
    for made in &made {
        made.done().await.unwrap();
        holders.extend(cluster.client.who_has(made).await.unwrap());
    }
    assert_ne!(holders[0], holders[1], "they are with different workers");
    made
}

async fn inspected(cluster: &Cluster, made: &[Future<Made>]) -> Vec<Inspection> {
    let inspections = cluster.client.submit(INSPECT, (made,)).unwrap().result().await.unwrap();
    assert_ne!(inspections[0].maker, inspections[1].maker);
    assert!(
        inspections.iter().any(|inspection| inspection.maker != inspection.inspector),
        "one of them came from another process"
    );
    assert!(inspections.iter().all(|inspection| inspection.is_whole));
    inspections
}

/// Returns the bytes that both workers have copied.
async fn copied_by_workers(cluster: &Cluster) -> u64 {
    let mut copied = BTreeMap::new();
    while copied.len() < 2 {
        let each = cluster.client.map(COPIED, [(20,), (20,)]).unwrap();
        copied.extend(cluster.client.gather(&each).await.unwrap());
    }
    copied.into_values().sum()
}

fn arena() {
    run(async {
        let cluster = Cluster::start(2, 1).await;
        let made = one_each(&cluster, MemoryKind::Arena, LEN).await;
        for inspection in inspected(&cluster, &made).await {
            assert_eq!(inspection.place, Place::Arena.to_string());
        }
        let stats = cluster.client.stats().await.unwrap();
        let [pair] = &stats.pairs[..] else { panic!("one pair exchanged data: {stats:#?}") };
        assert_eq!((pair.path.as_str(), pair.values), ("shm", 1));
        assert!(pair.bytes >= LEN as u64 && stats.moved_bytes == pair.bytes, "{stats:#?}");
        let copied_there = copied_by_workers(&cluster).await;
        assert!(copied_there < PROTOCOL_BYTES_MAX, "{copied_there} bytes of {LEN} were copied");
        // And to the client, which is another process.
        let before = copied(&cluster.endpoint);
        let here = made[0].result().await.unwrap();
        assert_eq!((here.data.buffer().place(), here.data.buffer().len()), (Place::Arena, LEN));
        assert!(copied(&cluster.endpoint) - before < PROTOCOL_BYTES_MAX);
    });
}

fn host() {
    run(async {
        let cluster = Cluster::start(2, 1).await;
        let made = one_each(&cluster, MemoryKind::Host, LEN).await;
        for inspection in inspected(&cluster, &made).await {
            let places = [Place::Host, Place::Arena].map(|place| place.to_string());
            assert!(places.contains(&inspection.place), "{inspection:?}");
        }
        let copied = copied_by_workers(&cluster).await;
        let most = 2 * LEN as u64 + PROTOCOL_BYTES_MAX;
        assert!(copied <= most, "{copied} bytes were copied of {LEN}: more than twice");
    });
}

fn places() {
    run(async {
        let cluster = Cluster::start(2, 1).await;
        let made = one_each(&cluster, MemoryKind::Guarded, 1 << 20).await;
        for inspection in inspected(&cluster, &made).await {
            assert_eq!(inspection.place, Place::Guarded.to_string());
        }
        let here = made[0].result().await.unwrap();
        assert_eq!(here.data.buffer().place(), Place::Guarded);
    });
}
