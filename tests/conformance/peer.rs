//! A peer in a process of its own: this program again, in one of several roles.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{
    DumpableBehavior, Pid, Resource, Rlimit, Signal, Uid, kill_process, set_dumpable_behavior,
    set_parent_process_death_signal, setrlimit,
};
use rustix::thread::set_thread_uid;
use tokio::sync::mpsc;
use towline::{
    Address, Buffer, BufferMut, Connection, Destination, Endpoint, ErrorKind, FrameInfo, Message, Place,
    Region, Result,
};

use crate::backends::{ROWS, Row};
use crate::content::{assert_frame, assert_message, bytes, message, number};
use crate::establishing;
use crate::floods;
use crate::forward;
use crate::holders;
use crate::mixed::lengths;
use crate::polls::in_time;
use crate::usage;

/// Environment variable: the role, which makes a process a peer.
pub(crate) const ROLE: &str = "TOWLINE_PEER";
const ROW: &str = "TOWLINE_PEER_ROW";
/// The address to listen at or to connect to.
const ADDRESS: &str = "TOWLINE_PEER_ADDRESS";
/// The user to run as.
const USER: &str = "TOWLINE_PEER_USER";

/// Heartbeat interval of endpoints that have to detect a loss soon.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(250);
/// Heartbeat interval of idle peers. A fraction of it exceeds a busy machine's delays.
pub(crate) const IDLE_HEARTBEAT: Duration = Duration::from_secs(2);
/// Length of the message for a peer of limited memory, and the further memory that it may use.
pub(crate) const LIMITED_LEN: usize = 128 << 20;
const LIMITED_ROOM: usize = 96 << 20;

/// Where a peer process runs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Home<'a> {
    /// Where this process runs.
    Here,
    /// In a network namespace.
    Network(&'a str),
    /// In PID and mount namespaces of its own.
    Processes,
    /// Without `/proc`.
    WithoutProc,
    /// As another user.
    User(u32),
}

/// A peer process. It ends when this handle is dropped, or when its parent ends.
#[derive(Debug)]
pub(crate) struct Peer {
    child: Child,
    lines: mpsc::UnboundedReceiver<String>,
}

impl Peer {
    /// Starts a peer that listens and follows the commands of messages: see [`serve`].
    pub(crate) async fn serving(row: &Row) -> (Self, Address) {
        Self::listening("serve", row, Home::Here, row.address).await
    }

    /// Starts a peer that listens, and returns its address.
    pub(crate) async fn listening(role: &str, row: &Row, home: Home<'_>, at: &str) -> (Self, Address) {
        let mut peer = Self::start(role, row, home, at);
        let address = peer.line().await.parse().unwrap();
        (peer, address)
    }

