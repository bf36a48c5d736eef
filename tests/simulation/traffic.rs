//! What the two ends of one connection do, all of it at random: send, take, read and write regions, give up, close.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use towline::{BufferMut, Connection, Destination, Endpoint, ErrorKind, Incoming, Pool};

use crate::dice::Dice;
use crate::flow::Flow;
use crate::regions;
use crate::scene::{Mood, Scene, polled};

/// More messages than the receiver's window holds, sent before it takes the first.
const BURST: u64 = 1100;

/// Traffic both ways; ends when all of it has, and the connection too.
pub(crate) async fn run(
    scene: &Scene,
    ends: &[(usize, Endpoint); 2],
    pair: [Connection; 2],
    dice: &mut Dice,
) {
    let crew = Crew { scene: scene.clone(), busy: Arc::default() };
    let mut flows = Vec::new();
    for way in 0..2 {
        let (from, to) = (pair[way].clone(), pair[1 - way].clone());
        let count = if dice.once_in(150) { BURST } else { dice.below(12) as u64 };
        let flow = Flow::new(dice.next(), if count == BURST { 10 } else { usize::MAX });
        flows.push(flow.clone());
        let host = ends[way].0;
        crew.begin(host, send(crew.clone(), host, from.clone(), flow.clone(), count, fork(dice)));
        let pool = ends[1 - way].1.pool().clone();
        crew.begin(ends[1 - way].0, take(scene.clone(), to.clone(), flow, count, pool, fork(dice)));
        if dice.once_in(2) {
            crew.begin(host, regions::access(scene.clone(), from, to, fork(dice)));
        }
    }
    if scene.mood == Mood::Ending {
        let (of, which, mut dice) = (scene.clone(), dice.below(2), fork(dice));
        let connection = pair[which].clone();
        let ending = async move {
            of.pause(&mut dice, 60).await;
            match dice.below(3) {
                0 => connection.abort(),
                1 => drop(polled(connection.close(), 1 + dice.below(2)).await),
                _ => of.close(&connection).await,
            }
        };
        crew.begin(ends[which].0, ending);
    }
    while crew.busy.load(Ordering::Relaxed) > 0 {
        scene.world.sleep(Duration::from_millis(10)).await;
    }
    for flow in flows {
        let (submitted, sent, said) = flow.counts();
        let whole = scene.mood != Mood::Calm || (submitted == said && sent <= said);
        assert!(whole, "{submitted} messages were submitted, {said} came");
        scene.world.note(submitted ^ sent << 20 ^ said << 40);
    }
    // The first end closes or goes, the second sees its end.
    let [first, second] = pair;
    if dice.once_in(2) {
        scene.close(&first).await;
    }
    drop(first);
    let error = second.recv().await.expect_err("everything was taken, or the connection had ended");
    assert!(scene.mood != Mood::Calm || error.kind() == ErrorKind::Closed, "{error}");
}

/// Everybody at work on one connection.
#[derive(Clone)]
struct Crew {
    scene: Scene,
    busy: Arc<AtomicUsize>,
}

