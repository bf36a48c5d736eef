//! A connection attempt that is cancelled, or whose peer stops, at any step leaks nothing at either end: no
//! descriptor and no task, while both processes live on.
//!
//! The task that establishes one end is polled `n` times, for `n` from zero until it completes. It is then
//! cancelled or left unpolled. The other end behaves well and follows commands, in a process of its own where
//! the backend reaches one.

use std::fmt::Display;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use towline::environment::Environment;
use towline::{Address, Builder, Caps, Connection, Endpoint, Error, Listener};
use towline_tests::watched::{Stop, Watched};

use crate::backends::{Row, connect_pair};
use crate::content::{assert_message, message};
use crate::peer::{Home, Peer};
use crate::polls::{TIMEOUT, eventually, in_time};
use crate::suite::cases;
use crate::usage;

cases! {
    ANY:
        a_connect_cancelled_at_any_step_leaks_nothing,
        an_accept_cancelled_at_any_step_leaks_nothing,
        a_connector_stopped_at_any_step_leaks_nothing_at_its_peer,
        an_acceptor_stopped_at_any_step_leaks_nothing_at_its_peer,
        endpoints_leave_no_task_in_a_shared_environment;
}

/// Short, since many steps last as long. On a busy machine, an attempt that is not stopped may exceed it and is
/// then repeated.
const HANDSHAKE_TIME: Duration = Duration::from_millis(500);
const HEARTBEAT: Duration = Duration::from_millis(150);
/// An attempt takes fewer polls.
const POLLS_MAX: usize = 4000;

/// Commands to the other end; an address follows.
const LISTEN: &str = "listen";
const CONNECT: &str = "connect";
/// Like [`CONNECT`], but the answer follows the attempt, and is its error if it fails.
const CONNECT_NOW: &str = "connect-now";
/// The answer holds its numbers of descriptors and tasks.
const COUNT: &str = "count";

/// Resources of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counts {
    descriptors: usize,
    tasks: usize,
}

impl Counts {
    fn of(environment: &Watched) -> Self {
        Self { descriptors: usage::descriptors(), tasks: environment.tasks() }
    }

    fn is_within(self, before: Self) -> bool {
        self.descriptors <= before.descriptors && self.tasks <= before.tasks
    }
}

/// This end, and the end that follows commands.
struct Ends {
    environment: Arc<Watched>,
    endpoint: Endpoint,
    listener: Listener,
    /// Dropping it ends the other end.
    control: Control,
    /// The other end's listening address.
    address: Address,
    before: [Counts; 2],
    /// The ends share a process, and with it the descriptors counted.
    are_one_process: bool,
    _peer: Option<Peer>,
}

fn configured(builder: Builder, environment: &Arc<Watched>) -> Builder {
    let environment: Arc<dyn Environment> = environment.clone();
    builder.environment(environment).handshake_time(HANDSHAKE_TIME).heartbeat(HEARTBEAT).insecure(true)
}

