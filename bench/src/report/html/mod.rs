//! `--html`: a run as one page without scripts or external resources.

mod axis;
mod figures;
mod plot;
mod utc_time;

use std::fmt::{self, Write};
use std::time::SystemTime;

use self::figures::Figures;
use self::utc_time::UtcTime;
use super::Report;
use super::headline::Headline;
use super::table::HANDED_OVER;
use crate::failure::Failure;
use crate::process::program;
use crate::results::number::figure;
use crate::results::row::{CeilingRow, CpuCost, Row};
use crate::results::tool_row::ToolRow;
use crate::terminal::output_file::OutputFile;

/// The style of the page, for light and dark displays.
const SHEET: &str = include_str!("style.css");

/// Further distributions of a pattern are folded.
const OPEN_MAX: usize = 6;

/// The option `--html`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Html {
    /// Write the result also as one page with plots to FILE, without external resources. `-` is stdout,
    /// instead of the table
    #[arg(long, value_name = "FILE", value_parser = OutputFile::page("--html"), help_heading = "Output")]
    html: Option<OutputFile>,
}

impl Html {
    /// Refuses a file that cannot be written, before the work.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        self.html.as_ref().map_or(Ok(()), OutputFile::check)
    }

    /// Returns true if stdout is for the page.
    pub(crate) fn is_on_stdout(&self) -> bool {
        self.html.as_ref().is_some_and(OutputFile::is_stdout)
    }

    /// Returns the file of the page.
    pub(crate) fn file(&self) -> Option<&OutputFile> {
        self.html.as_ref()
    }

    pub(crate) fn write(&self, report: &Report) -> Result<(), Failure> {
        let Some(file) = &self.html else { return Ok(()) };
        let arguments: Vec<String> =
            program::arguments().iter().map(|word| word.to_string_lossy().into_owned()).collect();
        let page = Page { report, arguments: &arguments, written: UtcTime::of(SystemTime::now()) };
        file.write(&page.to_string())
    }
}

/// Escaped text, also valid in an attribute.
#[derive(Clone, Copy, Debug)]
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => f.write_str("&amp;"),
                '<' => f.write_str("&lt;"),
                '>' => f.write_str("&gt;"),
                '"' => f.write_str("&quot;"),
                '\'' => f.write_str("&#39;"),
                // A page must not contain these characters in any form.
                _ if character.is_control() && character != '\n' => f.write_char('\u{fffd}'),
                _ => f.write_char(character),
            }?;
        }
        Ok(())
    }
}

/// The page.
#[derive(Debug)]
struct Page<'a> {
    report: &'a Report,
    /// The command line.
    arguments: &'a [String],
    written: UtcTime,
}

