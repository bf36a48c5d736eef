//! Whether a waiting thread should spin: not while other threads need its core.
//!
//! A spinning waiter yields between its polls, because the peer may need this very core. A yield returns at
//! once if no other thread needs the core, and otherwise after another thread's time slice (milliseconds).
//! The kernel would wake a sleeping thread within microseconds. So one long yield stops spinning on that
//! thread for a multiple of its duration.

use std::cell::Cell;
use std::thread;
use std::time::{Duration, Instant};

/// A yield that takes longer shows that another thread needs the core: a time slice is milliseconds. Shorter
/// delays occur on an idle machine too, from interrupts, kernel threads and the hypervisor.
const LONG_YIELD: Duration = Duration::from_micros(500);
/// Long yields may take one part in so many of a thread's time.
const YIELD_SHARE: u32 = 16;
/// The longest time without spinning. After it, one yield tests the core again.
const BAN_MAX: Duration = Duration::from_secs(4);

thread_local! {
    static BAN: Cell<Option<SpinBan>> = const { Cell::new(None) };
}

/// A time without spinning on one thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SpinBan {
    until: Instant,
    lasts: Duration,
}

impl SpinBan {
    /// Returns the ban after a yield that took `took`. It lasts twice as long if another thread needed the
    /// core soon after the last ban.
    fn after(last: Option<Self>, took: Duration, now: Instant) -> Self {
        let again =
            last.filter(|last| now < last.until + last.lasts).map_or(Duration::ZERO, |last| last.lasts * 2);
        let lasts = again.max(took * YIELD_SHARE).min(BAN_MAX);
        Self { until: now + lasts, lasts }
    }
}

/// Returns whether this thread may spin.
pub(crate) fn may_spin(now: Instant) -> bool {
    BAN.get().is_none_or(|ban| now >= ban.until)
}

/// Yields the core. Returns whether this thread may go on spinning.
pub(crate) fn yield_core(now: Instant) -> bool {
    thread::yield_now();
    let then = Instant::now();
    let took = then.saturating_duration_since(now);
    if took < LONG_YIELD {
        return true;
    }
    BAN.set(Some(SpinBan::after(BAN.get(), took, then)));
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLICE: Duration = Duration::from_millis(4);

    #[test]
    fn repeated_long_yields_take_a_shrinking_part_of_the_time() {
        let begin = Instant::now();
        let (mut now, mut ban, mut lost, mut yields) = (begin, None, Duration::ZERO, 0);
        while now - begin < Duration::from_secs(60) {
            now += SLICE;
            lost += SLICE;
            yields += 1;
            let next = SpinBan::after(ban, SLICE, now);
            assert!(next.lasts >= SLICE * YIELD_SHARE && next.lasts <= BAN_MAX);
            now = next.until;
            ban = Some(next);
        }
        assert!(yields < 25, "{yields} in a minute");
        assert!(lost < (now - begin) / 400, "{lost:?}");
    }

    #[test]
    fn the_ban_starts_short_again_after_the_core_was_free_for_long() {
        let now = Instant::now();
        let first = SpinBan::after(None, SLICE, now);
        let again = SpinBan::after(Some(first), SLICE, first.until + first.lasts / 2);
        assert_eq!(again.lasts, first.lasts * 2);
        let later = SpinBan::after(Some(again), SLICE, again.until + again.lasts);
        assert_eq!(later.lasts, first.lasts);
    }

    #[test]
    fn one_long_yield_stops_spinning_on_its_own_thread_only() {
        let now = Instant::now();
        // Simulates a yield that began long ago.
        assert!(!yield_core(now - SLICE));
        assert!(!may_spin(Instant::now()));
        assert!(thread::spawn(|| may_spin(Instant::now())).join().expect("it does not panic"));
        assert!(may_spin(now + SLICE * YIELD_SHARE + Duration::from_secs(60)));
    }
}
