//! The parsers of the command line for its fuzz target: each returns what it understood.

use std::collections::BTreeMap;

use crate::case::{Case, Pattern, Transport, Wait};
use crate::data::payload::Check;
use crate::data::place::{Place, Places};
use crate::data::units::{Size, Sizes, parse_pause};
use crate::report::assertion::Assertion;
use crate::results::row::Row;

/// Parses `--assert` and returns it as printed. A valid assertion is also judged, on rows that all differ.
pub fn assertion(text: &str) -> Result<String, String> {
    let assertion: Assertion = text.parse()?;
    let rows: Vec<Row> = cases().iter().map(Row::planned).collect();
    if assertion.check_plan(&rows).is_ok() {
        std::hint::black_box(assertion.judge(&rows));
    }
    Ok(assertion.to_string())
}

fn cases() -> [Case; 2] {
    [("tcp", Wait::Spin), ("auto", Wait::Sleep)].map(|(name, wait)| Case {
        transport: Transport { name, options: BTreeMap::from([("streams".to_owned(), "4".to_owned())]) },
        pattern: Pattern::Bandwidth,
        size: Size(1 << 20),
        wait,
        frames: 1,
        window: 16,
        buffers: None,
        workers: 2,
        rate: None,
        check: Check::Edges,
        places: Places::default(),
    })
}

/// Parses one item of `--transport` and returns its name and its options, as printed.
pub fn transport(text: &str) -> Result<String, String> {
    text.parse().map(|transport: Transport| transport.to_string())
}

/// Parses one item of `--size` and returns its sizes, as printed and in bytes.
pub fn sizes(text: &str) -> Result<Vec<(String, usize)>, String> {
    let sizes: Sizes = text.parse()?;
    Ok(sizes.0.iter().map(|size| (size.to_string(), size.0)).collect())
}

/// Parses one item of `--pattern` and returns its name.
pub fn pattern(text: &str) -> Result<&'static str, String> {
    text.parse().map(Pattern::name)
}

/// Parses `--from` and `--to`.
pub fn place(text: &str) -> Result<(), String> {
    text.parse::<Place>().map(drop)
}

/// Parses `--duration` and similar options.
pub fn seconds(text: &str) -> Result<f64, String> {
    parse_pause(text).map(|time| time.as_secs_f64())
}
