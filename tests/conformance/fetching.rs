//! Large frames of the host that go to named memory of another process of it: read out of the sender's memory, once, where the
//! kernel permits it, and never anything else than what was sent.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use towline::backend;
use towline::{Buffer, BufferMut, Connection, Destination, Endpoint, ErrorKind, Incoming, Listener, Message};
use towline_tests::faulting::Faulting;

use crate::attach::assert_talk;
use crate::backends::Row;
use crate::content::{assert_bytes, assert_frame, assert_message, bytes, message};
use crate::mixed::{Dice, seeds};
use crate::peer::{Home, Peer};
use crate::polls::{eventually, in_time, within};
use crate::raw_peer::{EAGER, announcement, packet, record};
use crate::sharing::{CONSUMED, Hello, PRODUCED, Sharer, friend, listening};
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

/// From here on frames are read where they lie.
const LARGE: usize = 256 << 10;
/// What is read in one go.
const PART: usize = 512 << 10;
/// The protocol's own bytes count as copied too.
const WORDS: u64 = 4096;
const SEEN: &str = "are copied once, from the peer's memory";

async fn land(connection: &Connection) -> towline::Result<Message> {
    let incoming = in_time("incoming", connection.incoming()).await?;
    let buffers: Vec<_> = incoming.frames().iter().map(|frame| BufferMut::with_capacity(frame.len)).collect();
    let starts: Vec<_> = buffers.iter().map(BufferMut::as_ptr).collect();
    let taken = incoming.accept_into(buffers.into_iter().map(Destination::Buffer).collect()).await?;
    for (frame, start) in taken.frames().iter().zip(starts) {
        assert!(frame.is_empty() || frame.as_ptr() == start, "it landed elsewhere");
    }
    Ok(taken)
}

/// What an end copied while `moving`.
async fn copied<T>(connection: &Connection, moving: impl Future<Output = T>) -> (u64, T) {
    let before = connection.stats().bytes_copied;
    let result = moving.await;
    (connection.stats().bytes_copied - before, result)
}

async fn note(connection: &Connection) -> String {
    connection.explain().await.notes.concat()
}

async fn large_frames_are_copied_once_into_named_memory(row: &'static Row) {
    let (_peer, address) = Peer::listening("land", row, Home::Here, row.address).await;
    let far = row.endpoint().connect(&address).await.unwrap();
    let pair = row.pair().await;
    assert!(note(&far).await.contains(SEEN), "{}", note(&far).await);
    for (number, len) in
        [LARGE - 1, LARGE, LARGE + 1, PART - 1, PART, PART + 1, 2 * PART, (3 << 20) + 1, 32 << 20]
            .into_iter()
            .enumerate()
    {
        let once = len >= LARGE;
        // Within a process.
        let sending = copied(&pair.a, pair.a.deliver(message(number, &[len, 0])));
        let both = async { tokio::join!(sending, copied(&pair.b, land(&pair.b))) };
        let ((sent, delivered), (landed, taken)) = in_time("a message", both).await;
        delivered.unwrap();
        assert_message(&taken.unwrap(), number, &[len, 0]);
        let len_u64 = len as u64;
        if once {
            assert!(sent < WORDS, "the sender copied {sent} of {len} bytes");
        } else {
            assert!(sent >= len_u64, "it travels");
        }
        assert!((len_u64..len_u64 + WORDS).contains(&landed), "the receiver copied {landed} of {len} bytes");

        // And between two, both ways: the peer says what it copied.
        let both = async { tokio::join!(far.deliver(message(number, &[len])), land(&far)) };
        let (here, (sent, back)) = in_time("an answer", copied(&far, both)).await;
        sent.unwrap();
        let back = back.unwrap();
        assert_frame(&back.frames()[0], number, len);
        let theirs = u64::from_le_bytes(back.header()[..].try_into().unwrap());
        let (once, twice) = (len_u64..len_u64 + WORDS, 2 * len_u64..2 * len_u64 + WORDS);
        let expected = if len >= LARGE { once.clone() } else { twice };
        assert!(expected.contains(&here), "this end copied {here} of {len} bytes there and back");
        assert!(once.contains(&theirs), "the peer copied {theirs} of {len} bytes on their way in");
    }
}

