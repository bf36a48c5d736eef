//! Large host frames to named memory of another process: where the kernel permits it, the receiver reads
//! them once from the sender's memory. It never delivers other bytes than were sent.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use towline::backend;
use towline::{Buffer, BufferMut, Connection, Destination, Endpoint, ErrorKind, Incoming, Listener, Message};
use towline_tests::faulting::Faulting;

use crate::attach::assert_exchange;
use crate::backends::Row;
use crate::content::{assert_bytes, assert_frame, assert_message, bytes, message};
use crate::mixed::{Random, seeds};
use crate::peer::{Home, Peer};
use crate::polls::{eventually, in_time, within};
use crate::raw_peer::{EAGER, announcement, packet, record};
use crate::sharing::{CONSUMED, Hello, PRODUCED, ShmPeer, connect_by_shm, listening};
use crate::suite::cases;
use crate::usage;

cases! {
    CROSS_PROCESS - CROSS_HOST:
        large_frames_are_copied_once_into_named_memory,
        each_frame_reaches_its_destination_and_discarded_ones_are_not_read,
        a_message_completes_after_its_accept_is_dropped,
        two_copies_and_a_reason_where_the_kernel_refuses,
        #[core] a_sender_killed_at_any_step_leaves_whole_messages_or_an_error,
        #[core] memory_returned_during_a_read_is_never_delivered,
        a_stopped_sender_delays_no_read_of_its_memory,
        invalid_addresses_cost_a_copy_or_the_connection,
        slow_reads_are_not_used_by_default;
    CROSS_PROCESS - CROSS_HOST, userfaultfd:
        a_canary_that_faults_forever_delays_no_other_attach,
        frames_that_fault_forever_fail_alone,
        abort_does_not_wait_for_memory_that_faults_forever;
    CROSS_PROCESS - CROSS_HOST, netns:
        frames_of_an_invisible_process_use_the_ring;
}

/// Frames of this length and more are read in place.
const LARGE: usize = 256 << 10;
const PART: usize = 512 << 10;
/// The protocol's own bytes, which count as copied too.
const PROTOCOL_BYTES: u64 = 4096;
const COPIED_ONCE: &str = "are copied once, from the peer's memory";

async fn receive_into_own(connection: &Connection) -> towline::Result<Message> {
    let incoming = in_time("incoming", connection.incoming()).await?;
    let buffers: Vec<_> = incoming.frames().iter().map(|frame| BufferMut::with_capacity(frame.len)).collect();
    let starts: Vec<_> = buffers.iter().map(BufferMut::as_ptr).collect();
    let taken = incoming.accept_into(buffers.into_iter().map(Destination::Buffer).collect()).await?;
    for (frame, start) in taken.frames().iter().zip(starts) {
        assert!(frame.is_empty() || frame.as_ptr() == start, "the frame is not in its buffer");
    }
    Ok(taken)
}

/// Returns the bytes that an end copies during `moving`.
async fn copied<T>(connection: &Connection, moving: impl Future<Output = T>) -> (u64, T) {
    let before = connection.stats().bytes_copied;
    let result = moving.await;
    (connection.stats().bytes_copied - before, result)
}

async fn note(connection: &Connection) -> String {
    connection.explain().await.notes.concat()
}

