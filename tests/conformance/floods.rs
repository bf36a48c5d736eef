//! Floods of unauthenticated peers hold all that they get. A good peer still connects within a second.

use std::collections::VecDeque;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use towline::{Address, Endpoint, ErrorKind, Listener, Token};
use towline_tests::usage;
use towline_tests::wire::{hand, hello};

use crate::backends::{Row, connect_pair};
use crate::content::{assert_message, message};
use crate::encrypted::dial;
use crate::peer::{Home, Peer, print_line};
use crate::polls::{eventually, in_time};
use crate::raw_peer::{connected, read_handshake, send};
use crate::sharing::{AttachingPeer, by_shm};
use crate::suite::cases;

cases! {
    CROSS_PROCESS:
        #[core] five_thousand_silent_sockets_block_no_peer,
        a_stream_of_silent_connections_blocks_no_peer,
        #[core] peers_that_stop_during_the_handshake_block_no_peer,
        #[core] wrong_tokens_block_no_peer_and_are_delayed,
        a_lack_of_descriptors_blocks_no_peer;
    CROSS_HOST:
        streams_that_never_join_block_no_peer,
        #[core] unfinished_records_share_one_budget;
    CROSS_PROCESS - CROSS_HOST:
        #[core] a_flood_of_the_local_socket_blocks_no_peer;
}

/// Time limit for a good peer to connect and exchange a message.
const LIMIT: Duration = Duration::from_secs(1);
/// Attempts of a good peer. Half of them may take longer on a busy machine.
const TRIES: usize = 7;

/// Length of a handshake message's head.
const HEAD_LEN: usize = 16;

/// A thread that connects peers one after another, and keeps their sockets. Dropping it ends the thread.
struct Flood {
    done: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// Connects one peer every `gap`, and keeps the last `kept`.
    fn begin<S: Send>(
        kept: usize,
        gap: Duration,
        mut connect: impl FnMut() -> Option<S> + Send + 'static,
    ) -> Self {
        let (done, count) = <(Arc<AtomicBool>, Arc<AtomicUsize>)>::default();
        let (until, counter) = (done.clone(), count.clone());
        let thread = std::thread::spawn(move || {
            let mut peers = VecDeque::new();
            while !until.load(Ordering::Relaxed) {
                peers.extend(connect());
                counter.fetch_add(1, Ordering::Relaxed);
                if peers.len() > kept {
                    peers.pop_front();
                }
                std::thread::sleep(gap);
            }
        });
        Self { done, count, thread: Some(thread) }
    }

