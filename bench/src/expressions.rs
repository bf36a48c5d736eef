//! The expressions of the command line as its fuzz target gives them in: what the command understood comes back.

use std::collections::BTreeMap;

use crate::case::{Case, Pattern, Transport, Wait};
use crate::data::payload::Check;
use crate::data::place::{Place, Places};
use crate::data::units::{Size, Sizes, parse_pause};
use crate::report::assertion::Assertion;
use crate::results::row::Row;

/// `--assert`: as it will be printed. A good one is judged as well, on rows of which no two are alike.
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

/// One item of `--transport`: its name and its options, as it will be printed.
pub fn transport(text: &str) -> Result<String, String> {
    text.parse().map(|transport: Transport| transport.to_string())
}

/// One item of `--size`: the sizes, each as it will be printed and in bytes.
pub fn sizes(text: &str) -> Result<Vec<(String, usize)>, String> {
    let sizes: Sizes = text.parse()?;
    Ok(sizes.0.iter().map(|size| (size.to_string(), size.0)).collect())
}

/// One item of `--pattern`: its name.
pub fn pattern(text: &str) -> Result<&'static str, String> {
    text.parse().map(Pattern::name)
}

/// `--from` and `--to`.
pub fn place(text: &str) -> Result<(), String> {
    text.parse::<Place>().map(drop)
}

/// `--duration` and its like.
pub fn seconds(text: &str) -> Result<f64, String> {
    parse_pause(text).map(|time| time.as_secs_f64())
}
