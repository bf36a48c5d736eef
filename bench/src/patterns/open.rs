//! An open loop: every message has a due time, independent of the answers, and its time counts from then.

use std::io;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::{Semaphore, mpsc};

use crate::case::{Case, Wait};
use crate::failure::Failure;

/// Adaptive waiting spins for this long at the end, since a sleep may end that much too late.
const SPIN: Duration = Duration::from_micros(100);

/// Sends messages of `case`, `rate` a second until `until`, and returns when all are confirmed. `send` sends
/// the next message; `confirm` waits for its answer, and is given its due time.
///
/// A message that finds the window full leaves late, and its time still counts from its due time. After as
/// long again, no more messages are sent.
pub(super) async fn offer<T>(
    case: &Case,
    rate: u32,
    until: Instant,
    mut send: impl AsyncFnMut() -> Result<T, Failure>,
    mut confirm: impl AsyncFnMut(Instant, T) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let begin = Instant::now();
    let give_up = until + until.saturating_duration_since(begin);
    let mut clock = Clock::new(case.wait).map_err(failed)?;
    let places = Semaphore::new(case.window);
    let (give, mut take) = mpsc::unbounded_channel();
    let sending = async {
        // Dropping this ends the other half.
        let give = give;
        for due in schedule(begin, until, rate) {
            let Ok(place) = places.acquire().await else { break };
            clock.wait(due).await.map_err(failed)?;
            if give.send((due, send().await?, place)).is_err() || Instant::now() >= give_up {
                break;
            }
        }
        // The last message has its whole interval too: a rate is over whole intervals.
        clock.wait(until).await.map_err(failed)
    };
    let confirming = async {
        while let Some((due, sent, _place)) = take.recv().await {
            confirm(due, sent).await?;
        }
        Ok(())
    };
    tokio::try_join!(sending, confirming).map(drop)
}

/// Returns the due time of each message, and of one at least. Each follows from the start, so no delay adds
/// up.
fn schedule(begin: Instant, until: Instant, rate: u32) -> impl Iterator<Item = Instant> {
    let due = move |number: u64| begin + Duration::from_secs_f64(number as f64 / f64::from(rate));
    (0..).map(due).take_while(move |due| *due == begin || *due < until)
}

fn failed(error: io::Error) -> Failure {
    Failure::run(format!("a timer: {error}"))
}

/// Waits for due times as the case waits for its peer. It uses a kernel timer, since tokio's has a resolution
/// of 1 ms.
#[derive(Debug)]
struct Clock {
    wait: Wait,
    /// The timer is read like a pipe: it yields 8 bytes when it expires.
    timer: pipe::Receiver,
}

impl Clock {
    fn new(wait: Wait) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self { wait, timer: pipe::Receiver::from_owned_fd_unchecked(timer)? })
    }

    /// Waits until `due`; returns at once if that has passed.
    async fn wait(&mut self, due: Instant) -> io::Result<()> {
        let spin = match self.wait {
            Wait::Spin => Duration::MAX,
            Wait::Adaptive => SPIN,
            Wait::Sleep => Duration::ZERO,
        };
        let left = due.saturating_duration_since(Instant::now());
        if left > spin {
            self.sleep(left - spin).await?;
        }
        while Instant::now() < due {
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    async fn sleep(&mut self, time: Duration) -> io::Result<()> {
        let it_value = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
        let once = Itimerspec { it_interval: Timespec::default(), it_value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        self.timer.read_exact(&mut [0; 8]).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::case::Pattern;
    use crate::case::tests::case;

    #[test]
    fn a_schedule_has_the_requested_number_of_messages() {
        let begin = Instant::now();
        for (rate, duration_ms, messages) in
            [(1000, 1000, 1000), (7, 1000, 7), (3, 500, 2), (1, 20, 1), (1, 0, 1)]
        {
            let until = begin + Duration::from_millis(duration_ms);
            let dues: Vec<Instant> = schedule(begin, until, rate).collect();
            assert_eq!((dues.len(), dues[0]), (messages, begin), "{rate}");
            let last = (messages - 1) as f64 / f64::from(rate);
            assert!((dues[messages - 1] - begin).as_secs_f64() - last < 1e-9, "{rate}");
        }
    }

    #[tokio::test]
    async fn no_message_leaves_before_it_is_due() {
        for wait in [Wait::Spin, Wait::Adaptive, Wait::Sleep] {
            let case = Case { wait, ..case("tcp", Pattern::Rate, 8) };
            let mut times = Vec::new();
            let begin = Instant::now();
            let until = begin + Duration::from_millis(50);
            let confirm = async |due, sent: Instant| {
                assert!(sent >= due, "{wait:?}");
                times.push(due);
                Ok(())
            };
            offer(&case, 200, until, async || Ok(Instant::now()), confirm).await.unwrap();
            assert!(Instant::now() >= until, "{wait:?}");
            assert!((1..=10).contains(&times.len()), "{wait:?}");
            assert!(times.windows(2).all(|pair| pair[1] - pair[0] == Duration::from_millis(5)), "{wait:?}");
        }
    }

    #[tokio::test]
    async fn a_stall_counts_in_the_times_of_all_due_messages() {
        // With a window of 16, and no answer before the end.
        let case = case("tcp", Pattern::Rate, 8);
        let (begin, sent, mut times) = (Instant::now(), Cell::new(0), Vec::new());
        let until = begin + Duration::from_millis(300);
        let send = async || {
            sent.set(sent.get() + 1);
            Ok(())
        };
        let confirm = async |due: Instant, ()| {
            assert!(sent.get() - times.len() <= case.window);
            tokio::time::sleep_until(until.into()).await;
            times.push(due.elapsed());
            Ok(())
        };
        offer(&case, 1000, until, send, confirm).await.unwrap();
        // Half of them were due in the first half of that time.
        let late = times.iter().filter(|time| **time >= Duration::from_millis(150)).count();
        assert!(late >= 100 && times.len() > late, "{late} of {}", times.len());
    }

    #[tokio::test]
    async fn an_open_loop_that_falls_behind_ends_after_twice_the_duration() {
        let case = Case { window: 1, ..case("tcp", Pattern::Rate, 8) };
        let (begin, mut confirmed) = (Instant::now(), 0);
        let confirm = async |_, ()| {
            tokio::time::sleep(Duration::from_millis(10)).await;
            confirmed += 1;
            Ok(())
        };
        offer(&case, 1000, begin + Duration::from_millis(50), async || Ok(()), confirm).await.unwrap();
        assert!((1..=11).contains(&confirmed), "{confirmed}");
    }

    #[tokio::test]
    async fn the_first_failure_ends_an_open_loop() {
        let case = case("tcp", Pattern::Rate, 8);
        let until = Instant::now() + Duration::from_secs(3600);
        let confirm = async |_, ()| Err(Failure::run("no answer"));
        let failed = offer(&case, 1000, until, async || Ok(()), confirm).await.unwrap_err();
        assert_eq!(failed.to_string(), "no answer");
    }
}
