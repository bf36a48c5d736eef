//! One seed's run: hosts, connections and their traffic, and what must be true when it is over.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use towline::environment::Environment;
use towline::{Connection, Endpoint, ErrorKind};

use crate::dice::{Dice, Trace};
use crate::network::{Network, Networked};
use crate::world::{Host, World};
use crate::{establish, traffic};

/// What may go wrong in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Delays and short stalls: nothing may fail.
    Calm,
    /// Ends close and abort in the middle of everything.
    Ending,
    /// One connection is cut at some submission.
    Cut,
    /// A host stands still for longer than its peers wait.
    Stopped,
}

/// A run in progress. Clones are handles to it.
#[derive(Clone, Debug)]
pub(crate) struct Scene {
    pub(crate) world: Arc<World>,
    pub(crate) seed: u64,
    pub(crate) mood: Mood,
    busy: Arc<AtomicUsize>,
}

/// The application's work ends within this time of the simulated clock, and everything else in as much again.
const TIME_MAX: Duration = Duration::from_secs(60);

/// Runs one seed; panics if something is wrong. The same seed gives the same trace.
pub(crate) fn run(seed: u64) -> Trace {
    let mut dice = Dice::new(seed, 0);
    let world = World::new(seed);
    let mood = dice.of(&[Mood::Calm, Mood::Calm, Mood::Ending, Mood::Cut, Mood::Stopped]);
    let scene = Scene { world: world.clone(), seed, mood, busy: Arc::default() };
    let cut_in = (mood == Mood::Cut).then(|| 1 + dice.below(120) as u64);
    let network = Arc::new(Mutex::new(Network { dice: Dice::new(seed, 3), cut_in }));
    let endpoints: Vec<_> = (0..2 + dice.below(2)).map(|number| endpoint(&world, number, &network)).collect();

    for pair in 0..1 + dice.below(3) {
        let (from, to) = (dice.below(endpoints.len()), dice.below(endpoints.len()));
        let ends = [(from, endpoints[from].clone()), (to, endpoints[to].clone())];
        let (mut dice, of) = (Dice::new(dice.next(), 0), scene.clone());
        scene.begin(from, async move {
            if let Some(pair) = establish::pair(&of, &ends, pair, &mut dice).await {
                traffic::run(&of, &ends, pair, &mut dice).await;
            }
        });
    }
    scene.begin(usize::MAX, stand_still(scene.clone(), endpoints.len(), Dice::new(dice.next(), 0)));
    let is_over = || scene.busy.load(Ordering::Relaxed) == 0;
    assert!(world.run_until(TIME_MAX, is_over), "something never ended: {mood:?} at {:?}", world.now());

    let pools: Vec<_> = endpoints.iter().map(|endpoint| endpoint.pool().clone()).collect();
    let of = scene.clone();
    scene.begin(usize::MAX, async move {
        for endpoint in endpoints {
            endpoint.close().await;
        }
        drop(of);
    });
    let over = world.run_until(2 * TIME_MAX, || world.living() == 0);
    assert!(over, "{} tasks are left after the last endpoint: {mood:?}", world.living());
    for pool in pools {
        assert_eq!(pool.stats().in_use_bytes, 0, "memory is missing in a pool");
    }
    world.trace()
}

/// An endpoint of host `number`, whose heartbeat is 0.4 s and whose other times are 1 s.
pub(crate) fn endpoint(world: &Arc<World>, number: usize, network: &Arc<Mutex<Network>>) -> Endpoint {
    let host = Host { world: world.clone(), number };
    let mem = towline::backend::all().into_iter().find(|backend| backend.name() == "mem");
    let backend =
        Networked { backend: mem.expect("the reference"), host: host.clone(), network: network.clone() };
    let environment: Arc<dyn Environment> = Arc::new(host);
    Endpoint::builder()
        .environment(environment)
        .backends(vec![Arc::new(backend)])
        .heartbeat(Duration::from_millis(400))
        .linger(Duration::from_secs(1))
        .handshake_time(Duration::from_secs(1))
        .connect_time(Duration::from_secs(1))
        .build()
        .expect("nothing of the real world is needed")
}

/// Stops hosts and lets them go on.
async fn stand_still(scene: Scene, hosts: usize, mut dice: Dice) {
    for _ in 0..dice.below(3) {
        scene.pause(&mut dice, 100).await;
        scene.world.stop(dice.below(hosts), Duration::from_millis(dice.below(250) as u64));
        scene.world.sleep(Duration::from_millis(300)).await;
    }
    if scene.mood == Mood::Stopped {
        scene.pause(&mut dice, 60).await;
        scene.world.stop(dice.below(hosts), Duration::from_millis(1500 + dice.below(3000) as u64));
    }
}

impl Scene {
    /// Runs `work` on `host`; the run is over when all of it is.
    pub(crate) fn begin(&self, host: usize, work: impl Future<Output = ()> + Send + 'static) {
        let busy = self.busy.clone();
        busy.fetch_add(1, Ordering::Relaxed);
        let counted = async move {
            work.await;
            busy.fetch_sub(1, Ordering::Relaxed);
        };
        self.world.spawn(host, Box::pin(counted));
    }

    /// Waits for a moment of at most so many milliseconds.
    pub(crate) async fn pause(&self, dice: &mut Dice, ms_max: usize) {
        self.world.sleep(Duration::from_micros(dice.below(1000 * ms_max) as u64)).await;
    }

    /// An operation failed: it may, where connections end; never in a calm run, and never with another reason.
    #[track_caller]
    pub(crate) fn may_fail(&self, what: &str, kind: ErrorKind) {
        assert_ne!(self.mood, Mood::Calm, "{what}: {kind:?}, and nothing happened to the connection");
        let expected = [ErrorKind::Closed, ErrorKind::PeerLost, ErrorKind::TimedOut];
        assert!(expected.contains(&kind), "{what}: {kind:?}");
    }

    /// Closes in good order, and tells the run's opinion of the result.
    pub(crate) async fn close(&self, connection: &Connection) {
        if let Err(error) = connection.close().await {
            self.may_fail("close", error.kind());
        }
    }
}

/// Polls `future` at most so often, a turn of the others between; then drops it.
pub(crate) async fn polled<T>(future: impl Future<Output = T>, polls: usize) -> Option<T> {
    let mut future = std::pin::pin!(future);
    let mut left = polls;
    std::future::poll_fn(|cx| {
        if let Poll::Ready(value) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(value));
        }
        left = left.saturating_sub(1);
        if left == 0 {
            return Poll::Ready(None);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

/// Polls `future` until `end`; then drops it.
pub(crate) async fn until<T>(future: impl Future<Output = T>, end: impl Future<Output = ()>) -> Option<T> {
    let (mut future, mut end) = (std::pin::pin!(future), std::pin::pin!(end));
    std::future::poll_fn(|cx| {
        if let Poll::Ready(value) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(value));
        }
        end.as_mut().poll(cx).map(|()| None)
    })
    .await
}
