//! Two hosts on one: processes in two network namespaces, with different boot ids. Two veth cables connect them.
//! Listeners have addresses on the first, and UCX uses the second. Needs root, `ip` and `tc`.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use libtest_mimic::{Completion, Failed};
use rustix::process::{Signal, set_parent_process_death_signal};
use towline::backend::{Backend, Tcp, Ucx};
use towline::{CandidateState, Connection, Endpoint};

use crate::echoing::Server;
use crate::libraries::Installed;
use crate::need;
use crate::over_ucx::{assert_echoes, assert_goes_on, at, meet, run};
use crate::polls::in_time;

/// The role of this process: `serve`, `serve tcp`, or an address to connect to.
const ROLE: &str = "TOWLINE_UCX_HOST";
const LIBUCP: &str = "TOWLINE_UCX_HOST_LIBUCP";
/// The backend that must carry the connections.
const EXPECTED: &str = "TOWLINE_UCX_HOST_EXPECTED";
const CABLES: [&str; 2] = ["eth0", "eth1"];
const LISTENING: &str = "10.79.0.2";
/// The queueing discipline that slows a cable down.
const SLOW: [&str; 7] = ["tbf", "rate", "100mbit", "burst", "32k", "latency", "50ms"];

/// The expectation for a UCX that may abort a process over sockets.
const REFUSED: &str = "refused";

/// The slow cable, the role of the far end, and the expected winner of the path probe, or none without a probe.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    slow: usize,
    far: &'static str,
    expected: &'static str,
}

pub(crate) const CASES: [(&str, Case); 4] = [
    (
        "between_hosts_ucx_that_is_faster_takes_the_place_of_tcp",
        Case { slow: 0, far: "serve", expected: "ucx" },
    ),
    ("between_hosts_ucx_that_is_slower_leaves_it_to_tcp", Case { slow: 1, far: "serve", expected: "tcp" }),
    ("between_hosts_ucx_that_one_has_is_not_even_loaded", Case { slow: 0, far: "serve tcp", expected: "" }),
    (
        "between_hosts_ucx_that_may_abort_there_leaves_it_to_tcp",
        Case { slow: 0, far: "serve", expected: REFUSED },
    ),
];

impl Case {
    /// Returns true if the case is for this UCX: the older one is refused where the newer one is probed.
    pub(crate) fn is_of(self, which: &str) -> bool {
        self.expected.is_empty() || (self.expected == REFUSED) == (which == "older")
    }
}

/// Two namespaces, deleted with this handle.
struct Hosts([String; 2]);

impl Hosts {
    fn new(case: usize) -> Result<Self, String> {
        let process = std::process::id();
        let hosts = Self(["near", "far"].map(|side| format!("tlu-{process}-{case}-{side}")));
        let [near, far] = &hosts.0;
        for host in &hosts.0 {
            command("ip", &["netns", "add", host])?;
            command("ip", &["-n", host, "link", "set", "lo", "up"])?;
        }
        for (network, cable) in CABLES.iter().enumerate() {
            let cable = *cable;
            command(
                "ip",
                &["-n", near, "link", "add", cable, "type", "veth", "peer", "name", cable, "netns", far],
            )?;
            for (number, host) in hosts.0.iter().enumerate() {
                let address = format!("10.79.{network}.{}/24", number + 1);
                command("ip", &["-n", host, "address", "add", &address, "dev", cable])?;
                command("ip", &["-n", host, "link", "set", cable, "up"])?;
            }
        }
        Ok(hosts)
    }

    fn slow_down(&self, cable: &str) -> Result<(), String> {
        for host in &self.0 {
            command("tc", &[&["-n", host, "qdisc", "add", "dev", cable, "root"], &SLOW[..]].concat())?;
        }
        Ok(())
    }