    /// Waits until this many peers have connected.
    async fn reach(&self, count: usize) {
        eventually("the flood is there", || self.count.load(Ordering::Relaxed) >= count).await;
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Asserts that most of several good peers connect within [`LIMIT`].
async fn assert_open(near: &Endpoint, listener: &Listener, address: &Address) {
    let mut times = Vec::new();
    for number in 0..TRIES {
        let began = Instant::now();
        // Either failure panics at once.
        let connecting = async { near.connect(address).await.unwrap() };
        let both = async { tokio::join!(connecting, async { listener.accept().await.unwrap() }) };
        let (a, b) = in_time("a good peer", both).await;
        let both = async { tokio::join!(a.deliver(message(number, &[100])), b.recv()) };
        let (sent, taken) = in_time("its message", both).await;
        sent.unwrap();
        assert_message(&taken.unwrap(), number, &[100]);
        times.push(began.elapsed());
    }
    times.sort();
    assert!(times[TRIES / 2] < LIMIT, "good peers took {times:?}");
}

fn socket(address: &Address) -> Option<TcpStream> {
    TcpStream::connect((address.host(), address.port())).ok()
}

/// Connects and sends these bytes, and nothing more.
fn connect_and_send(address: &Address, bytes: &[u8]) -> Option<TcpStream> {
    let mut socket = socket(address)?;
    // The listener may have evicted it already.
    let _ = socket.write_all(bytes);
    Some(socket)
}

async fn five_thousand_silent_sockets_block_no_peer(row: &'static Row) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let most = maximum.map_or(usize::MAX, |maximum| maximum as usize);
    let sockets = 5000.min(most.saturating_sub(1000));
    let (near, far) = (row.endpoint(), row.endpoint());
    let listener = far.listen(&row.address()).await.unwrap();
    let address = listener.address().clone();
    let (to, mut left) = (address.clone(), sockets);
    let flood = Flood::begin(sockets, Duration::ZERO, move || {
        if left == 0 {
            std::thread::sleep(Duration::from_millis(1));
            return None;
        }
        left -= 1;
        socket(&to)
    });
    // During the flood, and after it.
    assert_open(&near, &listener, &address).await;
    flood.reach(sockets).await;
    assert_open(&near, &listener, &address).await;
}

async fn a_stream_of_silent_connections_blocks_no_peer(row: &'static Row) {
    // Like 30 a second where places are as many as seconds of patience.
    let (near, far) = (row.endpoint(), row.builder().unauthenticated_max(16).build().unwrap());
    let listener = far.listen(&row.address()).await.unwrap();
    let address = listener.address().clone();
    let to = address.clone();
    let flood = Flood::begin(1000, Duration::from_millis(33), move || socket(&to));
    flood.reach(32).await;
    assert_open(&near, &listener, &address).await;
}

async fn peers_that_stop_during_the_handshake_block_no_peer(row: &'static Row) {
    let (near, far) = (row.endpoint(), row.endpoint());
    let listener = far.listen(&row.address()).await.unwrap();
    let address = listener.address().clone();
    let bytes = match address.scheme().is_encrypted() {
        true => b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        false => hello([7; 32], &[7; 56], &[("tcp", b"")]),
    };
    let to = address.clone();
    let flood = Flood::begin(1000, Duration::from_millis(1), move || connect_and_send(&to, &bytes));
    flood.reach(600).await;
    assert_open(&near, &listener, &address).await;
}

async fn wrong_tokens_block_no_peer_and_are_delayed(row: &'static Row) {
    let with = |secret: &str| row.builder().token(Token::from_bytes(secret).unwrap()).build().unwrap();
    let (near, far, wrong) = (with("secret"), with("secret"), with("guess"));
    let listener = far.listen(&row.address()).await.unwrap();
    let address = listener.address().clone();
    let guess = |wrong: Endpoint, address: Address| async move {
        let error = wrong.connect(&address).await.unwrap_err();
        // Of many at once, some are evicted before they are refused.
        assert!(matches!(error.kind(), ErrorKind::Unauthenticated | ErrorKind::PeerLost), "{error}");
        error.kind()
    };
    let guessers: Vec<_> = (0..16)
        .map(|_| {
            let (wrong, address) = (wrong.clone(), address.clone());
            tokio::spawn(async move {
                loop {
                    guess(wrong.clone(), address.clone()).await;
                }
            })
        })
        .collect();
    assert_open(&near, &listener, &address).await;
    guessers.iter().for_each(tokio::task::JoinHandle::abort);
    // A single peer is refused, after a delay.
    let began = Instant::now();
    let refusal = in_time("the answer", guess(wrong, address.clone())).await;
    assert_eq!(refusal, ErrorKind::Unauthenticated);
    assert!(began.elapsed() >= Duration::from_millis(300), "refused after {:?}", began.elapsed());
    assert_open(&near, &listener, &address).await;
}

async fn streams_that_never_join_block_no_peer(row: &'static Row) {
    const HALF_OPEN: usize = 200;
    let (near, far) = (row.endpoint(), row.endpoint());
    let listener = far.listen(&row.address()).await.unwrap();
    let mut peers = Vec::new();
    for number in 0..HALF_OPEN {
        let mut stream = dial(&listener).await;
        let mut hello = hello([number as u8; 32], &[number as u8; 56], &[("tcp", b"")]);
        // The feature bit of several streams.
        hello[HEAD_LEN + 4] = 2;
        send(&mut stream, &hello).await.unwrap();
        assert_eq!(read_handshake(&mut stream).await.0, 1, "its Hello");
        send(&mut stream, &hand(2, &[0; 32])).await.unwrap();
        assert_eq!(read_handshake(&mut stream).await.0, 2, "its Proof");
        if number % 2 == 0 {
            send(&mut stream, &hand(7, b"\x10tcp")).await.unwrap();
            assert_eq!(read_handshake(&mut stream).await.0, 4, "it waits for the other streams");
        }
        peers.push(stream);
    }
    assert_open(&near, &listener, listener.address()).await;
    drop(peers);
}

async fn unfinished_records_share_one_budget(row: &'static Row) {
    // An eighth of the memory limit is for incomplete records.
    const MEMORY: u64 = 2 << 30;
    const BUDGET: u64 = MEMORY / 8;
    const RECORDS_LEN: usize = 2 << 20;
    const PEERS: usize = BUDGET as usize / RECORDS_LEN + 40;
    // Socket buffers, and what an allocator keeps.
    const BESIDES: u64 = 96 << 20;
    let maximum = getrlimit(Resource::As).maximum;
    setrlimit(Resource::As, Rlimit { current: Some(MEMORY), maximum }).unwrap();
    // Long enough that no silent peer is lost first.
    let (near, far) = (row.endpoint(), row.builder().heartbeat(Duration::from_secs(12)).build().unwrap());
    let listener = far.listen(&row.address()).await.unwrap();
    let (a, b) = in_time("a good peer", connect_pair(&near, &listener)).await;
    let before = usage::resident();
    let mut peers = Vec::new();
    let unfinished = [&(RECORDS_LEN as u32).to_le_bytes()[..], &vec![0; 12 + RECORDS_LEN - 1]].concat();
    for number in 0..PEERS {
        let (mut stream, connection) = connected(&listener, number as u8).await;
        in_time("its records", send(&mut stream, &unfinished)).await.unwrap();
        peers.push((stream, connection));
    }
    let end = in_time("the end of the oldest", peers[0].1.recv()).await.unwrap_err();
    assert_eq!(end.kind(), ErrorKind::TooLarge, "{end}");
    eventually("the others are within the budget", || {
        usage::resident().saturating_sub(before) < BUDGET + BESIDES
    })
    .await;
    let both = async { tokio::join!(a.deliver(message(1, &[100; 20_000])), b.recv()) };
    let (sent, taken) = in_time("the good peer's message", both).await;
    sent.unwrap();
    assert_message(&taken.unwrap(), 1, &[100; 20_000]);
}

async fn a_flood_of_the_local_socket_blocks_no_peer(row: &'static Row) {
    let (near, far) = (row.endpoint(), row.endpoint());
    let listener = far.listen(&"towline://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let guide = AttachingPeer::new(&far, &listener, 1).await;
    // Opens what a process opens once.
    assert_open(&near, &listener, &by_shm(&listener)).await;
    let before = usage::descriptors();
    let mut sends = false;
    let flood = Flood::begin(1000, Duration::ZERO, move || {
        let mut socket: UnixStream = guide.dial();
        sends = !sends;
        if sends {
            // The listener may have evicted it already.
            let _ = socket.write_all(b"T");
        }
        Some(socket)
    });
    flood.reach(1000).await;
    assert_open(&near, &listener, &by_shm(&listener)).await;
    drop(flood);
    eventually("as many descriptors as before", || usage::descriptors() <= before).await;
}

async fn a_lack_of_descriptors_blocks_no_peer(row: &'static Row) {
    let (near, far) = (row.endpoint(), row.endpoint());
    let listener = far.listen(&row.address()).await.unwrap();
    // Opens what a process opens once.
    assert_open(&near, &listener, listener.address()).await;
    let mut peer = Peer::start("flood", row, Home::Here, &listener.address().to_string());
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = Some(usage::descriptors() as u64 + 120);
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap();
    assert_eq!(peer.line().await, "flooding");
    assert_open(&near, &listener, listener.address()).await;
}

/// A peer's role: connects forever without sending, with more sockets than any limit of descriptors.
pub(crate) fn flood(address: &Address) {
    let mut sockets = VecDeque::new();
    for number in 0_usize.. {
        sockets.extend(socket(address));
        if number == 400 {
            print_line("flooding");
        }
        if sockets.len() > 400 {
            sockets.pop_front();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
