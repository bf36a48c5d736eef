//! What `towline bench` answers, and what its reader is told about the figures.

use std::fs;

use tempfile::TempDir;

use crate::bench::bench;
use crate::schema::assert_fits;

const ONE: &str = "--transport mem --pattern latency";

#[test]
fn every_document_names_the_processor_and_the_load_of_its_host() {
    let folder = TempDir::new().unwrap();
    let [json, html] = ["run.json", "run.html"].map(|name| folder.path().join(name));
    let run = bench(&format!("{ONE} --json-file {} --html {}", json.display(), html.display()));
    run.exits_with(0);
    let document: serde_json::Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    assert_fits(&document);
    let fingerprint = &document["fingerprint"];
    let cpu = fingerprint["cpu"].as_str().unwrap();
    let page = fs::read_to_string(&html).unwrap();
    for text in [&run.out, &page] {
        assert!(text.contains(cpu), "{cpu}: {text}");
        if let Some(vendor) = fingerprint["cpu_vendor"].as_str() {
            assert!(text.contains(vendor), "{vendor}: {text}");
        }
    }
    for at in ["before", "after"] {
        let load = &fingerprint["load"][at]["load_average"];
        assert_eq!(load.as_array().map(Vec::len), Some(3), "{fingerprint}");
    }
    // A warning reaches each reader, whoever it is.
    for warning in document["warnings"].as_array().unwrap() {
        let warning = warning.as_str().unwrap();
        assert!(run.err.contains(warning) && run.out.contains(warning), "{warning}: {} {}", run.err, run.out);
        // A quote in it would be escaped there.
        assert!(page.contains(&warning.replace('\'', "&#39;")), "{warning}: {page}");
    }
}
