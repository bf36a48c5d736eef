//! A peer accesses exactly the bytes that a region permits, while it permits them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use towline::{Buffer, BufferMut, Connection, ErrorKind, Failed, RegionAccess, RemoteRegion};

use crate::backends::{Row, connect_pair};
use crate::content::{assert_bytes, assert_message, bytes, message};
use crate::polls::{all, in_time};
use crate::suite::cases;

cases! {
    ONE_SIDED:
        gets_read_exactly_their_range,
        puts_write_exactly_their_range,
        a_get_fills_spare_capacity_only,
        accesses_outside_are_rejected,
        an_owner_refuses_forged_regions,
        the_wrong_access_is_rejected,
        a_region_of_another_connection_is_rejected,
        a_region_ends_with_its_lifetime,
        revoked_memory_comes_back_whole,
        #[core] a_hundred_gets_and_puts_at_once,
        thousands_of_requests_all_complete,
        #[core] large_gets_and_puts,
        regions_work_in_both_directions,
        regions_return_when_their_connection_ends;
    ONE_SIDED | SOFT_REVOKE:
        a_revoked_region_is_rejected_and_the_link_stays,
        #[core] revoke_waits_for_gets_in_flight,
        #[core] revoke_waits_for_puts_in_flight;
}

const LEN: usize = 100_000;
const LIFETIME: Duration = Duration::from_secs(600);

/// Encodes and decodes a region, as a message would carry it.
fn sent(region: RemoteRegion) -> RemoteRegion {
    RemoteRegion::from_bytes(&region.to_bytes()).unwrap()
}

async fn get(from: &Connection, region: &RemoteRegion, offset: usize, len: usize) -> BufferMut {
    let into = BufferMut::with_capacity(len);
    in_time("get", from.get(region, offset as u64, into)).await.unwrap()
}

/// Asserts that a get is rejected, and returns its buffer.
async fn assert_no_get(from: &Connection, region: &RemoteRegion, offset: u64, len: usize) {
    let into = BufferMut::with_capacity(len);
    let start = into.as_ptr();
    let failed = in_time("get", from.get(region, offset, into)).await.unwrap_err();
    assert_eq!(failed.error.kind(), ErrorKind::Rejected, "{failed}");
    let Failed { returned, .. } = failed;
    assert_eq!((returned.as_ptr(), returned.len(), returned.capacity()), (start, 0, len));
}

/// Asserts that a put is rejected, and returns its buffer.
async fn assert_no_put(from: &Connection, region: &RemoteRegion, offset: u64, len: usize) {
    let buffer = Buffer::from(bytes(9, len));
    let start = buffer.as_ptr();
    let failed = in_time("put", from.put(region, offset, buffer)).await.unwrap_err();
    assert_eq!(failed.error.kind(), ErrorKind::Rejected, "{failed}");
    assert_eq!((failed.returned.as_ptr(), failed.returned.len()), (start, len));
    assert!(failed.returned.try_into_mut().is_ok() || len == 0, "no other handle holds it");
}

/// Asserts that the connection still carries messages.
async fn assert_usable(a: &Connection, b: &Connection) {
    let both = async { tokio::join!(a.deliver(message(3, &[30_000])), b.recv()) };
    let (sent, taken) = in_time("a message", both).await;
    sent.unwrap();
    assert_message(&taken.unwrap(), 3, &[30_000]);
}

async fn gets_read_exactly_their_range(row: &'static Row) {
    let pair = row.pair().await;
    let region = pair.b.expose(bytes(1, LEN).into(), LIFETIME).unwrap();
    let remote = sent(region.remote());
    assert_eq!((remote.len(), remote.access()), (LEN as u64, RegionAccess::Read));
    for (offset, len) in [(0, LEN), (0, 1), (1, 7), (LEN - 1, 1), (40_000, 20_000), (0, 0), (77, 0), (LEN, 0)]
    {
        let got = get(&pair.a, &remote, offset, len).await;
        assert_eq!(got.len(), len);
        assert_bytes(got.as_slice().unwrap(), 1, offset);
    }
    assert!(in_time("revoke", region.revoke()).await.as_slice().unwrap() == bytes(1, LEN));
}

