//! Two hosts simulated by network namespaces joined by a cable. Needs root and the `ip` command.

use std::process::Command;

use towline_tests::need;

use crate::command::{Running, spawn};
use crate::schema::assert_fits;

const ADDRESSES: [&str; 2] = ["10.78.0.1", "10.78.0.2"];

/// Two joined namespaces, removed when this is dropped.
#[derive(Debug)]
struct Namespaces([String; 2]);

impl Namespaces {
    fn new() -> Result<Self, String> {
        let process = std::process::id();
        let namespaces = Self(["near", "far"].map(|side| format!("towline-cli-{process}-{side}")));
        let [near, far] = &namespaces.0;
        for (namespace, address) in [near, far].into_iter().zip(ADDRESSES) {
            ip(&["netns", "add", namespace])?;
            ip(&["-n", namespace, "link", "set", "lo", "up"])?;
            if namespace == far {
                ip(&[
                    "-n", near, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", far,
                ])?;
                ip(&["-n", near, "address", "add", &format!("{}/24", ADDRESSES[0]), "dev", "cable"])?;
                ip(&["-n", near, "link", "set", "cable", "up"])?;
                ip(&["-n", far, "address", "add", &format!("{address}/24"), "dev", "cable"])?;
                ip(&["-n", far, "link", "set", "cable", "up"])?;
            }
        }
        Ok(namespaces)
    }

    /// Starts the command in one of them. `ip` becomes the command, so ending one ends the other.
    fn start(&self, side: usize, line: &str) -> Running {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0[side], env!("CARGO_BIN_EXE_towline")]);
        spawn(command.args(line.split_whitespace()))
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for namespace in &self.0 {
            // A failure cannot be reported here.
            let _ = ip(&["netns", "delete", namespace]);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(arguments).output().map_err(|error| format!("ip: {error}"))?;
    let error = || format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    if output.status.success() { Ok(()) } else { Err(error()) }
}

#[test]
fn every_pattern_works_between_two_namespaces() {
    let namespaces = match Namespaces::new() {
        Ok(namespaces) => namespaces,
        Err(why) => {
            need::skipped("netns", &why);
            return;
        }
    };
    let mut serve = namespaces.start(1, &format!("serve tcp://{}:0 --insecure", ADDRESSES[1]));
    let (address, _rest) = serve.first_line();
    let line = format!(
        "bench --connect {address} --pattern latency,bandwidth,bidirectional,rate,get,put,connect,incast,alltoall --size 8,100000 \
         --verify --duration 0.02 --warmup 0.01 --repeat 1 --json"
    );
    let finished = namespaces.start(0, &line).finish();
    finished.exits_with(0);
    let document = finished.document();
    assert_fits(&document);
    let rows = document["results"].as_array().unwrap();
    assert_eq!(rows.len(), 18);
    assert!(rows.iter().all(|row| row["path"] == "tcp" && row["samples"].as_u64() > Some(0)), "{document}");
    // Four near workers and the far one all send.
    for row in rows.iter().filter(|row| row["pattern"] == "alltoall") {
        assert_eq!((&row["workers"], &row["processes"]), (&5.into(), &5.into()), "{row}");
        assert!(row["verified"] == true && row["fairness"].as_f64() > Some(0.0), "{row}");
    }
    let line = format!(
        "bench --connect {address} --streams 3 --pattern bandwidth,get,put,incast,alltoall --size 1M --verify --duration 0.02 \
         --repeat 1"
    );
    namespaces.start(0, &line).finish().exits_with(0);
}
