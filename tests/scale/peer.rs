//! A peer process: this program, started again in one of its roles.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};

use rustix::process::{Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use towline::{Address, Buffer, Connection, Endpoint, Message, Result};
use towline_tests::usage;

/// Names the role. A process with this variable is a peer.
pub(crate) const ROLE: &str = "TOWLINE_PEER";
/// A sender's task: the address, the number of connections, messages for each, and bytes of a message.
const TASK: &str = "TOWLINE_PEER_TASK";
/// The header of a request for the peer's usage. The peer echoes messages with any other header.
pub(crate) const USAGE: &str = "usage";

/// A peer process. It ends with this handle or with its parent.
#[derive(Debug)]
pub(crate) struct Peer {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts a peer that echoes messages. Returns it and its address.
    pub(crate) fn serving() -> (Self, Address) {
        let mut peer = Self::start("serve", "");
        let mut address = String::new();
        peer.output.read_line(&mut address).unwrap();
        (peer, address.trim().parse().unwrap())
    }

    /// Starts a peer that sends as fast as it can.
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
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Creates the runtime of both ends, with two threads.
pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Raises the limit on descriptors to its maximum.
pub(crate) fn allow_files() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

/// Runs this process as a peer.
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
            // The other end checks how the connection ends.
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

/// Opens all connections, then sends on all at once. The header of a message is its number.
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

/// The resource usage of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    pub(crate) descriptors: u64,
    /// Anonymous memory, in bytes.
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
