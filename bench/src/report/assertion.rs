//! `--assert transport.pattern.size[key=value,…].field OP number`: parsed before the run, judged after it.

use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use crate::against::RequestedTool;
use crate::case::{Pattern, Transport};
use crate::data::units::Size;
use crate::results::row::Row;

const EXAMPLE: &str = "tcp.bandwidth.1M[wait=adaptive].ceiling.socket.share>=0.9";

/// Figures that are keys of a row.
const FIELDS: [&str; 13] = [
    "samples",
    "gb_per_s",
    "p50_us",
    "p99_us",
    "p999_us",
    "cold_us",
    "messages_per_s",
    "tasks_per_s",
    "scheduler_us_per_task",
    "fairness",
    "cpu_s_per_gb.send",
    "cpu_s_per_gb.recv",
    "copies",
];

const CEILINGS: [&str; 8] =
    ["memcpy", "socket", "blocking_socket", "tls_socket", "eventfd", "device_copy", "pcie", "wakeups"];
const CEILING_FIELDS: [&str; 3] = ["share", "gb_per_s", "p50_us"];
const AGAINST_FIELDS: [&str; 3] = ["ratio", "gb_per_s", "p50_us"];

/// Keys that brackets may have, besides options of the transport.
const KEYS: [&str; 13] = [
    "path",
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
    "verified",
    "read",
];

const OPERATORS: [(&str, Operator); 6] = [
    (">=", Operator::AtLeast),
    ("<=", Operator::AtMost),
    ("==", Operator::Equal),
    ("!=", Operator::Unequal),
    (">", Operator::Above),
    ("<", Operator::Below),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    AtLeast,
    AtMost,
    Equal,
    Unequal,
    Above,
    Below,
}

impl Operator {
    fn holds(self, ours: f64, bound: f64) -> bool {
        match self {
            Self::AtLeast => ours >= bound,
            Self::AtMost => ours <= bound,
            Self::Equal => ours == bound,
            Self::Unequal => ours != bound,
            Self::Above => ours > bound,
            Self::Below => ours < bound,
        }
    }
}

/// Keys and values that a row must have.
type Brackets = Vec<(String, String)>;

/// A condition on one row.
#[derive(Clone, Debug)]
pub(crate) struct Assertion {
    text: String,
    transport: String,
    pattern: String,
    size_bytes: usize,
    brackets: Brackets,
    field: String,
    operator: Operator,
    bound: f64,
}

/// The result of an assertion.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Verdict {
    /// True, with the figure.
    Holds(f64),
    /// False, with the figure or the reason why there is none.
    Broken(String),
}

impl FromStr for Assertion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text).map_err(|why| format!("`{text}`: {why}; an example: {EXAMPLE}"))
    }
}

impl Assertion {
    fn parse(text: &str) -> Result<Self, String> {
        let (selector, operator, number) = split_operator(text)?;
        let bound = number
            .parse::<f64>()
            .ok()
            .filter(|bound| bound.is_finite())
            .ok_or_else(|| format!("`{number}` is not a number"))?;
        let (transport, rest) =
            selector.split_once('.').ok_or("transport.pattern.size is missing before the field")?;
        let (pattern, rest) = rest.split_once('.').ok_or("there is no size after the pattern")?;
        let end = rest.find(['.', '[']).ok_or("a field is missing after the size")?;
        let (size, rest) = rest.split_at(end);
        if transport.contains('?') {
            return Err("options of a transport belong in brackets".to_owned());
        }
        transport.parse::<Transport>()?;
        pattern.parse::<Pattern>()?;
        // Empty tasks have no bytes; messages always have some.
        let is_empty = pattern == Pattern::Tasks.name() && size == "0";
        let size_bytes = if is_empty { 0 } else { size.parse::<Size>()?.0 };
        let (brackets, field) = split_brackets(rest)?;
        known_field(field)?;
        Ok(Self {
            text: text.to_owned(),
            transport: transport.to_owned(),
            pattern: pattern.to_owned(),
            size_bytes,
            brackets,
            field: field.to_owned(),
            operator,
            bound,
        })
    }

    /// Checks before the run that exactly one of `rows` will match. `path` is not known yet and is ignored.
    pub(crate) fn check_plan(&self, rows: &[Row]) -> Result<(), String> {
        for (key, _) in &self.brackets {
            let option = rows.iter().any(|row| row.options.contains_key(key));
            if !option && !KEYS.contains(&key.as_str()) {
                return Err(format!(
                    "`{self}`: `{key}` is not a key of a row: {}, or an option",
                    KEYS.join(", ")
                ));
            }
        }
        let matches: Vec<&Row> = rows.iter().filter(|row| self.matches(row, false)).collect();
        let by_path = self.brackets.iter().any(|(key, _)| key == "path");
        if let [only] = matches[..] {
            self.check_tool(only)?;
        }
        match matches.len() {
            0 => Err(format!("`{self}` matches no row of this run: {}", names(rows))),
            1 => Ok(()),
            _ if by_path => Ok(()),
            count => Err(format!(
                "`{self}` matches {count} rows of this run, and must match exactly one: say which in brackets, {}",
                differences(&matches)
            )),
        }
    }

