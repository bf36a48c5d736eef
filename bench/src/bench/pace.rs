//! How long a run measures.

use std::time::Duration;

use super::case::Wait;
use super::options::Options;

/// What a run without options takes at most, with some seconds to spare for starting and stopping.
const DEFAULT_RUN: Duration = Duration::from_secs(48);

/// What a repeat takes beside its measurements: a process is started, memory is warmed.
const OVERHEAD: Duration = Duration::from_millis(250);

/// How long the parts of one repeat take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pace {
    pub(crate) warmup: Duration,
    pub(crate) duration: Duration,
}

impl Pace {
    /// How long each ceiling is measured.
    pub(crate) fn ceiling(self) -> Duration {
        self.duration / 3
    }
}

/// A run without options ends within a minute; one with options takes what it takes.
pub(super) fn pace(options: &Options, cases: usize) -> Pace {
    let asked = !(options.transport.is_empty()
        && options.pattern.is_empty()
        && options.size.is_empty()
        && options.duration.is_none()
        && options.warmup.is_none()
        && options.repeat == 3
        && options.wait == [Wait::default()]);
    let mut duration = options.duration.unwrap_or(Duration::from_millis(500));
    if !asked {
        // A repeat takes its duration, a fifth of it to warm up, and a third for each of three ceilings.
        let repeat = DEFAULT_RUN / (cases as u32 * options.repeat).max(1);
        let longest = repeat.saturating_sub(OVERHEAD).mul_f64(1.0 / 2.2);
        duration = duration.min(longest).max(Duration::from_millis(20));
    }
    Pace { warmup: options.warmup.unwrap_or(duration / 5), duration }
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::options;
    use super::*;

    #[test]
    fn a_run_without_options_stays_below_a_minute() {
        for cases in [1, 8, 20, 40] {
            let pace = pace(&options(""), cases);
            let repeat = pace.warmup + pace.duration + 3 * pace.ceiling() + OVERHEAD;
            assert!(repeat * 3 * cases as u32 <= Duration::from_secs(55), "{cases}: {pace:?}");
        }
        assert_eq!(pace(&options("--size 8"), 1000).duration, Duration::from_millis(500));
        assert_eq!(pace(&options("--duration 2"), 4).duration, Duration::from_secs(2));
        assert_eq!(pace(&options("--duration 2 --warmup 1"), 4).warmup, Duration::from_secs(1));
    }
}
