//! The table for people.

use std::io::{self, Write};

use super::Report;
use super::headline::Headline;
use crate::data::units::Size;
use crate::results::number::{dash, figure};
use crate::results::row::{CeilingRow, Row};
use crate::results::tool_row::ToolRow;

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
    "ceiling, our share",
    "ours over",
];

/// The cell of the rate of handed-over messages.
pub(crate) const HANDED_OVER: &str = "handed over";

const LEGEND: &str = "\
GB/s: 10^9 bytes a second, median of the repeats; handed over: memory changed hands and no byte was copied or read
range: lowest to highest repeat, in µs where a row has no GB/s; ! where they differ by half or more: repeat such a row
p50, p99 µs: 50 and 99 % of the messages took no longer; a latency is half a round trip; cold: a connection's first message
ceiling: what this machine does at best by other means, measured beside the row";

/// Writes the whole text: the machine, its best figures, every row, and a legend of the columns.
pub(crate) fn write(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    writeln!(out, "{}", report.fingerprint)?;
    for warning in &report.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    let headline = Headline::of(&report.results).to_string();
    if !headline.is_empty() {
        write!(out, "\n{headline}")?;
    }
    writeln!(out)?;
    table(out, &report.results)?;
    writeln!(out, "\n{LEGEND}")?;
    if has_tools(&report.results) {
        writeln!(out, "ours over: our figure by theirs; above 1 is better for GB/s, below 1 for a time")?;
    }
    Ok(())
}

/// Returns true if a tool ran beside any row.
fn has_tools(rows: &[Row]) -> bool {
    rows.iter().any(|row| !row.against.is_empty())
}

/// Writes the rows as a table: figures right-aligned, and a dash if a figure does not apply.
pub(crate) fn table(out: &mut dyn Write, rows: &[Row]) -> io::Result<()> {
    let mut lines: Vec<[String; COLUMNS.len()]> = vec![COLUMNS.map(str::to_owned)];
    lines.extend(rows.iter().map(cells));
    let widths: Vec<usize> = (0..COLUMNS.len())
        .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
        .collect();
    // The last column is only for tools.
    let shown = COLUMNS.len() - usize::from(!has_tools(rows));
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

/// Returns a row in one line, for the progress.
pub(crate) fn line(row: &Row) -> String {
    let range = range(row).map_or_else(String::new, |range| format!(" ({range})"));
    let mut figures = Vec::new();
    if row.handed_over {
        figures.push(HANDED_OVER.to_owned());
    } else if row.gb_per_s.is_some() {
        figures.push(format!("{} GB/s{range}", figure(row.gb_per_s)));
    }
    if let Some(rate) = row.tasks_per_s {
        figures.push(format!("{rate:.0} tasks/s"));
    }
    let of_time = if row.gb_per_s.is_none() || row.handed_over { range.as_str() } else { "" };
    figures.push(format!("p50 {} µs{of_time}", figure(row.p50_us)));
    if !row.ceilings.is_empty() {
        figures.push(ceilings(row));
    }
    let (size, wait) = (Size(row.size_bytes), row.wait);
    format!("{} {} {size} ({wait}): {}", row.carrier(), row.doing(), figures.join(", "))
}

/// Returns the range: `3.90-4.20`, or `0.36-1.67 !` if it is wide.
fn range(row: &Row) -> Option<String> {
    let [low, high] = row.range()?;
    let wide = if row.wide().is_some() { " !" } else { "" };
    Some(format!("{}-{}{wide}", figure(Some(low)), figure(Some(high))))
}

/// Returns the ceilings: `memcpy 16.2 GB/s 40 %, socket 7.41 GB/s 106 %`.
fn ceilings(row: &Row) -> String {
    let one = |ceiling: &CeilingRow| {
        let value = match (ceiling.gb_per_s, ceiling.p50_us) {
            (Some(_), _) => format!("{} GB/s", figure(ceiling.gb_per_s)),
            (None, us) => format!("{} µs", figure(us)),
        };
        // If nothing was copied, a copy is no ceiling.
        match ceiling.share.filter(|_| !row.handed_over || ceiling.gb_per_s.is_none()) {
            Some(share) => format!("{} {value} {:.0} %", ceiling.kind, share * 100.0),
            None => format!("{} {value}", ceiling.kind),
        }
    };
    row.ceilings.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn cells(row: &Row) -> [String; COLUMNS.len()] {
    let against: Vec<String> = row.against.iter().map(ToolRow::short).collect();
    [
        row.carrier(),
        row.doing(),
        Size(row.size_bytes).to_string(),
        row.wait.to_owned(),
        if row.handed_over { HANDED_OVER.to_owned() } else { figure(row.gb_per_s) },
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
    use super::*;
    use crate::machine::fingerprint::Fingerprint;
    use crate::results::row::tests::bandwidth_row;

    fn text(row: Row) -> String {
        let mut out = Vec::new();
        table(&mut out, &[row]).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_table_shows_the_ceiling_and_our_share_of_it() {
        let text = text(bandwidth_row());
        assert!(text.contains("memcpy 10.0 GB/s 40 %") && text.contains("2.00-5.00 !"), "{text}");
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn handed_over_rows_have_no_rate_and_no_share() {
        let row = Row { handed_over: true, gb_per_s: Some(9641.0), ..bandwidth_row() };
        let (line, text) = (line(&row), text(row));
        for output in [&line, &text] {
            assert!(output.contains("handed over") && output.contains("memcpy 10.0 GB/s"), "{output}");
            assert!(!output.contains("9641") && !output.contains('%'), "{output}");
        }
    }

    #[test]
    fn the_text_begins_with_the_machine_and_what_it_gives_and_ends_with_a_legend() {
        let report = Report::new(Fingerprint::read([]), vec![bandwidth_row()], None);
        let mut out = Vec::new();
        write(&mut out, &report).unwrap();
        let text = String::from_utf8(out).unwrap();
        let parts = [
            report.fingerprint.cpu.as_str(),
            "this machine gives",
            "memory",
            "tcp                 4.00 GB/s at 1M",
            "ceiling, our share",
            "tcp        bandwidth",
            "range: lowest to highest repeat",
        ];
        let at: Vec<_> = parts.iter().map(|part| text.find(part)).collect();
        assert!(at.iter().all(Option::is_some) && at.is_sorted(), "{at:?}: {text}");
        assert!(!text.contains("ours over"), "no tool ran: {text}");
    }

    #[test]
    fn a_row_that_fell_behind_its_schedule_has_a_line_below_the_table() {
        let at = |rate| Row {
            pattern: "latency",
            size_bytes: 8,
            rate: Some(rate),
            messages_per_s: Some(954.0),
            ..bandwidth_row()
        };
        let mut out = Vec::new();
        table(&mut out, &[at(1000), at(1100)]).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("latency at 1000/s"), "{text}");
        assert_eq!(text.lines().count(), 4, "one is late: {text}");
        let late = "tcp.latency.8, adaptive: only 954 of 1100 messages a second were sent";
        assert!(text.contains(late), "{text}");
    }
}
