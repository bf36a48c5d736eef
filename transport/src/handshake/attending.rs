//! The handshake's stream beside a link that carries no control itself. It carries single bytes: ask, answer, over.
//!
//! Its end is the peer's end, unless the peer said before that it parts: the end of this stream may overtake what the link still
//! carries, so an end that parts in good order waits here until the other does.

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
/// Everything of the hearer's has come, and everything of the sayer's has left.
const OVER: u8 = 3;

/// How long a link that has parted is kept for a peer that has not; and one that has not, after a peer that had went away.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(1);

impl Control {
    /// Asks and answers until the link is to be ended, and tells why: its peer is lost, or both have parted, this end for the
    /// reason that `draining` gives (`None` is an end without one). `None` if `ended` came first.
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

/// What happens to a control stream.
enum Event {
    Received(u8),
    /// It ended, which would be the peer's loss for this reason.
    Ended(Error),
    /// Our link parts, for this reason.
    Drained(Error),
    /// Something was said, or time passed.
    Idle,
}

/// Who attends to a control stream, between two events.
struct ControlLoop {
    control: Control,
    liveness: Liveness,
    /// A word that the peer makes no room for waits beside everything else, and so holds nothing up.
    pending_byte: Option<u8>,
    /// Idle more can be said.
    write_failed: bool,
    /// Why our link parted.
    drained: Option<Error>,
    sent_over: bool,
    received_over: bool,
    stream_ended: bool,
    /// When waiting for the one that has not parted ends.
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

    /// Hears a byte if there is one, and otherwise says what is pending_byte if it can.
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
        // TLS holds words back until then; what finds no room leaves with the next.
        let _ = Pin::new(&mut self.control).poll_flush(cx);
        match written {
            Ok(_) if word == OVER => self.sent_over = true,
            Ok(_) => self.pending_byte = None,
            // Reading tells of it as well, after what the peer said before.
            Err(_) => self.write_failed = true,
        }
        Poll::Ready(Event::Idle)
    }

    /// Draws the consequences; `Some` says why the link is to be ended.
    fn handle_event(&mut self, event: Event, now: Duration) -> Option<Error> {
        match event {
            Event::Received(byte) => {
                self.liveness.record_activity(now);
                match byte {
                    PING => self.pending_byte = Some(PONG),
                    PONG => {}
                    OVER if !self.received_over => self.received_over = true,
                    OVER => return Some(Error::new(ErrorKind::Corrupt, "the peer parted twice")),
                    other => {
                        let why = format!("byte {other} on the control stream means nothing");
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
            let why = "it parted, and what it sent last did not come";
            return late.then(|| Error::new(ErrorKind::PeerLost, why));
        }
        match self.liveness.due(now) {
            Due::Lost(silent) => {
                // A FIN would follow what the peer has not acknowledged.
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
