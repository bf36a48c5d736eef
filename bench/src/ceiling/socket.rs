//! A bare TCP socket moves the same messages between the same processes: blocking or spinning, plain or over
//! TLS.
//!
//! The far end confirms what it has read, as our receivers do; the near end keeps at most the window
//! unconfirmed.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::tls_socket::TlsSession;
use crate::data::payload::Layout;
use crate::results::ceiling::Ceiling;
use crate::security::trust::Certificate;

/// How long the far end waits for a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// How long either end may exceed the agreed duration.
const GRACE: Duration = Duration::from_secs(20);

/// Messages below this length are read many at a time.
const BATCH_BELOW_BYTES: usize = 16 << 10;

/// Bytes per read of small messages.
const BATCH_BYTES: usize = 64 << 10;

static CONFIRMATIONS: [u8; BATCH_BYTES] = [1; BATCH_BYTES];

/// What both ends agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SocketTest {
    pub(crate) layout: Layout,
    pub(crate) ping_pong: bool,
    pub(crate) spin: bool,
    pub(crate) tls: bool,
    pub(crate) duration_ms: u64,
}

impl SocketTest {
    /// Returns the ceiling's name.
    pub(crate) fn kind(self) -> &'static str {
        if self.tls { "tls_socket" } else { "socket" }
    }

    fn duration(self) -> Duration {
        Duration::from_millis(self.duration_ms)
    }

    /// Returns the messages of one confirmation: one for each would halve the rate of small messages.
    fn confirm_every(self) -> u64 {
        let small = self.layout.size_bytes < BATCH_BELOW_BYTES;
        if small { (self.layout.window as u64 / 4).max(1) } else { 1 }
    }
}

/// Runs the far end: accepts one connection that presents `key`, then reads and confirms until it ends. With
/// a certificate, over TLS.
pub(crate) fn far(
    listener: &TcpListener,
    key: [u8; 16],
    course: SocketTest,
    certificate: Option<&Certificate>,
) -> io::Result<()> {
    let stream = accept_within(listener, CONNECT_WITHIN)?;
    let tls = certificate.map(TlsSession::far).transpose()?;
    let mut wire = Wire::new(stream, course.spin, course.duration() + GRACE, tls)?;
    let mut presented = [0; 16];
    wire.read_exact(&mut presented)?;
    if presented != key {
        return Err(io::Error::new(ErrorKind::PermissionDenied, "another process connected"));
    }
    let mut window = vec![1u8; course.layout.size_bytes * course.layout.window];
    wire.write_all(&[1])?;
    if course.ping_pong {
        echo(&mut wire, &mut window[..course.layout.size_bytes])
    } else {
        sink(&mut wire, &mut window, course)
    }
}

/// The near end, connected.
#[derive(Debug)]
pub(crate) struct SocketClient {
    wire: Wire,
    course: SocketTest,
}

impl SocketClient {
    /// Connects. Over TLS, `believed` is the far end's certificate.
    pub(crate) fn open(
        address: SocketAddr,
        key: [u8; 16],
        course: SocketTest,
        believed: Option<&str>,
    ) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, CONNECT_WITHIN)?;
        let tls = believed.map(TlsSession::near).transpose()?;
        let mut wire = Wire::new(stream, course.spin, course.duration() + GRACE, tls)?;
        wire.write_all(&key)?;
        wire.read_exact(&mut [0])?;
        Ok(Self { wire, course })
    }

    /// Measures for the agreed duration, with messages of `source`.
    pub(crate) fn measure(mut self, source: &[u8]) -> io::Result<Ceiling> {
        let work = if self.course.ping_pong { ping } else { pour };
        let ceiling = work(&mut self.wire, self.course, source)?;
        self.wire.socket.stream.shutdown(Shutdown::Write)?;
        Ok(ceiling)
    }
}

fn message(layout: Layout, source: &[u8], number: u64) -> &[u8] {
    let begin = layout.offset(number);
    &source[begin..begin + layout.size_bytes]
}