async fn puts_write_exactly_their_range(row: &'static Row) {
    let pair = row.pair().await;
    let mut expected = vec![0; LEN];
    let region = pair.b.expose_mut(BufferMut::zeroed(LEN), LIFETIME).unwrap();
    let remote = sent(region.remote());
    assert_eq!((remote.len(), remote.access()), (LEN as u64, RegionAccess::Write));
    let ranges = [(0, 0), (LEN, 0), (0, 1), (LEN - 1, 1), (10, 5000), (40_000, 40_000), (39_990, 20)];
    for (seed, (offset, len)) in ranges.into_iter().enumerate() {
        in_time("put", pair.a.put(&remote, offset as u64, bytes(seed, len).into())).await.unwrap();
        expected[offset..offset + len].copy_from_slice(&bytes(seed, len));
    }
    assert!(in_time("revoke", region.revoke()).await.as_slice().unwrap() == expected);
}

async fn a_get_fills_spare_capacity_only(row: &'static Row) {
    let pair = row.pair().await;
    let region = pair.b.expose(bytes(1, LEN).into(), LIFETIME).unwrap();
    let mut into = BufferMut::with_capacity(50_000);
    into.extend_from_slice(b"prefix").unwrap();
    let start = into.as_ptr();
    let got = in_time("get", pair.a.get(&region.remote(), 3, into)).await.unwrap();
    assert_eq!((got.as_ptr(), got.len()), (start, 50_000));
    assert_eq!(&got.as_slice().unwrap()[..6], b"prefix");
    assert_bytes(&got.as_slice().unwrap()[6..], 1, 3);
}

const OUTSIDE: [(u64, usize); 6] =
    [(LEN as u64, 1), (0, LEN + 1), (LEN as u64 - 1, 2), (LEN as u64 + 1, 0), (u64::MAX, 1), (u64::MAX, 0)];

async fn accesses_outside_are_rejected(row: &'static Row) {
    let pair = row.pair().await;
    let readable = pair.b.expose(bytes(1, LEN).into(), LIFETIME).unwrap();
    let writable = pair.b.expose_mut(BufferMut::zeroed(LEN), LIFETIME).unwrap();
    for (offset, len) in OUTSIDE {
        assert_no_get(&pair.a, &readable.remote(), offset, len).await;
        assert_no_put(&pair.a, &writable.remote(), offset, len).await;
    }
    assert!(in_time("revoke", writable.revoke()).await.as_slice().unwrap().iter().all(|byte| *byte == 0));
    assert_usable(&pair.a, &pair.b).await;
}

/// Forges a region that permits more than its owner gave.
fn forged(region: RemoteRegion, len: u64, access: RegionAccess) -> RemoteRegion {
    let mut bytes = region.to_bytes();
    bytes[1] = match access {
        RegionAccess::Read => 1,
        RegionAccess::Write => 2,
    };
    bytes[8..16].copy_from_slice(&len.to_le_bytes());
    RemoteRegion::from_bytes(&bytes).unwrap()
}

async fn an_owner_refuses_forged_regions(row: &'static Row) {
    let pair = row.pair().await;
    let readable = pair.b.expose(bytes(1, LEN).into(), LIFETIME).unwrap();
    let writable = pair.b.expose_mut(BufferMut::zeroed(LEN), LIFETIME).unwrap();
    let longer = |region, access| forged(region, u64::MAX, access);
    for (offset, len) in OUTSIDE {
        assert_no_get(&pair.a, &longer(readable.remote(), RegionAccess::Read), offset, len).await;
        assert_no_put(&pair.a, &longer(writable.remote(), RegionAccess::Write), offset, len).await;
    }
    let other_access = |region, access| forged(region, LEN as u64, access);
    assert_no_get(&pair.a, &other_access(writable.remote(), RegionAccess::Read), 0, 10).await;
    assert_no_put(&pair.a, &other_access(readable.remote(), RegionAccess::Write), 0, 10).await;
    let mut unknown = readable.remote().to_bytes();
    unknown[31] ^= 1;
    assert_no_get(&pair.a, &RemoteRegion::from_bytes(&unknown).unwrap(), 0, 10).await;
    // The owner's own end has no such region either.
    assert_no_get(&pair.b, &readable.remote(), 0, 10).await;

    assert_usable(&pair.a, &pair.b).await;
    assert!(in_time("revoke", readable.revoke()).await.as_slice().unwrap() == bytes(1, LEN));
    assert!(in_time("revoke", writable.revoke()).await.as_slice().unwrap().iter().all(|byte| *byte == 0));
}

