//! A process of a cluster: this program in another role. It prints a line for each event, and leaves in good
//! order when its standard input ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::process::{
    Pid, Resource, Rlimit, Signal, kill_process, prlimit, set_parent_process_death_signal, setrlimit,
};
use tokio::sync::{mpsc, oneshot};
use towline::{Address, Endpoint, Token};
use towline_runtime::{Client, Scheduler, Worker};
use towline_tests::guarded::Guarded;
use towline_tests::polls::in_time;

use crate::functions::{BLOCK, MIX, SLEEP, registry};

/// Selects the role of a peer process.
pub(crate) const ROLE: &str = "TOWLINE_CLUSTER_ROLE";
const ADDRESS: &str = "TOWLINE_CLUSTER_ADDRESS";
const SLOTS: &str = "TOWLINE_CLUSTER_SLOTS";
const LISTEN: &str = "TOWLINE_CLUSTER_LISTEN";

/// The heartbeat of endpoints in these tests. A peer is lost after three of them.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(250);
/// The scheduler's memory limit for one client, in bytes.
const CLIENT_BYTES_MAX: u64 = 64 << 20;
/// The blocks that a client process has made and keeps.
pub(crate) const KEPT_BLOCKS: usize = 8;
pub(crate) const KEPT_LEN: usize = 100_000;

/// A process of the cluster. It is killed with this handle, or with its parent.
#[derive(Debug)]
pub(crate) struct Peer {
    child: Child,
    lines: mpsc::UnboundedReceiver<String>,
}

impl Peer {
    pub(crate) fn start(role: &str, address: &Address, slots: u32) -> Self {
        let command = Command::new(std::env::current_exe().unwrap());
        Self::by(command, role, address, slots)
    }

    /// Starts a peer in a network namespace; a worker listens there.
    pub(crate) fn on(namespace: &str, role: &str, address: &Address, listen: Option<&str>) -> Self {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(std::env::current_exe().unwrap());
        command.envs(listen.map(|listen| (LISTEN, listen)));
        Self::by(command, role, address, 1)
    }

    fn by(mut command: Command, role: &str, address: &Address, slots: u32) -> Self {
        command.env(ROLE, role).env(ADDRESS, address.to_string()).env(SLOTS, slots.to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = mpsc::unbounded_channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // The test may have stopped reading.
                let _ = sender.send(line);
            }
        });
        Self { child, lines }
    }

    /// Reads its next line.
    pub(crate) async fn line(&mut self) -> String {
        in_time("the peer's line", self.lines.recv()).await.expect("the peer lives")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Limits its memory to its present size and `more_bytes`.
    pub(crate) fn limit_memory(&self, more_bytes: u64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")?.trim().strip_suffix(" kB"));
        let limit = Some(size.unwrap().parse::<u64>().unwrap() * 1024 + more_bytes);
        let limit = Rlimit { current: limit, maximum: limit };
        prlimit(Some(Pid::from_child(&self.child)), Resource::As, limit).unwrap();
    }

    /// Ends it in good order, and asserts that it prints nothing.
    pub(crate) async fn leave(mut self) {
        drop(self.child.stdin.take());
        assert_eq!(in_time("the peer's end", self.lines.recv()).await, None, "it printed nothing");
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An endpoint of the cluster: all peers share the token.
pub(crate) fn endpoint() -> Endpoint {
    let builder =
        Endpoint::builder().token(Token::from_bytes("of this cluster").unwrap()).heartbeat(HEARTBEAT);
    builder.pool(Guarded::pool()).build().unwrap()
}

/// Runs this process as a peer.
pub(crate) fn run(role: &str) -> ExitCode {
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).unwrap();
    let variable = |name| std::env::var(name).unwrap();
    let address: Address = variable(ADDRESS).parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.unwrap().block_on(async {
        match role {
            "scheduler" => schedule(&address).await,
            "worker" => work(&address, variable(SLOTS).parse().unwrap()).await,
            "client" => keep(&address).await,
            "asker" => ask(&address).await,
            other => panic!("no role is named {other}"),
        }
    });
    ExitCode::SUCCESS
}

async fn schedule(address: &Address) {
    let builder = Scheduler::builder().client_bytes_max(CLIENT_BYTES_MAX);
    let scheduler = builder.start(&endpoint(), address).await.unwrap();
    print_line(scheduler.address());
    input_ends().await;
    scheduler.close().await;
}

async fn work(address: &Address, slots: u32) {
    let endpoint = endpoint();
    let mut builder = Worker::builder(registry(&endpoint)).slots(slots);
    if let Ok(listen) = std::env::var(LISTEN) {
        builder = builder.listen(listen.parse().unwrap());
    }
    let mut worker = match builder.start(&endpoint, address).await {
        Ok(worker) => worker,
        Err(error) => return print_line(error),
    };
    print_line("joined");
    let error = tokio::select! {
        error = worker.ended() => error,
        () = input_ends() => return worker.close().await,
    };
    print_line(format_args!("{:?}", error.kind()));
}

async fn keep(address: &Address) {
    let client = Client::connect(&endpoint(), address).await.unwrap();
    let blocks = client.map(BLOCK, (0..KEPT_BLOCKS).map(|seed| (seed as u8, KEPT_LEN))).unwrap();
    for block in &blocks {
        block.done().await.unwrap();
    }
    print_line("made");
    let endless = client.submit(SLEEP, (3_600_000,)).unwrap();
    let error = endless.done().await.unwrap_err();
    print_line(format_args!("{:?}", error.kind()));
}

/// Fetches results from all workers, and has them fetch from each other.
async fn ask(address: &Address) {
    let client = Client::connect(&endpoint(), address).await.unwrap();
    let blocks = client.map(BLOCK, (0..16).map(|seed| (seed, KEPT_LEN))).unwrap();
    let pairs = blocks.iter().zip(blocks.iter().rev());
    let mixed = client.map(MIX, pairs.map(|(one, other)| (one.clone(), other.clone()))).unwrap();
    let results = async {
        client.gather(&blocks).await?;
        client.gather(&mixed).await
    };
    match results.await {
        Ok(results) => {
            assert_eq!(results.len(), 16);
            let stats = client.stats().await.unwrap();
            let worked = stats.workers.iter().filter(|worker| worker.results > 0).count();
            print_line(format_args!("answered by {worked}"));
        }
        Err(error) => print_line(error),
    }
}

/// Prints a line that the test reads.
fn print_line(line: impl std::fmt::Display) {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}").unwrap();
    output.flush().unwrap();
}

async fn input_ends() {
    let (ended, wait) = oneshot::channel();
    std::thread::spawn(move || {
        let mut byte = [0];
        while std::io::stdin().read(&mut byte).is_ok_and(|count| count > 0) {}
        let _ = ended.send(());
    });
    wait.await.unwrap();
}