/// Measures half round trips; the first tenth of the time warms up.
fn ping(wire: &mut Wire, course: SocketTest, source: &[u8]) -> io::Result<Ceiling> {
    let mut times = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3)
        .map_err(|why| io::Error::other(why.to_string()))?;
    let mut back = vec![1u8; course.layout.size_bytes];
    let begin = Instant::now();
    let warm = course.duration() / 10;
    for number in 0.. {
        let sent = Instant::now();
        wire.write_all(message(course.layout, source, number))?;
        wire.read_exact(&mut back)?;
        if sent - begin >= warm || times.is_empty() {
            times.saturating_record((sent.elapsed().as_nanos() / 2) as u64);
        }
        if begin.elapsed() >= course.duration() {
            break;
        }
    }
    Ok(Ceiling::latency(course.kind(), times.value_at_quantile(0.5) as f64 / 1e3))
}

/// Measures one direction with a full window, from the first send to the last confirmation. A shorter pass
/// warms up.
fn pour(wire: &mut Wire, course: SocketTest, source: &[u8]) -> io::Result<Ceiling> {
    let mut sent = 0;
    pass(wire, course, source, &mut sent, course.duration() / 10)?;
    let (before, begin) = (sent, Instant::now());
    pass(wire, course, source, &mut sent, course.duration())?;
    let bytes = (sent - before) as f64 * course.layout.size_bytes as f64;
    Ok(Ceiling::rate(course.kind(), bytes / 1e9 / begin.elapsed().as_secs_f64()))
}

/// Sends at least a window of messages, for `duration`, and waits until all are confirmed.
fn pass(
    wire: &mut Wire,
    course: SocketTest,
    source: &[u8],
    sent: &mut u64,
    duration: Duration,
) -> io::Result<()> {
    let every = course.confirm_every();
    let window = (course.layout.window as u64).next_multiple_of(every);
    let (first, begin) = (*sent, Instant::now());
    let mut confirmed = first;
    loop {
        // The number of messages is a multiple of those of a confirmation, so that the last confirmation is
        // sent too.
        let whole = (*sent - first).is_multiple_of(every);
        if whole && *sent - first >= window && begin.elapsed() >= duration {
            break;
        }
        if *sent - confirmed >= window {
            confirmed += every * confirmations(wire)?;
        } else {
            wire.write_all(message(course.layout, source, *sent))?;
            *sent += 1;
        }
    }
    while confirmed < *sent {
        confirmed += every * confirmations(wire)?;
    }
    Ok(())
}

/// Waits for one or more confirmations.
fn confirmations(wire: &mut Wire) -> io::Result<u64> {
    match wire.read_some(&mut [0; 64])? {
        0 => Err(ErrorKind::UnexpectedEof.into()),
        count => Ok(count as u64),
    }
}

fn echo(wire: &mut Wire, message: &mut [u8]) -> io::Result<()> {
    loop {
        match wire.read_exact(message) {
            Ok(()) => wire.write_all(message)?,
            Err(end) if end.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Reads each message into its slot, or many small ones at a time, and confirms.
fn sink(wire: &mut Wire, window: &mut [u8], course: SocketTest) -> io::Result<()> {
    let size = course.layout.size_bytes;
    let every = size as u64 * course.confirm_every();
    let mut batch = vec![1u8; if size < BATCH_BELOW_BYTES { BATCH_BYTES } else { 0 }];
    let (mut read, mut confirmed, mut at) = (0u64, 0u64, 0usize);
    loop {
        let destination = if batch.is_empty() {
            let slot = at / size * size;
            &mut window[at..slot + size]
        } else {
            &mut batch[..]
        };
        let count = wire.read_some(destination)?;
        if count == 0 {
            return Ok(());
        }
        read += count as u64;
        at = (at + count) % window.len();
        let due = (read - confirmed) / every;
        confirmed += due * every;
        // A confirmation is one byte; one read never holds more messages than a batch has bytes.
        wire.write_all(&CONFIRMATIONS[..due as usize])?;
    }
}

/// A socket, with TLS or without.
#[derive(Debug)]
struct Wire {
    socket: Socket,
    tls: Option<TlsSession>,
}

/// A socket that sleeps or spins, with a deadline.
#[derive(Debug)]
struct Socket {
    stream: TcpStream,
    spin: bool,
    deadline: Instant,
}

impl Wire {
    fn new(stream: TcpStream, spin: bool, limit: Duration, mut tls: Option<TlsSession>) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(spin)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        let mut socket = Socket { stream, spin, deadline: Instant::now() + limit };
        if let Some(tls) = &mut tls {
            tls.shake(&mut socket)?;
        }
        Ok(Self { socket, tls })
    }

    fn read_some(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.tls {
            Some(tls) => tls.read(&mut self.socket, into),
            None => self.socket.read(into),
        }
    }

    fn read_exact(&mut self, mut into: &mut [u8]) -> io::Result<()> {
        while !into.is_empty() {
            match self.read_some(into)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                count => into = &mut into[count..],
            }
        }
        Ok(())
    }

    fn write_all(&mut self, from: &[u8]) -> io::Result<()> {
        match &mut self.tls {
            Some(tls) => tls.write_all(&mut self.socket, from),
            None => self.socket.write_all(from),
        }
    }
}

impl Socket {
    /// Repeats `operation` while it would block, until the deadline.
    fn patiently<T>(&mut self, mut operation: impl FnMut(&mut TcpStream) -> io::Result<T>) -> io::Result<T> {
        for turn in 1u32.. {
            match operation(&mut self.stream) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock && self.spin => {
                    if turn.is_multiple_of(1024) && Instant::now() >= self.deadline {
                        break;
                    }
                    std::hint::spin_loop();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                outcome => return outcome,
            }
        }
        Err(io::Error::new(ErrorKind::TimedOut, "the other end of the bare socket does not respond"))
    }
}

impl Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.patiently(|stream| stream.read(into))
    }
}

