//! A look at a cluster as people read it.

use std::io::{self, Write};

use super::Document;

/// The rows of pairs that are shown: those with the most bytes.
const PAIRS_SHOWN_MAX: usize = 10;

impl Document {
    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let Self { address, clients, workers_lost, workers, .. } = self;
        let slots: u64 = workers.iter().map(|worker| u64::from(worker.stats.slots)).sum();
        writeln!(
            out,
            "{address}: {} workers with {slots} slots, {workers_lost} lost; {clients} clients",
            workers.len()
        )?;
        let tasks = &self.tasks;
        writeln!(
            out,
            "tasks    {} waiting, {} ready, {} given, {} done, {} failed, {} released",
            tasks.waiting, tasks.ready, tasks.sent, tasks.done, tasks.failed, tasks.released
        )?;
        let Self { runs_done, runs_failed, tasks_per_s, .. } = self;
        writeln!(out, "runs     {runs_done} done, {runs_failed} failed; {tasks_per_s:.1}/s")?;
        let [moved, per_s] = [self.moved_bytes as f64, self.moved_bytes_per_s].map(bytes);
        writeln!(out, "moved    {moved}; {per_s}/s")?;
        if !workers.is_empty() {
            self.write_workers(out)?;
        }
        if !self.pairs.is_empty() {
            self.write_pairs(out)?;
        }
        Ok(())
    }

    fn write_workers(&self, out: &mut dyn Write) -> io::Result<()> {
        let addresses = self.workers.iter().map(|worker| worker.stats.address.len());
        let width = addresses.max().unwrap_or_default().max("address".len());
        writeln!(
            out,
            "\nworker  {:<width$}  slots  given  queued  results               memory      runs  runs/s",
            "address"
        )?;
        for worker in &self.workers {
            let stats = &worker.stats;
            let memory = [stats.memory_bytes, stats.memory_bytes_max].map(|it| bytes(it as f64));
            writeln!(
                out,
                "{:>6}  {:<width$}  {:>5}  {:>5}  {:>6}  {:>7}  {:>19}  {:>8}  {:>6.1}",
                stats.number,
                stats.address,
                stats.slots,
                stats.given,
                stats.queued,
                stats.results,
                memory.join(" of "),
                stats.runs_done,
                worker.tasks_per_s,
            )?;
        }
        Ok(())
    }

    fn write_pairs(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "\n  from      to  path   values       moved         per s")?;
        for pair in self.pairs.iter().take(PAIRS_SHOWN_MAX) {
            let stats = &pair.stats;
            let [moved, per_s] = [stats.bytes as f64, pair.bytes_per_s].map(bytes);
            let (from, to, path, values) = (stats.from, stats.to, &stats.path, stats.values);
            writeln!(out, "{from:>6}  {to:>6}  {path:<5}  {values:>6}  {moved:>10}  {per_s:>10}/s")?;
        }
        match self.pairs.len().saturating_sub(PAIRS_SHOWN_MAX) {
            0 => Ok(()),
            more => writeln!(out, "        and {more} more pairs"),
        }
    }
}

/// In the largest binary unit of which it is at least one.
fn bytes(count: f64) -> String {
    let mut units = ["B", "KiB", "MiB", "GiB", "TiB"].into_iter();
    let (mut value, mut unit) = (count, units.next().unwrap_or_default());
    for larger in units {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    if unit == "B" { format!("{value:.0} B") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_one_digit_of_a_fitting_unit() {
        for (count, text) in [(0.0, "0 B"), (1023.0, "1023 B"), (1536.0, "1.5 KiB"), (3e12, "2.7 TiB")] {
            assert_eq!(bytes(count), text);
        }
        assert_eq!(bytes(1e18), "909494.7 TiB");
    }
}
