//! The system environment with observed tasks: it counts them, and can stop one after a number of polls.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use towline::Result;
use towline::environment::{Environment, System, Task};

/// An environment that counts its tasks.
#[derive(Debug)]
pub struct Watched {
    system: System,
    tasks: Arc<AtomicUsize>,
    /// The stop of the next task to be spawned.
    next: Mutex<Option<Stop>>,
}

/// Stops a task after a number of polls, until the test decides how it continues.
#[derive(Clone, Debug)]
pub struct Stop(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    polls_left: usize,
    /// True once the polls are used up and the task waits for the decision.
    is_reached: bool,
    next_step: NextStep,
    /// True once the task has ended or was dropped.
    is_over: bool,
    waker: Option<Waker>,
}

/// How a task continues once its polls are used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NextStep {
    Waits,
    GoesOn,
    IsDropped,
}

impl Watched {
    /// Starts the driver thread.
    ///
    /// # Errors
    /// `Io` without a thread.
    pub fn start() -> Result<Arc<Self>> {
        Ok(Arc::new(Self { system: System::start()?, tasks: Arc::default(), next: Mutex::default() }))
    }

    /// Returns the number of tasks that have not ended.
    pub fn tasks(&self) -> usize {
        self.tasks.load(Ordering::Acquire)
    }

    /// Stops the next spawned task after `polls` polls.
    pub fn stop_next(&self, polls: usize) -> Stop {
        let state = State {
            polls_left: polls,
            is_reached: false,
            next_step: NextStep::Waits,
            is_over: false,
            waker: None,
        };
        let stop = Stop(Arc::new(Mutex::new(state)));
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(stop.clone());
        stop
    }
}

impl Environment for Watched {
    fn now(&self) -> Duration {
        self.system.now()
    }

    fn sleep_until(&self, at: Duration) -> Task {
        self.system.sleep_until(at)
    }

    fn random(&self, out: &mut [u8]) {
        self.system.random(out);
    }

    fn spawn(&self, task: Task) {
        let stop = self.next.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.tasks.fetch_add(1, Ordering::AcqRel);
        let counted = Counted { tasks: self.tasks.clone(), stop: stop.clone() };
        self.system.spawn(Box::pin(Observed { task: Some(task), stop, _counted: counted }));
    }
}

impl Stop {
    /// Returns true if the polls are used up and the task has not ended.
    pub fn is_reached(&self) -> bool {
        let state = self.state();
        state.is_reached && !state.is_over
    }

    /// Returns true if the task has ended.
    pub fn is_over(&self) -> bool {
        self.state().is_over
    }

    /// Lets the task continue.
    pub fn let_go_on(&self) {
        self.decide(NextStep::GoesOn);
    }

    /// Drops the task where it stopped.
    pub fn drop_task(&self) {
        self.decide(NextStep::IsDropped);
    }

    fn decide(&self, next_step: NextStep) {
        let mut state = self.state();
        state.next_step = next_step;
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how the task continues in this poll.
    fn at_poll(&self, cx: &Context<'_>) -> NextStep {
        let mut state = self.state();
        if state.polls_left > 0 {
            return NextStep::GoesOn;
        }
        state.wait(cx);
        state.next_step
    }

    /// Counts a poll that did not end the task.
    fn after_poll(&self, cx: &Context<'_>) {
        let mut state = self.state();
        if state.polls_left > 0 {
            state.polls_left -= 1;
            if state.polls_left == 0 {
                state.wait(cx);
            }
        }
    }
}

impl State {
    fn wait(&mut self, cx: &Context<'_>) {
        self.is_reached = true;
        self.waker = Some(cx.waker().clone());
    }
}

/// One task.
struct Observed {
    task: Option<Task>,
    stop: Option<Stop>,
    /// Dropped after the task.
    _counted: Counted,
}

/// Counts a task until it is dropped.
struct Counted {
    tasks: Arc<AtomicUsize>,
    stop: Option<Stop>,
}

impl Future for Observed {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match self.stop.as_ref().map_or(NextStep::GoesOn, |stop| stop.at_poll(cx)) {
            NextStep::Waits => Poll::Pending,
            NextStep::IsDropped => {
                self.task = None;
                Poll::Ready(())
            }
            NextStep::GoesOn => {
                let polled = self.task.as_mut().map_or(Poll::Ready(()), |task| task.as_mut().poll(cx));
                if polled.is_pending() {
                    self.stop.iter().for_each(|stop| stop.after_poll(cx));
                }
                polled
            }
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.tasks.fetch_sub(1, Ordering::AcqRel);
        if let Some(stop) = &self.stop {
            stop.state().is_over = true;
        }
    }
}
