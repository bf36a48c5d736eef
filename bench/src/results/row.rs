//! A row of the document: one case and what was measured.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::ceiling::Ceiling;
use super::number::{figure, median, range, round};
use super::sample::Sample;
use super::tool_row::ToolRow;
use crate::case::{Case, Pattern};
use crate::data::payload::Check;
use crate::data::place::{Place, Places};
use crate::data::units::Size;
use crate::failure::Failure;

/// The share of a schedule from which it counts as kept.
const ON_TIME: f64 = 0.95;

/// Below this many copies of a payload byte, only the protocol's own bytes were copied.
const COPIED: f64 = 0.5;

/// The ratio of the highest repeat to the lowest from which a range is wide.
const WIDE: f64 = 1.5;

/// One case and what was measured; `null` if a key does not apply.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) transport: String,
    /// The backend that carried the bytes; `null` before the case has run.
    pub(crate) path: Option<String>,
    pub(crate) options: BTreeMap<String, String>,
    pub(crate) pattern: &'static str,
    pub(crate) size_bytes: usize,
    pub(crate) from: Place,
    pub(crate) to: Place,
    pub(crate) wait: &'static str,
    pub(crate) processes: usize,
    pub(crate) frames: usize,
    pub(crate) streams: u32,
    pub(crate) window: usize,
    /// The number of buffers that messages are sent from in turn, if it is not the window.
    pub(crate) buffers: Option<usize>,
    pub(crate) workers: usize,
    /// Messages a second of an open loop.
    pub(crate) rate: Option<u32>,
    /// The number of measured repeats.
    pub(crate) repeats: usize,
    pub(crate) samples: u64,
    pub(crate) gb_per_s: Option<f64>,
    pub(crate) gb_per_s_range: Option<[f64; 2]>,
    pub(crate) p50_us: Option<f64>,
    /// The lowest and the highest median of the repeats.
    pub(crate) p50_us_range: Option<[f64; 2]>,
    pub(crate) p99_us: Option<f64>,
    pub(crate) p999_us: Option<f64>,
    pub(crate) cold_us: Option<f64>,
    pub(crate) messages_per_s: Option<f64>,
    pub(crate) tasks_per_s: Option<f64>,
    /// CPU time of the scheduler's thread.
    pub(crate) scheduler_us_per_task: Option<f64>,
    /// The slowest sender's share of their mean rate.
    pub(crate) fairness: Option<f64>,
    pub(crate) cpu_s_per_gb: Option<CpuCost>,
    pub(crate) copies: Option<f64>,
    /// The messages' memory was handed over and nothing read it: the rate is no bandwidth.
    pub(crate) handed_over: bool,
    pub(crate) verified: bool,
    /// The receiver read every byte.
    pub(crate) read: bool,
    pub(crate) ceilings: Vec<CeilingRow>,
    pub(crate) against: Vec<ToolRow>,
    /// Remarks on the figures.
    pub(crate) note: Option<String>,
    /// Why the case failed or was interrupted.
    pub(crate) error: Option<String>,
    /// The times of all repeats; not in the document.
    #[serde(skip)]
    pub(crate) times: Option<Histogram<u64>>,
}

/// CPU seconds per 10^9 bytes, at the end that gives the bytes and at the end that takes them.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct CpuCost {
    pub(crate) send: f64,
    pub(crate) recv: f64,
}

/// A ceiling, and our share of it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct CeilingRow {
    pub(crate) kind: &'static str,
    pub(crate) gb_per_s: Option<f64>,
    pub(crate) p50_us: Option<f64>,
    pub(crate) share: Option<f64>,
}

impl Row {
    /// Returns the row of a case that has not run yet.
    pub(crate) fn planned(case: &Case) -> Self {
        Self {
            transport: case.transport.name.to_owned(),
            path: None,
            options: case.transport.options.clone(),
            pattern: case.pattern.name(),
            size_bytes: case.size.0,
            from: case.places.from,
            to: case.places.to,
            wait: case.wait.name(),
            processes: if case.transport.name == "mem" || case.pattern == Pattern::Tasks {
                1
            } else {
                case.workers
            },
            frames: case.frames,
            streams: case.transport.streams(),
            window: case.window,
            buffers: case.buffers,
            workers: case.workers,
            rate: case.rate,
            repeats: 0,
            samples: 0,
            gb_per_s: None,
            gb_per_s_range: None,
            p50_us: None,
            p50_us_range: None,
            p99_us: None,
            p999_us: None,
            cold_us: None,
            messages_per_s: None,
            tasks_per_s: None,
            scheduler_us_per_task: None,
            fairness: None,
            cpu_s_per_gb: None,
            copies: None,
            handed_over: false,
            verified: case.check == Check::Whole,
            read: case.check == Check::Read,
            ceilings: Vec::new(),
            against: Vec::new(),
            note: None,
            error: None,
            times: None,
        }
    }

