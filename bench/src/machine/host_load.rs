//! The load of the host: on a busy host figures are worse, and vary between runs.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::time::Instant;

use serde::Serialize;

/// The share of the cores in use by other processes from which a host counts as busy.
const BUSY_LOAD: f64 = 0.5;

/// The percentage of the last 10 s in which a task waited for a core, and of the run that went to other guests.
const BUSY_PRESSURE_PERCENT: f64 = 10.0;
const BUSY_STEAL_PERCENT: f64 = 1.0;

/// One reading; a key is null or missing if the kernel does not report it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct HostLoad {
    /// Runnable tasks, as means over 1, 5 and 15 minutes.
    pub(crate) load_average: Option<[f64; 3]>,
    /// CPU seconds that the hypervisor gave to other guests since boot, of all cores together.
    pub(crate) steal_s: Option<f64>,
    /// PSI: percent of the last 10 s in which some task waited for `cpu`, `memory` or `io`.
    pub(crate) pressure_percent: BTreeMap<&'static str, f64>,
    #[serde(skip)]
    at: Instant,
}

/// The host before and after a run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Loads {
    pub(crate) before: HostLoad,
    /// Null until the run has ended. It includes the load of the run itself.
    pub(crate) after: Option<HostLoad>,
}

impl HostLoad {
    pub(crate) fn read() -> Self {
        let text = |path: &str| fs::read_to_string(path).ok();
        let ticks_per_s = rustix::param::clock_ticks_per_second() as f64;
        let pressure =
            |kind: &'static str| Some((kind, pressure_percent(&text(&format!("/proc/pressure/{kind}"))?)?));
        Self {
            load_average: text("/proc/loadavg").as_deref().and_then(load_average),
            steal_s: text("/proc/stat").as_deref().and_then(steal_ticks).map(|ticks| ticks / ticks_per_s),
            pressure_percent: ["cpu", "memory", "io"].into_iter().filter_map(pressure).collect(),
            at: Instant::now(),
        }
    }

    /// Returns a warning that others keep a host of `cores` busy, if so.
    fn warning(&self, cores: usize) -> Option<String> {
        let load = self.load_average.map(|[minute, ..]| minute);
        let waiting = self.pressure_percent.get("cpu").copied();
        let busy = load.is_some_and(|load| load >= BUSY_LOAD * cores as f64)
            || waiting.is_some_and(|percent| percent >= BUSY_PRESSURE_PERCENT);
        let load = load.map(|load| format!("load average {load:.2} on {cores} cores"));
        let waiting =
            waiting.map(|percent| format!("tasks waited for a core {percent:.0} % of the last 10 s"));
        let observations: Vec<String> = load.into_iter().chain(waiting).collect();
        busy.then(|| format!("the host was busy before the run: {}", observations.join(", ")))
    }
}

impl fmt::Display for HostLoad {
    /// `average 1.67 1.96 1.90; pressure cpu 81 %, memory 0 %, io 0 %; steal 135.0 s since boot`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let average = self.load_average.map(|[a, b, c]| format!("average {a:.2} {b:.2} {c:.2}"));
        let pressure: Vec<String> =
            self.pressure_percent.iter().map(|(kind, percent)| format!("{kind} {percent:.0} %")).collect();
        let pressure = (!pressure.is_empty()).then(|| format!("pressure {}", pressure.join(", ")));
        let steal = self.steal_s.map(|steal_s| format!("steal {steal_s:.1} s since boot"));
        let parts: Vec<String> = [average, pressure, steal].into_iter().flatten().collect();
        if parts.is_empty() { f.write_str("not known") } else { f.write_str(&parts.join("; ")) }
    }
}

impl Loads {
    /// Before a run.
    pub(crate) fn read() -> Self {
        Self { before: HostLoad::read(), after: None }
    }

    /// What makes the figures of this run doubtful.
    pub(crate) fn warnings(&self, cores: usize) -> Vec<String> {
        self.before.warning(cores).into_iter().chain(self.steal_warning(cores)).collect()
    }