    /// Starts a peer in this role.
    pub(crate) fn start(role: &str, row: &Row, home: Home<'_>, address: &str) -> Self {
        let program = std::env::current_exe().unwrap();
        let around: &[&str] = match home {
            Home::Here | Home::User(_) => &[],
            Home::Network(namespace) => &["ip", "netns", "exec", namespace],
            Home::WithoutProc => {
                &["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /proc && exec \"$0\""]
            }
            Home::Processes => &["unshare", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child"],
        };
        let mut command = match around {
            [] => Command::new(program),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
        };
        if let Home::User(user) = home {
            command.env(USER, user.to_string());
        }
        command.env(ROLE, role).env(ROW, row.name).env(ADDRESS, address);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = mpsc::unbounded_channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in output.lines().map_while(std::io::Result::ok) {
                // The test may have dropped the receiver.
                let _ = sender.send(line);
            }
        });
        Self { child, lines }
    }

    /// Returns the next line that the peer prints.
    pub(crate) async fn line(&mut self) -> String {
        in_time("the peer's line", self.lines.recv()).await.expect("the peer lives")
    }

    /// Waits until the peer ends with success.
    pub(crate) async fn assert_done(&mut self) {
        let line = in_time("the peer's end", self.lines.recv()).await;
        assert_eq!(line, None, "it prints nothing more");
        assert!(self.child.wait().unwrap().success());
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills the peer, and returns when it had ended.
    pub(crate) fn kill(&mut self) -> Instant {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        Instant::now()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The peer may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the peer's role in this process.
pub(crate) fn run(role: &str) -> ExitCode {
    if let Ok(user) = std::env::var(USER) {
        // Only this thread; threads that it starts inherit the user.
        set_thread_uid(Uid::from_raw(user.parse().unwrap())).unwrap();
    }
    if role == "receive-undumpable" {
        set_dumpable_behavior(DumpableBehavior::NotDumpable).unwrap();
    }
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let variable = |name| std::env::var(name).unwrap();
    let row = ROWS.iter().find(|row| row.name == variable(ROW)).unwrap();
    let address: Address = variable(ADDRESS).parse().unwrap();
    if role == "run-commands" {
        return establishing::run_remote(row, address);
    }
    let builder = row.builder().insecure(true).connect_time(Duration::from_secs(2));
    let endpoint = match role {
        "exchange" => builder.heartbeat(HEARTBEAT),
        "idle" | "idle-listen" => builder.heartbeat(IDLE_HEARTBEAT),
        "hold-without-trust" => builder.trust_user(false),
        _ => builder,
    };
    let endpoint = endpoint.build().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.unwrap().block_on(async {
        match role {
            "serve" => listen(&endpoint, &address).await,
            "receive" | "receive-undumpable" => receive(&endpoint, &address).await,
            "serve-limited" => serve_limited(&endpoint, &address).await,
            "connect" => connect(&endpoint, &address).await,
            "bind" => bind(&endpoint, &address).await,
            "time-out" => time_out(row, &address).await,
            "exhaust" => exhaust(&endpoint, &address).await,
            "choose" => choose(&endpoint, &address).await,
            "send-until-lost" => send_until_lost(&endpoint, &address).await,
            "lend" => holders::lend(&endpoint, &address).await,
            "send-and-stay" => send_and_stay(&endpoint, &address).await,
            "exchange" => exchange(&endpoint, &address).await,
            "idle" => idle(endpoint.connect(&address).await.unwrap()).await,
            "idle-listen" => {
                let listener = endpoint.listen(&address).await.unwrap();
                print_line(listener.address());
                idle(listener.accept().await.unwrap()).await;
            }
            "forward" => forward::forward(row, &endpoint, &address).await,
            "flood" => floods::flood(&address),
            "hold" | "hold-without-trust" => forward::hold(row, &endpoint).await,
            other => panic!("no role is named {other}"),
        }
    });
    ExitCode::SUCCESS
}

/// Prints a line for the test.
pub(crate) fn print_line(line: impl std::fmt::Display) {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}").unwrap();
    output.flush().unwrap();
}

async fn listen(endpoint: &Endpoint, address: &Address) {
    let listener = endpoint.listen(address).await.unwrap();
    print_line(listener.address());
    loop {
        let connection = listener.accept().await.unwrap();
        tokio::spawn(async move {
            // The other end asserts how the connection ends.
            let _ = serve(connection).await;
        });
    }
}

/// Commands in a message's header.
pub(crate) const ECHO: &str = "echo";
/// Sends back a region of [`EXPOSED_LEN`] bytes to read.
pub(crate) const EXPOSE: &str = "expose";
/// Holds the frames until the connection ends.
pub(crate) const HOLD: &str = "hold";
/// Receives no more messages.
pub(crate) const IGNORE: &str = "ignore";
pub(crate) const CLOSE: &str = "close";
/// Exits the process without a close.
pub(crate) const EXIT: &str = "exit";

pub(crate) const EXPOSED_LEN: usize = 32 << 20;

async fn serve(connection: Connection) -> Result<()> {
    let mut regions: Vec<Region<Buffer>> = Vec::new();
    let mut held: Vec<Buffer> = Vec::new();
    loop {
        let (header, frames) = connection.recv().await?.into_parts();
        match std::str::from_utf8(&header).unwrap() {
            ECHO => drop(connection.send(Message::from_parts(header, frames)).await?),
            EXPOSE => {
                let region = connection.expose(bytes(1, EXPOSED_LEN).into(), Duration::from_secs(600))?;
                drop(connection.send(Message::new(region.remote().to_bytes().to_vec())).await?);
                regions.push(region);
            }
            HOLD => held.extend(frames),
            IGNORE => std::future::pending().await,
            CLOSE => return connection.close().await,
            EXIT => std::process::exit(0),
            other => panic!("no command is named {other}"),
        }
    }
}

/// Sends frames to a serving peer, and receives them back.
pub(crate) async fn echo(connection: &Connection, len: usize) {
    let message = Message::new(ECHO).with_frame(bytes(len, len)).with_frame(bytes(1, 10));
    let both = async { tokio::join!(connection.deliver(message), connection.recv()) };
    let (sent, back) = in_time("an echo", both).await;
    sent.unwrap();
    let back = back.unwrap();
    assert_frame(&back.frames()[0], len, len);
    assert_frame(&back.frames()[1], 1, 10);
}

/// Receives a message into named memory, sends it back, and receives another into pool memory. A second copy
/// of either would exceed the memory limit.
async fn serve_limited(endpoint: &Endpoint, address: &Address) {
    let listener = endpoint.listen(address).await.unwrap();
    print_line(listener.address());
    let connection = listener.accept().await.unwrap();
    let limit = Some(usage::data() + (LIMITED_LEN + LIMITED_ROOM) as u64);
    setrlimit(Resource::Data, Rlimit { current: limit, maximum: limit }).unwrap();

    let destination = BufferMut::with_capacity(LIMITED_LEN);
    let too_much = BufferMut::with_alignment(LIMITED_LEN, 1).unwrap_err();
    assert_eq!(too_much.kind(), ErrorKind::TooLarge, "the limit holds: {too_much}");
    let incoming = connection.incoming().await.unwrap();
    let taken = incoming.accept_into(vec![Destination::Buffer(destination)]).await.unwrap();
    assert_message(&taken, 1, &[LIMITED_LEN]);
    connection.deliver(taken).await.unwrap();

    let taken = connection.recv().await.unwrap();
    assert_eq!(taken.frames()[0].place(), Place::Host);
    assert_message(&taken, 2, &[LIMITED_LEN]);
    drop(taken);
    connection.deliver(message(3, &[])).await.unwrap();
    connection.close().await.unwrap();
}

/// Prints the note on large frames. Receives each message into named memory, and sends the frames back with
/// the number of bytes copied.
async fn receive(endpoint: &Endpoint, address: &Address) {
    let listener = endpoint.listen(address).await.unwrap();
    print_line(listener.address());
    let connection = listener.accept().await.unwrap();
    print_line(connection.explain().await.notes.concat());
    loop {
        let Ok(incoming) = connection.incoming().await else { return };
        let destination = |frame: &FrameInfo| Destination::Buffer(BufferMut::with_capacity(frame.len));
        let destinations = incoming.frames().iter().map(destination).collect();
        let before = connection.stats().bytes_copied;
        let Ok(taken) = incoming.accept_into(destinations).await else { return };
        let copied = connection.stats().bytes_copied - before;
        let back = Message::from_parts(copied.to_le_bytes().to_vec(), taken.into_parts().1);
        if connection.deliver(back).await.is_err() {
            return;
        }
    }
}

/// Prints how a connect ends: the kind, its time in ms, and the error.
async fn connect(endpoint: &Endpoint, address: &Address) {
    let began = Instant::now();
    let connected = endpoint.connect(address).await;
    print_outcome(connected.map(|connection| connection.path().address().to_owned()), began);
}

/// Prints how a listen ends, as [`connect`] does, or its address. Then waits forever.
async fn bind(endpoint: &Endpoint, address: &Address) {
    let began = Instant::now();
    let listened = endpoint.listen(address).await;
    print_outcome(
        listened.as_ref().map(|listener| listener.address().to_string()).map_err(Clone::clone),
        began,
    );
    std::future::pending().await
}

fn print_outcome(how: Result<String>, began: Instant) {
    let time_ms = began.elapsed().as_millis();
    match how {
        Ok(address) => print_line(format_args!("connected {time_ms} {address}")),
        Err(error) => print_line(format_args!("{:?} {time_ms} {error}", error.kind())),
    }
}

/// Connects from an endpoint, drops it, and prints how the connect ended. Then prints when the endpoint's
/// thread had ended.
async fn time_out(row: &Row, address: &Address) {
    let drivers = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok());
        names.filter(|name| name.trim() == "towline-driver").count()
    };
    let endpoint = row.builder().connect_time(Duration::from_secs(1)).build().unwrap();
    connect(&endpoint, address).await;
    // Its own driver, and the driver of the endpoint that every peer has.
    assert_eq!(drivers(), 2);
    drop(endpoint);
    let began = Instant::now();
    while drivers() > 1 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    print_line(began.elapsed().as_millis());
}

