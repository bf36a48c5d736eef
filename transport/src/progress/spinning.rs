//! Whether a thread that waits should spin: not while others want its core.
//!
//! A waiter that spins yields between its polls, for the peer may need this very core. A yield returns at once where nobody
//! else wants the core, and after somebody's time slice (milliseconds) where somebody does, while the kernel would wake a
//! thread that sleeps within microseconds. So one long yield ends spinning on that thread for a multiple of what it took.

use std::cell::Cell;
use std::thread;
use std::time::{Duration, Instant};

/// A yield that takes longer shows that others want the core: a time slice is milliseconds. Shorter ones happen on an idle
/// machine as well, by interrupts, kernel threads and the host of a virtual machine.
const LONG: Duration = Duration::from_micros(500);
/// Of a thread's time, long yields may take one part in so many.
const SHARE: u32 = 16;
/// The longest time without spinning; after it, one yield tells.
const QUIET_MAX: Duration = Duration::from_secs(4);

thread_local! {
    static QUIET: Cell<Option<Quiet>> = const { Cell::new(None) };
}

/// A time without spinning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Quiet {
    until: Instant,
    lasts: Duration,
}

impl Quiet {
    /// What a yield leads to that took so long. If the core was wanted soon after the last time was over, it lasts twice as long.
    fn after(last: Option<Self>, took: Duration, now: Instant) -> Self {
        let again =
            last.filter(|last| now < last.until + last.lasts).map_or(Duration::ZERO, |last| last.lasts * 2);
        let lasts = again.max(took * SHARE).min(QUIET_MAX);
        Self { until: now + lasts, lasts }
    }
}

/// Whether this thread may spin.
pub(crate) fn pays(now: Instant) -> bool {
    QUIET.get().is_none_or(|quiet| now >= quiet.until)
}

/// Gives the core to whoever waits for it; whether this thread may go on spinning.
pub(crate) fn yield_core(now: Instant) -> bool {
    thread::yield_now();
    let then = Instant::now();
    let took = then.saturating_duration_since(now);
    if took < LONG {
        return true;
    }
    QUIET.set(Some(Quiet::after(QUIET.get(), took, then)));
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLICE: Duration = Duration::from_millis(4);

    #[test]
    fn long_yields_take_a_small_part_of_the_time_and_less_of_it_the_longer_they_go_on() {
        let begin = Instant::now();
        let (mut now, mut quiet, mut lost, mut yields) = (begin, None, Duration::ZERO, 0);
        while now - begin < Duration::from_secs(60) {
            now += SLICE;
            lost += SLICE;
            yields += 1;
            let next = Quiet::after(quiet, SLICE, now);
            assert!(next.lasts >= SLICE * SHARE && next.lasts <= QUIET_MAX);
            now = next.until;
            quiet = Some(next);
        }
        assert!(yields < 25, "{yields} in a minute");
        assert!(lost < (now - begin) / 400, "{lost:?}");
    }

    #[test]
    fn a_core_that_was_free_for_long_enough_is_not_held_against_its_past() {
        let now = Instant::now();
        let first = Quiet::after(None, SLICE, now);
        let again = Quiet::after(Some(first), SLICE, first.until + first.lasts / 2);
        assert_eq!(again.lasts, first.lasts * 2);
        let later = Quiet::after(Some(again), SLICE, again.until + again.lasts);
        assert_eq!(later.lasts, first.lasts);
    }

    #[test]
    fn one_long_yield_ends_spinning_on_its_thread_alone() {
        let now = Instant::now();
        // As if the yield had begun long ago.
        assert!(!yield_core(now - SLICE));
        assert!(!pays(Instant::now()));
        assert!(thread::spawn(|| pays(Instant::now())).join().expect("it does not panic"));
        assert!(pays(now + SLICE * SHARE + Duration::from_secs(60)));
    }
}
