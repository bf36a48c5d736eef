//! Two ends of a control stream, or one end and a peer driven by the test, on a manual clock.

use std::error::Error as _;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use tokio::io::{DuplexStream, duplex};

use super::*;
use crate::backend::Inbox;
use crate::platform::environment::Task;
use crate::platform::environment::clockwork::Clockwork;

const HEARTBEAT: Duration = Duration::from_secs(3);

/// One end, with the link that its control stream belongs to.
struct ControlEnd {
    inbox: Arc<Inbox>,
    attending: Task<Option<Error>>,
    /// The result of the control stream, once it has ended.
    outcome: Option<Option<Error>>,
}

impl ControlEnd {
    fn new(stream: impl Into<Control>, clock: &Clockwork) -> Self {
        let stream = stream.into();
        let (inbox, clock) = (Arc::<Inbox>::default(), clock.clone());
        let ours = inbox.clone();
        let attending = async move {
            let (draining, ended) = (ours.until_draining(), ours.until_ended());
            stream.attend(HEARTBEAT, &clock, draining, ended).await
        };
        Self { inbox, attending: Box::pin(attending), outcome: None }
    }

    fn poll(&mut self) {
        if self.outcome.is_none()
            && let Poll::Ready(outcome) = self.attending.as_mut().poll(&mut context())
        {
            self.outcome = Some(outcome);
            // The control stream is dropped with its task.
            self.attending = Box::pin(std::future::pending());
        }
    }

    fn drain(&self, why: &'static str) {
        self.inbox.drain(Error::new(ErrorKind::Closed, why));
    }

    #[track_caller]
    fn assert_pending(&self) {
        assert!(self.outcome.is_none(), "{:?}", self.outcome);
    }

    #[track_caller]
    fn assert_ended(&self, kind: ErrorKind, detail: &str) {
        let Some(Some(why)) = &self.outcome else { panic!("it has not: {:?}", self.outcome) };
        assert_eq!((why.kind(), why.detail()), (kind, detail));
    }
}

/// An end, and the other side of its stream in the hands of the test.
struct TestControl {
    clock: Clockwork,
    end: ControlEnd,
    peer: Option<DuplexStream>,
}

impl TestControl {
    fn with_room(room: usize) -> Self {
        let clock = Clockwork::default();
        let (near, far) = duplex(room);
        Self { end: ControlEnd::new(near, &clock), peer: Some(far), clock }
    }

    fn new() -> Self {
        let mut control = Self::with_room(64);
        control.end.poll();
        control
    }

    /// Sends these bytes as far as there is room. Returns what our end has sent since.
    fn send(&mut self, bytes: &[u8]) -> Vec<u8> {
        let peer = self.peer.as_mut().expect("the stream is open");
        assert!(matches!(Pin::new(&mut *peer).poll_write(&mut context(), bytes), Poll::Ready(Ok(_))));
        self.end.poll();
        self.received()
    }

    fn received(&mut self) -> Vec<u8> {
        let mut bytes = [0; 64];
        let mut buf = ReadBuf::new(&mut bytes);
        let peer = self.peer.as_mut().expect("the stream is open");
        let _ = Pin::new(peer).poll_read(&mut context(), &mut buf);
        buf.filled().to_vec()
    }

    fn close(&mut self) {
        self.peer = None;
        self.end.poll();
    }

    fn advance(&mut self, time: Duration) {
        self.clock.advance(time);
        self.end.poll();
    }

    fn drain(&mut self) {
        self.end.drain("ours is over");
        self.end.poll();
    }

    #[track_caller]
    fn assert_over(&self) {
        self.end.assert_ended(ErrorKind::Closed, "ours is over");
    }
}

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn pair() -> (Clockwork, [ControlEnd; 2]) {
    let clock = Clockwork::default();
    let (near, far) = duplex(64);
    let ends = [near, far].map(|stream| ControlEnd::new(stream, &clock));
    (clock, ends)
}

fn poll(ends: &mut [ControlEnd; 2]) {
    for _ in 0..4 {
        ends.iter_mut().for_each(ControlEnd::poll);
    }
}

#[test]
fn ends_that_drain_together_end_with_their_own_reasons() {
    let (clock, mut ends) = pair();
    poll(&mut ends);
    ends[0].drain("the first");
    ends[1].drain("the second");
    poll(&mut ends);
    ends[0].assert_ended(ErrorKind::Closed, "the first");
    ends[1].assert_ended(ErrorKind::Closed, "the second");
    assert_eq!(clock.now(), Duration::ZERO);
}

#[test]
fn the_first_end_to_drain_waits_for_the_other() {
    let (clock, mut ends) = pair();
    ends[0].drain("the first");
    poll(&mut ends);
    clock.advance(DRAIN_TIME_MAX - Duration::from_millis(1));
    poll(&mut ends);
    ends.iter().for_each(ControlEnd::assert_pending);
    ends[1].drain("the second");
    poll(&mut ends);
    ends[0].assert_ended(ErrorKind::Closed, "the first");
    ends[1].assert_ended(ErrorKind::Closed, "the second");
}

