//! Two hosts in one: two network namespaces with a link between them, a scheduler on the left host, and
//! workers on both. Needs root and the `ip` command.

use std::process::Command;

use libtest_mimic::{Completion, Failed, Trial};
use towline::Address;
use towline_tests::need::skip;

use crate::cluster::run;
use crate::peer::Peer;

const LEFT: &str = "10.78.0.1";
const RIGHT: &str = "10.78.0.2";

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        Trial::ignorable_test("workers_of_two_hosts_connect_to_each_other", || on_two_hosts("found", found)),
        Trial::ignorable_test("worker_unreachable_from_other_hosts_is_refused", || {
            on_two_hosts("refused", refused)
        }),
    ]
}

/// Two network namespaces, which are deleted with this handle.
#[derive(Debug)]
struct Hosts {
    left: String,
    right: String,
}

impl Hosts {
    fn new(name: &str) -> Result<Self, String> {
        let [left, right] =
            ["left", "right"].map(|side| format!("towline-{name}-{}-{side}", std::process::id()));
        let hosts = Self { left, right };
        let Self { left, right } = &hosts;
        for host in [left, right] {
            ip(&["netns", "add", host])?;
            ip(&["-n", host, "link", "set", "lo", "up"])?;
        }
        ip(&["-n", left, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", right])?;
        for (host, at) in [(left, LEFT), (right, RIGHT)] {
            ip(&["-n", host, "address", "add", &format!("{at}/24"), "dev", "cable"])?;
            ip(&["-n", host, "link", "set", "cable", "up"])?;
        }
        Ok(hosts)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in [&self.left, &self.right] {
            // Errors cannot be reported here.
            let _ = ip(&["netns", "delete", host]);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(arguments).output().map_err(|error| format!("ip: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

fn on_two_hosts<T: Future<Output = ()>>(
    name: &str,
    case: fn(HostCluster) -> T,
) -> Result<Completion, Failed> {
    let hosts = match Hosts::new(name) {
        Ok(hosts) => hosts,
        Err(reason) => return skip("netns", &reason),
    };
    run(async {
        let anywhere = "tcp://*:0".parse().unwrap();
        let mut scheduler = Peer::on(&hosts.left, "scheduler", &anywhere, None);
        let bound: Address = scheduler.line().await.parse().unwrap();
        case(HostCluster { port: bound.port(), _scheduler: scheduler, hosts }).await;
    });
    Ok(Completion::Completed)
}

/// A scheduler on the left host that listens at every interface.
struct HostCluster {
    hosts: Hosts,
    _scheduler: Peer,
    port: u16,
}

impl HostCluster {
    /// The scheduler's address at the given host.
    fn at(&self, host: &str) -> Address {
        format!("tcp://{host}:{}", self.port).parse().unwrap()
    }

    async fn worker(&self, host: &str, scheduler: &str, listen: Option<&str>) -> (Peer, String) {
        let mut worker = Peer::on(host, "worker", &self.at(scheduler), listen);
        let line = worker.line().await;
        (worker, line)
    }
}

async fn found(cluster: HostCluster) {
    let Hosts { left, right } = &cluster.hosts;
    let workers = [
        cluster.worker(left, "127.0.0.1", Some("tcp://0.0.0.0:0")).await,
        cluster.worker(left, LEFT, Some("tcp://*:0")).await,
        cluster.worker(right, LEFT, None).await,
        cluster.worker(right, LEFT, Some("tcp://10.78.0.2:0")).await,
    ];
    for (_, line) in &workers {
        assert_eq!(line, "joined");
    }
    for (host, scheduler) in [(left, "127.0.0.1"), (left, LEFT), (right, LEFT)] {
        let mut client = Peer::on(host, "asker", &cluster.at(scheduler), None);
        assert_eq!(client.line().await, "answered by 4", "{host} by {scheduler}");
    }
}

async fn refused(cluster: HostCluster) {
    let Hosts { left, right } = &cluster.hosts;
    let (_worker, line) = cluster.worker(right, LEFT, Some("tcp://127.0.0.1:0")).await;
    assert!(line.contains("only its own host reaches") && line.contains("advertise"), "{line}");
    // While a worker that only the left host reaches is a member, workers of other hosts are refused.
    let (_near, line) = cluster.worker(left, "127.0.0.1", None).await;
    assert_eq!(line, "joined");
    let (_worker, line) = cluster.worker(right, LEFT, None).await;
    assert!(line.contains("tcp://127.0.0.1:") && line.contains("advertise"), "{line}");
    // A client that needs this worker's results gets the error at once.
    let mut client = Peer::on(right, "asker", &cluster.at(LEFT), None);
    let line = client.line().await;
    assert!(line.contains("only its own host reaches"), "{line}");
}