impl Ends {
    async fn new(row: &'static Row) -> Self {
        let environment = Watched::start().unwrap();
        let endpoint = configured(row.builder(), &environment).build().unwrap();
        let waiting = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let control_address = waiting.local_addr().unwrap();
        let are_one_process = !row.caps.contains(Caps::CROSS_PROCESS);
        let peer = if are_one_process {
            let theirs = Watched::start().unwrap();
            let far = configured(row.builder(), &theirs).build().unwrap();
            tokio::spawn(async move { run_commands(row, &theirs, &far, &control_address.to_string()).await });
            None
        } else {
            Some(Peer::start("run-commands", row, Home::Here, &format!("tcp://{control_address}")))
        };
        let control = Control::over(in_time("the other end", waiting.accept()).await.unwrap().0);
        let address = control.command(LISTEN).await.parse().unwrap();
        let listener = endpoint.listen(&row.address()).await.unwrap();
        let none = Counts { descriptors: 0, tasks: 0 };
        let mut ends = Self {
            environment,
            endpoint,
            listener,
            control,
            address,
            before: [none; 2],
            are_one_process,
            _peer: peer,
        };
        // A few connections create what is created once.
        for _ in 0..3 {
            ends.assert_connects().await;
            ends.assert_accepts().await;
        }
        let mut counts = ends.counts().await;
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let now = ends.counts().await;
            if now == counts {
                break;
            }
            counts = now;
        }
        ends.before = counts;
        ends
    }

    async fn counts(&self) -> [Counts; 2] {
        let there = self.control.command(COUNT).await;
        let (descriptors, tasks) = there.split_once(' ').unwrap();
        let there = Counts { descriptors: descriptors.parse().unwrap(), tasks: tasks.parse().unwrap() };
        [Counts::of(&self.environment), there]
    }

    /// Asserts that the other end has no more than before, whatever this end does.
    async fn assert_nothing_left_there(&self, what: &str) {
        let fits = |[_, now]: [Counts; 2]| match self.before {
            [_, before] if self.are_one_process => now.tasks <= before.tasks,
            [_, before] => now.is_within(before),
        };
        self.assert(what, fits).await;
    }

    async fn assert_nothing_left(&self, what: &str) {
        self.assert(what, |now| now.iter().zip(self.before).all(|(now, before)| now.is_within(before))).await;
    }

    async fn assert(&self, what: &str, fits: impl Fn([Counts; 2]) -> bool) {
        let began = Instant::now();
        loop {
            let now = self.counts().await;
            if fits(now) {
                return;
            }
            assert!(began.elapsed() < TIMEOUT, "{what}: {now:?} is left where {:?} was", self.before);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn assert_connects(&self) {
        let limit = Instant::now() + TIMEOUT;
        loop {
            let attempt = Attempt::begin();
            match in_time("a connection", self.endpoint.connect(&self.address)).await {
                Ok(connection) => return assert_carries(&connection).await,
                Err(error) => attempt.assert_slow(&error),
            }
            assert!(Instant::now() < limit, "no attempt is fast enough");
        }
    }

    async fn assert_accepts(&self) {
        let limit = Instant::now() + TIMEOUT;
        loop {
            let attempt = Attempt::begin();
            let error = self.control.command(&format!("{CONNECT_NOW} {}", self.listener.address())).await;
            if error.is_empty() {
                let connection = in_time("a connection", self.listener.accept()).await.unwrap();
                return assert_carries(&connection).await;
            }
            attempt.assert_slow(&error);
            assert!(Instant::now() < limit, "no attempt is fast enough");
        }
    }

    /// Asserts that the connection of an accepting task carries, if the task has ended.
    async fn accepted_unless_stopped(&self, stop: &Stop, attempt: &Attempt) -> Reached {
        if !stop.is_over() {
            return Reached::Stop;
        }
        let Some(connection) = self.accepted().await else {
            attempt.assert_slow(&"nothing is accepted");
            return Reached::Timeout;
        };
        assert_carries(&connection).await;
        Reached::End
    }

    /// Returns the connection of an accepting task that has ended, or `None` if its attempt failed.
    async fn accepted(&self) -> Option<Connection> {
        // The task passes the connection on before it ends.
        let accepted = tokio::time::timeout(Duration::from_millis(1), self.listener.accept()).await;
        accepted.ok().map(Result::unwrap)
    }
}

/// An attempt that is not stopped. On a busy machine it may fail, since [`HANDSHAKE_TIME`] is short.
struct Attempt(Instant);

impl Attempt {
    fn begin() -> Self {
        Self(Instant::now())
    }

    /// Asserts that the attempt took as long as the shortest limit of its steps, so that a repetition may
    /// succeed.
    #[track_caller]
    fn assert_slow(&self, error: &dyn Display) {
        let took = self.0.elapsed();
        assert!(took >= HANDSHAKE_TIME / 2, "it failed after {took:?}: {error}");
    }
}

/// Sends a message, which the other end receives, and ends the connection.
async fn assert_carries(connection: &Connection) {
    in_time("a message", connection.deliver(message(1, &[100]))).await.unwrap();
    // The other end detects an abort at once.
    connection.abort();
}

/// Asserts that the connection carries, if there is one.
async fn carried(connected: Result<Connection, Error>, attempt: &Attempt) -> Reached {
    match connected {
        Ok(connection) => {
            assert_carries(&connection).await;
            Reached::End
        }
        Err(error) => {
            attempt.assert_slow(&error);
            Reached::Timeout
        }
    }
}

/// The stream of commands to the other end, one a line.
struct Control(Mutex<(Lines<BufReader<OwnedReadHalf>>, OwnedWriteHalf)>);

impl Control {
    fn over(stream: TcpStream) -> Self {
        let (read, write) = stream.into_split();
        Self(Mutex::new((BufReader::new(read).lines(), write)))
    }

    /// Sends a command, and returns the answer.
    async fn command(&self, what: &str) -> String {
        let (lines, output) = &mut *self.0.lock().await;
        output.write_all(format!("{what}\n").as_bytes()).await.unwrap();
        in_time("an answer", lines.next_line()).await.unwrap().expect("the other end is connected")
    }
}

/// Runs the other end in a process of its own.
pub(crate) fn run_remote(row: &'static Row, address: Address) -> ExitCode {
    let environment = Watched::start().unwrap();
    let endpoint = configured(row.builder(), &environment).build().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.unwrap().block_on(run_commands(
        row,
        &environment,
        &endpoint,
        &format!("{}:{}", address.host(), address.port()),
    ));
    ExitCode::SUCCESS
}

/// Follows the commands that arrive from `control_address`.
async fn run_commands(row: &'static Row, environment: &Watched, endpoint: &Endpoint, control_address: &str) {
    let (read, mut output) = TcpStream::connect(control_address).await.unwrap().into_split();
    let mut lines = BufReader::new(read).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let (what, address) = line.split_once(' ').unwrap_or((&line, ""));
        let answer = match what {
            LISTEN => {
                let listener = endpoint.listen(&row.address()).await.unwrap();
                let address = listener.address().to_string();
                tokio::spawn(async move {
                    while let Ok(connection) = listener.accept().await {
                        tokio::spawn(hold(connection));
                    }
                });
                address
            }
            CONNECT => {
                let (endpoint, address) = (endpoint.clone(), address.parse::<Address>().unwrap());
                tokio::spawn(async move {
                    if let Ok(connection) = endpoint.connect(&address).await {
                        hold(connection).await;
                    }
                });
                String::new()
            }
            CONNECT_NOW => match endpoint.connect(&address.parse().unwrap()).await {
                Ok(connection) => {
                    tokio::spawn(hold(connection));
                    String::new()
                }
                Err(error) => error.to_string(),
            },
            COUNT => {
                let Counts { descriptors, tasks } = Counts::of(environment);
                format!("{descriptors} {tasks}")
            }
            other => panic!("no command is named {other}"),
        };
        output.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
    }
}