async fn large_frames_are_copied_once_into_named_memory(row: &'static Row) {
    let (_peer, address) = Peer::listening("receive", row, Home::Here, row.address).await;
    let far = row.endpoint().connect(&address).await.unwrap();
    let pair = row.pair().await;
    assert!(note(&far).await.contains(COPIED_ONCE), "{}", note(&far).await);
    for (number, len) in
        [LARGE - 1, LARGE, LARGE + 1, PART - 1, PART, PART + 1, 2 * PART, (3 << 20) + 1, 32 << 20]
            .into_iter()
            .enumerate()
    {
        let once = len >= LARGE;
        let sending = copied(&pair.a, pair.a.deliver(message(number, &[len, 0])));
        let both = async { tokio::join!(sending, copied(&pair.b, receive_into_own(&pair.b))) };
        let ((sent, delivered), (landed, taken)) = in_time("a message", both).await;
        delivered.unwrap();
        assert_message(&taken.unwrap(), number, &[len, 0]);
        let len_u64 = len as u64;
        if once {
            assert!(sent < PROTOCOL_BYTES, "the sender copied {sent} of {len} bytes");
        } else {
            assert!(sent >= len_u64, "it travels");
        }
        assert!(
            (len_u64..len_u64 + PROTOCOL_BYTES).contains(&landed),
            "the receiver copied {landed} of {len} bytes"
        );

        // Between two processes, both ways: the peer returns what it copied.
        let both = async { tokio::join!(far.deliver(message(number, &[len])), receive_into_own(&far)) };
        let (here, (sent, back)) = in_time("an answer", copied(&far, both)).await;
        sent.unwrap();
        let back = back.unwrap();
        assert_frame(&back.frames()[0], number, len);
        let theirs = u64::from_le_bytes(back.header()[..].try_into().unwrap());
        let (once, twice) = (len_u64..len_u64 + PROTOCOL_BYTES, 2 * len_u64..2 * len_u64 + PROTOCOL_BYTES);
        let expected = if len >= LARGE { once.clone() } else { twice };
        assert!(expected.contains(&here), "this end copied {here} of {len} bytes there and back");
        assert!(once.contains(&theirs), "the peer copied {theirs} of {len} bytes on their way in");
    }
}

async fn slow_reads_are_not_used_by_default(row: &'static Row) {
    let pair = row.pair_with(|builder| builder.backends(backend::all())).await;
    let reason = note(&pair.b).await;
    assert!(
        reason.contains(COPIED_ONCE) != reason.contains("times as long as memcpy on this machine"),
        "{reason}"
    );
    for number in 0..3 {
        let both =
            async { tokio::join!(pair.a.deliver(message(number, &[3 * PART])), receive_into_own(&pair.b)) };
        let (sent, taken) = in_time("a message", both).await;
        sent.unwrap();
        assert_message(&taken.unwrap(), number, &[3 * PART]);
    }
    assert_eq!(note(&pair.b).await, reason);
    let copied = pair.a.stats().bytes_copied;
    assert_eq!(
        copied < PROTOCOL_BYTES,
        reason.contains(COPIED_ONCE),
        "the sender copied {copied} bytes: {reason}"
    );
}

async fn each_frame_reaches_its_destination_and_discarded_ones_are_not_read(row: &'static Row) {
    const LENS: [usize; 7] = [PART + 1, 0, 1, 3 * PART, 7, PART, 2_000_000];
    const DISCARDED: [usize; 2] = [3, 4];
    let pair = row.pair().await;
    for number in 0..4 {
        let take = async {
            let incoming = pair.b.incoming().await.unwrap();
            let destination = |(at, len): (usize, &usize)| match at {
                at if DISCARDED.contains(&at) => Destination::Discard,
                2 => Destination::Place(towline::Place::Host),
                5 => Destination::Pool(pair.far.pool().clone()),
                _ => Destination::Buffer(BufferMut::with_capacity(len + at)),
            };
            incoming.accept_into(LENS.iter().enumerate().map(destination).collect()).await.unwrap()
        };
        let sending = pair.a.deliver(message(number, &LENS));
        let (sent, (copied, taken)) =
            in_time("a message", async { tokio::join!(sending, copied(&pair.b, take)) }).await;
        sent.unwrap();
        let mut wanted = 0;
        for (at, len) in LENS.iter().enumerate() {
            let len = if DISCARDED.contains(&at) { 0 } else { *len };
            assert_frame(&taken.frames()[at], number + at, len);
            wanted += len as u64;
        }
        assert!((wanted..wanted + PROTOCOL_BYTES).contains(&copied), "{copied} of {wanted}");
    }
    let whole = BufferMut::with_capacity(LENS.iter().sum());
    let both = async { tokio::join!(pair.a.deliver(message(9, &LENS)), pair.b.recv_into(whole)) };
    let (sent, taken) = in_time("a message", both).await;
    sent.unwrap();
    assert_message(&taken.unwrap(), 9, &LENS);
    // The link chooses pool memory itself: it is not named memory.
    let both = async { tokio::join!(pair.a.deliver(message(1, &[4 * PART])), pair.b.recv()) };
    let (sent, taken) = in_time("a message", both).await;
    sent.unwrap();
    assert_message(&taken.unwrap(), 1, &[4 * PART]);
}

