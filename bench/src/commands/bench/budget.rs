//! The time of a run, and the part of it that each case gets.

use std::fmt;
use std::time::Duration;

use super::options::Options;
use crate::case::{Case, Pace, Pattern, Wait};

/// The planned time of a run without options, and the time after which it measures nothing more. A busy host
/// may use the time between the two. The seconds left to a minute are for the end.
const DEFAULT_RUN: Duration = Duration::from_secs(48);
const DEFAULT_END: Duration = Duration::from_secs(56);

/// The longest repeat in such a run, so that a hang leaves time for the other cases.
const DEFAULT_REPEAT_MAX: Duration = Duration::from_secs(10);

/// The default of `--repeat`.
const REPEATS: u32 = 3;

/// The time of a repeat besides its measurements (starting a process, warming memory), and that of each
/// further process.
const OVERHEAD: Duration = Duration::from_millis(250);
const WORKER_OVERHEAD: Duration = Duration::from_millis(30);

/// Returns the approximate time of one repeat of `case`, with that many peer tools.
fn repeat_time(pace: Pace, case: &Case, tools: u32) -> Duration {
    let measuring = pace.warmup + pace.duration;
    overhead(case) + measuring + ceilings(case) * pace.ceiling() + tools * (OVERHEAD + measuring)
}

fn overhead(case: &Case) -> Duration {
    OVERHEAD + case.workers.saturating_sub(2) as u32 * WORKER_OVERHEAD
}

/// Returns the number of ceilings beside `case`, as far as it is known before the run.
fn ceilings(case: &Case) -> u32 {
    let memcpy = matches!(case.pattern, Pattern::Bandwidth | Pattern::Get | Pattern::Put | Pattern::Shuffle);
    let without_sockets = case.pattern.is_of_tasks()
        || matches!(case.pattern, Pattern::Connect | Pattern::Bidirectional | Pattern::Alltoall);
    let others = match case.transport.name {
        "mem" => 0,
        "shm" => u32::from(case.pattern == Pattern::Latency && case.wait != Wait::Spin),
        _ if without_sockets => 0,
        _ if case.transport.is_encrypted() => 4,
        _ => 2,
    };
    u32::from(memcpy) + others
}

/// The time of a run, counted from its start.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    pub(super) pace: Pace,
    /// The most repeats of a case.
    pub(super) repeats: u32,
    /// The approximate time of the whole run on a quiet host.
    planned: Duration,
    /// The approximate time of a repeat of each case.
    each: Vec<Duration>,
    /// Repeats are left out so that the run does not exceed this. `None` if `--repeat` sets their number.
    adapts_to: Option<Duration>,
    /// Nothing is measured after this.
    end: Option<Duration>,
}

impl Budget {
    /// Plans `cases`, each with the number of tools that run beside it.
    pub(super) fn of(options: &Options, cases: &[(&Case, u32)]) -> Self {
        let repeats = options.repeat.unwrap_or(REPEATS);
        let is_default = is_default(options);
        let mut pace = pace(options, Duration::from_millis(500));
        if is_default {
            pace = pace_within(DEFAULT_RUN / repeats, cases);
        }
        let each: Vec<Duration> = cases.iter().map(|(case, tools)| repeat_time(pace, case, *tools)).collect();
        let planned = each.iter().sum::<Duration>() * repeats;
        let adapts_to = match (is_default, options.repeat) {
            (true, _) => Some(DEFAULT_END),
            // A host that is a little slower than planned still measures all repeats.
            (false, None) => Some(planned.mul_f64(1.5) + Duration::from_secs(2)),
            (false, Some(_)) => None,
        };
        Self { pace, repeats, planned, each, adapts_to, end: is_default.then_some(DEFAULT_END) }
    }

    /// Returns the budget of the next of `left` cases: its share of the remaining time is its share of the
    /// planned time.
    pub(super) fn case(&self, now: Duration, left: usize) -> CaseBudget<'_> {
        let planned = &self.each[self.each.len().saturating_sub(left)..];
        let of_others: Duration = planned.iter().skip(1).sum();
        let own = planned.first().copied().unwrap_or_default();
        let share = own.as_secs_f64() / (own + of_others).as_secs_f64().max(f64::MIN_POSITIVE);
        let until = self.adapts_to.map(|end| now + end.saturating_sub(now).mul_f64(share));
        CaseBudget { budget: self, share, of_others, until, done: 0, longest: Duration::ZERO }
    }
}