/// Connects until a connect fails, keeping every connection. Prints the outcome as [`connect`] does.
async fn exhaust(endpoint: &Endpoint, address: &Address) {
    let mut held = Vec::new();
    loop {
        let began = Instant::now();
        match endpoint.connect(address).await {
            Ok(connection) => held.push(connection),
            Err(error) => return print_outcome(Err(error), began),
        }
        assert!(held.len() < 100, "there should be far fewer ports");
    }
}

/// Prints the chosen backend and the candidate note of shared memory, or the error. Then echoes.
async fn choose(endpoint: &Endpoint, address: &Address) {
    let connection = match endpoint.connect(address).await {
        Ok(connection) => connection,
        Err(error) => return print_line(format_args!("{:?}: {error}", error.kind())),
    };
    let path = connection.path();
    let shm = path.candidates().iter().find(|candidate| candidate.name == "shm").unwrap();
    print_line(format_args!("{}: {}", path.chosen(), shm.reason));
    for len in [0, 100, 20_000, 1 << 20] {
        echo(&connection, len).await;
    }
    print_line("ready");
}

/// Sends messages by a seed, which the first message holds, until the connection ends. Receives everything.
async fn send_until_lost(endpoint: &Endpoint, address: &Address) {
    let connection = endpoint.connect(address).await.unwrap();
    let seed = number(connection.recv().await.unwrap().header());
    let pouring = async {
        for at in 0.. {
            if connection.send(message(at, &lengths(seed, at))).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(pouring, async { while connection.recv().await.is_ok() {} });
}

/// Messages that [`send_and_stay`] sends.
pub(crate) const SENT_COUNT: usize = 20;

/// Sends messages without awaiting receipts, and stays.
async fn send_and_stay(endpoint: &Endpoint, address: &Address) {
    let connection = endpoint.connect(address).await.unwrap();
    for at in 0..SENT_COUNT {
        drop(connection.send(message(at, &[at * 500])).await.unwrap());
    }
    print_line("sent");
    std::future::pending().await
}

/// Echoes, prints a line, and sends until the peer is lost. Prints how the calls end.
async fn exchange(endpoint: &Endpoint, address: &Address) {
    let connection = endpoint.connect(address).await.unwrap();
    for len in [0, 100, 20_000, 8 << 20] {
        echo(&connection, len).await;
    }
    print_line("ready");
    let sending = async {
        loop {
            let large = Message::new(ECHO).with_frame(bytes(1, 4 << 20));
            if let Err(error) = connection.deliver(large).await {
                return error;
            }
        }
    };
    let receiving = async {
        loop {
            if let Err(error) = connection.recv().await {
                return error;
            }
        }
    };
    let (sent, received) = tokio::join!(sending, receiving);
    print_line(format_args!("{:?} {:?}", sent.kind(), received.kind()));
}

/// Prints a line, sends nothing, and prints how the connection ends.
async fn idle(connection: Connection) {
    print_line("ready");
    let error = connection.recv().await.unwrap_err();
    print_line(format_args!("{:?}: {error}", error.kind()));
}
