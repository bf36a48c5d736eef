//! The output of `towline explain`.

use serde_json::Value;

use crate::command::{start, towline};

/// The keys of every candidate; those that do not apply are `null`.
const KEYS: [&str; 12] = [
    "basis",
    "copies",
    "encryption",
    "integrity",
    "measured",
    "predicted",
    "reason",
    "remedy",
    "share",
    "state",
    "streams",
    "transport",
];

/// Returns the name and state of each candidate.
fn states(of: &Value) -> Vec<(&Value, &Value)> {
    let candidates = of["candidates"].as_array().unwrap();
    candidates.iter().map(|candidate| (&candidate["transport"], &candidate["state"])).collect()
}

fn candidate<'a>(document: &'a Value, transport: &str) -> &'a Value {
    let candidates = document["candidates"].as_array().unwrap();
    candidates.iter().find(|candidate| candidate["transport"] == transport).unwrap()
}

fn is_speed(speed: &Value) -> bool {
    ["gb_per_s", "p50_us"].iter().all(|key| speed[key].as_f64().is_some_and(|figure| figure > 0.0))
}

#[test]
fn the_document_has_every_candidate_of_both_ends() {
    let mut serve = start(&["serve", "towline://127.0.0.1:0"]);
    let (address, _rest) = serve.first_line();
    for scheme in ["towline", "tcp"] {
        let address = address.replace("towline://", &format!("{scheme}://"));
        let explain = towline(&["explain", &address, "--json"]);
        explain.exits_with(0);
        let document = explain.document();
        assert_eq!(document["schema"], 1);
        for candidate in document["candidates"].as_array().unwrap() {
            let keys: Vec<&String> = candidate.as_object().unwrap().keys().collect();
            assert_eq!(keys, KEYS);
            let (state, chosen) = (candidate["state"].as_str().unwrap(), &document["chosen"]);
            assert!(["chosen", "available", "refused"].contains(&state), "{candidate}");
            assert_eq!(state == "chosen", candidate["transport"] == *chosen, "{candidate}");
            assert!(!candidate["reason"].as_str().unwrap().is_empty(), "{candidate}");
            let of_the_chosen = ["measured", "share", "copies", "encryption", "integrity", "streams"];
            assert!(
                of_the_chosen.iter().all(|key| candidate[key].is_null() != (state == "chosen")),
                "{candidate}"
            );
        }
        let chosen = candidate(&document, document["chosen"].as_str().unwrap());
        assert!(is_speed(&chosen["predicted"]) && chosen["basis"].is_string(), "{chosen}");
        assert!(is_speed(&chosen["measured"]) && chosen["share"].as_f64().unwrap() > 0.0, "{chosen}");
        assert_eq!((&chosen["encryption"], &chosen["integrity"]), (&"none".into(), &"none".into()));
        let mem = candidate(&document, "mem");
        assert!(mem["state"] == "refused" && mem["predicted"].is_null(), "{mem}");
        assert_eq!(document["peer"]["process"], serve.id());
        assert_eq!(document["peer"]["chosen"], document["chosen"]);
        assert_eq!(states(&document["peer"]), states(&document), "both ends agree");
        for end in [&document, &document["peer"]] {
            // Over shared memory the notes say what is copied once and what twice.
            let tells = |note: &Value| note.as_str().unwrap().contains("large host frames");
            let notes = end["notes"].as_array().unwrap();
            assert_eq!(notes.iter().any(tells), document["chosen"] == "shm", "{notes:?}");
        }
        assert_eq!(scheme == "tcp", mem["reason"] == "the address asks for tcp alone", "{mem}");
    }
}

#[test]
fn without_json_it_is_text_with_the_figures() {
    let mut serve = start(&["serve", "tcp://127.0.0.1:0"]);
    let (address, _rest) = serve.first_line();
    let explain = towline(&["explain", &address]);
    explain.exits_with(0);
    for says in
        ["chosen: tcp", "predicted: ", "as fast as a bare socket over loopback", "measured: ", "peer: "]
    {
        assert!(explain.out.contains(says), "{says}: {}", explain.out);
    }
    assert!(!explain.out.contains("measuring"), "progress is not for stdout: {}", explain.out);
}
