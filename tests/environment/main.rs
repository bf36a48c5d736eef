//! An endpoint in a simulated environment. The test owns the clock, timers, randomness and tasks, by the public
//! interface alone.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use towline::environment::{Environment, Task};
use towline::{Endpoint, ErrorKind, Message};

/// A clock that moves only when no task can run, and one queue of tasks.
#[derive(Default)]
struct Simulation {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    now: Duration,
    randomness: u8,
    tasks: VecDeque<Task>,
    timers: BTreeMap<(Duration, u64), Waker>,
    next_timer: u64,
}

impl std::fmt::Debug for Simulation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Simulation")
    }
}

#[derive(Debug)]
struct SimulatedEnvironment(Arc<Simulation>);

struct Timer {
    simulation: Arc<Simulation>,
    at: Duration,
    entry: Option<u64>,
}

impl Future for Timer {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let simulation = self.simulation.clone();
        let mut state = simulation.state();
        if state.now >= self.at {
            return Poll::Ready(());
        }
        let entry = *self.entry.get_or_insert_with(|| {
            state.next_timer += 1;
            state.next_timer
        });
        state.timers.insert((self.at, entry), cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Some(entry) = self.entry {
            self.simulation.state().timers.remove(&(self.at, entry));
        }
    }
}

impl Environment for SimulatedEnvironment {
    fn now(&self) -> Duration {
        self.0.state().now
    }

    fn sleep_until(&self, at: Duration) -> Task {
        Box::pin(Timer { simulation: self.0.clone(), at, entry: None })
    }

    fn random(&self, out: &mut [u8]) {
        let mut state = self.0.state();
        for byte in out {
            state.randomness = state.randomness.wrapping_mul(29).wrapping_add(17);
            *byte = state.randomness;
        }
    }

    fn spawn(&self, task: Task) {
        self.0.state().tasks.push_back(task);
    }
}

struct NoopWake;

impl Wake for NoopWake {
    fn wake(self: Arc<Self>) {}
}

impl Simulation {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Polls `main` and all tasks in rounds until `main` completes. Each third round moves the clock to the next
    /// timer.
    fn run<T>(&self, main: impl Future<Output = T>) -> T {
        let waker = Waker::from(Arc::new(NoopWake));
        let mut cx = Context::from_waker(&waker);
        let mut main = std::pin::pin!(main);
        for round in 0.. {
            assert!(round < 1_000_000, "the simulation does not end");
            if let Poll::Ready(value) = main.as_mut().poll(&mut cx) {
                return value;
            }
            let tasks = std::mem::take(&mut self.state().tasks);
            for mut task in tasks {
                if task.as_mut().poll(&mut cx).is_pending() {
                    self.state().tasks.push_back(task);
                }
            }
            if round % 3 == 2 {
                let mut state = self.state();
                if let Some(((at, _), _)) = state.timers.pop_first() {
                    state.now = state.now.max(at);
                }
            }
        }
        unreachable!("the rounds are bounded above")
    }
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").expect("Linux").count()
}

#[test]
fn a_simulated_endpoint_works_without_a_thread_and_on_the_simulations_clock() {
    let before = threads();
    let simulation = Arc::new(Simulation::default());
    let endpoint =
        Endpoint::builder().environment(Arc::new(SimulatedEnvironment(simulation.clone()))).build().unwrap();
    let (a, b) = simulation.run(async {
        let listener = endpoint.listen(&"mem://simulated".parse().unwrap()).await.unwrap();
        let connecting = endpoint.connect(listener.address());
        let accepting = listener.accept();
        let (a, b) = tokio::join!(connecting, accepting);
        (a.unwrap(), b.unwrap())
    });
    assert_eq!(threads(), before, "no thread was started");
    let taken = simulation.run(async {
        let (sent, taken) =
            tokio::join!(a.deliver(Message::new("hello").with_frame(vec![7; 100_000])), b.recv());
        sent.unwrap();
        taken.unwrap()
    });
    assert_eq!(taken.frames()[0].as_slice().unwrap(), [7; 100_000]);

    // An hour passes on the simulated clock, with heartbeats.
    let start = SimulatedEnvironment(simulation.clone()).now();
    simulation.run(SimulatedEnvironment(simulation.clone()).sleep_until(start + Duration::from_secs(3600)));
    let (sent, taken) =
        simulation.run(async { tokio::join!(a.deliver(Message::new("still there")), b.recv()) });
    sent.unwrap();
    assert_eq!(taken.unwrap().header(), "still there");
    simulation.run(a.close()).unwrap();
    assert_eq!(simulation.run(b.recv()).unwrap_err().kind(), ErrorKind::Closed);

    // Dropped connections and endpoints leave no task, though their environment lives on.
    let pass = |time| {
        let now = SimulatedEnvironment(simulation.clone()).now();
        simulation.run(SimulatedEnvironment(simulation.clone()).sleep_until(now + time));
    };
    drop((a, b));
    pass(Duration::from_secs(10));
    assert_ne!(simulation.state().tasks.len(), 0);
    drop(endpoint);
    pass(Duration::from_secs(10));
    assert_eq!(simulation.state().tasks.len(), 0);
}
