//! Two ends of a control stream, or one and a peer by hand, on a clock that moves when it is told to.

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

/// One end, with the link that is attended to.
struct End {
    inbox: Arc<Inbox>,
    attending: Task<Option<Error>>,
    /// What attending came to, once it has.
    outcome: Option<Option<Error>>,
}

impl End {
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

    fn turn(&mut self) {
        if self.outcome.is_none()
            && let Poll::Ready(outcome) = self.attending.as_mut().poll(&mut context())
        {
            self.outcome = Some(outcome);
            // The stream goes with whoever attended to it.
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

/// An end, and the stream to it in the hands of the test.
struct Visit {
    clock: Clockwork,
    end: End,
    peer: Option<DuplexStream>,
}

impl Visit {
    fn with_room(room: usize) -> Self {
        let clock = Clockwork::default();
        let (near, far) = duplex(room);
        Self { end: End::new(near, &clock), peer: Some(far), clock }
    }

    fn new() -> Self {
        let mut visit = Self::with_room(64);
        visit.end.turn();
        visit
    }

    /// Says these bytes, as far as there is room for them, and tells what our end said since.
    fn say(&mut self, bytes: &[u8]) -> Vec<u8> {
        let peer = self.peer.as_mut().expect("it has not hung up");
        assert!(matches!(Pin::new(&mut *peer).poll_write(&mut context(), bytes), Poll::Ready(Ok(_))));
        self.end.turn();
        self.heard()
    }

    fn heard(&mut self) -> Vec<u8> {
        let mut bytes = [0; 64];
        let mut buf = ReadBuf::new(&mut bytes);
        let peer = self.peer.as_mut().expect("it has not hung up");
        let _ = Pin::new(peer).poll_read(&mut context(), &mut buf);
        buf.filled().to_vec()
    }

    fn hang_up(&mut self) {
        self.peer = None;
        self.end.turn();
    }

    fn pass(&mut self, time: Duration) {
        self.clock.advance(time);
        self.end.turn();
    }

    fn drain(&mut self) {
        self.end.drain("ours is over");
        self.end.turn();
    }

    #[track_caller]
    fn assert_over(&self) {
        self.end.assert_ended(ErrorKind::Closed, "ours is over");
    }
}

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn pair() -> (Clockwork, [End; 2]) {
    let clock = Clockwork::default();
    let (near, far) = duplex(64);
    let ends = [near, far].map(|stream| End::new(stream, &clock));
    (clock, ends)
}

fn turn(ends: &mut [End; 2]) {
    for _ in 0..4 {
        ends.iter_mut().for_each(End::turn);
    }
}

#[test]
fn ends_that_part_at_once_end_at_once_each_for_its_own_reason() {
    let (clock, mut ends) = pair();
    turn(&mut ends);
    ends[0].drain("the first");
    ends[1].drain("the second");
    turn(&mut ends);
    ends[0].assert_ended(ErrorKind::Closed, "the first");
    ends[1].assert_ended(ErrorKind::Closed, "the second");
    assert_eq!(clock.now(), Duration::ZERO);
}

#[test]
fn who_parts_first_waits_for_who_parts_later() {
    let (clock, mut ends) = pair();
    ends[0].drain("the first");
    turn(&mut ends);
    clock.advance(DRAIN_TIME_MAX - Duration::from_millis(1));
    turn(&mut ends);
    ends.iter().for_each(End::assert_pending);
    ends[1].drain("the second");
    turn(&mut ends);
    ends[0].assert_ended(ErrorKind::Closed, "the first");
    ends[1].assert_ended(ErrorKind::Closed, "the second");
}

#[test]
fn a_link_goes_on_after_its_peer_parted_and_went_away() {
    let (clock, mut ends) = pair();
    ends[0].drain("the first");
    turn(&mut ends);
    clock.advance(DRAIN_TIME_MAX);
    turn(&mut ends);
    ends[0].assert_ended(ErrorKind::Closed, "the first");
    ends[1].assert_pending();
    clock.advance(DRAIN_TIME_MAX / 2);
    turn(&mut ends);
    ends[1].assert_pending();
    ends[1].drain("the second");
    turn(&mut ends);
    ends[1].assert_ended(ErrorKind::Closed, "the second");
}

#[test]
fn a_peer_that_never_parts_is_waited_for_no_longer_than_a_second() {
    let mut visit = Visit::new();
    visit.drain();
    assert_eq!(visit.heard(), [OVER]);
    visit.pass(DRAIN_TIME_MAX - Duration::from_nanos(1));
    visit.end.assert_pending();
    visit.pass(Duration::from_nanos(1));
    visit.assert_over();
}

#[test]
fn a_peer_that_reads_nothing_is_parted_from_all_the_same() {
    let mut visit = Visit::with_room(4);
    for _ in 0..4 {
        visit.peer.as_mut().map(|peer| Pin::new(peer).poll_write(&mut context(), &[PING; 4]));
        visit.end.turn();
    }
    visit.drain();
    visit.end.assert_pending();
    visit.pass(DRAIN_TIME_MAX);
    visit.assert_over();
}

#[test]
fn the_end_of_the_stream_is_a_loss_unless_the_peer_has_parted() {
    let mut visit = Visit::new();
    visit.hang_up();
    visit.end.assert_ended(ErrorKind::PeerLost, "its control stream ended");

    let mut visit = Visit::new();
    assert!(visit.say(&[OVER]).is_empty());
    visit.hang_up();
    visit.end.assert_pending();
    visit.pass(DRAIN_TIME_MAX - Duration::from_nanos(1));
    visit.end.assert_pending();
    visit.pass(Duration::from_nanos(1));
    visit.end.assert_ended(ErrorKind::PeerLost, "it parted, and what it sent last did not come");
}

#[test]
fn the_end_of_the_stream_ends_a_parting() {
    let mut visit = Visit::new();
    visit.drain();
    visit.end.assert_pending();
    visit.hang_up();
    visit.assert_over();
}

#[test]
fn a_parting_is_read_before_the_failure_to_answer_it() {
    let mut visit = Visit::with_room(64);
    visit.peer.as_mut().map(|peer| Pin::new(peer).poll_write(&mut context(), &[PING, OVER]));
    visit.hang_up();
    visit.end.assert_pending();
    visit.drain();
    visit.assert_over();
}

#[test]
fn a_peer_that_parted_and_fell_silent_is_lost_after_three_heartbeats() {
    let mut visit = Visit::new();
    visit.say(&[OVER]);
    for _ in 0..3 {
        visit.end.assert_pending();
        visit.pass(HEARTBEAT);
    }
    visit.end.assert_ended(ErrorKind::PeerLost, "no sign of life for 9.0 s");
}

#[test]
fn who_parts_answers_and_does_not_ask() {
    let mut visit = Visit::new();
    visit.pass(HEARTBEAT - DRAIN_TIME_MAX / 2);
    visit.drain();
    assert_eq!(visit.heard(), [OVER]);
    visit.pass(DRAIN_TIME_MAX / 2);
    assert!(visit.heard().is_empty(), "a heartbeat of silence");
    assert_eq!(visit.say(&[PING]), [PONG]);
    assert_eq!(visit.say(&[PING]), [PONG]);
    visit.end.assert_pending();
    visit.say(&[OVER]);
    visit.assert_over();
}

#[test]
fn who_heard_a_parting_says_its_own_before_it_ends() {
    let mut visit = Visit::new();
    assert!(visit.say(&[OVER, PONG]).is_empty());
    visit.drain();
    visit.assert_over();
    assert_eq!(visit.heard(), [OVER]);
}

#[test]
fn a_second_parting_is_corrupt_and_so_is_another_byte() {
    for bytes in [&[OVER, OVER][..], &[OVER, PING, OVER]] {
        let mut visit = Visit::new();
        visit.say(bytes);
        visit.end.assert_ended(ErrorKind::Corrupt, "the peer parted twice");
    }
    let mut visit = Visit::new();
    visit.say(&[OVER, 4]);
    visit.end.assert_ended(ErrorKind::Corrupt, "byte 4 on the control stream means nothing");
}

#[test]
fn an_end_without_a_parting_and_one_amid_it_need_no_other() {
    for parts in [false, true] {
        let mut visit = Visit::new();
        if parts {
            visit.drain();
        }
        visit.end.assert_pending();
        visit.end.inbox.end(Error::new(ErrorKind::Closed, "by itself"));
        visit.end.turn();
        assert!(matches!(visit.end.outcome, Some(None)));
        assert_eq!(visit.end.inbox.ended().unwrap().detail(), "by itself");
    }
}

#[test]
fn a_peer_that_reads_nothing_holds_up_no_end() {
    let mut visit = Visit::with_room(4);
    for _ in 0..4 {
        // Four answers fill the stream, and the others find no room.
        visit.peer.as_mut().map(|peer| Pin::new(peer).poll_write(&mut context(), &[PING; 4]));
        visit.end.turn();
    }
    visit.end.assert_pending();
    visit.end.inbox.end(Error::new(ErrorKind::Closed, "by itself"));
    visit.end.turn();
    assert!(matches!(visit.end.outcome, Some(None)), "it hears of the end");
}

/// An end on one of two connected sockets.
fn over_socket(clock: &Clockwork) -> io::Result<(End, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let peer = TcpStream::connect(listener.local_addr()?)?;
    let near = listener.accept()?.0;
    for socket in [&near, &peer] {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
    }
    Ok((End::new(tokio::net::TcpStream::from_std(near)?, clock), peer))
}

/// Closes it as the kernel does for a process that is killed before it has read everything.
fn reset(socket: TcpStream) {
    socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Turns `end` until `is_so`, for 5 s.
async fn turn_until(end: &mut End, mut is_so: impl FnMut(&End) -> bool) {
    let began = Instant::now();
    while !is_so(end) {
        assert!(began.elapsed() < Duration::from_secs(5), "it never comes to that: {:?}", end.outcome);
        tokio::time::sleep(Duration::from_millis(1)).await;
        end.turn();
    }
}

/// Has `end` answer, so that its socket is known to be writable, and to hold nothing to read.
async fn turn_until_answered(end: &mut End, peer: &mut TcpStream) {
    assert_eq!(peer.write(&[PING]).unwrap(), 1);
    turn_until(end, |_| peer.peek(&mut [0]).is_ok_and(|len| len == 1)).await;
    end.turn();
}

#[tokio::test]
async fn a_reset_is_a_loss_and_tells_its_cause() {
    let clock = Clockwork::default();
    let (mut end, mut peer) = over_socket(&clock).unwrap();
    turn_until_answered(&mut end, &mut peer).await;
    end.assert_pending();
    reset(peer);
    turn_until(&mut end, |end| end.outcome.is_some()).await;
    end.assert_ended(ErrorKind::PeerLost, "its control stream was cut");
    let Some(Some(why)) = &end.outcome else { unreachable!("it has ended") };
    let cause = why.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    assert_eq!(cause.map(io::Error::kind), Some(io::ErrorKind::ConnectionReset), "{why:?}");
}

#[tokio::test]
async fn a_silent_peer_is_reset() {
    let clock = Clockwork::default();
    let (mut end, mut peer) = over_socket(&clock).unwrap();
    turn_until_answered(&mut end, &mut peer).await;
    while end.outcome.is_none() {
        clock.advance(HEARTBEAT);
        end.turn();
    }
    end.assert_ended(ErrorKind::PeerLost, "no sign of life for 9.0 s");
    peer.set_nonblocking(false).unwrap();
    let mut said = Vec::new();
    let cut = peer.read_to_end(&mut said).unwrap_err();
    assert_eq!(cut.kind(), io::ErrorKind::ConnectionReset, "after {said:?}");
}

#[tokio::test]
async fn a_parting_before_a_reset_is_heard_even_by_who_speaks_first() {
    let clock = Clockwork::default();
    let (mut end, mut peer) = over_socket(&clock).unwrap();
    turn_until_answered(&mut end, &mut peer).await;
    assert_eq!(peer.write(&[OVER]).unwrap(), 1);
    reset(peer);
    // The reactor has not told of either yet: what is asked now fails.
    clock.advance(HEARTBEAT);
    end.turn();
    for _ in 0..20 {
        end.assert_pending();
        tokio::time::sleep(Duration::from_millis(1)).await;
        end.turn();
    }
    clock.advance(DRAIN_TIME_MAX);
    end.turn();
    end.assert_ended(ErrorKind::PeerLost, "it parted, and what it sent last did not come");
}

#[test]
fn whatever_a_stream_fails_with_it_is_the_peers_loss_but_for_errors_of_ours() {
    for kind in [io::ErrorKind::TimedOut, io::ErrorKind::HostUnreachable, io::ErrorKind::Other] {
        let lost = Error::cut(kind.into(), "its control stream was cut");
        assert_eq!((lost.kind(), lost.detail()), (ErrorKind::PeerLost, "its control stream was cut"));
    }
    let ours = io::Error::other(Error::new(ErrorKind::Corrupt, "a forged record"));
    let corrupt = Error::cut(ours, "its control stream was cut");
    assert_eq!((corrupt.kind(), corrupt.detail()), (ErrorKind::Corrupt, "a forged record"));
}