/// The accept is dropped after the destinations are named: the driver reads the frames.
async fn a_message_completes_after_its_accept_is_dropped(row: &'static Row) {
    const LEN: usize = 80 << 20;
    let pair = row.pair().await;
    for number in 0..2 {
        let sending = {
            let a = pair.a.clone();
            tokio::spawn(async move { a.deliver(message(number, &[LEN])).await })
        };
        let incoming = in_time("incoming", pair.b.incoming()).await.unwrap();
        let destination = vec![Destination::Buffer(BufferMut::with_capacity(LEN))];
        let mut taking = Box::pin(incoming.accept_into(destination));
        let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(taking.as_mut().poll(cx).is_ready()));
        assert!(!polled.await, "one poll of it takes all");
        drop(taking);
        in_time("its receipt", sending).await.unwrap().unwrap();
    }
}

/// Drops the capability to read other processes from this thread, and so from the threads it starts.
fn drop_ptrace_capability() {
    let mut sets = capabilities(None).unwrap();
    sets.effective -= CapabilitySet::SYS_PTRACE;
    sets.permitted -= CapabilitySet::SYS_PTRACE;
    set_capabilities(None, sets).unwrap();
}

async fn two_copies_and_a_reason_where_the_kernel_refuses(row: &'static Row) {
    const LEN: usize = 3 << 20;
    let (_peer, address) = Peer::listening("receive-undumpable", row, Home::Here, row.address).await;
    let near = std::thread::scope(|scope| {
        let making = scope.spawn(|| {
            drop_ptrace_capability();
            row.endpoint()
        });
        making.join().unwrap()
    });
    let connection = near.connect(&address).await.unwrap();
    let why = note(&connection).await;
    assert!(why.contains("twice") && why.contains("Operation not permitted"), "{why}");
    for number in 0..3 {
        let both = async {
            tokio::join!(
                connection.deliver(message(number, &[LEN])),
                copied(&connection, receive_into_own(&connection))
            )
        };
        let (sent, (copied, back)) = in_time("an answer", both).await;
        sent.unwrap();
        assert_frame(&back.unwrap().frames()[0], number, LEN);
        // The peer may read this process, and does. Its own frames arrive through the ring.
        let wanted = LEN as u64..LEN as u64 + PROTOCOL_BYTES;
        assert!(wanted.contains(&copied), "{copied} of {LEN}");
    }
    assert_eq!(note(&connection).await, why);
}

async fn a_sender_killed_at_any_step_leaves_whole_messages_or_an_error(row: &'static Row) {
    const LEN: usize = 16 << 20;
    let (mut whole, mut lost) = (0, 0);
    for seed in seeds(0..30) {
        let mut random = Random::new(seed, 30);
        let (mut peer, address) = Peer::listening("receive", row, Home::Here, row.address).await;
        let connection = row.endpoint().connect(&address).await.unwrap();
        let asking = connection.clone();
        let asked = tokio::spawn(async move { asking.deliver(message(seed, &[LEN, LEN / 2])).await });
        let incoming = in_time("the answer", connection.incoming()).await.unwrap();
        in_time("the question", asked).await.unwrap().unwrap();
        let destinations: Vec<_> = [LEN, LEN / 2].map(BufferMut::with_capacity).into();
        let starts: Vec<_> = destinations.iter().map(BufferMut::as_ptr).collect();
        let delay = Duration::from_micros(random.below(3000) as u64);
        let killing = std::thread::spawn(move || {
            std::thread::sleep(delay);
            peer.kill();
        });
        let destinations = destinations.into_iter().map(Destination::Buffer).collect();
        match within(Duration::from_secs(3), "accept", incoming.accept_into(destinations)).await {
            Ok(taken) => {
                assert_frame(&taken.frames()[0], seed, LEN);
                assert_frame(&taken.frames()[1], seed + 1, LEN / 2);
                whole += 1;
            }
            Err(failed) => {
                assert_eq!(failed.error.kind(), ErrorKind::PeerLost, "{failed}");
                let back = |destination: &Destination| match destination {
                    Destination::Buffer(buffer) => buffer.as_ptr(),
                    other => panic!("{other:?} returned"),
                };
                assert_eq!(failed.returned.iter().map(back).collect::<Vec<_>>(), starts);
                lost += 1;
            }
        }
        killing.join().unwrap();
    }
    println!("{whole} whole, {lost} lost");
    assert!(lost > 0, "no message was cut");
}