async fn slow_reads_are_not_used_by_default(row: &'static Row) {
    let pair = row.pair_with(|builder| builder.backends(backend::all())).await;
    let said = note(&pair.b).await;
    assert!(said.contains(SEEN) != said.contains("times as long as memcpy on this machine"), "{said}");
    for number in 0..3 {
        let both = async { tokio::join!(pair.a.deliver(message(number, &[3 * PART])), land(&pair.b)) };
        let (sent, taken) = in_time("a message", both).await;
        sent.unwrap();
        assert_message(&taken.unwrap(), number, &[3 * PART]);
    }
    assert_eq!(note(&pair.b).await, said);
    let copied = pair.a.stats().bytes_copied;
    assert_eq!(copied < WORDS, said.contains(SEEN), "the sender copied {copied} bytes: {said}");
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
        assert!((wanted..wanted + WORDS).contains(&copied), "{copied} of {wanted}");
    }
    // One buffer for all of them.
    let whole = BufferMut::with_capacity(LENS.iter().sum());
    let both = async { tokio::join!(pair.a.deliver(message(9, &LENS)), pair.b.recv_into(whole)) };
    let (sent, taken) = in_time("a message", both).await;
    sent.unwrap();
    assert_message(&taken.unwrap(), 9, &LENS);
    // Pool memory is the link's own choice, not a name.
    let both = async { tokio::join!(pair.a.deliver(message(1, &[4 * PART])), pair.b.recv()) };
    let (sent, taken) = in_time("a message", both).await;
    sent.unwrap();
    assert_message(&taken.unwrap(), 1, &[4 * PART]);
}

/// The receiver's future is dropped as soon as it has said where the frames shall land: the driver reads them.
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
        in_time("its word", sending).await.unwrap().unwrap();
    }
}

/// Takes from this thread what lets root read everybody, so that threads to come lack it too.
fn give_up_power() {
    let mut sets = capabilities(None).unwrap();
    sets.effective -= CapabilitySet::SYS_PTRACE;
    sets.permitted -= CapabilitySet::SYS_PTRACE;
    set_capabilities(None, sets).unwrap();
}

async fn two_copies_and_a_reason_where_the_kernel_refuses(row: &'static Row) {
    const LEN: usize = 3 << 20;
    let (_peer, address) = Peer::listening("land-secretly", row, Home::Here, row.address).await;
    let near = std::thread::scope(|scope| {
        let making = scope.spawn(|| {
            give_up_power();
            row.endpoint()
        });
        making.join().unwrap()
    });
    let connection = near.connect(&address).await.unwrap();
    let why = note(&connection).await;
    assert!(why.contains("twice") && why.contains("Operation not permitted"), "{why}");
    for number in 0..3 {
        let both = async {
            tokio::join!(connection.deliver(message(number, &[LEN])), copied(&connection, land(&connection)))
        };
        let (sent, (copied, back)) = in_time("an answer", both).await;
        sent.unwrap();
        assert_frame(&back.unwrap().frames()[0], number, LEN);
        // Its peer, who may read this process, does; what comes from there comes through the ring.
        let wanted = LEN as u64..LEN as u64 + WORDS;
        assert!(wanted.contains(&copied), "{copied} of {LEN}");
    }
    assert_eq!(note(&connection).await, why);
}