    /// Returns the row of a case that failed.
    pub(crate) fn failed(case: &Case, failure: &Failure) -> Self {
        Self { error: Some(failure.to_string()), ..Self::planned(case) }
    }

    /// Computes medians and ranges over the repeats, and percentiles over all their samples.
    pub(crate) fn measured(case: &Case, path: String, repeats: &[Sample], ceilings: &[Vec<Ceiling>]) -> Self {
        let mut row = Self { path: Some(path), ..Self::planned(case) };
        row.repeats = repeats.len();
        row.samples = repeats.iter().map(|sample| sample.times.len()).sum();
        let rates: Vec<f64> = repeats.iter().map(Sample::gb_per_s).collect();
        if !matches!(case.pattern, Pattern::Latency | Pattern::Connect | Pattern::Tasks) {
            row.gb_per_s = median(&rates).map(round);
            row.gb_per_s_range = range(&rates).map(|ends| ends.map(round));
        }
        if case.pattern != Pattern::Latency || case.rate.is_some() {
            let messages: Vec<f64> = repeats.iter().map(Sample::messages_per_s).collect();
            let rate = median(&messages).map(round);
            *(if case.pattern == Pattern::Tasks { &mut row.tasks_per_s } else { &mut row.messages_per_s }) =
                rate;
        }
        let times = Sample::merged_times(repeats);
        let quantile_us = |q| (!times.is_empty()).then(|| round(times.value_at_quantile(q) as f64 / 1e3));
        (row.p50_us, row.p99_us, row.p999_us) = (quantile_us(0.5), quantile_us(0.99), quantile_us(0.999));
        let cold: Vec<f64> =
            repeats.iter().filter_map(|sample| sample.cold).map(|cold| cold.as_secs_f64() * 1e6).collect();
        row.cold_us = median(&cold).map(round);
        let cost = |side: fn(&Sample) -> Option<f64>| {
            median(&repeats.iter().filter_map(side).collect::<Vec<_>>()).map(round)
        };
        if case.pattern != Pattern::Connect {
            row.cpu_s_per_gb = cost(Sample::send_cpu_s_per_gb)
                .zip(cost(Sample::recv_cpu_s_per_gb))
                .map(|(send, recv)| CpuCost { send, recv });
        }
        row.fairness = cost(|sample| sample.fairness);
        row.scheduler_us_per_task = cost(Sample::scheduler_us_per_task);
        row.times = Some(times);
        row.copies = cost(Sample::copies);
        row.handed_over = case.pattern.sends_messages()
            && case.check == Check::Edges
            && matches!(row.path.as_deref(), Some("mem" | "shm"))
            && row.copies.is_some_and(|copies| copies < COPIED);
        let medians = repeats.iter().filter(|sample| !sample.times.is_empty());
        let medians = medians.map(|sample| sample.times.value_at_quantile(0.5) as f64 / 1e3);
        row.p50_us_range = range(&medians.collect::<Vec<_>>()).map(|ends| ends.map(round));
        row.ceilings = ceiling_rows(&row, ceilings);
        let whole = case.pattern == Pattern::Latency && case.rate.is_some();
        let whole = whole.then(|| "times are of whole round trips".to_owned());
        let notes = whole.into_iter().chain(row.behind()).chain(crossed(repeats)).chain(row.wide());
        row.remark(notes.collect::<Vec<_>>());
        row
    }

    /// Returns the lowest and the highest repeat: GB/s if the row has that figure, else the median time in
    /// µs.
    pub(crate) fn range(&self) -> Option<[f64; 2]> {
        self.gb_per_s_range.filter(|_| !self.handed_over).or(self.p50_us_range)
    }