/// The sender aborts at any step, and overwrites returned memory at once.
async fn memory_returned_during_a_read_is_never_delivered(row: &'static Row) {
    const LEN: usize = 24 << 20;
    let (mut whole, mut lost) = (0, 0);
    for seed in seeds(0..40) {
        let mut random = Random::new(seed, 40);
        let pair = row.pair().await;
        let sending = {
            let a = pair.a.clone();
            tokio::spawn(async move {
                let failed = a.send(Message::new("").with_frame(bytes(seed, LEN))).await.err()?;
                let [frame] = <[Buffer; 1]>::try_from(failed.returned.into_parts().1).unwrap();
                let mut mine = frame.try_into_mut().expect("no other handle holds it");
                mine.as_mut_slice().unwrap().fill(0xee);
                Some(failed.error.kind())
            })
        };
        let incoming = in_time("incoming", pair.b.incoming()).await.unwrap();
        let taking = tokio::spawn(async move {
            incoming.accept_into(vec![Destination::Buffer(BufferMut::with_capacity(LEN))]).await
        });
        let delay = Duration::from_micros(random.below(6000) as u64);
        let began = Instant::now();
        while began.elapsed() < delay {
            std::hint::spin_loop();
        }
        pair.a.abort();
        let sent = in_time("send", sending).await.unwrap();
        match in_time("accept", taking).await.unwrap() {
            Ok(taken) => {
                assert_frame(&taken.frames()[0], seed, LEN);
                whole += 1;
            }
            Err(failed) => {
                assert_eq!(failed.error.kind(), ErrorKind::PeerLost, "{failed}");
                assert_eq!(sent, Some(ErrorKind::Closed));
                assert!(
                    matches!(&failed.returned[..], [Destination::Buffer(buffer)] if buffer.capacity() >= LEN)
                );
                lost += 1;
            }
        }
    }
    println!("{whole} whole, {lost} lost");
    assert!(lost > 0, "no message was cut");
}

async fn a_stopped_sender_delays_no_read_of_its_memory(row: &'static Row) {
    const LEN: usize = 8 << 20;
    let (peer, address) = Peer::listening("receive", row, Home::Here, row.address).await;
    let connection = row.endpoint().connect(&address).await.unwrap();
    let asking = async { tokio::join!(connection.deliver(message(1, &[LEN])), connection.incoming()) };
    let (asked, incoming) = in_time("the question", asking).await;
    asked.unwrap();
    peer.signal(Signal::STOP);
    let destination = vec![Destination::Buffer(BufferMut::with_capacity(LEN))];
    let taken = in_time("the answer", incoming.unwrap().accept_into(destination)).await.unwrap();
    assert_frame(&taken.frames()[0], 1, LEN);
    peer.signal(Signal::CONT);
    let both = async { tokio::join!(connection.deliver(message(2, &[LEN])), receive_into_own(&connection)) };
    let (sent, taken) = in_time("an answer", both).await;
    sent.unwrap();
    assert_frame(&taken.unwrap().frames()[0], 2, LEN);
}

/// Makes a hello of a trusting peer, with a canary at this address.
fn set_canary(hello: &mut Hello, address: u64, bytes: &[u8; 16]) {
    hello.words[10] = 1;
    hello.words[32..40].copy_from_slice(&address.to_le_bytes());
    hello.words[40..].copy_from_slice(bytes);
}

/// Returns a message of one large frame at this address.
fn fetchable(number: u64, len: u64, address: u64) -> Vec<u8> {
    let lens = [0_u32, 1].map(u32::to_le_bytes).concat();
    let body = [&lens[..], &len.to_le_bytes(), &address.to_le_bytes()].concat();
    packet(&record(1, 16, number, &body), 0, &[])
}