    /// Waits until both ends of the cables have a carrier, up to a second. UCX ignores devices without one.
    fn until_connected(&self) -> Result<(), String> {
        let deadline = Instant::now() + Duration::from_secs(10);
        for (host, cable) in self.0.iter().flat_map(|host| CABLES.map(|cable| (host, cable))) {
            loop {
                let link = command("ip", &["-n", host, "-o", "link", "show", "dev", cable])?;
                if link.contains("LOWER_UP") && link.contains("state UP") {
                    break;
                }
                if Instant::now() > deadline {
                    return Err(format!("no carrier: {link}"));
                }
                sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    /// Starts this program on one of the hosts.
    fn start(&self, host: usize, role: &str, case: Case, installed: &Installed, boot_id: &Path) -> Child {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0[host], "unshare", "--mount", "sh", "-c"]);
        command.arg("mount --bind \"$1\" /proc/sys/kernel/random/boot_id && exec \"$2\"").arg("sh");
        command.arg(boot_id).arg(env::current_exe().unwrap());
        command.env(ROLE, role).env(LIBUCP, &installed.libucp).env(EXPECTED, case.expected);
        command.env("UCX_TLS", "tcp").env("UCX_NET_DEVICES", CABLES[1]).env("UCX_LOG_LEVEL", "fatal");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in &self.0 {
            // A destructor cannot report an error.
            let _ = command("ip", &["netns", "delete", host]);
        }
    }
}

/// Runs a command, and returns its output.
fn command(name: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(name).args(arguments).output().map_err(|error| format!("{name}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(format!("{name} {}: {}", arguments.join(" "), text(&output.stderr)))
}

pub(crate) fn holds(number: usize, case: Case, installed: &Installed) -> Result<Completion, Failed> {
    let hosts = match Hosts::new(number) {
        Ok(hosts) => hosts,
        Err(why) => return need::skip("netns", &why),
    };
    hosts.slow_down(CABLES[case.slow])?;
    hosts.until_connected()?;
    let folder = tempfile::tempdir()?;
    let boot_ids = [1, 2].map(|host| {
        let path = folder.path().join(format!("boot-id-{host}"));
        fs::write(&path, format!("0000000{host}-0000-4000-8000-000000000000\n")).unwrap();
        path
    });
    let mut server = Server(hosts.start(1, case.far, case, installed, &boot_ids[1]));
    let mut address = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut address)?;
    let connector = hosts.start(0, address.trim(), case, installed, &boot_ids[0]).wait_with_output()?;
    if connector.status.success() { Ok(Completion::Completed) } else { Err("see above".into()) }
}

/// Runs the role of a process on one of the hosts.
pub(crate) fn run_if_asked() -> Option<ExitCode> {
    let role = env::var(ROLE).ok()?;
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let ucx: Arc<dyn Backend> = Arc::new(Ucx::default().library(env::var(LIBUCP).unwrap()));
    let expected = env::var(EXPECTED).unwrap();
    run(async {
        let mut backends = vec![ucx, Arc::new(Tcp)];
        if role == "serve tcp" {
            backends.remove(0);
        }
        let endpoint = Endpoint::builder().backends(backends).insecure(true).build().unwrap();
        if role.starts_with("serve") {
            serve(&endpoint).await;
        }
        if expected.is_empty() {
            let connection = in_time("a connection", endpoint.connect(&at(&role))).await.unwrap();
            assert_untried(&connection, "the peer does not offer it");
            return assert_echoes(&connection, &[8, 100_000]).await;
        }
        if expected == REFUSED {
            let connection = in_time("a connection", endpoint.connect(&at(&role))).await.unwrap();
            assert_eq!(connection.path().chosen(), "tcp", "{:?}", connection.path());
            let of_ucx = connection.path().candidates().iter().find(|it| it.name == "ucx").unwrap();
            assert_eq!(of_ucx.state, CandidateState::Refused);
            assert!(of_ucx.reason.contains("may abort this process"), "{}", of_ucx.reason);
            return assert_echoes(&connection, &[8, 100_000]).await;
        }
        let mut reasons = Vec::new();
        for _ in 0..3 {
            let connection = in_time("a connection", endpoint.connect(&at(&role))).await.unwrap();
            reasons.push(assert_explained(&connection, &expected).await);
            assert_echoes(&connection, &[8, 100_000]).await;
            in_time("the end", connection.close()).await.unwrap();
        }
        // The remembered result has the figures of the one probe.
        assert!(reasons.iter().all(|reason| *reason == reasons[0]), "{reasons:?}");
        let many = (0..8).map(|_| {
            let (endpoint, address) = (endpoint.clone(), at(&role));
            tokio::spawn(async move { endpoint.connect(&address).await })
        });
        for connecting in many.collect::<Vec<_>>() {
            let connection = in_time("one of many", connecting).await.unwrap().unwrap();
            assert_eq!(assert_explained(&connection, &expected).await, reasons[0]);
            assert_echoes(&connection, &[8, 100_000]).await;
        }
    });
    Some(ExitCode::SUCCESS)
}

async fn serve(endpoint: &Endpoint) -> ! {
    let listener = endpoint.listen(&at(&format!("towline://{LISTENING}:0"))).await.unwrap();
    println!("{}", listener.address());
    std::io::stdout().flush().unwrap();
    loop {
        let connection = listener.accept().await.unwrap();
        tokio::spawn(async move {
            while let Ok(message) = connection.recv().await {
                if connection.deliver(message).await.is_err() {
                    break;
                }
            }
        });
    }
}

/// Checks that both candidates have figures and that the choice follows the rule. Returns the reason.
async fn assert_explained(connection: &Connection, expected: &str) -> String {
    let explanation = connection.explain().await;
    assert_eq!(connection.path().chosen(), expected, "{explanation:?}");
    let [ucx, tcp] = ["ucx", "tcp"].map(|name| {
        let of = |it: &&towline::Explained| it.candidate.name == name;
        explanation.candidates.iter().find(of).unwrap()
    });
    let [of_ucx, of_tcp] = [ucx, tcp].map(|it| it.predicted.unwrap().speed.gb_per_s);
    assert_eq!(of_ucx >= 1.2 * of_tcp, expected == "ucx", "{explanation:?}");
    let states = [ucx, tcp].map(|it| it.candidate.state);
    let expected_states = match expected {
        "ucx" => [CandidateState::Chosen, CandidateState::Available],
        _ => [CandidateState::Refused, CandidateState::Chosen],
    };
    assert_eq!(states, expected_states);
    let reason = &ucx.candidate.reason;
    assert!(reason.contains("1 MiB took") && reason.contains("ms over tcp"), "{reason}");
    reason.clone()
}

/// Checks that the connection uses tcp for this reason, and that no UCX was loaded.
fn assert_untried(connection: &Connection, why: &str) {
    assert_eq!(connection.path().chosen(), "tcp", "{:?}", connection.path());
    let of_ucx = connection.path().candidates().iter().find(|it| it.name == "ucx").unwrap();
    assert_eq!((of_ucx.state, &of_ucx.reason[..]), (CandidateState::Refused, why));
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    assert!(!maps.contains("libucp"), "{maps}");
}

pub(crate) fn within_a_host_ucx_is_neither_probed_nor_loaded(installed: &Installed) {
    let ucx = Ucx::default().library(&installed.libucp);
    let builder = Endpoint::builder().backends(vec![Arc::new(ucx), Arc::new(Tcp)]);
    run(async {
        let endpoint = builder.build().unwrap();
        let listener = endpoint.listen(&at("towline://127.0.0.1:0")).await.unwrap();
        let (a, b) = meet(&endpoint, &listener).await;
        for end in [&a, &b] {
            assert_untried(end, "it is tried between hosts, and this is one");
        }
        assert_goes_on(&a, &b).await;
    });
}
