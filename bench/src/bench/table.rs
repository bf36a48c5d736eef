//! The table that people read.

use std::io::{self, Write};

use super::report::{CeilingRow, Row, dash, figure};
use crate::against::Entry;
use crate::units::Size;

const COLUMNS: [&str; 12] = [
    "transport",
    "pattern",
    "size",
    "wait",
    "GB/s",
    "range",
    "p50 µs",
    "p99 µs",
    "cold µs",
    "msg, tasks/s",
    "of the ceiling",
    "ours over",
];

/// The rows as a table: figures right-aligned, what does not apply a dash.
pub(super) fn table(out: &mut dyn Write, rows: &[Row]) -> io::Result<()> {
    let mut lines: Vec<[String; COLUMNS.len()]> = vec![COLUMNS.map(str::to_owned)];
    lines.extend(rows.iter().map(cells));
    let widths: Vec<usize> = (0..COLUMNS.len())
        .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
        .collect();
    // The last column only says something where somebody else ran.
    let shown = if rows.iter().all(|row| row.against.is_empty()) { COLUMNS.len() - 1 } else { COLUMNS.len() };
    for line in &lines {
        let mut text = String::new();
        for (column, (cell, width)) in line.iter().zip(&widths).take(shown).enumerate() {
            match column {
                0..=1 | 3 | 10.. => text.push_str(&format!("{cell:<width$}  ")),
                _ => text.push_str(&format!("{cell:>width$}  ")),
            }
        }
        writeln!(out, "{}", text.trim_end())?;
    }
    for (row, warning) in rows.iter().filter_map(|row| Some((row, row.warning()?))) {
        writeln!(out, "{}, {}: {warning}", row.name(), row.wait)?;
    }
    Ok(())
}

/// A row in one line, as it is told once it is measured.
pub(super) fn line(row: &Row) -> String {
    let mut figures = Vec::new();
    if row.gb_per_s.is_some() {
        let range = range(row).map_or_else(String::new, |range| format!(" ({range})"));
        figures.push(format!("{} GB/s{range}", figure(row.gb_per_s)));
    }
    if let Some(rate) = row.tasks_per_s {
        figures.push(format!("{rate:.0} tasks/s"));
    }
    figures.push(format!("p50 {} µs", figure(row.p50_us)));
    if !row.ceilings.is_empty() {
        figures.push(ceilings(row));
    }
    let (size, wait) = (Size(row.size_bytes), row.wait);
    format!("{} {} {size} ({wait}): {}", row.carrier(), row.doing(), figures.join(", "))
}

fn range(row: &Row) -> Option<String> {
    let [low, high] = row.gb_per_s_range?;
    Some(format!("{}-{}", figure(Some(low)), figure(Some(high))))
}

fn ceilings(row: &Row) -> String {
    let one = |ceiling: &CeilingRow| match ceiling.share {
        Some(share) => format!("{} {:.0} %", ceiling.kind, share * 100.0),
        None => format!("{} -", ceiling.kind),
    };
    row.ceilings.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn cells(row: &Row) -> [String; COLUMNS.len()] {
    let against: Vec<String> = row.against.iter().map(Entry::short).collect();
    [
        row.carrier(),
        row.doing(),
        Size(row.size_bytes).to_string(),
        row.wait.to_owned(),
        figure(row.gb_per_s),
        range(row).unwrap_or_else(dash),
        figure(row.p50_us),
        figure(row.p99_us),
        figure(row.cold_us),
        row.messages_per_s.or(row.tasks_per_s).map_or_else(dash, |rate| format!("{rate:.0}")),
        if row.ceilings.is_empty() { dash() } else { ceilings(row) },
        if against.is_empty() { dash() } else { against.join(", ") },
    ]
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::bandwidth_row;
    use super::*;

    #[test]
    fn the_table_shows_the_share() {
        let mut out = Vec::new();
        table(&mut out, &[bandwidth_row()]).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("memcpy 40 %") && text.contains("2.00-5.00"), "{text}");
        assert_eq!(text.lines().count(), 2);
    }
}