    /// Returns a remark if the range of the repeats is wide.
    pub(crate) fn wide(&self) -> Option<String> {
        let [low, high] = self.range()?;
        (high >= WIDE * low && self.repeats > 1).then(|| {
            format!(
                "wide range: the highest of {} repeats is {:.1} times the lowest",
                self.repeats,
                high / low
            )
        })
    }

    /// Appends to the note.
    pub(crate) fn remark(&mut self, notes: impl IntoIterator<Item = String>) {
        let notes: Vec<String> = self.note.take().into_iter().chain(notes).collect();
        self.note = (!notes.is_empty()).then(|| notes.join("; "));
    }

    /// Returns the name in an assertion: `tcp.bandwidth.64K`.
    pub(crate) fn name(&self) -> String {
        format!("{}.{}.{}", self.transport, self.pattern, Size(self.size_bytes))
    }

    /// Returns the transport for the table: `tcp?integrity=crc32c`, `auto (tcp)`.
    pub(crate) fn carrier(&self) -> String {
        let mut carrier = self.named(&self.transport);
        if let Some(path) = self.path.as_ref().filter(|path| **path != self.transport) {
            carrier.push_str(&format!(" ({path})"));
        }
        carrier
    }

    /// Returns `name` with the row's options.
    pub(crate) fn named(&self, name: &str) -> String {
        let mut carrier = name.to_owned();
        for (at, (key, value)) in self.options.iter().enumerate() {
            carrier.push_str(&format!("{}{key}={value}", if at == 0 { '?' } else { '&' }));
        }
        carrier
    }

    /// Returns the pattern for the table: `incast, fairness 0.98`, `bandwidth in arena and read`,
    /// `latency at 1000/s`, `tasks, 1000 on 2 workers`.
    pub(crate) fn doing(&self) -> String {
        let rate = self.rate.map(|rate| format!(" at {rate}/s"));
        let fairness = self.fairness.map(|fairness| format!(", fairness {}", figure(Some(fairness))));
        let read = self.read.then(|| " and read".to_owned());
        let places = Places { from: self.from, to: self.to }.to_string();
        let scheduler = self.scheduler_us_per_task.map(|us| format!(", scheduler {} µs", figure(Some(us))));
        let parts =
            [Some(self.pattern.to_owned()), self.load(), Some(places), read, rate, fairness, scheduler];
        parts.into_iter().flatten().collect()
    }

    /// Returns the bandwidth if it is a result: in an open loop it was requested.
    pub(crate) fn reached_gb_per_s(&self) -> Option<f64> {
        self.gb_per_s.filter(|_| self.rate.is_none())
    }

    /// Returns the failure, or that the schedule was not kept.
    pub(crate) fn warning(&self) -> Option<String> {
        self.error.as_ref().map(|error| format!("not measured: {error}")).or_else(|| self.behind())
    }

    /// Returns a remark if fewer messages were sent than the schedule asked for.
    pub(crate) fn behind(&self) -> Option<String> {
        let (rate, reached) = (self.rate?, self.messages_per_s?);
        (reached < ON_TIME * f64::from(rate)).then(|| {
            format!("only {reached:.0} of {rate} messages a second were sent: the schedule was not kept")
        })
    }

    /// Returns a name that differs between rows of the same pattern and size.
    pub(crate) fn line_name(&self) -> String {
        format!("{}, {}{}", self.carrier(), self.wait, self.load().unwrap_or_default())
    }

    /// Returns how many tasks are submitted at once, if the pattern is `tasks`.
    fn load(&self) -> Option<String> {
        let workers = match self.workers {
            1 => "1 worker".to_owned(),
            count => format!("{count} workers"),
        };
        (self.pattern == Pattern::Tasks.name()).then(|| format!(", {} on {workers}", self.window))
    }
}

/// Returns the share of a shuffle's bytes that counts, if the case is a shuffle.
fn crossed(repeats: &[Sample]) -> Option<String> {
    let sum = |of: fn(&Sample) -> u64| repeats.iter().map(of).sum::<u64>();
    let (crossed, all) = (sum(|sample| sample.bytes), sum(|sample| sample.shuffled_bytes));
    (all > 0).then(|| {
        let percent = crossed as f64 * 100.0 / all as f64;
        format!("{percent:.0} % of the bytes moved between the workers, and only these count")
    })
}