impl Write for Socket {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.patiently(|stream| stream.write(from))
    }

    fn write_vectored(&mut self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        self.patiently(|stream| stream.write_vectored(from))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits for a connection, up to `limit`.
fn accept_within(listener: &TcpListener, limit: Duration) -> io::Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + limit;
    loop {
        match listener.accept() {
            Ok((stream, _)) => return Ok(stream),
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
            Err(_) if Instant::now() >= deadline => {
                return Err(io::Error::new(ErrorKind::TimedOut, "no peer connected"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tls_socket::certificate;
    use super::*;
    use crate::data::payload::Payload;
    use crate::data::place::Place;

    fn run(layout: Layout, ping_pong: bool, spin: bool, tls: bool) -> Ceiling {
        measure(SocketTest { layout, ping_pong, spin, tls, duration_ms: 20 })
    }

    fn measure(course: SocketTest) -> Ceiling {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let source = Payload::default().prepare(course.layout, Place::Host).unwrap();
        let source = source.as_slice().unwrap();
        std::thread::scope(|scope| {
            let certificate = course.tls.then(|| certificate().unwrap());
            let believed = certificate.as_ref().map(|certificate| certificate.chain.clone());
            let far = scope.spawn(move || far(&listener, [7; 16], course, certificate.as_ref()));
            let near = SocketClient::open(address, [7; 16], course, believed.as_deref()).unwrap();
            let ceiling = near.measure(source).unwrap();
            assert_eq!(ceiling.kind, course.kind());
            far.join().unwrap().unwrap();
            ceiling
        })
    }

    #[test]
    fn both_ways_of_waiting_move_every_size() {
        let ways = [(false, false), (true, false), (false, true), (true, true)];
        for (spin, tls) in ways.into_iter().filter(|(_, tls)| cfg!(feature = "tls") || !tls) {
            for (size_bytes, window) in [(8, 256), (1, 1), (100, 3), (65_537, 4)] {
                let layout = Layout::new(size_bytes, window);
                assert!(run(layout, false, spin, tls).gb_per_s.is_some_and(|rate| rate > 0.0), "{layout:?}");
            }
            let latency = run(Layout::new(8, 1), true, spin, tls);
            assert!(latency.p50_us.is_some_and(|time| time > 0.0));
        }
    }

    #[test]
    fn early_confirmations_do_not_raise_the_rate() {
        for spin in [false, true] {
            let layout = Layout::new(8 << 20, 4);
            let course = SocketTest { layout, ping_pong: false, spin, tls: false, duration_ms: 1 };
            assert!(measure(course).gb_per_s.is_some_and(|rate| rate < 100.0));
        }
    }

    #[test]
    fn a_client_with_a_wrong_key_is_refused() {
        let course = SocketTest {
            layout: Layout::new(8, 1),
            ping_pong: true,
            spin: false,
            tls: false,
            duration_ms: 10,
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::scope(|scope| {
            let far = scope.spawn(|| far(&listener, [7; 16], course, None));
            SocketClient::open(address, [8; 16], course, None).unwrap_err();
            assert_eq!(far.join().unwrap().unwrap_err().kind(), ErrorKind::PermissionDenied);
        });
    }
}