#[test]
fn a_link_continues_after_its_peer_drained_and_closed() {
    let (clock, mut ends) = pair();
    ends[0].drain("the first");
    poll(&mut ends);
    clock.advance(DRAIN_TIME_MAX);
    poll(&mut ends);
    ends[0].assert_ended(ErrorKind::Closed, "the first");
    ends[1].assert_pending();
    clock.advance(DRAIN_TIME_MAX / 2);
    poll(&mut ends);
    ends[1].assert_pending();
    ends[1].drain("the second");
    poll(&mut ends);
    ends[1].assert_ended(ErrorKind::Closed, "the second");
}

#[test]
fn draining_waits_at_most_one_second_for_the_peer() {
    let mut control = TestControl::new();
    control.drain();
    assert_eq!(control.received(), [OVER]);
    control.advance(DRAIN_TIME_MAX - Duration::from_nanos(1));
    control.end.assert_pending();
    control.advance(Duration::from_nanos(1));
    control.assert_over();
}

#[test]
fn draining_ends_without_a_reading_peer() {
    let mut control = TestControl::with_room(4);
    for _ in 0..4 {
        control.peer.as_mut().map(|peer| Pin::new(peer).poll_write(&mut context(), &[PING; 4]));
        control.end.poll();
    }
    control.drain();
    control.end.assert_pending();
    control.advance(DRAIN_TIME_MAX);
    control.assert_over();
}

#[test]
fn stream_end_is_peer_lost_unless_the_peer_drained() {
    let mut control = TestControl::new();
    control.close();
    control.end.assert_ended(ErrorKind::PeerLost, "its control stream ended");

    let mut control = TestControl::new();
    assert!(control.send(&[OVER]).is_empty());
    control.close();
    control.end.assert_pending();
    control.advance(DRAIN_TIME_MAX - Duration::from_nanos(1));
    control.end.assert_pending();
    control.advance(Duration::from_nanos(1));
    control.end.assert_ended(ErrorKind::PeerLost, "it drained, and its last data did not arrive");
}

#[test]
fn stream_end_completes_a_drain() {
    let mut control = TestControl::new();
    control.drain();
    control.end.assert_pending();
    control.close();
    control.assert_over();
}

#[test]
fn a_drain_is_read_before_a_write_failure() {
    let mut control = TestControl::with_room(64);
    control.peer.as_mut().map(|peer| Pin::new(peer).poll_write(&mut context(), &[PING, OVER]));
    control.close();
    control.end.assert_pending();
    control.drain();
    control.assert_over();
}

#[test]
fn a_silent_drained_peer_is_lost_after_three_heartbeats() {
    let mut control = TestControl::new();
    control.send(&[OVER]);
    for _ in 0..3 {
        control.end.assert_pending();
        control.advance(HEARTBEAT);
    }
    control.end.assert_ended(ErrorKind::PeerLost, "no sign of life for 9.0 s");
}

#[test]
fn a_draining_end_answers_pings_and_sends_none() {
    let mut control = TestControl::new();
    control.advance(HEARTBEAT - DRAIN_TIME_MAX / 2);
    control.drain();
    assert_eq!(control.received(), [OVER]);
    control.advance(DRAIN_TIME_MAX / 2);
    assert!(control.received().is_empty(), "a heartbeat of silence");
    assert_eq!(control.send(&[PING]), [PONG]);
    assert_eq!(control.send(&[PING]), [PONG]);
    control.end.assert_pending();
    control.send(&[OVER]);
    control.assert_over();
}

#[test]
fn an_end_answers_a_drain_before_it_ends() {
    let mut control = TestControl::new();
    assert!(control.send(&[OVER, PONG]).is_empty());
    control.drain();
    control.assert_over();
    assert_eq!(control.received(), [OVER]);
}

#[test]
fn a_second_drain_or_an_unknown_byte_is_corrupt() {
    for bytes in [&[OVER, OVER][..], &[OVER, PING, OVER]] {
        let mut control = TestControl::new();
        control.send(bytes);
        control.end.assert_ended(ErrorKind::Corrupt, "the peer sent over twice");
    }
    let mut control = TestControl::new();
    control.send(&[OVER, 4]);
    control.end.assert_ended(ErrorKind::Corrupt, "unknown byte 4 on the control stream");
}

#[test]
fn an_end_without_or_during_a_drain_needs_no_answer() {
    for parts in [false, true] {
        let mut control = TestControl::new();
        if parts {
            control.drain();
        }
        control.end.assert_pending();
        control.end.inbox.end(Error::new(ErrorKind::Closed, "by itself"));
        control.end.poll();
        assert!(matches!(control.end.outcome, Some(None)));
        assert_eq!(control.end.inbox.ended().unwrap().detail(), "by itself");
    }
}