async fn a_sender_killed_at_any_step_leaves_whole_messages_or_an_error(row: &'static Row) {
    const LEN: usize = 16 << 20;
    let (mut whole, mut lost) = (0, 0);
    for seed in seeds(0..30) {
        let mut dice = Dice::new(seed, 30);
        let (mut peer, address) = Peer::listening("land", row, Home::Here, row.address).await;
        let connection = row.endpoint().connect(&address).await.unwrap();
        let asking = connection.clone();
        let asked = tokio::spawn(async move { asking.deliver(message(seed, &[LEN, LEN / 2])).await });
        let incoming = in_time("the answer", connection.incoming()).await.unwrap();
        in_time("the question", asked).await.unwrap().unwrap();
        let destinations: Vec<_> = [LEN, LEN / 2].map(BufferMut::with_capacity).into();
        let starts: Vec<_> = destinations.iter().map(BufferMut::as_ptr).collect();
        let delay = Duration::from_micros(dice.below(3000) as u64);
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
                    other => panic!("{other:?} came back"),
                };
                assert_eq!(failed.returned.iter().map(back).collect::<Vec<_>>(), starts);
                lost += 1;
            }
        }
        killing.join().unwrap();
    }
    println!("{whole} whole, {lost} lost");
    assert!(lost > 0, "none was cut in the middle");
}