/// Receives messages until the end.
async fn hold(connection: Connection) {
    while connection.recv().await.is_ok() {}
}

/// Returns the numbers of polls after which a task is stopped. All small ones, then ever fewer: an attempt
/// that waits for hardware polls often.
fn steps() -> impl Iterator<Item = usize> {
    std::iter::successors(Some(0), |polls| Some(polls + 1 + polls / 16))
        .take_while(|polls| *polls < POLLS_MAX)
}

/// How far an attempt advanced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reached {
    /// The stop.
    Stop,
    /// The end: the connection was made.
    End,
    /// Neither: the machine was too busy for [`HANDSHAKE_TIME`].
    Timeout,
}

/// Waits until the task has stopped or completed.
async fn until_stopped(stop: &Stop) {
    eventually("it stops or ends", || stop.is_reached() || stop.is_over()).await;
}

/// Runs `step` with rising numbers of polls until it reports that the attempt was complete.
async fn for_each_step(mut step: impl AsyncFnMut(usize) -> Reached) {
    for polls in steps() {
        let limit = Instant::now() + TIMEOUT;
        loop {
            match step(polls).await {
                Reached::Stop => break,
                Reached::End => return assert!(polls > 0, "it completed without a poll"),
                Reached::Timeout => assert!(Instant::now() < limit, "no attempt is fast enough"),
            }
        }
    }
    panic!("an attempt takes more than {POLLS_MAX} polls");
}

