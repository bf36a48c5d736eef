//! `--save-histograms`, `--compare`, `--threshold`: a run compared with an earlier one.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::bench::bench;
use crate::schema::assert_fits;

/// A file of this test, removed at its end.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("towline-{name}-{}.json", std::process::id())))
    }

    fn read(&self) -> Value {
        let document = serde_json::from_slice(&fs::read(&self.0).unwrap()).unwrap();
        assert_fits(&document);
        document
    }

    /// Multiplies every rate of the saved run.
    fn faster_by(&self, factor: f64) {
        let mut document = self.read();
        for row in document["results"].as_array_mut().unwrap() {
            row["gb_per_s"] = (row["gb_per_s"].as_f64().unwrap() * factor).into();
        }
        fs::write(&self.0, document.to_string()).unwrap();
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

const LINE: &str = "--transport mem --pattern bandwidth --size 64K";

#[test]
fn a_saved_run_has_all_times_and_can_be_compared() {
    let file = Temporary::new("saved");
    let name = file.0.display();
    bench(&format!("{LINE} --save-histograms {name}")).exits_with(0);
    let saved = file.read();
    let row = &saved["results"][0];
    let counts = row["histogram"]["counts_ns"].as_array().unwrap();
    let counted: u64 = counts.iter().map(|pair| pair[1].as_u64().unwrap()).sum();
    assert_eq!(counted, row["samples"].as_u64().unwrap());

    let again = bench(&format!("{LINE} --compare {name} --threshold 1e9 --save-histograms {name} --json"));
    again.exits_with(0);
    assert!(again.err.contains("compared: mem.bandwidth.64K: "), "{}", again.err);
    assert!(again.err.contains("times p50 "), "{}", again.err);
    assert!(again.document()["results"][0].get("histogram").is_none(), "the document stays as it was");
    assert_ne!(file.read(), saved, "the earlier run was read before this one was kept");
}

#[test]
fn a_run_that_is_worse_beyond_the_threshold_fails() {
    let file = Temporary::new("before");
    let name = file.0.display();
    bench(&format!("{LINE} --json-file {name}")).exits_with(0);
    file.faster_by(1e6);
    let worse = bench(&format!("{LINE} --compare {name}"));
    worse.exits_with(1);
    assert!(worse.err.contains("worse: mem.bandwidth.64K: "), "{}", worse.err);
    assert!(worse.err.contains("1 of 1 rows are worse than before by more than 10 %"), "{}", worse.err);
    file.faster_by(1e-12);
    let better = bench(&format!("{LINE} --compare {name} --threshold 0"));
    better.exits_with(0);
    assert!(better.err.contains("% better)"), "{}", better.err);
}

#[test]
fn an_earlier_run_of_other_cases_is_refused() {
    let file = Temporary::new("other");
    let name = file.0.display();
    bench(&format!("{LINE} --json-file {name}")).exits_with(0);
    let other = bench(&format!("--transport mem --pattern latency --compare {name}"));
    other.is_wrong_usage("it has no row of this run: mem bandwidth 65536 adaptive");
    fs::write(&file.0, "hello").unwrap();
    bench(&format!("{LINE} --compare {name}")).is_wrong_usage("it is not JSON");
}
