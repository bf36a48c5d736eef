//! Ping-pong over iceoryx2's publish-subscribe between two processes. It measures half a round trip of loaned
//! samples, whose payload is neither rewritten nor copied, while both ends spin.
//!
//! `serve PORT` echoes for one client; `ping PORT SIZE MESSAGES WARMUP` measures, and prints a line of JSON.
//! A TCP connection on loopback tells each end when the other is ready or gone; no sample travels over it.

mod pair;
mod workspace;

use std::error::Error;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::pair::{Pair, Side};
use crate::workspace::Workspace;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Time limit for either end to create or map its memory.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// Empty polls between two checks that the other end is there.
const POLLS_PER_CHECK: u32 = 1 << 16;

const USAGE: &str = "\
usage: iceoryx2_pingpong serve PORT
       iceoryx2_pingpong ping PORT SIZE MESSAGES WARMUP
       iceoryx2_pingpong --version";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments[..] {
        ["--version"] => {
            println!("iceoryx2 {}", version());
            Ok(())
        }
        ["serve", port] => number(port).and_then(serve),
        ["ping", port, size, messages, warmup] => Parameters::parse(size, messages, warmup)
            .and_then(|parameters| Ok((number(port)?, parameters)))
            .and_then(|(port, parameters)| ping(port, parameters)),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("iceoryx2_pingpong: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Returns the library's version in the lock file.
fn version() -> &'static str {
    let lock = include_str!("../Cargo.lock");
    let after = lock.split_once("name = \"iceoryx2\"\nversion = \"").map_or("", |(_, after)| after);
    after.split_once('"').map_or("unknown", |(version, _)| version)
}

fn number<T: std::str::FromStr>(text: &str) -> Outcome<T> {
    text.parse().map_err(|_| format!("`{text}` is not a number that fits").into())
}

/// The client's parameters.
#[derive(Clone, Copy, Debug)]
struct Parameters {
    size_bytes: usize,
    messages: usize,
    warmup: usize,
}

impl Parameters {
    fn parse(size: &str, messages: &str, warmup: &str) -> Outcome<Self> {
        let parameters =
            Self { size_bytes: number(size)?, messages: number(messages)?, warmup: number(warmup)? };
        if parameters.size_bytes == 0 || parameters.messages == 0 {
            return Err("a size and a number of messages are at least 1".into());
        }
        Ok(parameters)
    }
}

/// The control connection to the other end; nothing is measured over it.
#[derive(Debug)]
struct ControlLine(BufReader<TcpStream>);

impl ControlLine {
    fn new(stream: TcpStream) -> Outcome<Self> {
        stream.set_read_timeout(Some(READY_WITHIN))?;
        Ok(Self(BufReader::new(stream)))
    }

    fn send_line(&mut self, text: &str) -> Outcome {
        Ok(self.0.get_mut().write_all(format!("{text}\n").as_bytes())?)
    }

    fn receive(&mut self) -> Outcome<String> {
        let mut text = String::new();
        match self.0.read_line(&mut text)? {
            0 => Err("the other end closed the connection".into()),
            _ => Ok(text.trim().to_owned()),
        }
    }

    /// Makes reads non-blocking: from here on only the end of the connection is of interest.
    fn set_nonblocking_reads(&self) -> Outcome {
        Ok(self.0.get_ref().set_nonblocking(true)?)
    }

    fn is_open(&mut self) -> bool {
        matches!(self.0.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
    }
}

/// Spins until a sample arrives. Returns false if the other end is gone.
fn await_sample(pair: &Pair, control: &mut ControlLine) -> Outcome<bool> {
    for poll in 1u32.. {
        if pair.take()? {
            return Ok(true);
        }
        if poll.is_multiple_of(POLLS_PER_CHECK) && !control.is_open() {
            return Ok(false);
        }
        std::hint::spin_loop();
    }
    Ok(false)
}

fn serve(port: u16) -> Outcome {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let mut control = ControlLine::new(listener.accept()?.0)?;
    let size_bytes = number(&control.receive()?)?;
    let workspace = Workspace::new()?;
    let pair = Pair::open(&workspace, Side::Serves, size_bytes)?;
    control.send_line(workspace.name())?;
    control.receive()?;
    control.send_line("ready")?;
    control.set_nonblocking_reads()?;
    while await_sample(&pair, &mut control)? {
        pair.send(size_bytes)?;
    }
    Ok(())
}

fn ping(port: u16, parameters: Parameters) -> Outcome {
    let Parameters { size_bytes, messages, warmup } = parameters;
    let mut control = ControlLine::new(TcpStream::connect((Ipv4Addr::LOCALHOST, port))?)?;
    control.send_line(&size_bytes.to_string())?;
    let workspace = Workspace::of(&control.receive()?);
    let pair = Pair::open(&workspace, Side::Pings, size_bytes)?;
    control.send_line("ready")?;
    control.receive()?;
    control.set_nonblocking_reads()?;
    let mut times_ns: Vec<u64> = Vec::new();
    times_ns.try_reserve_exact(messages)?;
    for turn in 0..warmup.saturating_add(messages) {
        let sent = Instant::now();
        pair.send(size_bytes)?;
        if !await_sample(&pair, &mut control)? {
            return Err("the other end closed the connection".into());
        }
        let half = sent.elapsed() / 2;
        if turn >= warmup {
            times_ns.push(half.as_nanos() as u64);
        }
    }
    times_ns.sort_unstable();
    let quantile_us = |part: f64| times_ns[((messages - 1) as f64 * part) as usize] as f64 / 1e3;
    println!(
        "{{\"size_bytes\":{size_bytes},\"samples\":{messages},\"p50_us\":{},\"p99_us\":{}}}",
        quantile_us(0.5),
        quantile_us(0.99)
    );
    Ok(())
}