/// The raw peer is in this process, so that its memory can be read.
async fn invalid_addresses_cost_a_copy_or_the_connection(row: &'static Row) {
    const LEN: usize = PART + 5;
    let (endpoint, listener) = listening(row).await;
    let pair = connect_by_shm(&row.endpoint(), &listener).await;
    let frame = bytes(7, LEN);
    let at = frame.as_ptr().addr() as u64;
    let canary: Box<[u8; 16]> = Box::new(*b"sixteen of bytes");
    let canary_at = canary.as_ptr().addr() as u64;
    let destination = || vec![Destination::Buffer(BufferMut::with_capacity(LEN))];

    let honest = |hello: &mut Hello| set_canary(hello, canary_at, &canary);
    let (mut shm_peer, connection) =
        ShmPeer::connected_with(&endpoint, &listener, 1, honest).await.expect("it is accepted");
    assert!(note(&connection).await.contains(COPIED_ONCE));
    shm_peer.write(&fetchable(0, LEN as u64, at));
    let incoming = in_time("incoming", connection.incoming()).await.unwrap();
    let taken = in_time("accept", incoming.accept_into(destination())).await.unwrap();
    assert_bytes(taken.frames()[0].as_slice().unwrap(), 7, 0);

    // Unmapped addresses: payload is requested over the ring from now on.
    for (number, address) in [8, u64::MAX - 9, at].into_iter().enumerate() {
        let number = number as u64 + 1;
        shm_peer.write(&fetchable(number, LEN as u64, address));
        let incoming = in_time("incoming", connection.incoming()).await.unwrap();
        let before = shm_peer.peer_word(PRODUCED);
        let answering = async {
            eventually("it requests payload", || shm_peer.peer_word(PRODUCED) >= before + 32).await;
            for part in frame.chunks(30_000) {
                shm_peer.write(&packet(&[], number * 4, part));
                eventually("it reads", || shm_peer.peer_word(CONSUMED) == shm_peer.own_word(PRODUCED)).await;
            }
        };
        let both = async { tokio::join!(incoming.accept_into(destination()), answering) };
        let (taken, ()) = in_time("accept", both).await;
        assert_bytes(taken.unwrap().frames()[0].as_slice().unwrap(), 7, 0);
        assert!(note(&connection).await.contains("twice"), "{}", note(&connection).await);
    }
    drop((shm_peer, connection));
    assert_exchange(&pair, 1).await;

    // A wrong canary: no address of this peer is read.
    for (nonce, address, bytes) in
        [(2, canary_at, &[9; 16]), (3, 16, &*canary), (4, 0, &*canary), (5, u64::MAX, &*canary)]
    {
        let violation = |hello: &mut Hello| set_canary(hello, address, bytes);
        let (mut shm_peer, connection) = ShmPeer::connected_with(&endpoint, &listener, nonce, violation)
            .await
            .expect("it still shares memory");
        assert!(note(&connection).await.contains("twice"), "{}", note(&connection).await);
        shm_peer.write(&fetchable(0, LEN as u64, at));
        let incoming = in_time("incoming", connection.incoming()).await.unwrap();
        let before = shm_peer.peer_word(PRODUCED);
        let mut taking = Box::pin(incoming.accept_into(destination()));
        let asked = eventually("it requests payload", || shm_peer.peer_word(PRODUCED) >= before + 32);
        tokio::select! {
            _ = &mut taking => panic!("it completed"),
            () = asked => {}
        }
        drop(shm_peer);
        let failed = in_time("accept", taking).await.unwrap_err();
        assert_eq!(failed.error.kind(), ErrorKind::PeerLost);
    }

    // A canary that changes during the connection: nothing is delivered.
    let mut wiped = canary.clone();
    let honest_at_first = |hello: &mut Hello| set_canary(hello, wiped.as_ptr().addr() as u64, &canary);
    let (mut shm_peer, connection) =
        ShmPeer::connected_with(&endpoint, &listener, 6, honest_at_first).await.expect("it is accepted");
    shm_peer.write(&fetchable(0, LEN as u64, at));
    let incoming = in_time("incoming", connection.incoming()).await.unwrap();
    wiped[3] ^= 1;
    let failed = in_time("accept", incoming.accept_into(destination())).await.unwrap_err();
    assert_eq!(failed.error.kind(), ErrorKind::PeerLost, "{failed}");
    assert!(matches!(&failed.returned[..], [Destination::Buffer(_)]), "the destination returns");

    // An end that does not trust announces no addresses.
    let unauthenticated_peer = |hello: &mut Hello| {
        set_canary(hello, canary_at, &canary);
        hello.words[10] = 0;
    };
    let (mut shm_peer, connection) = ShmPeer::connected_with(&endpoint, &listener, 7, unauthenticated_peer)
        .await
        .expect("it shares memory");
    shm_peer.write(&fetchable(0, LEN as u64, at));
    let end = in_time("the end", connection.recv()).await.unwrap_err();
    assert_eq!(end.kind(), ErrorKind::Corrupt, "{end}");
    assert_exchange(&pair, 2).await;
    drop(frame);
}