impl fmt::Display for Budget {
    /// `3 repeats each: about 9 s`, `up to 3 repeats each: about 45 s, at most a minute`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let up_to = if self.adapts_to.is_some() && self.repeats > 1 { "up to " } else { "" };
        let repeats = if self.repeats == 1 { "repeat" } else { "repeats" };
        write!(f, "{up_to}{} {repeats} each: about ", self.repeats)?;
        match self.planned.as_secs_f64().ceil() as u64 {
            seconds if seconds < 180 => write!(f, "{seconds} s")?,
            seconds => write!(f, "{} min", seconds.div_ceil(60))?,
        }
        f.write_str(if self.end.is_some() { ", at most a minute" } else { "" })
    }
}

/// The repeats of one case: as many as there is time for, and at least one.
#[derive(Debug)]
pub(super) struct CaseBudget<'a> {
    budget: &'a Budget,
    /// This case's share of the time planned from here on, and the time of one repeat of each later case.
    share: f64,
    of_others: Duration,
    until: Option<Duration>,
    done: u32,
    longest: Duration,
}

impl CaseBudget<'_> {
    /// Returns true if another repeat is to start.
    pub(super) fn goes_on(&self, now: Duration) -> bool {
        let has_time = || self.until.is_none_or(|until| now + self.longest <= until);
        self.done < self.budget.repeats && (self.done == 0 || has_time())
    }

    /// Returns the limit of a repeat that starts now: its share of the remaining time, or all of it but a
    /// repeat of each later case.
    pub(super) fn limit(&self, now: Duration) -> Option<Duration> {
        let remaining = self.budget.end?.saturating_sub(now);
        let lent = remaining.saturating_sub(self.of_others);
        Some(remaining.mul_f64(self.share).max(lent).min(DEFAULT_REPEAT_MAX))
    }

    /// Records that a repeat has ended.
    pub(super) fn took(&mut self, time: Duration) {
        self.done += 1;
        self.longest = self.longest.max(time);
    }

    /// Returns a remark if repeats were left out.
    pub(super) fn note(&self) -> Option<String> {
        let repeats = self.budget.repeats;
        (self.done < repeats)
            .then(|| format!("{} of {repeats} repeats: there was no time for more", self.done))
    }
}

/// Returns true if no option sets what is measured, or for how long.
fn is_default(options: &Options) -> bool {
    options.transport.is_empty()
        && options.pattern.is_empty()
        && options.size.is_empty()
        && options.against.is_empty()
        && options.duration.is_none()
        && options.warmup.is_none()
        && options.repeat.is_none()
        && options.wait == [Wait::default()]
}

fn pace(options: &Options, duration: Duration) -> Pace {
    let duration = options.duration.unwrap_or(duration);
    Pace { warmup: options.warmup.unwrap_or(duration / 5), duration }
}

