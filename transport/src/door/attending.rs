//! The door's stream beside a link that carries no control itself. It carries single bytes: ask, answer. Its end is the peer's
//! end.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Control;
use crate::environment::Environment;
use crate::error::{Error, ErrorKind};
use crate::wire::liveness::{Due, Liveness};

const ASK: u8 = 1;
const ANSWER: u8 = 2;

impl Control {
    /// Asks and answers until the peer is lost, and tells how; `None` if `ended` came first.
    pub(crate) async fn attend(
        mut self,
        heartbeat: Duration,
        environment: &dyn Environment,
        ended: impl Future<Output = ()>,
    ) -> Option<Error> {
        let mut ended = std::pin::pin!(ended);
        let mut liveness = Liveness::new(heartbeat, environment.now());
        // A word that the peer makes no room for waits beside everything else, and so holds nothing up.
        let mut unsaid = None;
        loop {
            let mut timer = environment.sleep_until(environment.now() + heartbeat / 4);
            let event = std::future::poll_fn(|cx| {
                if ended.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(None);
                }
                match self.poll_turn(cx, &mut unsaid) {
                    Poll::Ready(event) => Poll::Ready(Some(event)),
                    Poll::Pending => timer.as_mut().poll(cx).map(|()| Some(Ok(Event::Nothing))),
                }
            })
            .await?;
            let said = match event {
                Ok(Event::Heard(byte)) => Some(byte),
                Ok(Event::Nothing) => None,
                Ok(Event::End) => return Some(Error::new(ErrorKind::PeerLost, "its control stream ended")),
                Err(error) => return Some(Error::io(error)),
            };
            if said.is_some() {
                liveness.heard(environment.now());
            }
            let say = match (said, liveness.due(environment.now())) {
                (_, Due::Lost(silent)) => {
                    let why = format!("no sign of life for {:.1} s", silent.as_secs_f64());
                    return Some(Error::new(ErrorKind::PeerLost, why));
                }
                (Some(ASK), _) => ANSWER,
                (None | Some(ANSWER), Due::Ask) => ASK,
                (None | Some(ANSWER), Due::Nothing) => continue,
                (Some(other), _) => {
                    let why = format!("byte {other} on the control stream means nothing");
                    return Some(Error::new(ErrorKind::Corrupt, why));
                }
            };
            if unsaid != Some(ANSWER) {
                unsaid = Some(say);
            }
        }
    }

    /// Says what is unsaid if it can, and hears a byte if there is one.
    fn poll_turn(&mut self, cx: &mut Context<'_>, unsaid: &mut Option<u8>) -> Poll<io::Result<Event>> {
        if let Some(word) = *unsaid
            && let Poll::Ready(written) = Pin::new(&mut *self).poll_write(cx, &[word])
        {
            written?;
            *unsaid = None;
        }
        let mut byte = [0];
        let mut buf = ReadBuf::new(&mut byte);
        std::task::ready!(Pin::new(self).poll_read(cx, &mut buf))?;
        Poll::Ready(Ok(buf.filled().first().map_or(Event::End, |byte| Event::Heard(*byte))))
    }
}

/// What happens on a control stream.
enum Event {
    Heard(u8),
    End,
    /// Time passed.
    Nothing,
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::sync::Notify;

    use super::*;
    use crate::environment::System;

    #[tokio::test]
    async fn a_peer_that_reads_nothing_holds_up_no_end() {
        let (near, mut far) = tokio::io::duplex(4);
        let system = System::start().unwrap();
        let over = Notify::new();
        let attending = Control::from(near).attend(Duration::from_secs(60), &system, over.notified());
        let asking = async {
            // Four answers fill the stream, and the others find no room.
            far.write_all(&[ASK; 16]).await.unwrap();
            over.notify_one();
            std::future::pending::<()>().await;
        };
        let end = tokio::time::timeout(Duration::from_secs(5), async {
            tokio::select! {
                end = attending => end,
                () = asking => unreachable!("it waits"),
            }
        });
        assert!(end.await.expect("it hears of the end").is_none());
    }
}