    /// Checks before the run that the tool of a figure will run beside `row`.
    fn check_tool(&self, row: &Row) -> Result<(), String> {
        let asked = self.field.strip_prefix("against.").and_then(|rest| rest.split_once('.'));
        let Some((tool, _)) = asked else { return Ok(()) };
        let entry = row.against.iter().find(|entry| entry.tool == tool);
        let entry = entry.ok_or_else(|| format!("`{self}`: --against does not name {tool}"))?;
        match &entry.note {
            Some(why) if !entry.applies() => Err(format!("`{self}`: {tool} does not apply: {why}")),
            _ => Ok(()),
        }
    }

    /// Judges the rows after the run.
    pub(crate) fn judge(&self, rows: &[Row]) -> Verdict {
        let matches: Vec<&Row> = rows.iter().filter(|row| self.matches(row, true)).collect();
        let [row] = matches[..] else {
            return Verdict::Broken(format!("it matches {} rows, not exactly one", matches.len()));
        };
        match figure(row, &self.field) {
            None => Verdict::Broken(format!("{} has no {}", row.name(), self.field)),
            Some(ours) if self.operator.holds(ours, self.bound) => Verdict::Holds(ours),
            Some(ours) => Verdict::Broken(format!("{} is {ours}", self.field)),
        }
    }

    fn matches(&self, row: &Row, with_path: bool) -> bool {
        row.transport == self.transport
            && row.pattern == self.pattern
            && row.size_bytes == self.size_bytes
            && self.brackets.iter().all(|(key, value)| {
                (key == "path" && !with_path) || value_of(row, key).is_some_and(|ours| ours == *value)
            })
    }
}

impl fmt::Display for Assertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Splits `a.b.c[k=v]>=1` into `a.b.c[k=v]`, `>=` and `1`. Signs inside brackets are not operators.
fn split_operator(text: &str) -> Result<(&str, Operator, &str), String> {
    let after_brackets = match text.find('[') {
        Some(open) => text[open..].find(']').ok_or("the bracket is not closed")? + open,
        None => 0,
    };
    let at = text[after_brackets..].find(['<', '>', '=', '!']).map(|at| at + after_brackets);
    let at = at.ok_or("there is no comparison: >= <= > < == !=")?;
    let (spelling, operator) = OPERATORS
        .into_iter()
        .find(|(spelling, _)| text[at..].starts_with(spelling))
        .ok_or("there is no such comparison: >= <= > < == !=")?;
    Ok((text[..at].trim(), operator, text[at + spelling.len()..].trim()))
}

/// Splits `[k=v,…].field` or `.field`.
fn split_brackets(rest: &str) -> Result<(Brackets, &str), String> {
    let Some(inside) = rest.strip_prefix('[') else {
        return Ok((Brackets::new(), &rest[1..]));
    };
    let (inside, field) = inside.split_once(']').ok_or("the bracket is not closed")?;
    let field = field.strip_prefix('.').ok_or("there is no .field after the bracket")?;
    let mut brackets = Brackets::new();
    for pair in inside.split(',') {
        let (key, value) = pair
            .split_once('=')
            .map(|(key, value)| (key.trim(), value.trim()))
            .filter(|(key, value)| !key.is_empty() && !value.is_empty())
            .ok_or_else(|| format!("`{pair}` in the bracket is not `key=value`"))?;
        if brackets.iter().any(|(known, _)| known == key) {
            return Err(format!("the bracket gives `{key}` twice"));
        }
        brackets.push((key.to_owned(), value.to_owned()));
    }
    Ok((brackets, field))
}