impl fmt::Display for Page<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = &self.report.results;
        let what = Summary(rows).to_string();
        let what = Escaped(&what);
        writeln!(f, "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">")?;
        // Has the browser refuse any external resource.
        f.write_str(r#"<meta http-equiv="Content-Security-Policy" "#)?;
        writeln!(f, r#"content="default-src 'none'; style-src 'unsafe-inline'">"#)?;
        writeln!(f, r#"<meta name="viewport" content="width=device-width, initial-scale=1">"#)?;
        writeln!(f, r#"<meta name="color-scheme" content="light dark">"#)?;
        writeln!(f, "<title>towline bench: {what}</title>\n<style>\n{}</style>", SHEET)?;
        writeln!(f, "</head>\n<body>\n<header>\n<h1>towline bench</h1>\n<p class=\"what\">{what}</p>")?;
        writeln!(f, "<p><code>towline {}</code></p>", Escaped(&shell_line(self.arguments)))?;
        if !self.report.complete {
            writeln!(
                f,
                "<p><strong>This run is not complete: a case failed, or the run was interrupted.</strong></p>"
            )?;
        }
        for warning in &self.report.warnings {
            writeln!(f, "<p><strong>Warning: {}.</strong></p>", Escaped(warning))?;
        }
        self.fingerprint(f)?;
        writeln!(f, "</header>\n<main>")?;
        let figures = figures::all(rows);
        headline(f, rows)?;
        over_sizes(f, &figures)?;
        results(f, rows)?;
        distributions(f, &figures)?;
        tools(f, rows)?;
        writeln!(f, "</main>\n</body>\n</html>")
    }
}

impl Page<'_> {
    fn fingerprint(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = &self.report.fingerprint;
        let versions = machine.versions.iter().map(|(name, version)| format!("{name} {version}"));
        let versions = versions.collect::<Vec<_>>().join(", ");
        let gib = machine.memory_bytes as f64 / f64::from(1 << 30);
        let facts = [
            ("Host", machine.host.clone()),
            ("Processor", machine.processor()),
            ("Cores", format!("{}, {} NUMA node(s)", machine.cores, machine.numa_nodes)),
            ("Memory", format!("{gib:.1} GiB")),
            ("Kernel", machine.kernel.clone()),
            ("Load before", machine.load.before.to_string()),
            ("Load after", machine.load.after.as_ref().map_or_else(|| figure(None), ToString::to_string)),
            ("Versions", versions),
            ("Commit", machine.commit.unwrap_or("unknown").to_owned()),
            ("Measured", self.written.to_string()),
        ];
        writeln!(f, "<dl>")?;
        for (name, value) in facts {
            writeln!(f, "<div><dt>{name}</dt><dd>{}</dd></div>", Escaped(&value))?;
        }
        writeln!(f, "</dl>")
    }
}

/// `latency, bandwidth over mem, tcp`
struct Summary<'a>(&'a [Row]);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |of: &dyn Fn(&Row) -> String| {
            let mut names: Vec<String> = Vec::new();
            for name in self.0.iter().map(of) {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
            names.join(", ")
        };
        write!(f, "{} over {}", names(&|row| row.pattern.to_owned()), names(&Row::carrier))
    }
}

const OVER_SIZE: &str = "Medians of the repeats; a bar spans from their lowest to their highest. Dashed with a diamond: \
    a ceiling of this machine. Dotted with a square: a tool of others. Both were measured in turn with each row; where \
    rows share a size, the best of theirs is drawn. Point at a mark to read its value.";
const DISTRIBUTION: &str = "All messages of all repeats, as far up as they are enough to tell. A diamond is a ceiling, a \
    square a tool of others: of these only the median is known.";

