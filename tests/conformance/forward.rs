//! Lent frames that their receiver sends on: they are not copied, and outlive the forwarder.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use towline::{Address, Arena, Buffer, Connection, Endpoint, ErrorKind, Message, Place, blocking};

use crate::backends::Row;
use crate::callers::without_tokio;
use crate::content::{assert_bytes, bytes};
use crate::forked::Forked;
use crate::peer::{Home, Peer, print_line};
use crate::polls::{TIMEOUT, eventually, in_time};
use crate::suite::cases;
use crate::usage;

cases! {
    LENDS:
        forwarded_frames_are_not_copied,
        forwarded_frames_outlive_killed_forwarders,
        forwarded_frames_outlive_a_forwarder_that_closed,
        leases_of_a_killed_final_receiver_return,
        a_long_chain_copies_at_its_end,
        an_untrusted_receiver_gets_a_copy,
        frames_sent_back_to_their_owner_leak_nothing,
        frames_sent_back_and_forth_end_with_their_holders,
        a_forked_child_sends_copies_of_inherited_frames;
}

const MIB: usize = 1 << 20;
/// The most that records copy, beside frames.
const RECORDS_LEN: u64 = 64 << 10;

// Commands to the two roles, as a message's header. Each role answers.

/// Returns the bytes copied: by the forwarder on their way out, by the holder on their way in.
const COPIED: &str = "copied";
/// Makes the forwarder close its connection.
const CLOSE: &str = "close";
/// Returns the number of messages held.
const COUNT: &str = "count";
/// Checks all bytes held, and returns the number of frames in arenas.
const CHECK: &str = "check";
/// Drops everything held.
const DROP: &str = "drop";
/// Sends the frames back.
const BACK: &str = "back";
/// Returns the number of open descriptors.
const DESCRIPTORS: &str = "descriptors";

/// Role: forwards received messages to `next`.
pub(crate) async fn forward(row: &Row, endpoint: &Endpoint, next: &Address) {
    let next = endpoint.connect(next).await.unwrap();
    let listener = endpoint.listen(&row.address()).await.unwrap();
    print_line(listener.address());
    while let Ok(connection) = listener.accept().await {
        let next = next.clone();
        tokio::spawn(async move {
            while let Ok(message) = connection.recv().await {
                match std::str::from_utf8(message.header()).unwrap() {
                    COPIED => answer(&connection, next.stats().bytes_copied).await,
                    CLOSE => {
                        next.close().await.unwrap();
                        answer(&connection, "closed").await;
                    }
                    _ => drop(next.deliver(message).await),
                }
            }
        });
    }
}

/// Role: holds received messages.
pub(crate) async fn hold(row: &Row, endpoint: &Endpoint) {
    let listener = endpoint.listen(&row.address()).await.unwrap();
    print_line(listener.address());
    let held: Arc<Mutex<Vec<Message>>> = Arc::default();
    let mut connections = Vec::new();
    while let Ok(connection) = listener.accept().await {
        connections.push(connection.clone());
        let (held, connections) = (held.clone(), connections.clone());
        tokio::spawn(async move {
            while let Ok(message) = connection.recv().await {
                let copied =
                    || connections.iter().map(|connection| connection.stats().bytes_copied).sum::<u64>();
                let text = std::str::from_utf8(message.header()).unwrap();
                let count = || held.lock().unwrap().len();
                match text {
                    COPIED => answer(&connection, copied()).await,
                    COUNT => answer(&connection, count()).await,
                    CHECK => {
                        let in_arenas = held.lock().unwrap().iter().map(check).sum::<usize>();
                        answer(&connection, in_arenas).await;
                    }
                    DROP => {
                        held.lock().unwrap().clear();
                        answer(&connection, "dropped").await;
                    }
                    BACK => {
                        let (_, frames) = message.into_parts();
                        connection.deliver(Message::from_parts("", frames)).await.unwrap();
                    }
                    DESCRIPTORS => answer(&connection, usage::descriptors()).await,
                    _ => held.lock().unwrap().push(message),
                }
            }
        });
    }
}

async fn answer(connection: &Connection, what: impl ToString) {
    // The other end may be gone.
    let _ = connection.deliver(Message::new(what.to_string())).await;
}

async fn ask(connection: &Connection, what: &'static str) -> String {
    let both = async { tokio::join!(connection.deliver(Message::new(what)), connection.recv()) };
    let (sent, answer) = in_time(what, both).await;
    sent.unwrap();
    String::from_utf8(answer.unwrap().header().to_vec()).unwrap()
}

async fn ask_number(connection: &Connection, what: &'static str) -> u64 {
    ask(connection, what).await.parse().unwrap()
}