/// Returns the pace of a run without options at which one repeat of all cases takes `round`, within bounds.
fn pace_within(round: Duration, cases: &[(&Case, u32)]) -> Pace {
    let fixed: Duration = cases.iter().map(|(case, _)| overhead(case)).sum();
    // In units of the duration: the measurement, a fifth to warm up, a third for each ceiling.
    let parts: f64 = cases.iter().map(|(case, _)| 1.2 + f64::from(ceilings(case)) / 3.0).sum();
    let duration = round.saturating_sub(fixed).div_f64(parts.max(1.0));
    let duration = duration.clamp(Duration::from_millis(20), Duration::from_millis(500));
    Pace { warmup: duration / 5, duration }
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::options;
    use super::*;
    use crate::case::tests::case;

    fn cases(count: usize) -> Vec<Case> {
        let kinds = [("tcp", Pattern::Bandwidth), ("shm", Pattern::Latency), ("mem", Pattern::Bandwidth)];
        kinds.iter().cycle().take(count).map(|(name, pattern)| case(name, *pattern, 1 << 20)).collect()
    }

    fn budget(line: &str, cases: &[Case]) -> Budget {
        Budget::of(&options(line), &cases.iter().map(|case| (case, 0)).collect::<Vec<_>>())
    }

    /// Simulates a run of `count` cases whose repeats take what `takes` returns: its end, the repeats of each
    /// case, and the number of repeats that were cut off.
    fn run(budget: &Budget, count: usize, takes: impl Fn(usize) -> Duration) -> (Duration, Vec<u32>, usize) {
        let (mut now, mut repeats, mut cut_off) = (Duration::ZERO, Vec::new(), 0);
        for at in 0..count {
            let mut turns = budget.case(now, count - at);
            while turns.goes_on(now) {
                let limit = turns.limit(now);
                let time = takes(at).min(limit.unwrap_or(Duration::MAX));
                now += time;
                if limit == Some(time) {
                    cut_off += 1;
                    break;
                }
                turns.took(time);
            }
            repeats.push(turns.done);
        }
        (now, repeats, cut_off)
    }

    #[test]
    fn a_run_without_options_plans_less_than_a_minute() {
        for count in [1, 8, 20, 40] {
            let cases = cases(count);
            let budget = budget("", &cases);
            assert!(budget.planned <= Duration::from_secs(49), "{count}: {budget:?}");
            let (end, repeats, cut_off) = run(&budget, count, |at| repeat_time(budget.pace, &cases[at], 0));
            assert!(repeats.iter().all(|repeats| *repeats == 3) && cut_off == 0, "{repeats:?}");
            assert!(end <= DEFAULT_RUN + Duration::from_secs(1), "{end:?}");
        }
    }

    #[test]
    fn a_slow_host_has_fewer_repeats_and_the_run_ends_in_time() {
        let cases = cases(20);
        let budget = budget("", &cases);
        for slower in [1.5, 2.0, 2.9] {
            let takes = |at: usize| repeat_time(budget.pace, &cases[at], 0).mul_f64(slower);
            let (end, repeats, cut_off) = run(&budget, 20, takes);
            assert!(end <= DEFAULT_END && cut_off == 0, "{slower}: {end:?}, {cut_off}");
            assert!(repeats.iter().all(|repeats| (1..=3).contains(repeats)), "{slower}: {repeats:?}");
            assert!(repeats.iter().any(|repeats| *repeats < 3), "{slower}: {repeats:?}");
        }
    }

    #[test]
    fn a_hanging_case_is_cut_off_and_leaves_time_for_others() {
        let cases = cases(20);
        let budget = budget("", &cases);
        let takes = |at: usize| {
            if at.is_multiple_of(10) { Duration::MAX } else { repeat_time(budget.pace, &cases[at], 0) }
        };
        let (end, repeats, cut_off) = run(&budget, 20, takes);
        assert_eq!((end <= DEFAULT_END, cut_off), (true, 2), "{end:?}");
        let measured =
            repeats.iter().enumerate().all(|(at, repeats)| (*repeats > 0) != at.is_multiple_of(10));
        assert!(measured, "{repeats:?}");
        let (end, _, cut_off) = run(&budget, 20, |_| Duration::MAX);
        assert_eq!((end <= DEFAULT_END, cut_off), (true, 20), "{end:?}");
    }

    #[test]
    fn requested_repeats_are_all_made() {
        let cases = cases(4);
        let asked = budget("--size 1M --repeat 5", &cases);
        let (_, repeats, cut_off) = run(&asked, 4, |_| Duration::from_secs(30));
        assert_eq!((repeats, cut_off), (vec![5; 4], 0));
        let (_, repeats, _) = run(&budget("--size 1M", &cases), 4, |_| Duration::from_secs(30));
        assert_eq!(repeats, [1; 4], "the options ask for no more");
    }

    #[test]
    fn a_run_announces_its_time() {
        let cases = cases(20);
        let announced = budget("", &cases).to_string();
        assert!(announced.starts_with("up to 3 repeats each: about 4"), "{announced}");
        assert!(announced.ends_with(" s, at most a minute"), "{announced}");
        assert_eq!(
            budget("--size 8 --repeat 1 --duration 1", &cases[1..2]).to_string(),
            "1 repeat each: about 2 s"
        );
        assert_eq!(
            budget("--size 8 --duration 60 --warmup 0", &cases[2..3]).to_string(),
            "up to 3 repeats each: about 5 min"
        );
    }

    #[test]
    fn requested_durations_are_kept() {
        let pace = |line| budget(line, &cases(1000)).pace;
        assert_eq!(pace("--size 8").duration, Duration::from_millis(500));
        assert_eq!(pace("--duration 2").duration, Duration::from_secs(2));
        assert_eq!(pace("--duration 2 --warmup 1").warmup, Duration::from_secs(1));
    }
}