fn known_field(field: &str) -> Result<(), String> {
    if let Some(rest) = field.strip_prefix("against.") {
        let (tool, figure) = rest.split_once('.').unwrap_or((rest, ""));
        tool.parse::<RequestedTool>()?;
        if !AGAINST_FIELDS.contains(&figure) {
            return Err(format!("`{figure}` is not a figure of a peer tool: {}", AGAINST_FIELDS.join(", ")));
        }
        return Ok(());
    }
    if let Some(rest) = field.strip_prefix("ceiling.") {
        let (kind, figure) = rest.split_once('.').unwrap_or((rest, ""));
        if !CEILINGS.contains(&kind) {
            return Err(format!("`{kind}` is not a ceiling: {}", CEILINGS.join(", ")));
        }
        if !CEILING_FIELDS.contains(&figure) {
            return Err(format!("`{figure}` is not a figure of a ceiling: {}", CEILING_FIELDS.join(", ")));
        }
        return Ok(());
    }
    if FIELDS.contains(&field) {
        return Ok(());
    }
    Err(format!(
        "`{field}` is not a field: {}, ceiling.KIND.{} or against.TOOL.{}",
        FIELDS.join(", "),
        CEILING_FIELDS.join("|"),
        AGAINST_FIELDS.join("|")
    ))
}

/// Returns the figure `field` of the row, as in the document.
fn figure(row: &Row, field: &str) -> Option<f64> {
    let row = serde_json::to_value(row).ok()?;
    let among = |list: &str, key: &str, rest: &str| {
        let (name, figure) = rest.split_once('.')?;
        Some(row[list].as_array()?.iter().find(|entry| entry[key] == name)?[figure].clone())
    };
    let found = if let Some(rest) = field.strip_prefix("ceiling.") {
        among("ceilings", "kind", rest)?
    } else if let Some(rest) = field.strip_prefix("against.") {
        among("against", "tool", rest)?
    } else {
        field.split('.').fold(row, |value, key| value[key].clone())
    };
    found.as_f64()
}

/// Returns the row's value for a key of a bracket.
fn value_of(row: &Row, key: &str) -> Option<String> {
    if let Some(option) = row.options.get(key) {
        return Some(option.clone());
    }
    let row = serde_json::to_value(row).ok()?;
    match KEYS.contains(&key).then(|| row[key].clone())? {
        Value::String(text) => Some(text),
        Value::Null => None,
        other => Some(other.to_string()),
    }
}

fn names(rows: &[Row]) -> String {
    let mut names: Vec<String> = rows.iter().map(Row::name).collect();
    names.dedup();
    names.join(", ")
}