/// Returns a message that names the seed and offset of its frames' bytes.
fn numbered(seed: usize, offsets: &[usize], frames: Vec<Buffer>) -> Message {
    let offsets = offsets.iter().map(|offset| format!(" {offset}"));
    Message::from_parts(format!("{seed}{}", offsets.collect::<String>()), frames)
}

/// Returns a message of parts of a frame that holds all bytes of a seed.
fn parts(seed: usize, whole: &Buffer, ranges: &[Range<usize>]) -> Message {
    let offsets: Vec<_> = ranges.iter().map(|range| range.start).collect();
    numbered(seed, &offsets, ranges.iter().map(|range| whole.slice(range.clone())).collect())
}

/// Asserts that all bytes are those that the header names. Returns the number of frames in arenas.
fn check(message: &Message) -> usize {
    let mut numbers =
        std::str::from_utf8(message.header()).unwrap().split(' ').map(|text| text.parse().unwrap());
    let seed = numbers.next().unwrap();
    let frames = message.frames();
    frames
        .iter()
        .zip(numbers)
        .for_each(|(frame, offset)| assert_bytes(frame.as_slice().unwrap(), seed, offset));
    frames.iter().filter(|frame| frame.place() == Place::Arena).count()
}

fn frame(arena: &Arena, seed: usize, len: usize) -> Buffer {
    let mut buffer = arena.take(len).unwrap();
    buffer.extend_from_slice(&bytes(seed, len)).unwrap();
    buffer.freeze()
}

/// Takes and overwrites all free memory of an arena.
fn overwrite_free_memory(arena: &Arena, seed: usize) {
    let taken: Vec<_> = std::iter::from_fn(|| arena.take(MIB / 2).ok()).collect();
    for mut buffer in taken {
        buffer.extend_from_slice(&bytes(seed, MIB / 2)).unwrap();
    }
}

/// This process, forwarders, and a holder.
struct Chain {
    arena: Arena,
    /// To the first forwarder.
    connection: Connection,
    /// The forwarders, the last first, with a control connection to each.
    forwarders: Vec<(Peer, Connection)>,
    holder: Peer,
    /// Control connection to the holder.
    end: Connection,
    endpoint: Endpoint,
}

impl Chain {
    async fn of(row: &Row, forwarders: usize) -> Self {
        Self::ending(row, forwarders, "hold").await
    }

    /// Starts a chain whose last process has this role.
    async fn ending(row: &Row, count: usize, role: &str) -> Self {
        let endpoint = row.endpoint();
        let (holder, mut next) = Peer::listening(role, row, Home::Here, row.address).await;
        let end = in_time("the holder", endpoint.connect(&next)).await.unwrap();
        let mut forwarders = Vec::new();
        for _ in 0..count {
            let (peer, address) = Peer::listening("forward", row, Home::Here, &next.to_string()).await;
            forwarders.push((peer, in_time("the next", endpoint.connect(&address)).await.unwrap()));
            next = address;
        }
        let connection = in_time("the first", endpoint.connect(&next)).await.unwrap();
        let arena = Arena::new(64 * MIB).unwrap();
        Self { arena, connection, forwarders, holder, end, endpoint }
    }