#[test]
fn a_peer_that_reads_nothing_delays_no_end() {
    let mut control = TestControl::with_room(4);
    for _ in 0..4 {
        // Four pongs fill the stream, and the others do not fit.
        control.peer.as_mut().map(|peer| Pin::new(peer).poll_write(&mut context(), &[PING; 4]));
        control.end.poll();
    }
    control.end.assert_pending();
    control.end.inbox.end(Error::new(ErrorKind::Closed, "by itself"));
    control.end.poll();
    assert!(matches!(control.end.outcome, Some(None)), "it is notified of the end");
}

/// An end on one of two connected sockets.
fn over_socket(clock: &Clockwork) -> io::Result<(ControlEnd, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let peer = TcpStream::connect(listener.local_addr()?)?;
    let near = listener.accept()?.0;
    for socket in [&near, &peer] {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
    }
    Ok((ControlEnd::new(tokio::net::TcpStream::from_std(near)?, clock), peer))
}

/// Closes it as the kernel does for a process that is killed with unread bytes.
fn reset(socket: TcpStream) {
    socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Polls `end` until `is_so`, for at most 5 s.
async fn poll_until(end: &mut ControlEnd, mut is_so: impl FnMut(&ControlEnd) -> bool) {
    let began = Instant::now();
    while !is_so(end) {
        assert!(began.elapsed() < Duration::from_secs(5), "the condition was never met: {:?}", end.outcome);
        tokio::time::sleep(Duration::from_millis(1)).await;
        end.poll();
    }
}

/// Has `end` answer a ping, so that its socket is known to be writable and to have nothing to read.
async fn poll_until_answered(end: &mut ControlEnd, peer: &mut TcpStream) {
    assert_eq!(peer.write(&[PING]).unwrap(), 1);
    poll_until(end, |_| peer.peek(&mut [0]).is_ok_and(|len| len == 1)).await;
    end.poll();
}

#[tokio::test]
async fn a_reset_is_peer_lost_with_its_cause() {
    let clock = Clockwork::default();
    let (mut end, mut peer) = over_socket(&clock).unwrap();
    poll_until_answered(&mut end, &mut peer).await;
    end.assert_pending();
    reset(peer);
    poll_until(&mut end, |end| end.outcome.is_some()).await;
    end.assert_ended(ErrorKind::PeerLost, "its control stream was cut");
    let Some(Some(why)) = &end.outcome else { unreachable!("it has ended") };
    let cause = why.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    assert_eq!(cause.map(io::Error::kind), Some(io::ErrorKind::ConnectionReset), "{why:?}");
}

#[tokio::test]
async fn a_silent_peer_is_reset() {
    let clock = Clockwork::default();
    let (mut end, mut peer) = over_socket(&clock).unwrap();
    poll_until_answered(&mut end, &mut peer).await;
    while end.outcome.is_none() {
        clock.advance(HEARTBEAT);
        end.poll();
    }
    end.assert_ended(ErrorKind::PeerLost, "no sign of life for 9.0 s");
    peer.set_nonblocking(false).unwrap();
    let mut said = Vec::new();
    let cut = peer.read_to_end(&mut said).unwrap_err();
    assert_eq!(cut.kind(), io::ErrorKind::ConnectionReset, "after {said:?}");
}

#[tokio::test]
async fn a_drain_before_a_reset_is_received() {
    let clock = Clockwork::default();
    let (mut end, mut peer) = over_socket(&clock).unwrap();
    poll_until_answered(&mut end, &mut peer).await;
    assert_eq!(peer.write(&[OVER]).unwrap(), 1);
    reset(peer);
    // The reactor has reported neither yet: an operation now fails.
    clock.advance(HEARTBEAT);
    end.poll();
    for _ in 0..20 {
        end.assert_pending();
        tokio::time::sleep(Duration::from_millis(1)).await;
        end.poll();
    }
    clock.advance(DRAIN_TIME_MAX);
    end.poll();
    end.assert_ended(ErrorKind::PeerLost, "it drained, and its last data did not arrive");
}

#[test]
fn stream_failures_are_peer_lost_except_local_errors() {
    for kind in [io::ErrorKind::TimedOut, io::ErrorKind::HostUnreachable, io::ErrorKind::Other] {
        let lost = Error::cut(kind.into(), "its control stream was cut");
        assert_eq!((lost.kind(), lost.detail()), (ErrorKind::PeerLost, "its control stream was cut"));
    }
    let ours = io::Error::other(Error::new(ErrorKind::Corrupt, "a forged record"));
    let corrupt = Error::cut(ours, "its control stream was cut");
    assert_eq!((corrupt.kind(), corrupt.detail()), (ErrorKind::Corrupt, "a forged record"));
}