fn headline(f: &mut fmt::Formatter<'_>, rows: &[Row]) -> fmt::Result {
    let Headline(bests) = Headline::of(rows);
    if bests.is_empty() {
        return Ok(());
    }
    writeln!(f, "<section>\n<h2>What this machine gives</h2>\n<table>\n<thead>\n<tr>")?;
    for heading in ["", "Bandwidth", "Half a round trip"] {
        writeln!(f, r#"<th scope="col">{heading}</th>"#)?;
    }
    writeln!(f, "</tr>\n</thead>\n<tbody>")?;
    for best in bests {
        let [rate, time] = best.figures();
        writeln!(f, "<tr><td>{}</td><td>{rate}</td><td>{time}</td></tr>", Escaped(&best.name))?;
    }
    writeln!(f, "</tbody>\n</table>\n</section>")
}

fn over_sizes(f: &mut fmt::Formatter<'_>, figures: &[Figures]) -> fmt::Result {
    let plots: Vec<_> = figures.iter().filter_map(|figures| figures.over_size.as_ref()).collect();
    if plots.is_empty() {
        return Ok(());
    }
    writeln!(f, "<section>\n<h2>Over size</h2>\n<div class=\"plots\">")?;
    for plot in plots {
        write!(f, "{plot}")?;
    }
    writeln!(f, "</div>\n<p class=\"note\">{OVER_SIZE}</p>\n</section>")
}

fn distributions(f: &mut fmt::Formatter<'_>, figures: &[Figures]) -> fmt::Result {
    writeln!(f, "<section>\n<h2>How long messages took</h2>")?;
    for Figures { pattern, distributions, .. } in figures {
        let open = if distributions.len() <= OPEN_MAX { " open" } else { "" };
        writeln!(f, "<details{open}>\n<summary>{pattern}</summary>\n<div class=\"plots\">")?;
        for plot in distributions {
            write!(f, "{plot}")?;
        }
        writeln!(f, "</div>\n</details>")?;
    }
    writeln!(f, "<p class=\"note\">{DISTRIBUTION}</p>\n</section>")
}

const HEADINGS: [(&str, &str); 13] = [
    ("Transport", ""),
    ("Pattern", ""),
    ("Size", ""),
    ("Wait", ""),
    ("GB/s", "10^9 bytes per second, median and range of the repeats"),
    ("Median µs", "half of the messages took no longer"),
    ("99 % µs", "99 % of the messages took no longer"),
    ("99.9 % µs", "99.9 % of the messages took no longer"),
    ("Cold µs", "the first message of a fresh connection"),
    ("Messages/s", "median of the repeats"),
    ("CPU s/GB", "of the end that gives the bytes, and of the end that takes them"),
    ("Ceilings", "what this machine could do at best, and our share of it"),
    ("Tools of others", "their figure, and ours over theirs"),
];

/// The columns of [`HEADINGS`] with figures.
const FIGURES: std::ops::Range<usize> = 4..11;

fn results(f: &mut fmt::Formatter<'_>, rows: &[Row]) -> fmt::Result {
    let lines: Vec<_> = rows.iter().map(|row| (row, cells(row))).collect();
    // An empty column is left out.
    let shown = |column: &usize| lines.iter().any(|(_, cells)| cells[*column] != figure(None));
    let shown: Vec<usize> = (0..HEADINGS.len()).filter(shown).collect();
    let class = |column: usize| if FIGURES.contains(&column) { " class=\"figure\"" } else { "" };
    writeln!(f, "<section>\n<h2>Results</h2>\n<div class=\"wide\">\n<table>\n<thead>\n<tr>")?;
    for column in &shown {
        let (heading, meaning) = HEADINGS[*column];
        writeln!(f, r#"<th scope="col"{} title="{meaning}">{heading}</th>"#, class(*column))?;
    }
    writeln!(f, "</tr>\n</thead>\n<tbody>")?;
    for (row, cells) in &lines {
        write!(f, r#"<tr data-row="{}">"#, Escaped(&row.name()))?;
        for column in &shown {
            write!(f, "<td{}>{}</td>", class(*column), cells[*column])?;
        }
        writeln!(f, "</tr>")?;
    }
    writeln!(f, "</tbody>\n</table>\n</div>")?;
    for (row, warning) in rows.iter().filter_map(|row| Some((row, row.warning()?))) {
        let (name, warning) = (row.name(), format!("{}: {warning}.", row.wait));
        writeln!(f, "<p class=\"note\">{}, {}</p>", Escaped(&name), Escaped(&warning))?;
    }
    writeln!(
        f,
        "<p class=\"note\">GB is 10<sup>9</sup> bytes. HistogramCounts run from a message's send to the receiver's confirmation; \
         a latency is half a round trip. At a rate they run from when a message was due, and a latency is a whole one. The share of a ceiling is ours over it, for a latency it over ours; a ratio is \
         ours over theirs: above 1 is better for bandwidth, below 1 for latency. Handed over: memory changed hands and \
         no byte was copied or read. A range spans the repeats; ! stands where they differ by half or more.</p>\n</section>"
    )
}

/// Returns the cells of a row.
fn cells(row: &Row) -> [String; HEADINGS.len()] {
    let wide = if row.wide().is_some() { " !" } else { "" };
    let range =
        |[low, high]: [f64; 2]| format!("<small>{}–{}{wide}</small>", figure(Some(low)), figure(Some(high)));
    let range = row.range().map(range).unwrap_or_default();
    let (mut rate, mut time) = (figure(row.gb_per_s), figure(row.p50_us));
    if row.handed_over {
        rate = HANDED_OVER.to_owned();
    }
    let ranged = if row.handed_over || row.gb_per_s.is_none() { &mut time } else { &mut rate };
    ranged.push_str(&range);
    let cpu = |cost: CpuCost| several([cost.send, cost.recv].map(|cost| figure(Some(cost))).into_iter());
    [
        Escaped(&row.carrier()).to_string(),
        row.doing(),
        axis::size_label(row.size_bytes),
        row.wait.to_owned(),
        rate,
        time,
        figure(row.p99_us),
        figure(row.p999_us),
        figure(row.cold_us),
        row.messages_per_s.map_or_else(|| figure(None), |rate| format!("{rate:.0}")),
        row.cpu_s_per_gb.map_or_else(|| figure(None), cpu),
        several(row.ceilings.iter().map(|it| ceiling(it, row.handed_over))),
        several(row.against.iter().filter(|entry| entry.applies()).map(peer)),
    ]
}

/// If nothing was copied, a copy is no ceiling.
fn ceiling(ceiling: &CeilingRow, handed_over: bool) -> String {
    let share = ceiling.share.filter(|_| !handed_over || ceiling.gb_per_s.is_none());
    let share = share.map(|share| match share {
        10.0.. => format!(" <b>{share:.0} times</b>"),
        0.01.. => format!(" <b>{:.0} %</b>", share * 100.0),
        _ => format!(" <b>{:.2} %</b>", share * 100.0),
    });
    format!("{} {}{}", ceiling.kind, value(ceiling.gb_per_s, ceiling.p50_us), share.unwrap_or_default())
}

fn peer(entry: &ToolRow) -> String {
    let ratio = entry.ratio.map(|ratio| format!(" <b>{ratio:.2}</b>"));
    format!("{} {}{}", entry.tool, value(entry.gb_per_s, entry.p50_us), ratio.unwrap_or_default())
}

fn value(gb_per_s: Option<f64>, p50_us: Option<f64>) -> String {
    match (gb_per_s, p50_us) {
        (Some(_), _) => format!("{} GB/s", figure(gb_per_s)),
        (None, Some(_)) => format!("{} µs", figure(p50_us)),
        (None, None) => figure(None),
    }
}

fn several(cells: impl Iterator<Item = String>) -> String {
    let cells: Vec<String> = cells.collect();
    if cells.is_empty() { figure(None) } else { cells.join("<br>") }
}

/// Writes how each tool ran beside each row, or why it did not.
fn tools(f: &mut fmt::Formatter<'_>, rows: &[Row]) -> fmt::Result {
    let entries = || rows.iter().flat_map(|row| row.against.iter().map(move |entry| (row, entry)));
    if entries().next().is_none() {
        return Ok(());
    }
    writeln!(f, "<section>\n<h2>How the tools of others ran</h2>\n<details>")?;
    writeln!(f, "<summary>commands of the last repeat, and what differs from ours</summary>")?;
    writeln!(f, "<div class=\"wide\">\n<table>\n<thead>\n<tr>")?;
    for heading in ["Beside", "Tool", "Done when", "Command", "Note"] {
        writeln!(f, r#"<th scope="col">{heading}</th>"#)?;
    }
    writeln!(f, "</tr>\n</thead>\n<tbody>")?;
    let mut absent: Vec<(String, &str, Vec<String>)> = Vec::new();
    for (row, entry) in entries() {
        let note = entry.note.as_deref().unwrap_or("-");
        let (Some(completion), Some(command)) = (entry.completion, entry.command.as_deref()) else {
            match absent.iter_mut().find(|(name, why, _)| *name == entry.name() && *why == note) {
                Some((_, _, rows)) => rows.push(row.name()),
                None => absent.push((entry.name(), note, vec![row.name()])),
            }
            continue;
        };
        let (row, name) = (row.name(), entry.name());
        write!(f, "<tr><td>{}</td><td>{}</td>", Escaped(&row), Escaped(&name))?;
        write!(f, "<td>the {completion} has it</td><td><code>{}</code></td>", Escaped(command))?;
        writeln!(f, "<td>{}</td></tr>", Escaped(note))?;
    }
    writeln!(f, "</tbody>\n</table>\n</div>\n</details>")?;
    for (name, why, rows) in absent {
        let (name, rows) = (Escaped(&name), rows.join(", "));
        writeln!(f, "<p class=\"note\">{name}, no figure: {}. ({})</p>", Escaped(why), Escaped(&rows))?;
    }
    writeln!(f, "</section>")
}

/// Quotes words for a shell.
fn shell_line(words: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,@%+".contains(c);
    let quoted = |word: &String| {
        if !word.is_empty() && word.chars().all(plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    words.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::fingerprint::Fingerprint;
    use crate::results::row::tests::bandwidth_row;

    fn page(report: &Report, arguments: &[&str]) -> String {
        let arguments: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
        Page { report, arguments: &arguments, written: UtcTime::of(SystemTime::UNIX_EPOCH) }.to_string()
    }

    #[test]
    fn text_from_outside_is_escaped() {
        let evil = "</title><script>alert('1')</script>\"&\u{7}";
        let mut report = Report::new(Fingerprint::read([]), vec![bandwidth_row()], None);
        report.warnings.push(evil.into());
        report.fingerprint.host = evil.into();
        report.fingerprint.cpu = evil.into();
        report.fingerprint.cpu_vendor = Some(evil.into());
        report.fingerprint.versions.insert(evil.into(), evil.into());
        report.results[0].options.insert(evil.into(), evil.into());
        let mut entry = ToolRow::planned("iperf3", None, Some(evil.into()));
        (entry.version, entry.command, entry.gb_per_s) = (Some(evil.into()), Some(evil.into()), Some(1.0));
        report.results[0].against.push(entry);
        let page = page(&report, &["bench", evil]);
        assert!(!page.contains("<script") && !page.contains('\u{7}'), "{page}");
        assert!(
            page.contains("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&quot;&amp;\u{fffd}"),
            "{page}"
        );
        assert_eq!(page.matches("</title>").count(), page.matches("<title>").count(), "{page}");
    }

    #[test]
    fn the_page_uses_no_external_resource() {
        let late = Row { rate: Some(1 << 30), ..bandwidth_row() };
        let results = vec![bandwidth_row(), late];
        let report = Report::new(Fingerprint::read([]), results, None);
        let page = page(&report, &["bench"]);
        for asks in ["http:", "https:", "src=", "url(", "@import", "<link", "<script", "<img"] {
            assert!(!page.contains(asks), "{asks}: {page}");
        }
        for expected in [
            "<h1>towline bench</h1>",
            "of 1073741824 messages a second",
            "bandwidth over tcp",
            "memcpy 10.0 GB/s <b>40 %</b>",
            "<small>2.00–5.00 !</small>",
            "<tr><td>tcp</td><td>4.00 GB/s at 1M</td><td>-</td></tr>",
            "1970-01-01",
        ] {
            assert!(page.contains(expected), "{expected}: {page}");
        }
    }

    #[test]
    fn handed_over_rows_have_no_rate_on_the_page() {
        let row = Row { handed_over: true, gb_per_s: Some(9641.0), ..bandwidth_row() };
        let page = page(&Report::new(Fingerprint::read([]), vec![row], None), &["bench"]);
        assert!(page.contains("handed over") && page.contains("memcpy 10.0 GB/s"), "{page}");
        assert!(!page.contains("9641") && !page.contains("<b>40 %</b>"), "{page}");
    }

    #[test]
    fn a_line_can_be_given_to_a_shell() {
        let words = ["bench", "--assert", "a>=1", "it's", ""].map(str::to_owned);
        assert_eq!(shell_line(&words), r"bench --assert 'a>=1' 'it'\''s' ''");
    }
}
