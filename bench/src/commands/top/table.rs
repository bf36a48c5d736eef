//! The text of a cluster's state.

use std::io::{self, Write};

use super::Document;
use crate::data::units::{memory, rate};

/// The most rows of pairs: those with the most bytes.
const PAIRS_SHOWN_MAX: usize = 10;

impl Document {
    /// Writes lines of at most `width` columns, if possible: the least important columns are left out.
    pub(super) fn write(&self, out: &mut dyn Write, width: usize) -> io::Result<()> {
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
        writeln!(out, "moved    {}; {}", memory(self.moved_bytes as f64), rate(self.moved_bytes_per_s))?;
        if !workers.is_empty() {
            self.write_workers(out, width)?;
        }
        if !self.pairs.is_empty() {
            self.write_pairs(out, width)?;
        }
        Ok(())
    }

    fn write_workers(&self, out: &mut dyn Write, width: usize) -> io::Result<()> {
        let mut columns = [
            Column::new("worker", 0),
            Column::new("address", 4).left_aligned(),
            Column::new("slots", 5),
            Column::new("given", 2),
            Column::new("queued", 3),
            Column::new("results", 7),
            Column::new("memory", 1),
            Column::new("runs", 6),
            Column::new("runs/s", 1),
        ];
        for worker in &self.workers {
            let stats = &worker.stats;
            let memory = [stats.memory_bytes, stats.memory_bytes_max].map(|bytes| memory(bytes as f64));
            let cells = [
                stats.number.to_string(),
                stats.address.clone(),
                stats.slots.to_string(),
                stats.given.to_string(),
                stats.queued.to_string(),
                stats.results.to_string(),
                memory.join(" of "),
                stats.runs_done.to_string(),
                format!("{:.1}", worker.tasks_per_s),
            ];
            columns.iter_mut().zip(cells).for_each(|(column, cell)| column.cells.push(cell));
        }
        write_columns(out, columns.into(), width)
    }

    fn write_pairs(&self, out: &mut dyn Write, width: usize) -> io::Result<()> {
        let mut columns = [
            Column::new("from", 0),
            Column::new("to", 0),
            Column::new("path", 2).left_aligned(),
            Column::new("values", 4),
            Column::new("moved", 3),
            Column::new("per s", 1),
        ];
        for pair in self.pairs.iter().take(PAIRS_SHOWN_MAX) {
            let stats = &pair.stats;
            let cells = [
                stats.from.to_string(),
                stats.to.to_string(),
                stats.path.clone(),
                stats.values.to_string(),
                memory(stats.bytes as f64),
                rate(pair.bytes_per_s),
            ];
            columns.iter_mut().zip(cells).for_each(|(column, cell)| column.cells.push(cell));
        }
        write_columns(out, columns.into(), width)?;
        match self.pairs.len().saturating_sub(PAIRS_SHOWN_MAX) {
            0 => Ok(()),
            more => writeln!(out, "and {more} more pairs"),
        }
    }
}

/// A column of a table.
#[derive(Debug)]
struct Column {
    head: &'static str,
    /// Columns of the highest rank are left out first, those of rank 0 never.
    rank: u8,
    is_left: bool,
    cells: Vec<String>,
}

impl Column {
    fn new(head: &'static str, rank: u8) -> Self {
        Self { head, rank, is_left: false, cells: Vec::new() }
    }

    fn left_aligned(self) -> Self {
        Self { is_left: true, ..self }
    }

    fn width(&self) -> usize {
        let cells = self.cells.iter().map(String::len).max();
        cells.unwrap_or_default().max(self.head.len())
    }

    fn pad(&self, cell: &str) -> String {
        let width = self.width();
        if self.is_left { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
    }
}

/// Writes columns with two spaces between them.
fn write_columns(out: &mut dyn Write, mut columns: Vec<Column>, width: usize) -> io::Result<()> {
    let needed = |columns: &[Column]| columns.iter().map(|column| column.width() + 2).sum::<usize>() - 2;
    while needed(&columns) > width
        && let Some((at, column)) = columns.iter().enumerate().max_by_key(|(_, column)| column.rank)
        && column.rank > 0
    {
        columns.remove(at);
    }
    let line = |cell: &dyn Fn(&Column) -> String| {
        let cells: Vec<String> = columns.iter().map(|column| column.pad(&cell(column))).collect();
        cells.join("  ")
    };
    writeln!(out, "\n{}", line(&|column| column.head.to_owned()).trim_end())?;
    let rows = columns.first().map_or(0, |column| column.cells.len());
    (0..rows).try_for_each(|row| writeln!(out, "{}", line(&|column| column.cells[row].clone()).trim_end()))
}

/// Returns the lines of `text` that fit a terminal, each cut at its last column. The last row gives the
/// number of missing lines.
pub(super) fn fit(text: &str, columns: usize, rows: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let shown = if lines.len() > rows { rows.saturating_sub(1) } else { lines.len() };
    let missing = (shown < lines.len()).then(|| format!("and {} more lines", lines.len() - shown));
    let cut = |line: &str| match line.char_indices().nth(columns) {
        Some(_) => line.chars().take(columns.saturating_sub(1)).chain(['…']).collect(),
        None => line.to_owned(),
    };
    let fitting: Vec<String> = lines.into_iter().take(shown).chain(missing.as_deref()).map(cut).collect();
    fitting.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(width: usize) -> String {
        let column = |head, rank, cell: &str| Column {
            cells: vec![cell.to_owned(), "1".to_owned()],
            ..Column::new(head, rank)
        };
        let columns = vec![
            column("worker", 0, "0"),
            column("address", 2, "tcp://127.0.0.1:7101").left_aligned(),
            column("runs", 1, "7"),
        ];
        let mut out = Vec::new();
        write_columns(&mut out, columns, width).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_that_do_not_fit_are_left_out_by_their_rank() {
        assert_eq!(written(34), written(usize::MAX));
        assert!(
            written(34).contains("worker  address               runs\n     0  tcp://127.0.0.1:7101     7\n")
        );
        assert_eq!(written(33), "\nworker  runs\n     0     7\n     1     1\n");
        assert_eq!(written(11), "\nworker\n     0\n     1\n");
        assert_eq!(written(1), written(11), "the first stays");
    }

    #[test]
    fn what_is_wider_or_longer_than_the_terminal_is_cut() {
        assert_eq!(fit("a long line\nshort\n", 6, 9), "a lon…\nshort");
        assert_eq!(fit("1\n2\n3\n4\n", 80, 3), "1\n2\nand 2 more lines");
        assert_eq!(fit("1\n2\n3\n", 80, 3), "1\n2\n3");
    }
}