async fn the_wrong_access_is_rejected(row: &'static Row) {
    let pair = row.pair().await;
    let readable = pair.b.expose(bytes(1, LEN).into(), LIFETIME).unwrap();
    let writable = pair.b.expose_mut(BufferMut::zeroed(LEN), LIFETIME).unwrap();
    assert_no_get(&pair.a, &writable.remote(), 0, 10).await;
    assert_no_put(&pair.a, &readable.remote(), 0, 10).await;
    assert_eq!(get(&pair.a, &readable.remote(), 0, 10).await.as_slice().unwrap(), bytes(1, 10));
}

async fn a_region_of_another_connection_is_rejected(row: &'static Row) {
    let pair = row.pair().await;
    let (other, owner) = connect_pair(&pair.near, &pair.listener).await;
    let readable = pair.b.expose(bytes(1, LEN).into(), LIFETIME).unwrap();
    let writable = owner.expose_mut(BufferMut::zeroed(LEN), LIFETIME).unwrap();
    assert_no_get(&other, &readable.remote(), 0, 10).await;
    assert_no_put(&pair.a, &writable.remote(), 0, 10).await;
    assert_eq!(get(&pair.a, &readable.remote(), 0, 10).await.as_slice().unwrap(), bytes(1, 10));
    in_time("put", other.put(&writable.remote(), 0, bytes(1, 10).into())).await.unwrap();
    assert_usable(&other, &owner).await;
}

async fn a_region_ends_with_its_lifetime(row: &'static Row) {
    let pair = row.pair().await;
    let short = Duration::from_millis(300);
    let readable = pair.b.expose(bytes(1, LEN).into(), short).unwrap();
    let writable = pair.b.expose_mut(BufferMut::zeroed(LEN), short).unwrap();
    tokio::time::sleep(short).await;
    assert_no_get(&pair.a, &readable.remote(), 0, 10).await;
    assert_no_put(&pair.a, &writable.remote(), 0, 10).await;
    assert_usable(&pair.a, &pair.b).await;
    assert_eq!(in_time("revoke", readable.revoke()).await.len(), LEN);
    assert_eq!(in_time("revoke", writable.revoke()).await.len(), LEN);
}

async fn a_revoked_region_is_rejected_and_the_link_stays(row: &'static Row) {
    let pair = row.pair().await;
    for dropped in [false, true] {
        let readable = pair.b.expose(bytes(1, LEN).into(), LIFETIME).unwrap();
        let writable = pair.b.expose_mut(BufferMut::zeroed(LEN), LIFETIME).unwrap();
        let (read, write) = (readable.remote(), writable.remote());
        assert_eq!(get(&pair.a, &read, 0, 10).await.as_slice().unwrap(), bytes(1, 10));
        if dropped {
            drop((readable, writable));
        } else {
            in_time("revoke", async { tokio::join!(readable.revoke(), writable.revoke()) }).await;
        }
        for len in [10, LEN] {
            assert_no_get(&pair.a, &read, 0, len).await;
            assert_no_put(&pair.a, &write, 0, len).await;
        }
        assert_usable(&pair.a, &pair.b).await;
    }
}

async fn revoked_memory_comes_back_whole(row: &'static Row) {
    let pair = row.pair().await;
    let buffer = Buffer::from(bytes(1, LEN));
    let start = buffer.as_ptr();
    let region = pair.b.expose(buffer, LIFETIME).unwrap();
    get(&pair.a, &region.remote(), 0, LEN).await;
    let buffer = in_time("revoke", region.revoke()).await;
    assert_eq!(buffer.as_ptr(), start);
    let mut writable = buffer.try_into_mut().expect("no other handle holds it");
    assert_eq!(writable.as_mut_slice().unwrap().len(), LEN);

    let region = pair.b.expose_mut(writable, LIFETIME).unwrap();
    in_time("put", pair.a.put(&region.remote(), 10, bytes(2, 10).into())).await.unwrap();
    let writable = in_time("revoke", region.revoke()).await;
    assert_eq!((writable.as_ptr(), writable.len()), (start, LEN));
    assert_eq!(&writable.as_slice().unwrap()[10..20], bytes(2, 10));
    assert_eq!(&writable.as_slice().unwrap()[20..], &bytes(1, LEN)[20..]);
}