/// Whoever sends ends its link at any step, and writes over what comes back at once.
async fn memory_returned_during_a_read_is_never_delivered(row: &'static Row) {
    const LEN: usize = 24 << 20;
    let (mut whole, mut lost) = (0, 0);
    for seed in seeds(0..40) {
        let mut dice = Dice::new(seed, 40);
        let pair = row.pair().await;
        let sending = {
            let a = pair.a.clone();
            tokio::spawn(async move {
                let failed = a.send(Message::new("").with_frame(bytes(seed, LEN))).await.err()?;
                let [frame] = <[Buffer; 1]>::try_from(failed.returned.into_parts().1).unwrap();
                let mut mine = frame.try_into_mut().expect("nobody else has it");
                mine.as_mut_slice().unwrap().fill(0xee);
                Some(failed.error.kind())
            })
        };
        let incoming = in_time("incoming", pair.b.incoming()).await.unwrap();
        let taking = tokio::spawn(async move {
            incoming.accept_into(vec![Destination::Buffer(BufferMut::with_capacity(LEN))]).await
        });
        let delay = Duration::from_micros(dice.below(6000) as u64);
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
    assert!(lost > 0, "none was cut in the middle");
}

async fn a_stopped_sender_delays_no_read_of_its_memory(row: &'static Row) {
    const LEN: usize = 8 << 20;
    let (peer, address) = Peer::listening("land", row, Home::Here, row.address).await;
    let connection = row.endpoint().connect(&address).await.unwrap();
    let asking = async { tokio::join!(connection.deliver(message(1, &[LEN])), connection.incoming()) };
    let (asked, incoming) = in_time("the question", asking).await;
    asked.unwrap();
    peer.signal(Signal::STOP);
    let destination = vec![Destination::Buffer(BufferMut::with_capacity(LEN))];
    let taken = in_time("the answer", incoming.unwrap().accept_into(destination)).await.unwrap();
    assert_frame(&taken.frames()[0], 1, LEN);
    peer.signal(Signal::CONT);
    let both = async { tokio::join!(connection.deliver(message(2, &[LEN])), land(&connection)) };
    let (sent, taken) = in_time("an answer", both).await;
    sent.unwrap();
    assert_frame(&taken.unwrap().frames()[0], 2, LEN);
}

/// A hello of a peer that trusts, and whose memory is marked there.
fn marked(hello: &mut Hello, address: u64, bytes: &[u8; 16]) {
    hello.words[10] = 1;
    hello.words[32..40].copy_from_slice(&address.to_le_bytes());
    hello.words[40..].copy_from_slice(bytes);
}

/// A message of one large frame, which lies at this address.
fn fetchable(number: u64, len: u64, address: u64) -> Vec<u8> {
    let lens = [0_u32, 1].map(u32::to_le_bytes).concat();
    let body = [&lens[..], &len.to_le_bytes(), &address.to_le_bytes()].concat();
    packet(&record(1, 16, number, &body), 0, &[])
}

/// The peer by hand lives in this process, so that its memory can be read, or could be.
async fn invalid_addresses_cost_a_copy_or_the_connection(row: &'static Row) {
    const LEN: usize = PART + 5;
    let (endpoint, listener) = listening(row).await;
    let pair = friend(&row.endpoint(), &listener).await;
    let frame = bytes(7, LEN);
    let at = frame.as_ptr().addr() as u64;
    let canary: Box<[u8; 16]> = Box::new(*b"sixteen of bytes");
    let marked_at = canary.as_ptr().addr() as u64;
    let destination = || vec![Destination::Buffer(BufferMut::with_capacity(LEN))];

    // Honest: it is read.
    let honest = |hello: &mut Hello| marked(hello, marked_at, &canary);
    let (mut sharer, connection) =
        Sharer::connected_by(&endpoint, &listener, 1, honest).await.expect("it is believed");
    assert!(note(&connection).await.contains(SEEN));
    sharer.write(&fetchable(0, LEN as u64, at));
    let incoming = in_time("incoming", connection.incoming()).await.unwrap();
    let taken = in_time("accept", incoming.accept_into(destination())).await.unwrap();
    assert_bytes(taken.frames()[0].as_slice().unwrap(), 7, 0);

    // Addresses of nothing: it is asked for, once and for all.
    for (number, address) in [8, u64::MAX - 9, at].into_iter().enumerate() {
        let number = number as u64 + 1;
        sharer.write(&fetchable(number, LEN as u64, address));
        let incoming = in_time("incoming", connection.incoming()).await.unwrap();
        let before = sharer.heard(PRODUCED);
        let answering = async {
            eventually("it asks", || sharer.heard(PRODUCED) >= before + 32).await;
            for part in frame.chunks(30_000) {
                sharer.write(&packet(&[], number * 4, part));
                eventually("it reads", || sharer.heard(CONSUMED) == sharer.told(PRODUCED)).await;
            }
        };
        let both = async { tokio::join!(incoming.accept_into(destination()), answering) };
        let (taken, ()) = in_time("accept", both).await;
        assert_bytes(taken.unwrap().frames()[0].as_slice().unwrap(), 7, 0);
        assert!(note(&connection).await.contains("twice"), "{}", note(&connection).await);
    }
    drop((sharer, connection));
    assert_talk(&pair, 1).await;

    // A mark that is not there: it is not trusted with an address at all.
    for (nonce, address, bytes) in
        [(2, marked_at, &[9; 16]), (3, 16, &*canary), (4, 0, &*canary), (5, u64::MAX, &*canary)]
    {
        let violation = |hello: &mut Hello| marked(hello, address, bytes);
        let (mut sharer, connection) = Sharer::connected_by(&endpoint, &listener, nonce, violation)
            .await
            .expect("it shares memory all the same");
        assert!(note(&connection).await.contains("twice"), "{}", note(&connection).await);
        sharer.write(&fetchable(0, LEN as u64, at));
        let incoming = in_time("incoming", connection.incoming()).await.unwrap();
        let before = sharer.heard(PRODUCED);
        let mut taking = Box::pin(incoming.accept_into(destination()));
        let asked = eventually("it asks", || sharer.heard(PRODUCED) >= before + 32);
        tokio::select! {
            _ = &mut taking => panic!("nothing came"),
            () = asked => {}
        }
        drop(sharer);
        let failed = in_time("accept", taking).await.unwrap_err();
        assert_eq!(failed.error.kind(), ErrorKind::PeerLost);
    }

    // A mark that is wiped meanwhile: nothing is delivered.
    let mut fading = canary.clone();
    let faded = |hello: &mut Hello| marked(hello, fading.as_ptr().addr() as u64, &canary);
    let (mut sharer, connection) =
        Sharer::connected_by(&endpoint, &listener, 6, faded).await.expect("it is believed");
    sharer.write(&fetchable(0, LEN as u64, at));
    let incoming = in_time("incoming", connection.incoming()).await.unwrap();
    fading[3] ^= 1;
    let failed = in_time("accept", incoming.accept_into(destination())).await.unwrap_err();
    assert_eq!(failed.error.kind(), ErrorKind::PeerLost, "{failed}");
    assert!(matches!(&failed.returned[..], [Destination::Buffer(_)]), "the destination comes back");

    // Nothing of the kind is believed of whoever does not trust.
    let unauthenticated_peer = |hello: &mut Hello| {
        marked(hello, marked_at, &canary);
        hello.words[10] = 0;
    };
    let (mut sharer, connection) =
        Sharer::connected_by(&endpoint, &listener, 7, unauthenticated_peer).await.expect("it shares memory");
    sharer.write(&fetchable(0, LEN as u64, at));
    let end = in_time("the end", connection.recv()).await.unwrap_err();
    assert_eq!(end.kind(), ErrorKind::Corrupt, "{end}");
    assert_talk(&pair, 2).await;
    drop(frame);
}

/// A process in a namespace of its own does not see this one, which sees it.
async fn frames_of_an_invisible_process_use_the_ring(row: &'static Row) {
    const LEN: usize = 1 << 20;
    let (mut peer, address) = Peer::listening("land", row, Home::Processes, row.address).await;
    let connection = row.endpoint().connect(&address).await.unwrap();
    assert!(note(&connection).await.contains(SEEN), "{}", note(&connection).await);
    let theirs = peer.line().await;
    assert!(theirs.contains("twice") && theirs.contains("namespace"), "{theirs}");
    for number in 0..3 {
        let both = async { tokio::join!(connection.deliver(message(number, &[LEN])), land(&connection)) };
        let (sent, taken) = in_time("an answer", both).await;
        sent.unwrap();
        assert_frame(&taken.unwrap().frames()[0], number, LEN);
    }
}

/// Threads that read the memory of others, at most.
const READERS_MAX: usize = 8;
/// How long a read may take, and then some for it to be noticed.
const READ_TIME: Duration = Duration::from_secs(8);
const CANARY: &[u8; 16] = b"sixteen of bytes";

async fn a_canary_that_faults_forever_delays_no_other_attach(row: &'static Row) {
    let (endpoint, listener) = listening(row).await;
    let near = row.endpoint();
    let pair = friend(&near, &listener).await;
    assert!(note(&pair.1).await.contains(SEEN), "{}", note(&pair.1).await);
    let (descriptors, threads) = (usage::descriptors(), usage::threads());
    let faulting = Faulting::new(4096).unwrap();
    let mut preference = Vec::new();
    for nonce in 0..READERS_MAX as u8 + 3 {
        let violation = |hello: &mut Hello| marked(hello, faulting.address(), CANARY);
        let opening = Sharer::connected_by(&endpoint, &listener, nonce, violation);
        let others = async {
            for number in 0..3 {
                assert_talk(&pair, number).await;
            }
            // The driver goes on too.
            within(Duration::from_secs(2), "another endpoint", async {
                let other = endpoint.listen(&row.address()).await.unwrap();
                let (a, b) = tokio::join!(near.connect(other.address()), other.accept());
                assert_talk(&(a.unwrap(), b.unwrap()), 3).await;
            })
            .await;
        };
        let (opened, ()) = tokio::join!(opening, others);
        let (sharer, connection) = opened.expect("it shares memory all the same");
        let why = note(&connection).await;
        let said = ["took more than 250 ms", "8 reads of other processes have not returned"];
        assert!(why.contains("twice") && said.iter().any(|said| why.contains(said)), "{why}");
        preference.push((sharer, connection));
    }
    assert!(usage::threads() <= threads + READERS_MAX, "{} threads", usage::threads());
    drop((preference, faulting));
    // Whoever waited goes on, and ends: nothing is left, and memory is read again.
    eventually("all threads are gone", || usage::threads() <= threads).await;
    eventually("every descriptor is closed", || usage::descriptors() <= descriptors).await;
    let another = friend(&near, &listener).await;
    assert!(note(&another.1).await.contains(SEEN), "{}", note(&another.1).await);
}

/// A peer by hand that is believed, and a message of its that lies where nobody can read it.
async fn with_a_frame_that_faults(
    endpoint: &Endpoint,
    listener: &Listener,
    faulting: &Faulting,
    canary: &[u8; 16],
) -> (Sharer, Connection, Incoming) {
    let honest = |hello: &mut Hello| marked(hello, canary.as_ptr().addr() as u64, canary);
    let opened = Sharer::connected_by(endpoint, listener, 1, honest).await;
    let (mut sharer, connection) = opened.expect("it is believed");
    assert!(note(&connection).await.contains(SEEN), "{}", note(&connection).await);
    sharer.write(&fetchable(0, PART as u64, faulting.address()));
    let incoming = in_time("incoming", connection.incoming()).await.unwrap();
    (sharer, connection, incoming)
}

fn destination() -> Vec<Destination> {
    vec![Destination::Buffer(BufferMut::with_capacity(PART))]
}

async fn frames_that_fault_forever_fail_alone(row: &'static Row) {
    let (endpoint, listener) = listening(row).await;
    let pair = friend(&row.endpoint(), &listener).await;
    let (faulting, canary) = (Faulting::new(PART).unwrap(), Box::new(*CANARY));
    let (mut sharer, connection, incoming) =
        with_a_frame_that_faults(&endpoint, &listener, &faulting, &canary).await;
    let mut taking = std::pin::pin!(incoming.accept_into(destination()));
    let others = async {
        // The connection itself, both ways, and others.
        for number in 1..20 {
            sharer.write(&packet(&announcement(number, EAGER, b"hi", 5, b"hello"), 0, &[]));
            let taken = within(Duration::from_secs(1), "a message", connection.recv()).await.unwrap();
            assert_eq!(taken.header(), "hi");
            let sending = connection.send(message(1, &[100]));
            within(Duration::from_secs(1), "a message", sending).await.unwrap();
            assert_talk(&pair, 1).await;
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
    // The connection lives, and what would have been read is asked for.
    sharer.write(&fetchable(20, PART as u64, faulting.address()));
    let incoming = in_time("incoming", connection.incoming()).await.unwrap();
    let before = sharer.heard(PRODUCED);
    let asking = async {
        eventually("it asks", || sharer.heard(PRODUCED) >= before + 32).await;
        for part in [7; PART].chunks(30_000) {
            sharer.write(&packet(&[], 20 * 4, part));
            eventually("it reads", || sharer.heard(CONSUMED) == sharer.told(PRODUCED)).await;
        }
    };
    let (taken, ()) =
        in_time("accept", async { tokio::join!(incoming.accept_into(destination()), asking) }).await;
    assert!(taken.unwrap().frames()[0].to_vec().unwrap() == vec![7; PART]);
    assert_talk(&pair, 2).await;
}

async fn abort_does_not_wait_for_memory_that_faults_forever(row: &'static Row) {
    let (endpoint, listener) = listening(row).await;
    let pair = friend(&row.endpoint(), &listener).await;
    let (faulting, canary) = (Faulting::new(PART).unwrap(), Box::new(*CANARY));
    let (sharer, connection, incoming) =
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
    assert_talk(&pair, 1).await;
    let failed = within(READ_TIME, "the accept", taking).await.unwrap().unwrap_err();
    assert_eq!(failed.error.kind(), ErrorKind::Closed, "{failed}");
    // Where the read returns, its memory comes back at once.
    drop((sharer, faulting));
    let faulting = Faulting::new(PART).unwrap();
    let (_sharer, connection, incoming) =
        with_a_frame_that_faults(&endpoint, &listener, &faulting, &canary).await;
    let taking = tokio::spawn(async move { incoming.accept_into(destination()).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    connection.abort();
    drop(faulting);
    let failed = within(Duration::from_secs(2), "the accept", taking).await.unwrap().unwrap_err();
    assert!(matches!(&failed.returned[..], [Destination::Buffer(_)]), "the destination comes back");
}