/// This process sees a process in a PID namespace. That process does not see this one.
async fn frames_of_an_invisible_process_use_the_ring(row: &'static Row) {
    const LEN: usize = 1 << 20;
    let (mut peer, address) = Peer::listening("receive", row, Home::Processes, row.address).await;
    let connection = row.endpoint().connect(&address).await.unwrap();
    assert!(note(&connection).await.contains(COPIED_ONCE), "{}", note(&connection).await);
    let theirs = peer.line().await;
    assert!(theirs.contains("twice") && theirs.contains("namespace"), "{theirs}");
    for number in 0..3 {
        let both = async {
            tokio::join!(connection.deliver(message(number, &[LEN])), receive_into_own(&connection))
        };
        let (sent, taken) = in_time("an answer", both).await;
        sent.unwrap();
        assert_frame(&taken.unwrap().frames()[0], number, LEN);
    }
}

const READERS_MAX: usize = 8;
/// Limit for a read, and for its report.
const READ_TIME: Duration = Duration::from_secs(8);
const CANARY: &[u8; 16] = b"sixteen of bytes";

async fn a_canary_that_faults_forever_delays_no_other_attach(row: &'static Row) {
    let (endpoint, listener) = listening(row).await;
    let near = row.endpoint();
    let pair = connect_by_shm(&near, &listener).await;
    assert!(note(&pair.1).await.contains(COPIED_ONCE), "{}", note(&pair.1).await);
    let (descriptors, threads) = (usage::descriptors(), usage::threads());
    let faulting = Faulting::new(4096).unwrap();
    let mut opened_peers = Vec::new();
    for nonce in 0..READERS_MAX as u8 + 3 {
        let violation = |hello: &mut Hello| set_canary(hello, faulting.address(), CANARY);
        let opening = ShmPeer::connected_with(&endpoint, &listener, nonce, violation);
        let others = async {
            for number in 0..3 {
                assert_exchange(&pair, number).await;
            }
            within(Duration::from_secs(2), "another endpoint", async {
                let other = endpoint.listen(&row.address()).await.unwrap();
                let (a, b) = tokio::join!(near.connect(other.address()), other.accept());
                assert_exchange(&(a.unwrap(), b.unwrap()), 3).await;
            })
            .await;
        };
        let (opened, ()) = tokio::join!(opening, others);
        let (shm_peer, connection) = opened.expect("it still shares memory");
        let why = note(&connection).await;
        let reason = ["took more than 250 ms", "8 reads of other processes have not returned"];
        assert!(why.contains("twice") && reason.iter().any(|reason| why.contains(reason)), "{why}");
        opened_peers.push((shm_peer, connection));
    }
    assert!(usage::threads() <= threads + READERS_MAX, "{} threads", usage::threads());
    drop((opened_peers, faulting));
    // All waiting reads return and end: nothing stays, and memory is read again.
    eventually("all threads are gone", || usage::threads() <= threads).await;
    eventually("every descriptor is closed", || usage::descriptors() <= descriptors).await;
    let another = connect_by_shm(&near, &listener).await;
    assert!(note(&another.1).await.contains(COPIED_ONCE), "{}", note(&another.1).await);
}

/// Connects a raw peer with a valid canary, which announces a frame at an address that faults.
async fn with_a_frame_that_faults(
    endpoint: &Endpoint,
    listener: &Listener,
    faulting: &Faulting,
    canary: &[u8; 16],
) -> (ShmPeer, Connection, Incoming) {
    let honest = |hello: &mut Hello| set_canary(hello, canary.as_ptr().addr() as u64, canary);
    let opened = ShmPeer::connected_with(endpoint, listener, 1, honest).await;
    let (mut shm_peer, connection) = opened.expect("it is accepted");
    assert!(note(&connection).await.contains(COPIED_ONCE), "{}", note(&connection).await);
    shm_peer.write(&fetchable(0, PART as u64, faulting.address()));
    let incoming = in_time("incoming", connection.incoming()).await.unwrap();
    (shm_peer, connection, incoming)
}

fn destination() -> Vec<Destination> {
    vec![Destination::Buffer(BufferMut::with_capacity(PART))]
}