/// Eight tasks access `region` until they are rejected. Returns the count of accesses, and the tasks.
fn access_until_rejected<F>(access: impl Fn(usize) -> F) -> (Arc<AtomicUsize>, tokio::task::JoinSet<()>)
where
    F: Future<Output = Result<(), ErrorKind>> + Send + 'static,
{
    let count = Arc::new(AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..8 {
        let accesses: Vec<_> = (0..1000).map(|_| access(task)).collect();
        let count = count.clone();
        tasks.spawn(async move {
            for access in accesses {
                match access.await {
                    Ok(()) => drop(count.fetch_add(1, Relaxed)),
                    Err(kind) => return assert_eq!(kind, ErrorKind::Rejected),
                }
                // An operation may complete at once.
                tokio::task::yield_now().await;
            }
        });
    }
    (count, tasks)
}

async fn revoke_waits_for_gets_in_flight(row: &'static Row) {
    const LARGE: usize = 2 << 20;
    let pair = row.pair().await;
    for turn in 0..5 {
        let buffer = Buffer::from(bytes(1, LARGE));
        let start = buffer.as_ptr();
        let region = pair.b.expose(buffer, LIFETIME).unwrap();
        let remote = region.remote();
        let (count, tasks) = access_until_rejected(|_| {
            let a = pair.a.clone();
            async move {
                let got = a.get(&remote, 0, BufferMut::with_capacity(LARGE)).await;
                got.map(|got| assert_bytes(got.as_slice().unwrap(), 1, 0))
                    .map_err(|failed| failed.error.kind())
            }
        });
        while count.load(Relaxed) < 8 + turn {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let buffer = in_time("revoke", region.revoke()).await;
        assert_eq!(buffer.as_ptr(), start);
        let mut memory = buffer.try_into_mut().expect("no get reads it");
        // No get sees what is written now.
        memory.as_mut_slice().unwrap().fill(0);
        in_time("the gets", tasks.join_all()).await;
    }
    assert_usable(&pair.a, &pair.b).await;
}

async fn revoke_waits_for_puts_in_flight(row: &'static Row) {
    const LARGE: usize = 2 << 20;
    let pair = row.pair().await;
    for turn in 0..5 {
        let region = pair.b.expose_mut(BufferMut::zeroed(LARGE), LIFETIME).unwrap();
        let remote = region.remote();
        let from = Buffer::from(bytes(2, LARGE));
        let (count, tasks) = access_until_rejected(|_| {
            let (a, from) = (pair.a.clone(), from.clone());
            async move { a.put(&remote, 0, from).await.map_err(|failed| failed.error.kind()) }
        });
        while count.load(Relaxed) < 8 + turn {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let mut memory = in_time("revoke", region.revoke()).await;
        // A late put would overwrite this.
        memory.as_mut_slice().unwrap().fill(7);
        in_time("the puts", tasks.join_all()).await;
        assert!(memory.as_slice().unwrap().iter().all(|byte| *byte == 7), "a put wrote after the revocation");
    }
    assert_usable(&pair.a, &pair.b).await;
}

async fn a_hundred_gets_and_puts_at_once(row: &'static Row) {
    const COUNT: usize = 100;
    let pair = row.pair().await;
    let readable = pair.b.expose(bytes(1, COUNT * LEN).into(), LIFETIME).unwrap();
    let writable = pair.b.expose_mut(BufferMut::zeroed(COUNT * LEN), LIFETIME).unwrap();
    let from = Buffer::from(bytes(2, COUNT * LEN));
    let gets = all((0..COUNT).map(|at| {
        let pair = &pair;
        let remote = readable.remote();
        async move {
            let into = BufferMut::with_capacity(LEN);
            let got = pair.a.get(&remote, (at * LEN) as u64, into).await.unwrap();
            assert_bytes(got.as_slice().unwrap(), 1, at * LEN);
        }
    }));
    let puts = all((0..COUNT).map(|at| {
        let from = from.slice(at * LEN..(at + 1) * LEN);
        let pair = &pair;
        let remote = writable.remote();
        async move { pair.a.put(&remote, (at * LEN) as u64, from).await.unwrap() }
    }));
    in_time("a hundred of each", async { tokio::join!(gets, puts) }).await;
    assert_bytes(in_time("revoke", writable.revoke()).await.as_slice().unwrap(), 2, 0);
}

async fn thousands_of_requests_all_complete(row: &'static Row) {
    const COUNT: usize = 3000;
    let pair = row.pair().await;
    let readable = pair.b.expose(bytes(1, COUNT).into(), LIFETIME).unwrap();
    let writable = pair.b.expose_mut(BufferMut::zeroed(COUNT), LIFETIME).unwrap();
    let from = Buffer::from(bytes(2, COUNT));
    let mut requests = tokio::task::JoinSet::new();
    for at in 0..COUNT {
        let (a, read, write) = (pair.a.clone(), readable.remote(), writable.remote());
        let byte = from.slice(at..at + 1);
        requests.spawn(async move {
            if at % 2 == 0 {
                let got = a.get(&read, at as u64, BufferMut::with_capacity(1)).await.unwrap();
                assert_bytes(got.as_slice().unwrap(), 1, at);
            }
            a.put(&write, at as u64, byte).await.unwrap();
        });
    }
    in_time("all of them", requests.join_all()).await;
    assert_bytes(in_time("revoke", writable.revoke()).await.as_slice().unwrap(), 2, 0);
}

async fn large_gets_and_puts(row: &'static Row) {
    const LARGE: usize = 24 << 20;
    let pair = row.pair().await;
    let readable = pair.b.expose(bytes(1, LARGE).into(), LIFETIME).unwrap();
    let got = get(&pair.a, &readable.remote(), 0, LARGE).await;
    assert_bytes(got.as_slice().unwrap(), 1, 0);
    let writable = pair.b.expose_mut(BufferMut::zeroed(LARGE), LIFETIME).unwrap();
    in_time("put", pair.a.put(&writable.remote(), 0, got.freeze())).await.unwrap();
    assert_bytes(in_time("revoke", writable.revoke()).await.as_slice().unwrap(), 1, 0);
}

async fn regions_work_in_both_directions(row: &'static Row) {
    let pair = row.pair().await;
    let done = AtomicBool::new(false);
    let work = |owner: Connection, user: Connection, seed: usize| async move {
        let readable = owner.expose(bytes(seed, LEN).into(), LIFETIME).unwrap();
        for _ in 0..20 {
            let got = get(&user, &readable.remote(), 0, LEN).await;
            assert_bytes(got.as_slice().unwrap(), seed, 0);
        }
    };
    let there = work(pair.a.clone(), pair.b.clone(), 1);
    let back = work(pair.b.clone(), pair.a.clone(), 2);
    let messages = async {
        while !done.load(Relaxed) {
            assert_usable(&pair.a, &pair.b).await;
        }
    };
    let gets = async {
        tokio::join!(there, back);
        done.store(true, Relaxed);
    };
    in_time("gets both ways among messages", async { tokio::join!(gets, messages) }).await;
}

async fn regions_return_when_their_connection_ends(row: &'static Row) {
    for by_the_owner in [true, false] {
        let pair = row.pair().await;
        let readable = pair.b.expose(bytes(1, LEN).into(), LIFETIME).unwrap();
        let writable = pair.b.expose_mut(BufferMut::zeroed(LEN), LIFETIME).unwrap();
        get(&pair.a, &readable.remote(), 0, LEN).await;
        if by_the_owner {
            pair.b.abort()
        } else {
            pair.a.abort()
        }
        let revoking = async { tokio::join!(readable.revoke(), writable.revoke()) };
        let (read, write) = in_time("revoke", revoking).await;
        assert!(read.try_into_mut().is_ok(), "no get reads it");
        assert_eq!(write.len(), LEN);
    }
}