async fn a_connect_cancelled_at_any_step_leaks_nothing(row: &'static Row) {
    let ends = Ends::new(row).await;
    for_each_step(async |polls| {
        let (stop, attempt) = (ends.environment.stop_next(polls), Attempt::begin());
        let mut connecting = Box::pin(ends.endpoint.connect(&ends.address));
        let connected = tokio::select! {
            connected = &mut connecting => Some(connected),
            () = until_stopped(&stop) => None,
        };
        let reached = match connected {
            Some(connected) => carried(connected, &attempt).await,
            None if stop.is_over() => carried(in_time("a connection", &mut connecting).await, &attempt).await,
            None => Reached::Stop,
        };
        drop(connecting);
        stop.let_go_on();
        ends.assert_nothing_left(&format!("cancelled after {polls} polls")).await;
        reached
    })
    .await;
    ends.assert_connects().await;
}

async fn an_accept_cancelled_at_any_step_leaks_nothing(row: &'static Row) {
    let ends = Ends::new(row).await;
    for_each_step(async |polls| {
        let (stop, attempt) = (ends.environment.stop_next(polls), Attempt::begin());
        ends.control.command(&format!("{CONNECT} {}", ends.listener.address())).await;
        until_stopped(&stop).await;
        let reached = ends.accepted_unless_stopped(&stop, &attempt).await;
        stop.drop_task();
        ends.assert_nothing_left(&format!("cancelled after {polls} polls")).await;
        reached
    })
    .await;
    ends.assert_accepts().await;
}

async fn a_connector_stopped_at_any_step_leaks_nothing_at_its_peer(row: &'static Row) {
    let ends = Ends::new(row).await;
    for_each_step(async |polls| {
        let (stop, attempt) = (ends.environment.stop_next(polls), Attempt::begin());
        let connecting = tokio::spawn({
            let (endpoint, address) = (ends.endpoint.clone(), ends.address.clone());
            async move { endpoint.connect(&address).await }
        });
        until_stopped(&stop).await;
        let reached = if stop.is_over() {
            carried(in_time("a connection", connecting).await.unwrap(), &attempt).await
        } else {
            ends.assert_nothing_left_there(&format!("stopped after {polls} polls")).await;
            stop.let_go_on();
            // It was too late, or just in time.
            drop(in_time("its end", connecting).await.unwrap());
            Reached::Stop
        };
        ends.assert_nothing_left(&format!("after a stop, after {polls} polls")).await;
        reached
    })
    .await;
    ends.assert_connects().await;
}

async fn an_acceptor_stopped_at_any_step_leaks_nothing_at_its_peer(row: &'static Row) {
    let ends = Ends::new(row).await;
    for_each_step(async |polls| {
        let (stop, attempt) = (ends.environment.stop_next(polls), Attempt::begin());
        ends.control.command(&format!("{CONNECT} {}", ends.listener.address())).await;
        until_stopped(&stop).await;
        let reached = ends.accepted_unless_stopped(&stop, &attempt).await;
        if reached == Reached::Stop {
            ends.assert_nothing_left_there(&format!("stopped after {polls} polls")).await;
            stop.let_go_on();
            eventually("it ends", || stop.is_over()).await;
            // It was too late, or just in time.
            drop(ends.accepted().await);
        }
        ends.assert_nothing_left(&format!("after a stop, after {polls} polls")).await;
        reached
    })
    .await;
    ends.assert_accepts().await;
}

async fn endpoints_leave_no_task_in_a_shared_environment(row: &'static Row) {
    let environment = Watched::start().unwrap();
    for round in 0..3 {
        let [near, far] = [(); 2].map(|()| configured(row.builder(), &environment).build().unwrap());
        let listener = far.listen(&row.address()).await.unwrap();
        let (a, b) = in_time("a connection", connect_pair(&near, &listener)).await;
        let both = async { tokio::join!(a.deliver(message(round, &[100])), b.recv()) };
        let (sent, taken) = in_time("a message", both).await;
        sent.unwrap();
        assert_message(&taken.unwrap(), round, &[100]);
        drop((a, b, listener, near, far));
        eventually("all tasks have ended", || environment.tasks() == 0).await;
    }
}
