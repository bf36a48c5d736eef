//! The run of one seed: hosts, connections, their traffic, and the checks at the end.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use towline::environment::Environment;
use towline::{Connection, Endpoint, ErrorKind};

use crate::network::{Network, NetworkedBackend};
use crate::rng::{Rng, Trace};
use crate::simulation::{Host, Simulation};
use crate::{establish, traffic};

/// The faults of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// Delays and short stops: no operation may fail.
    NoFaults,
    /// Ends close and abort during traffic.
    Ending,
    /// One submission cuts its connection.
    Cut,
    /// A host stops for longer than its peers wait.
    Stopped,
}

/// A run in progress. Clones are handles to it.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) simulation: Arc<Simulation>,
    pub(crate) seed: u64,
    pub(crate) scenario: Scenario,
    busy: Arc<AtomicUsize>,
}

/// The limit on the application's work, on the simulated clock. Closing everything has as much again.
const TIME_MAX: Duration = Duration::from_secs(60);

/// Runs one seed, and returns its trace, which is the same for each run of that seed.
///
/// # Panics
/// Panics if a check fails.
pub(crate) fn run(seed: u64) -> Trace {
    let mut rng = Rng::new(seed, 0);
    let simulation = Simulation::new(seed);
    let scenario = rng.choose(&[
        Scenario::NoFaults,
        Scenario::NoFaults,
        Scenario::Ending,
        Scenario::Cut,
        Scenario::Stopped,
    ]);
    let run = Run { simulation: simulation.clone(), seed, scenario, busy: Arc::default() };
    let cut_in = (scenario == Scenario::Cut).then(|| 1 + rng.below(120) as u64);
    let network = Arc::new(Mutex::new(Network { rng: Rng::new(seed, 3), cut_in }));
    let endpoints: Vec<_> =
        (0..2 + rng.below(2)).map(|number| endpoint(&simulation, number, &network)).collect();

    for pair in 0..1 + rng.below(3) {
        let (from, to) = (rng.below(endpoints.len()), rng.below(endpoints.len()));
        let ends = [(from, endpoints[from].clone()), (to, endpoints[to].clone())];
        let (mut rng, of) = (Rng::new(rng.next(), 0), run.clone());
        run.begin(from, async move {
            if let Some(pair) = establish::pair(&of, &ends, pair, &mut rng).await {
                traffic::run(&of, &ends, pair, &mut rng).await;
            }
        });
    }
    run.begin(usize::MAX, stop_hosts(run.clone(), endpoints.len(), Rng::new(rng.next(), 0)));
    let is_over = || run.busy.load(Ordering::Relaxed) == 0;
    assert!(
        simulation.run_until(TIME_MAX, is_over),
        "work has not ended: {scenario:?} at {:?}",
        simulation.now()
    );

    let pools: Vec<_> = endpoints.iter().map(|endpoint| endpoint.pool().clone()).collect();
    let of = run.clone();
    run.begin(usize::MAX, async move {
        for endpoint in endpoints {
            endpoint.close().await;
        }
        drop(of);
    });
    let over = simulation.run_until(2 * TIME_MAX, || simulation.living() == 0);
    assert!(over, "{} tasks are left after the last endpoint: {scenario:?}", simulation.living());
    for pool in pools {
        assert_eq!(pool.stats().in_use_bytes, 0, "a pool has not got all memory back");
    }
    simulation.trace()
}

/// Creates an endpoint on host `number`. Its heartbeat is 0.4 s, and its other times are 1 s.
pub(crate) fn endpoint(
    simulation: &Arc<Simulation>,
    number: usize,
    network: &Arc<Mutex<Network>>,
) -> Endpoint {
    let host = Host { simulation: simulation.clone(), number };
    let mem = towline::backend::all().into_iter().find(|backend| backend.name() == "mem");
    let backend = NetworkedBackend {
        backend: mem.expect("every build has mem"),
        host: host.clone(),
        network: network.clone(),
    };
    let environment: Arc<dyn Environment> = Arc::new(host);
    Endpoint::builder()
        .environment(environment)
        .backends(vec![Arc::new(backend)])
        .heartbeat(Duration::from_millis(400))
        .linger(Duration::from_secs(1))
        .handshake_time(Duration::from_secs(1))
        .connect_time(Duration::from_secs(1))
        .build()
        .expect("the endpoint needs no system resource")
}

/// Stops hosts for a while.
async fn stop_hosts(run: Run, hosts: usize, mut rng: Rng) {
    for _ in 0..rng.below(3) {
        run.pause(&mut rng, 100).await;
        run.simulation.stop(rng.below(hosts), Duration::from_millis(rng.below(250) as u64));
        run.simulation.sleep(Duration::from_millis(300)).await;
    }
    if run.scenario == Scenario::Stopped {
        run.pause(&mut rng, 60).await;
        run.simulation.stop(rng.below(hosts), Duration::from_millis(1500 + rng.below(3000) as u64));
    }
}

impl Run {
    /// Spawns `work` on `host`. The run ends when all such work has ended.
    pub(crate) fn begin(&self, host: usize, work: impl Future<Output = ()> + Send + 'static) {
        let busy = self.busy.clone();
        busy.fetch_add(1, Ordering::Relaxed);
        let counted = async move {
            work.await;
            busy.fetch_sub(1, Ordering::Relaxed);
        };
        self.simulation.spawn(host, Box::pin(counted));
    }

    /// Sleeps for a random time of at most `ms_max` milliseconds.
    pub(crate) async fn pause(&self, rng: &mut Rng, ms_max: usize) {
        self.simulation.sleep(Duration::from_micros(rng.below(1000 * ms_max) as u64)).await;
    }

    /// Checks that an operation may fail with `kind`: not in a run without faults, and only for the end of a
    /// connection or a time-out.
    #[track_caller]
    pub(crate) fn may_fail(&self, what: &str, kind: ErrorKind) {
        assert_ne!(self.scenario, Scenario::NoFaults, "{what}: {kind:?} without a fault of the connection");
        let expected = [ErrorKind::Closed, ErrorKind::PeerLost, ErrorKind::TimedOut];
        assert!(expected.contains(&kind), "{what}: {kind:?}");
    }

    /// Closes the connection, and checks the result.
    pub(crate) async fn close(&self, connection: &Connection) {
        if let Err(error) = connection.close().await {
            self.may_fail("close", error.kind());
        }
    }
}

/// Polls `future` at most `polls` times, other tasks in between, and then drops it.
pub(crate) async fn poll_then_drop<T>(future: impl Future<Output = T>, polls: usize) -> Option<T> {
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

/// Polls `future` until `end` completes, and then drops it.
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