async fn frames_that_fault_forever_fail_alone(row: &'static Row) {
    let (endpoint, listener) = listening(row).await;
    let pair = connect_by_shm(&row.endpoint(), &listener).await;
    let (faulting, canary) = (Faulting::new(PART).unwrap(), Box::new(*CANARY));
    let (mut shm_peer, connection, incoming) =
        with_a_frame_that_faults(&endpoint, &listener, &faulting, &canary).await;
    let mut taking = std::pin::pin!(incoming.accept_into(destination()));
    let others = async {
        // The connection itself, both ways, and others.
        for number in 1..20 {
            shm_peer.write(&packet(&announcement(number, EAGER, b"hi", 5, b"hello"), 0, &[]));
            let taken = within(Duration::from_secs(1), "a message", connection.recv()).await.unwrap();
            assert_eq!(taken.header(), "hi");
            let sending = connection.send(message(1, &[100]));
            within(Duration::from_secs(1), "a message", sending).await.unwrap();
            assert_exchange(&pair, 1).await;
        }
    };
    let began = Instant::now();
    tokio::select! {
        biased;
        taken = &mut taking => panic!("it ended before anything else: {taken:?}"),
        () = others => {}
    }
    let failed = within(READ_TIME, "the accept", taking).await.unwrap_err();
    assert_eq!(failed.error.kind(), ErrorKind::TimedOut, "{failed}");
    assert!(began.elapsed() > Duration::from_secs(4), "after {:?}", began.elapsed());
    let why = note(&connection).await;
    assert!(why.contains("twice") && why.contains("did not return within 5 s"), "{why}");
    // The connection continues, and requests payload over the ring.
    shm_peer.write(&fetchable(20, PART as u64, faulting.address()));
    let incoming = in_time("incoming", connection.incoming()).await.unwrap();
    let before = shm_peer.peer_word(PRODUCED);
    let asking = async {
        eventually("it requests payload", || shm_peer.peer_word(PRODUCED) >= before + 32).await;
        for part in [7; PART].chunks(30_000) {
            shm_peer.write(&packet(&[], 20 * 4, part));
            eventually("it reads", || shm_peer.peer_word(CONSUMED) == shm_peer.own_word(PRODUCED)).await;
        }
    };
    let (taken, ()) =
        in_time("accept", async { tokio::join!(incoming.accept_into(destination()), asking) }).await;
    assert!(taken.unwrap().frames()[0].to_vec().unwrap() == vec![7; PART]);
    assert_exchange(&pair, 2).await;
}

async fn abort_does_not_wait_for_memory_that_faults_forever(row: &'static Row) {
    let (endpoint, listener) = listening(row).await;
    let pair = connect_by_shm(&row.endpoint(), &listener).await;
    let (faulting, canary) = (Faulting::new(PART).unwrap(), Box::new(*CANARY));
    let (shm_peer, connection, incoming) =
        with_a_frame_that_faults(&endpoint, &listener, &faulting, &canary).await;
    let taking = tokio::spawn(async move { incoming.accept_into(destination()).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!taking.is_finished());
    let receiving = tokio::spawn({
        let connection = connection.clone();
        async move { connection.recv().await }
    });
    connection.abort();
    let end = within(Duration::from_secs(1), "recv", receiving).await.unwrap().unwrap_err();
    assert_eq!(end.kind(), ErrorKind::Closed, "{end}");
    assert_exchange(&pair, 1).await;
    let failed = within(READ_TIME, "the accept", taking).await.unwrap().unwrap_err();
    assert_eq!(failed.error.kind(), ErrorKind::Closed, "{failed}");
    drop((shm_peer, faulting));
    let faulting = Faulting::new(PART).unwrap();
    let (_sharer, connection, incoming) =
        with_a_frame_that_faults(&endpoint, &listener, &faulting, &canary).await;
    let taking = tokio::spawn(async move { incoming.accept_into(destination()).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    connection.abort();
    // A link that another thread polls ends a little later than the call.
    within(Duration::from_secs(1), "the end", connection.closed()).await;
    drop(faulting);
    let failed = within(Duration::from_secs(2), "the accept", taking).await.unwrap().unwrap_err();
    assert!(matches!(&failed.returned[..], [Destination::Buffer(_)]), "the destination returns");
}
