//! The best figures of a run: one line for memory and one for each transport.

use std::fmt;

use crate::case::Pattern;
use crate::data::units::Size;
use crate::results::number::figure;
use crate::results::row::Row;

/// The best figures of a run.
#[derive(Debug)]
pub(crate) struct Headline(pub(crate) Vec<Best>);

/// The best figures of one name, each with the size of its messages.
#[derive(Debug, PartialEq)]
pub(crate) struct Best {
    pub(crate) name: String,
    pub(crate) gb_per_s: Option<(f64, usize)>,
    pub(crate) one_way_us: Option<(f64, usize)>,
}

impl Headline {
    /// Finds the best figures. Memory has those of a copy by one thread and of `mem` between tasks. A
    /// transport is named by the backend that carried the bytes, with the options, so `auto` counts for the
    /// backend that it chose.
    pub(crate) fn of(rows: &[Row]) -> Self {
        let mut bests = vec![Best { name: "memory".to_owned(), gb_per_s: None, one_way_us: None }];
        for row in rows {
            for ceiling in row.ceilings.iter().filter(|ceiling| ceiling.kind == "memcpy") {
                bests[0].move_at(ceiling.gb_per_s, row.size_bytes);
            }
            let Some(path) = &row.path else { continue };
            let name = if path == "mem" { "memory".to_owned() } else { row.named(path) };
            let at = bests.iter().position(|best| best.name == name).unwrap_or_else(|| {
                bests.push(Best { name, gb_per_s: None, one_way_us: None });
                bests.len() - 1
            });
            if row.pattern == Pattern::Bandwidth.name() && !row.handed_over && path != "mem" {
                bests[at].move_at(row.reached_gb_per_s(), row.size_bytes);
            }
            if row.pattern == Pattern::Latency.name() && row.rate.is_none() {
                bests[at].take_at(row.p50_us, row.size_bytes);
            }
        }
        bests.retain(|best| best.gb_per_s.is_some() || best.one_way_us.is_some());
        Self(bests)
    }
}

impl Best {
    fn move_at(&mut self, gb_per_s: Option<f64>, size_bytes: usize) {
        let better = |rate: &f64| self.gb_per_s.is_none_or(|(best, _)| *rate > best);
        self.gb_per_s = gb_per_s.filter(better).map(|rate| (rate, size_bytes)).or(self.gb_per_s);
    }

    fn take_at(&mut self, one_way_us: Option<f64>, size_bytes: usize) {
        let better = |time: &f64| self.one_way_us.is_none_or(|(best, _)| *time < best);
        self.one_way_us = one_way_us.filter(better).map(|time| (time, size_bytes)).or(self.one_way_us);
    }

    /// Returns the two figures as text: `7.80 GB/s at 1M`, `4.20 µs at 8`.
    pub(crate) fn figures(&self) -> [String; 2] {
        let text = |best: Option<(f64, usize)>, unit| match best {
            Some((value, size)) => format!("{} {unit} at {}", figure(Some(value)), Size(size)),
            None => figure(None),
        };
        [text(self.gb_per_s, "GB/s"), text(self.one_way_us, "µs")]
    }
}

impl fmt::Display for Headline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        let head = ["this machine gives", "bandwidth", "half a round trip"].map(str::to_owned);
        let lines = self.0.iter().map(|best| {
            let [rate, time] = best.figures();
            [best.name.clone(), rate, time]
        });
        let lines: Vec<[String; 3]> = std::iter::once(head).chain(lines).collect();
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let [name, rate] = [0, 1].map(width);
        for [a, b, c] in &lines {
            writeln!(f, "{a:<name$}  {b:<rate$}  {c}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::row::tests::bandwidth_row;

    fn latency(path: &str, size_bytes: usize, p50_us: f64) -> Row {
        let pattern = Pattern::Latency.name();
        let (path, p50_us) = (Some(path.to_owned()), Some(p50_us));
        Row { pattern, path, size_bytes, p50_us, gb_per_s: None, ceilings: Vec::new(), ..bandwidth_row() }
    }

    #[test]
    fn it_has_the_best_of_memory_and_of_each_transport() {
        let slower = Row { gb_per_s: Some(1.0), size_bytes: 1 << 16, ..bandwidth_row() };
        let mut auto = Row { transport: "auto".into(), gb_per_s: Some(6.0), ..bandwidth_row() };
        auto.ceilings[0].gb_per_s = Some(12.0);
        let handed = |path: &str| Row {
            path: Some(path.into()),
            handed_over: true,
            gb_per_s: Some(9641.0),
            ..bandwidth_row()
        };
        let late = Row { rate: Some(10), ..latency("tcp", 8, 0.1) };
        let tls = Row { options: [("tls".into(), "on".into())].into(), ..bandwidth_row() };
        let failed = Row { path: None, ..bandwidth_row() };
        let rows = [
            latency("tcp", 8, 4.2),
            latency("tcp", 64, 4.1),
            latency("mem", 8, 11.0),
            slower,
            bandwidth_row(),
            auto,
            handed("mem"),
            handed("shm"),
            late,
            tls,
            failed,
        ];
        let text = Headline::of(&rows).to_string();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split("  ").collect()).collect();
        let lines: Vec<String> = lines
            .into_iter()
            .map(|cells| {
                cells.into_iter().map(str::trim).filter(|cell| !cell.is_empty()).collect::<Vec<_>>().join("|")
            })
            .collect();
        assert_eq!(
            lines,
            [
                "this machine gives|bandwidth|half a round trip",
                "memory|12.0 GB/s at 1M|11.0 µs at 8",
                "tcp|6.00 GB/s at 1M|4.10 µs at 64",
                "tcp?tls=on|4.00 GB/s at 1M|-",
            ]
        );
    }

    #[test]
    fn without_such_figures_there_is_none() {
        let row = Row { pattern: "connect", ceilings: Vec::new(), ..bandwidth_row() };
        assert_eq!(Headline::of(&[row]).to_string(), "");
    }
}
