//! A peer in a process of its own: this program once more, in one of a few roles.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};

use rustix::process::{Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use towline::{Address, Buffer, Connection, Endpoint, Message, Result};
use towline_tests::usage;

/// Names the role, and makes a process a peer.
pub(crate) const ROLE: &str = "TOWLINE_PEER";
/// What a sender is to do: an address, how many connections, how many messages each, of how many bytes.
const TASK: &str = "TOWLINE_PEER_TASK";
/// A message's header that asks what the peer uses; any other comes back.
pub(crate) const USAGE: &str = "usage";

/// A peer process. It dies with this handle, or with its parent.
#[derive(Debug)]
pub(crate) struct Peer {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Peer {
    /// A peer that echoes, and its address.
    pub(crate) fn serving() -> (Self, Address) {
        let mut peer = Self::start("serve", "");
        let mut address = String::new();
        peer.output.read_line(&mut address).unwrap();
        (peer, address.trim().parse().unwrap())
    }

    /// A peer that sends as much as it can.
    pub(crate) fn sending(address: &Address, connections: usize, messages: usize, len: usize) -> Self {
        Self::start("send", &format!("{address} {connections} {messages} {len}"))
    }

    fn start(role: &str, task: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(ROLE, role).env(TASK, task).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What an application would run in: both ends have the same.
pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// As many descriptors as this process may have.
pub(crate) fn allow_files() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

/// This process is a peer.
pub(crate) fn run(role: &str) -> ExitCode {
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    match role {
        "serve" => runtime().block_on(serve()),
        "send" => runtime().block_on(send()),
        other => panic!("no role is named {other}"),
    }
    ExitCode::SUCCESS
}

async fn serve() {
    allow_files();
    let endpoint = Endpoint::new().unwrap();
    let listener = endpoint.listen(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    println!("{}", listener.address());
    std::io::stdout().flush().unwrap();
    loop {
        let connection = listener.accept().await.unwrap();
        tokio::spawn(async move {
            // However it ends: the other end is the one that looks.
            let _ = echo(connection).await;
        });
    }
}

async fn echo(connection: Connection) -> Result<()> {
    loop {
        let (header, frames) = connection.recv().await?.into_parts();
        let answer = match &*header {
            header if header == USAGE.as_bytes() => Message::new(Usage::now().to_bytes().to_vec()),
            _ => Message::from_parts(header, frames),
        };
        drop(connection.send(answer).await?);
    }
}

/// Sends on all connections at once, once all are there: each message's header is its number.
async fn send() {
    let task = std::env::var(TASK).unwrap();
    let mut words = task.split(' ');
    let address: Address = words.next().unwrap().parse().unwrap();
    let [connections, messages, len]: [usize; 3] =
        std::array::from_fn(|_| words.next().unwrap().parse().unwrap());
    let endpoint = Endpoint::new().unwrap();
    let mut all = Vec::new();
    for _ in 0..connections {
        all.push(endpoint.connect(&address).await.unwrap());
    }
    let mut senders = JoinSet::new();
    let frame = Buffer::from(vec![1; len]);
    for connection in all {
        let frame = frame.clone();
        senders.spawn(async move {
            for number in 0..messages {
                let message = Message::new(number.to_le_bytes().to_vec()).with_frame(frame.clone());
                drop(connection.send(message).await.unwrap());
            }
            connection.close().await.unwrap();
        });
    }
    senders.join_all().await;
}

/// What a process uses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    pub(crate) descriptors: u64,
    /// Memory of its own, in bytes.
    pub(crate) memory: u64,
}

impl Usage {
    pub(crate) fn now() -> Self {
        Self { descriptors: usage::descriptors() as u64, memory: usage::anonymous() }
    }

    fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.descriptors.to_le_bytes());
        bytes[8..].copy_from_slice(&self.memory.to_le_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let number = |at| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        Self { descriptors: number(0), memory: number(8) }
    }
}
