//! The control stream of a link that does not carry control itself. It carries single bytes: ping, pong,
//! over.
//!
//! The end of this stream means that the peer is lost, unless the peer has drained before. The end may
//! overtake data that the link still carries, so an end that closes gracefully waits here until the other has
//! drained too.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Control;
use crate::error::{Error, ErrorKind};
use crate::platform::environment::Environment;
use crate::wire::liveness::{Due, Liveness};

const PING: u8 = 1;
const PONG: u8 = 2;
/// All data of the receiver has arrived, and all data of the sender has been sent.
const OVER: u8 = 3;

/// How long a drained link is kept for a peer that has not drained, and a link that has not drained after its
/// drained peer closed the stream.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(1);

impl Control {
    /// Sends and answers pings until the link must end, and returns why: the peer is lost, or both ends have
    /// drained, for the reason that `draining` returns (`None` is an end without a drain). Returns `None` if
    /// `ended` completes first.
    pub(crate) async fn attend(
        self,
        heartbeat: Duration,
        environment: &dyn Environment,
        draining: impl Future<Output = Option<Error>>,
        ended: impl Future<Output = ()>,
    ) -> Option<Error> {
        let (mut draining, mut ended) = (pin!(draining), pin!(ended));
        let mut control_loop = ControlLoop::new(self, heartbeat, environment.now());
        loop {
            let pause = environment.now() + heartbeat / 4;
            let wake_at = control_loop.give_up_at.map_or(pause, |at| at.min(pause));
            let mut timer = environment.sleep_until(wake_at);
            let event = std::future::poll_fn(|cx| {
                if ended.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(None);
                }
                if control_loop.drained.is_none()
                    && let Poll::Ready(why) = draining.as_mut().poll(cx)
                {
                    return Poll::Ready(why.map(Event::Drained));
                }
                match control_loop.poll_event(cx) {
                    Poll::Ready(event) => Poll::Ready(Some(event)),
                    Poll::Pending => timer.as_mut().poll(cx).map(|()| Some(Event::Idle)),
                }
            })
            .await?;
            if let Some(why) = control_loop.handle_event(event, environment.now()) {
                return Some(why);
            }
        }
    }
}

/// An event of a control stream.
enum Event {
    Received(u8),
    /// The stream ended. Without a drain the peer is lost for this reason.
    Ended(Error),
    /// Our link drains, for this reason.
    Drained(Error),
    /// A byte was sent, or time passed.
    Idle,
}

/// The state of a control stream between two events.
struct ControlLoop {
    control: Control,
    liveness: Liveness,
    /// A byte that the peer's full receive buffer holds back. Reading continues meanwhile.
    pending_byte: Option<u8>,
    /// Writing has failed.
    write_failed: bool,
    /// The reason why our link drains.
    drained: Option<Error>,
    sent_over: bool,
    received_over: bool,
    stream_ended: bool,
    /// When to stop waiting for the end that has not drained.
    give_up_at: Option<Duration>,
}

impl ControlLoop {
    fn new(control: Control, heartbeat: Duration, now: Duration) -> Self {
        Self {
            control,
            liveness: Liveness::new(heartbeat, now),
            pending_byte: None,
            write_failed: false,
            drained: None,
            sent_over: false,
            received_over: false,
            stream_ended: false,
            give_up_at: None,
        }
    }

    /// Reads a byte if there is one. Otherwise sends the pending byte, if the stream takes it.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if self.stream_ended {
            return Poll::Pending;
        }
        let mut byte = [0];
        let mut buf = ReadBuf::new(&mut byte);
        if let Poll::Ready(read) = Pin::new(&mut self.control).poll_read(cx, &mut buf) {
            let ended = || Event::Ended(Error::new(ErrorKind::PeerLost, "its control stream ended"));
            return Poll::Ready(match read {
                Ok(()) => buf.filled().first().map_or_else(ended, |byte| Event::Received(*byte)),
                Err(error) => Event::Ended(Error::cut(error, "its control stream was cut")),
            });
        }
        let over = (self.drained.is_some() && !self.sent_over).then_some(OVER);
        let Some(word) = over.or(self.pending_byte).filter(|_| !self.write_failed) else {
            return Poll::Pending;
        };
        let written = ready!(Pin::new(&mut self.control).poll_write(cx, &[word]));
        // TLS buffers bytes until a flush; those that do not fit are sent by the next one.
        let _ = Pin::new(&mut self.control).poll_flush(cx);
        match written {
            Ok(_) if word == OVER => self.sent_over = true,
            Ok(_) => self.pending_byte = None,
            // Reading reports the error too, after the bytes that the peer sent before it.
            Err(_) => self.write_failed = true,
        }
        Poll::Ready(Event::Idle)
    }

    /// Handles an event. Returns why the link must end, if it must.
    fn handle_event(&mut self, event: Event, now: Duration) -> Option<Error> {
        match event {
            Event::Received(byte) => {
                self.liveness.record_activity(now);
                match byte {
                    PING => self.pending_byte = Some(PONG),
                    PONG => {}
                    OVER if !self.received_over => self.received_over = true,
                    OVER => return Some(Error::new(ErrorKind::Corrupt, "the peer sent over twice")),
                    other => {
                        let why = format!("unknown byte {other} on the control stream");
                        return Some(Error::new(ErrorKind::Corrupt, why));
                    }
                }
            }
            Event::Ended(why) if self.drained.is_none() && !self.received_over => return Some(why),
            Event::Ended(_) => {
                self.stream_ended = true;
                self.give_up_at.get_or_insert(now + DRAIN_TIME_MAX);
            }
            Event::Drained(why) => {
                self.drained = Some(why);
                self.give_up_at = Some(now + DRAIN_TIME_MAX);
            }
            Event::Idle => {}
        }
        let late = self.give_up_at.is_some_and(|at| now >= at);
        if let Some(why) = &self.drained {
            let is_over = self.stream_ended || late || (self.sent_over && self.received_over);
            return is_over.then(|| why.clone());
        }
        if self.stream_ended {
            let why = "it drained, and its last data did not arrive";
            return late.then(|| Error::new(ErrorKind::PeerLost, why));
        }
        match self.liveness.due(now) {
            Due::Lost(silent) => {
                // A FIN would be queued behind data that the peer has not acknowledged.
                self.control.reset();
                let why = format!("no sign of life for {:.1} s", silent.as_secs_f64());
                return Some(Error::new(ErrorKind::PeerLost, why));
            }
            Due::Ping => self.pending_byte = self.pending_byte.or(Some(PING)),
            Due::Nothing => {}
        }
        None
    }
}

#[cfg(test)]
mod tests;