    /// Sends a message, and waits until the holder has it as its `number`th.
    async fn send(&self, message: Message, number: u64) {
        in_time("a delivery", self.connection.deliver(message)).await.unwrap();
        in_time("the end of the chain", async {
            while ask_number(&self.end, COUNT).await < number {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }

    /// Sends frames of 1 MiB until the holder has `count`.
    async fn fill(&self, count: usize) {
        for seed in 0..count {
            self.send(numbered(seed, &[0], vec![frame(&self.arena, seed, MIB)]), seed as u64 + 1).await;
        }
        self.assert_held(count).await;
    }

    /// Asserts that the holder has `count` frames of 1 MiB, intact while the arena is reused.
    async fn assert_held(&self, count: usize) {
        for seed in 100..103 {
            overwrite_free_memory(&self.arena, seed);
            assert_eq!(ask_number(&self.end, CHECK).await as usize, count);
        }
        assert_eq!(self.arena.stats().in_use_bytes, count * MIB);
    }

    async fn assert_returned(&self) {
        eventually("the arena has its memory back", || self.arena.stats().in_use_bytes == 0).await;
    }

    /// Kills the forwarder at this position, counted from the end.
    async fn kill(&mut self, at: usize) {
        let is_first = at + 1 == self.forwarders.len();
        drop(self.forwarders.remove(at));
        if is_first {
            let end = in_time("the end", self.connection.recv()).await.unwrap_err();
            assert_eq!(end.kind(), ErrorKind::PeerLost, "{end}");
        }
    }
}

async fn forwarded_frames_are_not_copied(row: &'static Row) {
    for forwarders in [1, 2] {
        let chain = Chain::of(row, forwarders).await;
        let before = chain.connection.stats().bytes_copied;
        let whole = frame(&chain.arena, 1, 32 * MIB);
        chain.send(numbered(1, &[0], vec![whole.clone()]), 1).await;
        let slices: Vec<_> = (0..300).map(|at| at * 2000..at * 2000 + 1 + at * 5).collect();
        chain.send(parts(1, &whole, &slices), 2).await;
        let beside = Buffer::from(bytes(2, 5000));
        chain.send(numbered(2, &[0, 0], vec![frame(&chain.arena, 2, MIB), beside]), 3).await;
        for number in 4..200 {
            let from = number as usize * 4096;
            chain.send(numbered(1, &[from], vec![whole.slice(from..MIB)]), number).await;
        }
        drop(whole);
        assert_eq!(ask_number(&chain.end, CHECK).await, 1 + 300 + 1 + 196, "frames in arenas");

        let copied = chain.connection.stats().bytes_copied - before;
        assert!(copied < RECORDS_LEN, "{copied} by the owner");
        for (_, control) in &chain.forwarders {
            let copied = ask_number(control, COPIED).await;
            assert!(copied < RECORDS_LEN, "{copied} in the forwarders");
        }
        let copied = ask_number(&chain.end, COPIED).await;
        assert!(copied < RECORDS_LEN, "{copied} at the end");

        assert!(chain.arena.stats().in_use_bytes >= 33 * MIB);
        ask(&chain.end, DROP).await;
        // The forwarders own no arena, and take no part.
        chain.assert_returned().await;
    }
}

async fn forwarded_frames_outlive_killed_forwarders(row: &'static Row) {
    // The forwarders to kill, one after another, counted from the end.
    for (forwarders, deaths) in [(1, &[0][..]), (2, &[0]), (2, &[1]), (2, &[1, 0]), (2, &[0, 0])] {
        let mut chain = Chain::of(row, forwarders).await;
        chain.fill(10).await;
        for at in deaths {
            chain.kill(*at).await;
            chain.assert_held(10).await;
        }
        ask(&chain.end, DROP).await;
        chain.assert_returned().await;
    }
}

async fn forwarded_frames_outlive_a_forwarder_that_closed(row: &'static Row) {
    let chain = Chain::of(row, 1).await;
    chain.fill(10).await;
    assert_eq!(ask(&chain.forwarders[0].1, CLOSE).await, "closed");
    chain.assert_held(10).await;
    in_time("a close", chain.connection.close()).await.unwrap();
    chain.assert_held(10).await;
    ask(&chain.end, DROP).await;
    chain.assert_returned().await;
}

async fn leases_of_a_killed_final_receiver_return(row: &'static Row) {
    let mut chain = Chain::of(row, 2).await;
    chain.fill(10).await;
    chain.holder.signal(Signal::STOP);
    overwrite_free_memory(&chain.arena, 7);
    assert_eq!(chain.arena.stats().in_use_bytes, 10 * MIB, "it is only held up");
    chain.holder.kill();
    chain.assert_returned().await;
    for (_, control) in &chain.forwarders {
        ask(control, COPIED).await;
    }
}

async fn a_long_chain_copies_at_its_end(row: &'static Row) {
    // This process, four forwarders, and the holder.
    let chain = Chain::of(row, 4).await;
    let message = numbered(1, &[0], vec![frame(&chain.arena, 1, 8 * MIB)]);
    chain.send(message, 1).await;
    assert_eq!(ask_number(&chain.end, CHECK).await, 0, "frames in arenas");
    for (from_end, (_, control)) in chain.forwarders.iter().enumerate() {
        let copied = ask_number(control, COPIED).await;
        assert_eq!(copied >= 8 * MIB as u64, from_end == 0, "{copied} by number {from_end} from the end");
    }
    // The copy holds no memory of the arena.
    chain.assert_returned().await;
}

async fn an_untrusted_receiver_gets_a_copy(row: &'static Row) {
    let chain = Chain::ending(row, 1, "hold-without-trust").await;
    let message = numbered(1, &[0], vec![frame(&chain.arena, 1, 8 * MIB)]);
    chain.send(message, 1).await;
    assert_eq!(ask_number(&chain.end, CHECK).await, 0, "frames in arenas");
    assert!(ask_number(&chain.forwarders[0].1, COPIED).await >= 8 * MIB as u64);
    chain.assert_returned().await;
}

async fn frames_sent_back_to_their_owner_leak_nothing(row: &'static Row) {
    let chain = Chain::of(row, 0).await;
    let mut before = None;
    for round in 0..600 {
        // Segments come and go.
        let arena = Arena::new(MIB).unwrap();
        for seed in round..round + 5 {
            let message = Message::new(BACK).with_frame(frame(&arena, seed, 50_000));
            let both = async { tokio::join!(chain.connection.deliver(message), chain.connection.recv()) };
            let (sent, back) = in_time("an echo", both).await;
            sent.unwrap();
            let back = back.unwrap();
            assert_eq!(back.frames()[0].place(), Place::Arena);
            assert_bytes(back.frames()[0].as_slice().unwrap(), seed, 0);
        }
        if round == 100 {
            before = Some((usage::descriptors(), ask_number(&chain.end, DESCRIPTORS).await));
        }
    }
    let (near, far) = before.unwrap();
    eventually("no more descriptors are open here", || usage::descriptors() <= near + 5).await;
    let now = ask_number(&chain.end, DESCRIPTORS).await;
    assert!(now <= far + 5, "{now} descriptors there, and {far} before");
}

async fn frames_sent_back_and_forth_end_with_their_holders(row: &'static Row) {
    let mut chain = Chain::of(row, 0).await;
    let mut held = vec![frame(&chain.arena, 3, MIB)];
    let mut places = Vec::new();
    for _ in 0..8 {
        let message = Message::new(BACK).with_frame(held[held.len() - 1].clone());
        let both = async { tokio::join!(chain.end.deliver(message), chain.end.recv()) };
        let (sent, back) = in_time("an echo", both).await;
        sent.unwrap();
        let back = back.unwrap().frames()[0].clone();
        assert_bytes(back.as_slice().unwrap(), 3, 0);
        places.push(back.place());
        held.push(back);
    }
    // After two round trips the frame is a copy.
    assert_eq!(places[..3], [Place::Arena, Place::Arena, Place::Host]);
    let last = held.split_off(2).swap_remove(0);
    // A frame that came back once stays lent when its holder dies: this end has lent what it borrowed of
    // itself.
    in_time("a delivery", chain.end.deliver(numbered(3, &[0], held.split_off(1)))).await.unwrap();
    assert_eq!((ask_number(&chain.end, CHECK).await, chain.arena.stats().in_use_bytes), (1, MIB));
    drop(held);
    chain.holder.kill();
    in_time("the end", chain.end.recv()).await.unwrap_err();
    overwrite_free_memory(&chain.arena, 9);
    assert_bytes(last.as_slice().unwrap(), 3, 0);
    assert_eq!(chain.arena.stats().in_use_bytes, MIB);
    drop(last);
    chain.assert_returned().await;
    drop(chain.endpoint);
}

async fn a_forked_child_sends_copies_of_inherited_frames(row: &'static Row) {
    let pair = row.pair().await;
    let arena = Arena::new(64 * MIB).unwrap();
    let own = frame(&arena, 3, MIB);
    let both =
        async { tokio::join!(pair.a.deliver(Message::new("").with_frame(own.clone())), pair.b.recv()) };
    let (sent, taken) = in_time("a message", both).await;
    sent.unwrap();
    let borrowed = taken.unwrap().frames()[0].clone();
    assert_eq!(borrowed.place(), Place::Arena);
    // The parent may drop both at any time.
    let work = move || {
        let (near, far) = (row.endpoint(), row.endpoint());
        let listener = blocking::Endpoint::from(far).listen(&row.address()).unwrap();
        let near = blocking::Endpoint::from(near);
        thread::scope(|scope| {
            let sending = scope.spawn(|| {
                let connection = near.connect(listener.address()).unwrap().with_deadline(TIMEOUT);
                for frame in [own.slice(1..), borrowed.slice(2..)] {
                    connection.deliver(Message::new("").with_frame(frame)).unwrap();
                }
            });
            let connection = listener.accept().unwrap().with_deadline(TIMEOUT);
            for from in [1, 2] {
                let taken = connection.recv().unwrap();
                let [frame] = taken.frames() else { panic!("one frame") };
                assert_eq!((frame.place(), frame.len()), (Place::Host, MIB - from));
                assert_bytes(frame.as_slice().unwrap(), 3, from);
            }
            sending.join().unwrap();
        });
    };
    without_tokio(move || Forked::new(work).assert_done(TIMEOUT)).await;
    eventually("the arena has its memory back", || arena.stats().in_use_bytes == 0).await;
}