/// Returns the keys in which `rows` differ, with their values.
fn differences(rows: &[&Row]) -> String {
    let options = rows.iter().flat_map(|row| row.options.keys().map(String::as_str));
    let mut keys: Vec<&str> = KEYS.into_iter().chain(options).collect();
    keys.dedup();
    let differing: Vec<String> = keys
        .into_iter()
        .filter_map(|key| {
            let mut values: Vec<String> =
                rows.iter().map(|row| value_of(row, key).unwrap_or_default()).collect();
            values.sort();
            values.dedup();
            (values.len() > 1).then(|| format!("{key}={}", values.join("|")))
        })
        .collect();
    if differing.is_empty() { "though they are alike".to_owned() } else { differing.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Wait;
    use crate::case::tests::case;
    use crate::results::row::tests::bandwidth_row;

    fn judge(text: &str) -> Verdict {
        let row = bandwidth_row();
        let assertion: Assertion = text.parse().unwrap();
        assertion.check_plan(std::slice::from_ref(&row)).unwrap();
        assertion.judge(&[row])
    }

    #[test]
    fn good_assertions_are_judged() {
        assert_eq!(judge("tcp.bandwidth.1M.gb_per_s>=4"), Verdict::Holds(4.0));
        assert_eq!(judge("tcp.bandwidth.1048576.gb_per_s == 4.0"), Verdict::Holds(4.0));
        assert_eq!(judge("tcp.bandwidth.1M.ceiling.memcpy.share>0.3"), Verdict::Holds(0.4));
        assert_eq!(judge("tcp.bandwidth.1M[wait=adaptive,from=host].copies<=1"), Verdict::Holds(1.0));
        assert_eq!(judge("tcp.bandwidth.1M[path=tcp, window=16].samples != 1e0"), Verdict::Holds(300.0));
        assert_eq!(judge("tcp.bandwidth.1M.gb_per_s<4"), Verdict::Broken("gb_per_s is 4".into()));
        assert!(matches!(judge("tcp.bandwidth.1M.cpu_s_per_gb.recv>1"), Verdict::Holds(_)));
    }

    #[test]
    fn a_figure_that_is_not_there_breaks_the_assertion() {
        for text in ["tcp.bandwidth.1M.tasks_per_s>=0", "tcp.bandwidth.1M.ceiling.socket.share>=0"] {
            assert!(matches!(judge(text), Verdict::Broken(why) if why.contains("has no")), "{text}");
        }
        assert!(
            matches!(judge("tcp.bandwidth.1M[path=shm].gb_per_s>=0"), Verdict::Broken(why) if why.contains("0 rows"))
        );
    }

    #[test]
    fn bad_assertions_are_refused_with_the_reason() {
        for (text, expected) in [
            ("", "no comparison"),
            ("tcp", "no comparison"),
            ("tcp.bandwidth.1M.gb_per_s", "no comparison"),
            ("tcp.bandwidth.1M.gb_per_s=1", "no such comparison"),
            ("tcp.bandwidth.1M.gb_per_s!1", "no such comparison"),
            ("tcp.bandwidth.1M.gb_per_s=>1", "no such comparison"),
            ("tcp.bandwidth.1M.gb_per_s>=", "`` is not a number"),
            ("tcp.bandwidth.1M.gb_per_s>=fast", "`fast` is not a number"),
            ("tcp.bandwidth.1M.gb_per_s>=nan", "not a number"),
            ("tcp.bandwidth.1M.gb_per_s>=inf", "not a number"),
            ("tcp.bandwidth.1M.gb_per_s>>1", "not a number"),
            (">=1", "transport.pattern.size is missing"),
            ("gb_per_s>=1", "transport.pattern.size is missing"),
            ("tcp.bandwidth>=1", "no size"),
            ("tcp.bandwidth.1M>=1", "a field is missing"),
            ("tcp.bandwidth.gb_per_s.x>=1", "`gb_per_s` is not a size"),
            ("tcp.bandwidth.0.gb_per_s>=1", "at least 1 byte"),
            ("udp.bandwidth.1M.gb_per_s>=1", "`udp` is not a transport"),
            ("tcp?streams.bandwidth.1M.gb_per_s>=1", "belong in brackets"),
            ("tcp.width.1M.gb_per_s>=1", "`width` is not a pattern"),
            ("tcp.bandwidth.1M.speed>=1", "`speed` is not a field"),
            ("tcp.bandwidth.1M.>=1", "`` is not a field"),
            ("tcp.bandwidth.1M.gb_per_s.x>=1", "is not a field"),
            ("tcp.bandwidth.1M.cpu_s_per_gb>=1", "is not a field"),
            ("tcp.bandwidth.1M.ceiling.share>=1", "`share` is not a ceiling"),
            ("tcp.bandwidth.1M.ceiling.memcpy>=1", "`` is not a figure"),
            ("tcp.bandwidth.1M.ceiling.memcpy.speed>=1", "`speed` is not a figure"),
            ("tcp.bandwidth.1M.against.netperf.ratio>=1", "`netperf` is not a peer tool"),
            ("tcp.bandwidth.1M.against.iperf3.speed>=1", "`speed` is not a figure"),
            ("tcp.bandwidth.1M.against.iperf3>=1", "`` is not a figure"),
            ("tcp.bandwidth.1M[wait=spin.gb_per_s>=1", "not closed"),
            ("tcp.bandwidth.1M[wait=spin]gb_per_s>=1", "no .field after the bracket"),
            ("tcp.bandwidth.1M[wait=spin]>=1", "no .field after the bracket"),
            ("tcp.bandwidth.1M[].gb_per_s>=1", "not `key=value`"),
            ("tcp.bandwidth.1M[wait].gb_per_s>=1", "not `key=value`"),
            ("tcp.bandwidth.1M[wait=].gb_per_s>=1", "not `key=value`"),
            ("tcp.bandwidth.1M[wait=spin,].gb_per_s>=1", "not `key=value`"),
            ("tcp.bandwidth.1M[wait=spin,wait=sleep].gb_per_s>=1", "`wait` twice"),
        ] {
            let error = text.parse::<Assertion>().map(|_| ()).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
            assert!(error.contains("an example"), "{error}");
        }
    }

    #[test]
    fn a_plan_must_hold_exactly_one_matching_row() {
        let planned = |wait| Row::planned(&crate::case::Case { wait, ..case("tcp", Pattern::Latency, 8) });
        let rows = [planned(Wait::Spin), planned(Wait::Sleep)];
        let plan = |text: &str| text.parse::<Assertion>().unwrap().check_plan(&rows);
        plan("tcp.latency.8[wait=spin].p50_us<9").unwrap();
        let several = plan("tcp.latency.8.p50_us<9").unwrap_err();
        assert!(several.contains("matches 2 rows") && several.contains("wait=sleep|spin"), "{several}");
        let none = plan("tcp.latency.16.p50_us<9").unwrap_err();
        assert!(none.contains("matches no row") && none.contains("tcp.latency.8"), "{none}");
        assert!(plan("tcp.latency.8[wait=adaptive].p50_us<9").unwrap_err().contains("no row"));
        assert!(plan("tcp.latency.8[colour=red].p50_us<9").unwrap_err().contains("`colour` is not a key"));
    }
}
