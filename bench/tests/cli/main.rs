//! The `towline` command from outside: its output and its exit codes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod addresses;
mod against;
mod bench;
mod cluster;
mod command;
mod exits;
mod explain;
mod first_steps;
mod history;
mod html;
mod interruptions;
mod limits;
mod log;
mod metrics;
mod network;
mod open;
mod places;
mod readers;
mod schema;
mod shm;
mod signals;
mod table;
mod tasks;
mod terminal;
mod tls;
mod tokens;
mod ucx;
mod usage;
mod workers;

use command::towline;

#[test]
fn every_help_has_an_example() {
    for subcommand in ["info", "serve", "bench", "explain", "scheduler", "top", "token"] {
        let help = towline(&[subcommand, "--help"]);
        help.exits_with(0);
        assert!(help.out.contains(&format!("  towline {subcommand}")), "{subcommand}: {}", help.out);
        assert!(help.out.contains("--json"), "{subcommand}: {}", help.out);
    }
    let help = towline(&["--help"]);
    help.exits_with(0);
    // Wherever the lines wrap.
    let text = help.out.split_whitespace().collect::<Vec<_>>().join(" ");
    let codes = "Exit codes: 0 success, 1 a failed run or assertion, 2 wrong usage, 130 interrupted (Ctrl-C), 143 terminated";
    assert!(text.contains(codes), "{text}");
}

#[test]
fn info_lists_every_backend_whatever_its_state() {
    let text = towline(&["info"]);
    text.exits_with(0);
    let info = towline(&["info", "--json"]);
    info.exits_with(0);
    let document = info.document();
    assert_eq!((&document["schema"], &document["complete"]), (&1.into(), &true.into()));
    for key in ["version", "host", "backends", "gpus", "rdma", "limits"] {
        assert!(!document[key].is_null(), "{key}");
    }
    for name in ["mem", "tcp", "shm", "ucx", "ib"] {
        let backends = document["backends"].as_array().unwrap();
        let backend =
            backends.iter().find(|backend| backend["name"] == name).unwrap_or_else(|| panic!("{name}"));
        let state = backend["state"].as_str().unwrap();
        assert!(["ready", "unavailable", "planned"].contains(&state), "{backend}");
        assert_eq!(backend["reason"].is_null(), state == "ready", "{backend}");
        assert!(text.out.contains(name), "{}", text.out);
    }
    assert_eq!(document["backends"][0]["state"], "ready");
}

#[test]
fn a_json_file_holds_the_document_beside_the_text() {
    let file = std::env::temp_dir().join(format!("towline-cli-{}.json", std::process::id()));
    let info = towline(&["info", "--json-file", &file.to_string_lossy()]);
    info.exits_with(0);
    let written: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert_eq!(written["schema"], 1);
    assert!(info.out.starts_with("towline "), "{}", info.out);
}
