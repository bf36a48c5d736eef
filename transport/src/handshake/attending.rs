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
        let mut attendant = Attendant::new(self, heartbeat, environment.now());
        loop {
            let pause = environment.now() + heartbeat / 4;
            let wake_at = attendant.give_up_at.map_or(pause, |at| at.min(pause));
            let mut timer = environment.sleep_until(wake_at);
            let event = std::future::poll_fn(|cx| {
                if ended.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(None);
                }
                if attendant.drained.is_none()
                    && let Poll::Ready(why) = draining.as_mut().poll(cx)
                {
                    return Poll::Ready(why.map(Event::Drained));
                }
                match attendant.poll_turn(cx) {
                    Poll::Ready(event) => Poll::Ready(Some(event)),
                    Poll::Pending => timer.as_mut().poll(cx).map(|()| Some(Event::Nothing)),
                }
            })
            .await?;
            if let Some(why) = attendant.turn(event, environment.now()) {
                return Some(why);
            }
        }
    }
}

/// What happens to a control stream.
enum Event {
    Heard(u8),
    /// It ended, which would be the peer's loss for this reason.
    HungUp(Error),
    /// Our link parts, for this reason.
    Drained(Error),
    /// Something was said, or time passed.
    Nothing,
}

/// Who attends to a control stream, between two events.
struct Attendant {
    control: Control,
    liveness: Liveness,
    /// A word that the peer makes no room for waits beside everything else, and so holds nothing up.
    unsaid: Option<u8>,
    /// Nothing more can be said.
    mute: bool,
    /// Why our link parted.
    drained: Option<Error>,
    over_said: bool,
    over_heard: bool,
    hung_up: bool,
    /// When waiting for the one that has not parted ends.
    give_up_at: Option<Duration>,
}

impl Attendant {
    fn new(control: Control, heartbeat: Duration, now: Duration) -> Self {
        Self {
            control,
            liveness: Liveness::new(heartbeat, now),
            unsaid: None,
            mute: false,
            drained: None,
            over_said: false,
            over_heard: false,
            hung_up: false,
            give_up_at: None,
        }
    }

    /// Hears a byte if there is one, and otherwise says what is unsaid if it can.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if self.hung_up {
            return Poll::Pending;
        }
        let mut byte = [0];
        let mut buf = ReadBuf::new(&mut byte);
        if let Poll::Ready(read) = Pin::new(&mut self.control).poll_read(cx, &mut buf) {
            let ended = || Event::HungUp(Error::new(ErrorKind::PeerLost, "its control stream ended"));
            return Poll::Ready(match read {
                Ok(()) => buf.filled().first().map_or_else(ended, |byte| Event::Heard(*byte)),
                Err(error) => Event::HungUp(Error::cut(error, "its control stream was cut")),
            });
        }
        let over = (self.drained.is_some() && !self.over_said).then_some(OVER);
        let Some(word) = over.or(self.unsaid).filter(|_| !self.mute) else { return Poll::Pending };
        let written = ready!(Pin::new(&mut self.control).poll_write(cx, &[word]));
        // TLS holds words back until then; what finds no room leaves with the next.
        let _ = Pin::new(&mut self.control).poll_flush(cx);
        match written {
            Ok(_) if word == OVER => self.over_said = true,
            Ok(_) => self.unsaid = None,
            // Reading tells of it as well, after what the peer said before.
            Err(_) => self.mute = true,
        }
        Poll::Ready(Event::Nothing)
    }

    /// Draws the consequences; `Some` says why the link is to be ended.
    fn turn(&mut self, event: Event, now: Duration) -> Option<Error> {
        match event {
            Event::Heard(byte) => {
                self.liveness.heard(now);
                match byte {
                    PING => self.unsaid = Some(PONG),
                    PONG => {}
                    OVER if !self.over_heard => self.over_heard = true,
                    OVER => return Some(Error::new(ErrorKind::Corrupt, "the peer parted twice")),
                    other => {
                        let why = format!("byte {other} on the control stream means nothing");
                        return Some(Error::new(ErrorKind::Corrupt, why));
                    }
                }
            }
            Event::HungUp(why) if self.drained.is_none() && !self.over_heard => return Some(why),
            Event::HungUp(_) => {
                self.hung_up = true;
                self.give_up_at.get_or_insert(now + DRAIN_TIME_MAX);
            }
            Event::Drained(why) => {
                self.drained = Some(why);
                self.give_up_at = Some(now + DRAIN_TIME_MAX);
            }
            Event::Nothing => {}
        }
        let late = self.give_up_at.is_some_and(|at| now >= at);
        if let Some(why) = &self.drained {
            let is_over = self.hung_up || late || (self.over_said && self.over_heard);
            return is_over.then(|| why.clone());
        }
        if self.hung_up {
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
            Due::Ping => self.unsaid = self.unsaid.or(Some(PING)),
            Due::Nothing => {}
        }
        None
    }
}

#[cfg(test)]
mod tests;