/// Returns one row for each kind of ceiling: the median over the repeats, and our share.
fn ceiling_rows(row: &Row, repeats: &[Vec<Ceiling>]) -> Vec<CeilingRow> {
    let mut kinds: Vec<&'static str> = Vec::new();
    for ceiling in repeats.iter().flatten() {
        if !kinds.contains(&ceiling.kind) {
            kinds.push(ceiling.kind);
        }
    }
    let rows = kinds.into_iter().map(|kind| {
        let of = |value: fn(&Ceiling) -> Option<f64>| {
            let same = repeats.iter().flatten().filter(|ceiling| ceiling.kind == kind);
            median(&same.filter_map(value).collect::<Vec<_>>())
        };
        let (gb_per_s, p50_us) = (of(|ceiling| ceiling.gb_per_s), of(|ceiling| ceiling.p50_us));
        let share = match (row.gb_per_s.zip(gb_per_s), row.p50_us.zip(p50_us)) {
            (Some((ours, ceiling)), _) => Some(ours / ceiling),
            (None, Some((ours, ceiling))) => Some(ceiling / ours),
            (None, None) => None,
        };
        CeilingRow {
            kind,
            gb_per_s: gb_per_s.map(round),
            p50_us: p50_us.map(round),
            share: share.filter(|share| share.is_finite()).map(round),
        }
    });
    rows.collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::case::tests::case;

    fn sample(gb_per_s: f64) -> Sample {
        let mut sample = Sample::new();
        for micros in 1..=100u64 {
            sample.record(std::time::Duration::from_micros(micros));
        }
        sample.messages = 100;
        sample.bytes = 100 << 20;
        sample.elapsed = std::time::Duration::from_secs_f64(sample.bytes as f64 / 1e9 / gb_per_s);
        sample.cold = Some(std::time::Duration::from_micros(500));
        sample.cpu = Some((0.5, 0.25));
        sample.bytes_copied = Some(100 << 20);
        sample
    }

    pub(crate) fn bandwidth_row() -> Row {
        let ceilings = [10.0, 8.0, 20.0].map(|gb_per_s| vec![Ceiling::rate("memcpy", gb_per_s)]);
        let repeats = [2.0, 5.0, 4.0].map(sample);
        Row::measured(&case("tcp", Pattern::Bandwidth, 1 << 20), "tcp".into(), &repeats, &ceilings)
    }

    #[test]
    fn a_row_has_the_keys_of_the_contract_in_order() {
        let text = serde_json::to_string(&bandwidth_row()).unwrap();
        let keys = [
            "transport",
            "path",
            "options",
            "pattern",
            "size_bytes",
            "from",
            "to",
            "wait",
            "processes",
            "frames",
            "streams",
            "window",
            "buffers",
            "workers",
            "rate",
            "repeats",
            "samples",
            "gb_per_s",
            "gb_per_s_range",
            "p50_us",
            "p50_us_range",
            "p99_us",
            "p999_us",
            "cold_us",
            "messages_per_s",
            "tasks_per_s",
            "scheduler_us_per_task",
            "fairness",
            "cpu_s_per_gb",
            "copies",
            "handed_over",
            "verified",
            "read",
            "ceilings",
            "against",
            "note",
            "error",
        ];
        let row: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
        assert_eq!(row.len(), keys.len());
        let positions: Vec<_> = keys.iter().map(|key| text.find(&format!("\"{key}\":"))).collect();
        assert!(positions.iter().all(Option::is_some), "{text}");
        assert!(positions.is_sorted(), "{text}");
    }

    #[test]
    fn repeats_give_medians_and_ranges() {
        let row = bandwidth_row();
        assert_eq!(row.gb_per_s, Some(4.0));
        assert_eq!(row.gb_per_s_range, Some([2.0, 5.0]));
        assert_eq!(row.samples, 300);
        assert_eq!(row.cold_us, Some(500.0));
        assert!((row.p50_us.unwrap() - 50.0).abs() < 0.1);
        assert_eq!(row.copies, Some(1.0));
        assert!((row.cpu_s_per_gb.unwrap().send - 0.5 / 0.1048576).abs() < 1e-4);
        assert_eq!(row.ceilings[0].gb_per_s, Some(10.0));
        assert_eq!(row.ceilings[0].share, Some(0.4));
    }

    #[test]
    fn a_wide_range_is_noted() {
        let row = |rates: &[f64]| {
            let repeats: Vec<Sample> = rates.iter().copied().map(sample).collect();
            Row::measured(&case("tcp", Pattern::Bandwidth, 1 << 20), "tcp".into(), &repeats, &[])
        };
        let wide = row(&[2.0, 5.0, 4.0]);
        assert_eq!((wide.repeats, wide.range()), (3, Some([2.0, 5.0])));
        let note = "wide range: the highest of 3 repeats is 2.5 times the lowest";
        assert_eq!(wide.note.as_deref(), Some(note));
        assert_eq!((row(&[4.0, 5.0]).note, row(&[4.0]).note), (None, None));
        let latency = Row::measured(&case("tcp", Pattern::Latency, 8), "tcp".into(), &[sample(1.0)], &[]);
        assert_eq!(latency.range(), latency.p50_us_range);
        assert!((latency.range().unwrap()[0] - 50.0).abs() < 0.1, "the median of its only repeat");
    }

    #[test]
    fn uncopied_and_unread_messages_are_handed_over() {
        let row = |path: &str, pattern, check, copied| {
            let case = Case { check, ..case("mem", pattern, 1 << 20) };
            let sample = Sample { bytes_copied: Some(copied), ..sample(9000.0) };
            Row::measured(&case, path.into(), &[sample], &[])
        };
        for (path, pattern, check, copied, handed_over) in [
            ("mem", Pattern::Bandwidth, Check::Edges, 0, true),
            ("shm", Pattern::Incast, Check::Edges, 1 << 20, true),
            ("shm", Pattern::Bandwidth, Check::Edges, 100 << 20, false),
            ("mem", Pattern::Bandwidth, Check::Read, 0, false),
            ("mem", Pattern::Bandwidth, Check::Whole, 0, false),
            ("mem", Pattern::Get, Check::Edges, 0, false),
            ("tcp", Pattern::Bandwidth, Check::Edges, 0, false),
        ] {
            let row = row(path, pattern, check, copied);
            assert_eq!(row.handed_over, handed_over, "{path} {pattern:?} {check:?} {copied}");
            assert!(row.gb_per_s.is_some(), "comparisons and assertions still have it");
        }
    }

    #[test]
    fn the_share_of_a_latency_is_the_ceiling_over_ours() {
        let ceilings = [vec![Ceiling::latency("socket", 25.0)]];
        let row = Row::measured(&case("tcp", Pattern::Latency, 8), "tcp".into(), &[sample(1.0)], &ceilings);
        assert_eq!((row.gb_per_s, row.messages_per_s), (None, None));
        assert!((row.ceilings[0].share.unwrap() - 0.5).abs() < 0.01);
    }

    #[test]
    fn an_open_loop_row_notes_its_times_and_that_it_fell_behind() {
        let at = |rate, pattern| {
            let case = Case { rate: Some(rate), ..case("tcp", pattern, 8) };
            Row::measured(&case, "tcp".into(), &[sample(1.0)], &[])
        };
        // It reached 954 a second.
        let (on_time, late) = (at(1000, Pattern::Latency), at(1100, Pattern::Latency));
        assert_eq!(on_time.note.as_deref(), Some("times are of whole round trips"));
        assert_eq!((at(1000, Pattern::Rate).note, on_time.behind()), (None, None));
        let reason = "only 954 of 1100 messages a second were sent";
        let note = late.note.clone().unwrap();
        assert!(note.starts_with(&format!("times are of whole round trips; {reason}")), "{note}");
    }

    #[test]
    fn keys_that_do_not_apply_are_null() {
        let row = serde_json::to_value(Row::planned(&case("mem", Pattern::Latency, 8))).unwrap();
        for key in [
            "path",
            "rate",
            "gb_per_s",
            "gb_per_s_range",
            "tasks_per_s",
            "fairness",
            "cpu_s_per_gb",
            "copies",
            "note",
            "error",
        ] {
            assert!(row[key].is_null(), "{key}");
        }
        assert_eq!(row["processes"], 1);
        assert_eq!(row["options"], serde_json::json!({}));
    }
}
