//! Sends a file of any size from one process to another, over any address, and compares its SHA-256 at both
//! ends.
//!
//! ```text
//! cargo run --release -p towline-examples --example ship_file -- receive tcp://127.0.0.1:7000 DIRECTORY
//! cargo run --release -p towline-examples --example ship_file -- send tcp://127.0.0.1:7000 FILE
//! ```
//!
//! Each end has one thread for the connection and one for the disk and hashing, so that they overlap. A
//! header is a command and its argument. The sender sends `file LENGTH NAME`, `chunk` for each 2 MiB (its
//! frame), and `end SHA256` or `stop REASON`. The receiver replies once, with `stored SHA256` or
//! `failed REASON`. After that it rejects further chunks, which is how the sender detects it. An incomplete
//! file is removed.

use std::collections::VecDeque;
use std::error::Error;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use sha2::{Digest, Sha256};
use towline::blocking::{Connection, Endpoint};
use towline::{Address, Buffer, Message, Pool, Token};

const CHUNK_LEN: u64 = 2 << 20;
/// Chunks sent and not yet received.
const IN_FLIGHT_MAX: usize = 8;
/// Chunks between the connection's thread and the disk's.
const QUEUED_MAX: usize = 4;
const NAME_LEN_MAX: usize = 255;
/// Time limit for the first message of a peer.
const FIRST_MESSAGE_TIME: Duration = Duration::from_secs(30);
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Sends a file from one process to another.
#[derive(Debug, Parser)]
#[command(name = "ship_file")]
struct Arguments {
    /// A file with a secret that both ends share. Listening beyond this host requires one.
    #[arg(long, value_name = "PATH", global = true)]
    token: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Stores received files in DIRECTORY. A file of the same name is replaced.
    Receive {
        /// Ends after one file. The exit status is 0 if it was stored.
        #[arg(long)]
        once: bool,
        /// Where to listen: tcp://127.0.0.1:7000 for example.
        address: Address,
        /// The directory for received files.
        directory: PathBuf,
    },
    /// Sends FILE to the receiver at ADDRESS. Data appended meanwhile is not sent.
    Send {
        /// The receiver's address.
        address: Address,
        /// The file.
        file: PathBuf,
    },
}

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ship_file: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Outcome<()> {
    let mut endpoint = towline::Endpoint::builder();
    if let Some(path) = arguments.token {
        endpoint = endpoint.token(Token::from_file(path)?);
    }
    let endpoint = Endpoint::from(endpoint.build()?);
    match arguments.command {
        Command::Receive { once, address, directory } => receive(&endpoint, &address, &directory, once),
        Command::Send { address, file } => send(&endpoint, &address, &file),
    }
}

// ---- The sending end ----

fn send(endpoint: &Endpoint, address: &Address, path: &Path) -> Outcome<()> {
    let (file, len) = open(path).map_err(|why| format!("cannot send {path:?}: {why}"))?;
    let name = path.file_name().unwrap_or_default();
    let connection = endpoint.connect(address)?;
    let mut progress = Progress::new(len);
    connection.send(say(&format!("file {len} "), name.as_bytes()))?;
    let sent = match ship(&connection, endpoint.pool(), &file, &mut progress) {
        Ok(Ok(sha)) => connection.send(say("end ", sha.as_bytes())).map(|_| sha).map_err(Into::into),
        Ok(Err(why)) => {
            let why = format!("{path:?} {why}");
            connection.deliver(say("stop ", why.as_bytes()))?;
            return Err(why.into());
        }
        Err(error) => Err(error),
    };
    // The receiver's reply matters even where sending failed: it names the reason.
    let answer = connection.recv();
    if let Ok(answer) = &answer
        && let ("failed", why) = command(answer)
    {
        return Err(format!("the receiver failed: {}", readable(why)).into());
    }
    let sha = sent?;
    if command(&answer?) != ("stored", sha.as_bytes()) {
        return Err("the receiver did not confirm what was sent".into());
    }
    connection.close()?;
    if file.metadata()?.len() > len {
        eprintln!("ship_file: {path:?} grew while it was sent: its first {len} bytes were stored");
    }
    println!("sent {name:?}: {}, sha256 {sha}", progress.rate());
    Ok(())
}

/// A regular file and its length.
fn open(path: &Path) -> Outcome<(File, u64)> {
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        return Err("it is a directory, and only files are sent".into());
    }
    if !metadata.is_file() {
        return Err("it is not a regular file".into());
    }
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    Ok((file, len))
}