    fn steal_warning(&self, cores: usize) -> Option<String> {
        let after = self.after.as_ref()?;
        let stolen_s = after.steal_s? - self.before.steal_s?;
        let elapsed_s = after.at.duration_since(self.before.at).as_secs_f64();
        let percent = 100.0 * stolen_s / (cores as f64 * elapsed_s).max(0.01);
        (percent >= BUSY_STEAL_PERCENT).then(|| {
            format!("the hypervisor gave {percent:.1} % of the run's CPU time to other guests (steal)")
        })
    }
}

fn load_average(text: &str) -> Option<[f64; 3]> {
    let mut words = text.split_whitespace();
    let mut next = || words.next()?.parse().ok();
    Some([next()?, next()?, next()?])
}

/// Returns the steal time of all cores in clock ticks: the eighth figure.
fn steal_ticks(text: &str) -> Option<f64> {
    text.lines().next()?.strip_prefix("cpu ")?.split_whitespace().nth(7)?.parse().ok()
}

/// Returns the share of the last 10 s in which some task waited.
fn pressure_percent(text: &str) -> Option<f64> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    some.split_whitespace().find_map(|word| word.strip_prefix("avg10="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn load(minute: f64, cpu_percent: Option<f64>, steal_s: Option<f64>) -> HostLoad {
        HostLoad {
            load_average: Some([minute, 0.0, 0.0]),
            steal_s,
            pressure_percent: cpu_percent.into_iter().map(|percent| ("cpu", percent)).collect(),
            at: Instant::now(),
        }
    }

    #[test]
    fn the_kernels_files_are_read() {
        assert_eq!(load_average("1.67 1.96 1.90 2/137 4242\n"), Some([1.67, 1.96, 1.90]));
        assert_eq!(
            steal_ticks("cpu  2003172 81818 341141 351160 5110 0 14288 13503 0 0\ncpu0 1"),
            Some(13503.0)
        );
        let pressure = "some avg10=81.03 avg60=61.83 avg300=27.48 total=8\nfull avg10=0.00 avg60=0.00\n";
        assert_eq!(pressure_percent(pressure), Some(81.03));
        for wrong in ["", "cpu", "some", "full avg10=1.00", "1.0 x"] {
            assert_eq!(
                (load_average(wrong), steal_ticks(wrong), pressure_percent(wrong)),
                (None, None, None),
                "{wrong}"
            );
        }
        assert!(HostLoad::read().load_average.is_some());
    }

    #[test]
    fn a_busy_host_is_warned_of_and_a_quiet_one_is_not() {
        let warned = |before: HostLoad| Loads { before, after: None }.warnings(2);
        assert_eq!(warned(load(0.2, Some(1.0), Some(5.0))), Vec::<String>::new());
        assert_eq!(warned(load(0.2, None, None)), Vec::<String>::new());
        let [busy] = &warned(load(1.5, None, None))[..] else { panic!("one warning") };
        assert!(busy.contains("load average 1.50 on 2 cores"), "{busy}");
        let [busy] = &warned(load(0.2, Some(30.0), None))[..] else { panic!("one warning") };
        assert!(busy.contains("waited for a core 30 %"), "{busy}");
    }

    #[test]
    fn time_that_went_to_other_guests_is_warned_of() {
        let before = load(0.0, None, Some(100.0));
        let after =
            |steal_s| HostLoad { at: before.at + Duration::from_secs(10), ..load(9.0, None, steal_s) };
        let warned = |steal_s| Loads { before: before.clone(), after: Some(after(steal_s)) }.warnings(2);
        assert_eq!((warned(Some(100.1)), warned(None)), (Vec::new(), Vec::new()));
        let [stolen] = &warned(Some(101.0))[..] else { panic!("one warning") };
        assert!(stolen.contains("5.0 % of the run's CPU time"), "{stolen}");
    }
}