impl Crew {
    fn begin(&self, host: usize, work: impl Future<Output = ()> + Send + 'static) {
        let busy = self.busy.clone();
        busy.fetch_add(1, Ordering::Relaxed);
        self.scene.begin(host, async move {
            work.await;
            busy.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

fn fork(dice: &mut Dice) -> Dice {
    Dice::new(dice.next(), 0)
}

/// Sends messages, several at a time; some calls are dropped, some receipts too.
async fn send(crew: Crew, host: usize, from: Connection, flow: Flow, count: u64, mut dice: Dice) {
    let scene = &crew.scene;
    for _ in 0..count {
        if count < BURST && dice.once_in(4) {
            scene.pause(&mut dice, 10).await;
        }
        let (number, message) = flow.next();
        let (of, connection, model, ack_now) = (scene.clone(), from.clone(), flow.clone(), dice.once_in(2));
        let forgets = dice.once_in(5);
        let mut sending = Box::pin(async move {
            if ack_now {
                let word = connection.deliver(message).await.map_err(|error| error.kind());
                return judge(&of, &model, number, word);
            }
            match connection.send(message).await {
                Ok(receipt) => {
                    model.sent();
                    if forgets {
                        return true;
                    }
                    judge(&of, &model, number, receipt.delivered().await.map_err(|error| error.kind()))
                }
                Err(failed) => {
                    model.came_back(number, &failed.returned);
                    of.may_fail("send", failed.error.kind());
                    false
                }
            }
        });
        // The first poll submits it, in order; whatever becomes of the call then, the message leaves.
        let first = std::future::poll_fn(|cx| Poll::Ready(sending.as_mut().poll(cx))).await;
        let waits_from = if count < BURST { 0 } else { 1 };
        let lives = match (first, waits_from + dice.below(3 - waits_from)) {
            (Poll::Ready(lives), _) => lives,
            (Poll::Pending, 0) => sending.await,
            (Poll::Pending, 1) => {
                drop(sending);
                true
            }
            (Poll::Pending, _) => {
                crew.begin(host, async move {
                    sending.await;
                });
                true
            }
        };
        if !lives {
            return;
        }
    }
}

/// Whether the connection lives.
fn judge(scene: &Scene, flow: &Flow, number: u64, word: Result<(), ErrorKind>) -> bool {
    let lives = flow.heard(number, word);
    if let (false, Err(kind)) = (lives, word) {
        scene.may_fail("a receipt", kind);
    }
    lives
}

/// Takes every message, each in a way of its own, with calls dropped in between.
async fn take(scene: Scene, to: Connection, flow: Flow, count: u64, pool: Pool, mut dice: Dice) {
    if count == BURST {
        scene.world.sleep(Duration::from_millis(200)).await;
    }
    while flow.counts().2 < count {
        if dice.once_in(4) {
            scene.pause(&mut dice, 10).await;
        }
        let polls = dice.of(&[1, 2, 3, usize::MAX]);
        let ended = match dice.below(4) {
            0 => patiently(to.recv(), polls)
                .await
                .map(|taken| taken.map(|taken| flow.took(&taken, &[])).map_err(|error| error.kind())),
            1 => {
                let capacity = dice.of(&[0, 5000, 50_000]);
                let buffer = BufferMut::with_capacity(capacity);
                patiently(to.recv_into(buffer), polls).await.map(|taken| match taken {
                    Ok(taken) => {
                        assert!(taken.payload_len() <= capacity as u64);
                        flow.took(&taken, &[]);
                        Ok(())
                    }
                    Err(failed) => {
                        assert_eq!(failed.returned.capacity(), capacity, "the buffer comes back");
                        match failed.error.kind() {
                            ErrorKind::TooLarge => Ok(()),
                            kind => Err(kind),
                        }
                    }
                })
            }
            _ => match patiently(to.incoming(), polls).await {
                Some(Ok(incoming)) => Some(decide(&scene, incoming, &flow, &pool, &mut dice).await),
                Some(Err(error)) => Some(Err(error.kind())),
                None => None,
            },
        };
        if let Some(Err(kind)) = ended {
            return scene.may_fail("a message to come", kind);
        }
    }
}

/// As often as it takes, or so often.
async fn patiently<T>(future: impl Future<Output = T>, polls: usize) -> Option<T> {
    if polls == usize::MAX { Some(future.await) } else { polled(future, polls).await }
}

async fn decide(
    scene: &Scene,
    incoming: Incoming,
    flow: &Flow,
    pool: &Pool,
    dice: &mut Dice,
) -> Result<(), ErrorKind> {
    flow.is_next(incoming.header());
    if dice.once_in(3) {
        scene.pause(dice, 5).await;
    }
    match dice.below(5) {
        0 => {
            flow.rejected();
            incoming.reject();
        }
        1 => {
            flow.rejected();
            let mut destinations: Vec<_> = incoming.frames().iter().map(|_| Destination::Discard).collect();
            destinations.push(Destination::Discard);
            let failed = incoming.accept_into(destinations).await.expect_err("one destination too many");
            assert_eq!(failed.error.kind(), ErrorKind::Invalid);
        }
        2 => flow.took(&incoming.accept().await.map_err(|error| error.kind())?, &[]),
        _ => {
            let discarded: Vec<_> = incoming.frames().iter().map(|_| dice.once_in(4)).collect();
            let destination =
                |(frame, discarded): (&towline::FrameInfo, &bool)| match (discarded, dice.below(3)) {
                    (true, _) => Destination::Discard,
                    (false, 0) => Destination::Pool(pool.clone()),
                    (false, 1) => Destination::Place(towline::Place::Host),
                    (false, _) => Destination::Buffer(BufferMut::with_capacity(frame.len)),
                };
            let destinations = incoming.frames().iter().zip(&discarded).map(destination).collect();
            let taken = incoming.accept_into(destinations).await.map_err(|failed| failed.error.kind())?;
            flow.took(&taken, &discarded);
        }
    }
    Ok(())
}