/// Sends the contents in chunks. The outer result is the connection's; the inner one is the file's: its
/// SHA-256 or an error.
fn ship(
    connection: &Connection,
    pool: &Pool,
    file: &File,
    progress: &mut Progress,
) -> towline::Result<Result<String, String>> {
    let len = progress.total;
    thread::scope(|scope| {
        let (queue, chunks) = sync_channel(QUEUED_MAX);
        let reader = scope.spawn(move || read(file, len, pool, &queue).map_err(|error| error.to_string()));
        let mut in_flight = VecDeque::new();
        for chunk in chunks {
            if in_flight.len() == IN_FLIGHT_MAX {
                in_flight.pop_front().map_or(Ok(()), towline::blocking::Receipt::delivered)?;
            }
            progress.add(chunk.len() as u64);
            in_flight.push_back(connection.send(say("chunk", b"").with_frame(chunk))?);
        }
        Ok(reader.join().expect("the reader does not panic"))
    })
}

/// Reads `len` bytes into the queue, and returns their SHA-256.
fn read(file: &File, len: u64, pool: &Pool, queue: &SyncSender<Buffer>) -> Outcome<String> {
    let mut hash = Sha256::new();
    let mut at = 0;
    while at < len {
        let end = len.min(at + CHUNK_LEN);
        let mut chunk = pool.take((end - at) as usize)?;
        while at < end {
            let n = chunk.fill_with(|room| {
                let (filled, _) = rustix::io::pread(file, room, at).map_err(io::Error::from)?;
                Ok(filled)
            })?;
            if n == 0 {
                return Err(format!("shrank while it was sent: {at} of {len} bytes were there").into());
            }
            at += n as u64;
        }
        let chunk = chunk.freeze();
        hash.update(chunk.as_slice().unwrap_or_default());
        if queue.send(chunk).is_err() {
            return Err("was not needed to its end".into());
        }
    }
    Ok(hex(hash))
}

// ---- The receiving end ----

fn receive(endpoint: &Endpoint, address: &Address, directory: &Path, once: bool) -> Outcome<()> {
    if !directory.is_dir() {
        return Err(format!("{directory:?} is not a directory").into());
    }
    let listener = endpoint.listen(address)?;
    println!("listening at {}", listener.address());
    loop {
        let connection = listener.accept()?;
        if once {
            return serve(&connection, directory);
        }
        let directory = directory.to_owned();
        thread::spawn(move || {
            serve(&connection, &directory).unwrap_or_else(|error| eprintln!("ship_file: {error}"));
        });
    }
}

/// Stores one file, and reports the result to the sender.
fn serve(connection: &Connection, directory: &Path) -> Outcome<()> {
    let connection = connection.clone().with_deadline(FIRST_MESSAGE_TIME);
    match store(&connection, directory) {
        Ok(sha) => {
            connection.deliver(say("stored ", sha.as_bytes()))?;
            connection.close()?;
            Ok(())
        }
        Err(why) => {
            // Both calls fail if the sender is gone already.
            let _ = connection.send(say("failed ", why.to_string().as_bytes()));
            while let Ok(incoming) = connection.incoming() {
                incoming.reject();
            }
            Err(why)
        }
    }
}

fn store(connection: &Connection, directory: &Path) -> Outcome<String> {
    let offer = connection.recv()?;
    let (len, name) = parse_offer(&offer)?;
    let target = directory.join(base_name(name)?);
    if target.is_dir() {
        return Err(format!("{target:?} is a directory").into());
    }
    let mut partial = Partial::create(directory)?;
    let mut progress = Progress::new(len);
    let connection = &connection.clone().with_deadline(None);
    let (theirs, ours) = thread::scope(|scope| {
        let (queue, chunks) = sync_channel(QUEUED_MAX);
        let file = &mut partial.file;
        let writer = scope.spawn(move || write(file, &chunks));
        let theirs = take(connection, queue, &mut progress);
        let ours = writer.join().expect("the writer does not panic");
        // A failed writer ends the receiving loop as well: report the writer's error.
        let ours = ours.map_err(|error| format!("cannot write to {directory:?}: {error}"))?;
        Outcome::Ok((theirs?, ours))
    })?;
    if theirs != ours {
        return Err(format!("it arrived damaged: its SHA-256 is {ours} and should be {theirs}").into());
    }
    partial.keep_as(&target).map_err(|error| format!("cannot store {target:?}: {error}"))?;
    println!("stored {target:?}: {}, sha256 {ours}", progress.rate());
    Ok(ours)
}

fn parse_offer(offer: &Message) -> Outcome<(u64, &[u8])> {
    if let ("file", offer) = command(offer)
        && let Some(space) = offer.iter().position(|byte| *byte == b' ')
        && let Ok(len) = str::from_utf8(&offer[..space]).unwrap_or_default().parse()
    {
        return Ok((len, &offer[space + 1..]));
    }
    Err("the sender speaks another protocol".into())
}

/// Returns the last component of the file name from an unauthenticated peer: it never leads out of a
/// directory.
fn base_name(name: &[u8]) -> Outcome<&OsStr> {
    let base = Path::new(OsStr::from_bytes(name)).file_name();
    base.filter(|base| base.len() <= NAME_LEN_MAX && !base.as_bytes().contains(&0))
        .ok_or_else(|| format!("{:?} is no file name", OsStr::from_bytes(name)).into())
}

/// Receives chunks into the queue until the end message. Returns the SHA-256 in it.
fn take(connection: &Connection, queue: SyncSender<Buffer>, progress: &mut Progress) -> Outcome<String> {
    loop {
        let message = connection.recv()?;
        match command(&message) {
            ("chunk", _) => {
                progress.add(message.payload_len());
                for frame in message.into_parts().1 {
                    queue.send(frame)?;
                }
            }
            ("end", sha) if progress.done == progress.total => return Ok(readable(sha)),
            ("end", _) => {
                let Progress { done, total, .. } = progress;
                return Err(format!("{done} bytes came, and {total} were announced").into());
            }
            ("stop", why) => return Err(format!("the sender gave up: {}", readable(why)).into()),
            _ => return Err("the sender speaks another protocol".into()),
        }
        if progress.done > progress.total {
            return Err("more bytes came than were announced".into());
        }
    }
}

/// Writes chunks until there are no more. Returns their SHA-256.
fn write(file: &mut File, chunks: &Receiver<Buffer>) -> io::Result<String> {
    let mut hash = Sha256::new();
    for chunk in chunks {
        let bytes = chunk.as_slice().unwrap_or_default();
        file.write_all(bytes)?;
        hash.update(bytes);
    }
    Ok(hex(hash))
}

/// A file under a temporary name, removed unless it is kept.
struct Partial {
    file: File,
    path: Option<PathBuf>,
}

impl Partial {
    fn create(directory: &Path) -> Outcome<Self> {
        let process = std::process::id();
        for number in 0..=u16::MAX {
            let path = directory.join(format!(".ship_file-{process}-{number}.partial"));
            match File::create_new(&path) {
                Ok(file) => return Ok(Self { file, path: Some(path) }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(format!("cannot create {path:?}: {error}").into()),
            }
        }
        Err(format!("{directory:?} is full of partial files").into())
    }

    /// Syncs the file to disk and renames it.
    fn keep_as(mut self, target: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        if let Some(path) = &self.path {
            fs::rename(path, target)?;
        }
        self.path = None;
        target.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some(path) = &self.path
            && let Err(error) = fs::remove_file(path)
        {
            eprintln!("ship_file: {path:?} stays behind: {error}");
        }
    }
}

// ---- Both ends ----

fn say(start: &str, rest: &[u8]) -> Message {
    Message::new([start.as_bytes(), rest].concat())
}

/// Returns the command and the argument of a header.
fn command(message: &Message) -> (&str, &[u8]) {
    let header = &message.header()[..];
    let end = header.iter().position(|byte| *byte == b' ').unwrap_or(header.len());
    (str::from_utf8(&header[..end]).unwrap_or_default(), header.get(end + 1..).unwrap_or_default())
}

/// Text from an unauthenticated peer, escaped for a terminal.
fn readable(text: &[u8]) -> String {
    String::from_utf8_lossy(text).replace(char::is_control, " ")
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Prints the progress on standard error.
struct Progress {
    total: u64,
    done: u64,
    begun: Instant,
    shown: Instant,
}

impl Progress {
    fn new(total: u64) -> Self {
        let begun = Instant::now();
        Self { total, done: 0, begun, shown: begun }
    }

    fn add(&mut self, bytes: u64) {
        self.done += bytes;
        if self.shown.elapsed() >= PROGRESS_EVERY {
            self.shown = Instant::now();
            let end = if io::stderr().is_terminal() { '\r' } else { '\n' };
            let percent = self.done as f64 * 100.0 / self.total.max(1) as f64;
            eprint!("{percent:5.1} %, {}{end}", self.rate());
        }
    }

    fn rate(&self) -> String {
        let seconds = self.begun.elapsed().as_secs_f64();
        let mega_per_s = self.done as f64 / 1e6 / seconds.max(1e-6);
        format!("{} bytes in {seconds:.2} s, {mega_per_s:.0} MB/s", self.done)
    }
}
