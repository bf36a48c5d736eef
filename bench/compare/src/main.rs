//! Ping pong over iceoryx2's publish-subscribe between two processes: half a round trip of loaned samples, whose payload nobody
//! rewrites or copies, spinning.
//!
//! `serve PORT` echoes for one client; `ping PORT SIZE MESSAGES WARMUP` measures, and prints a line of JSON. They meet over
//! TCP on loopback, which tells each that the other is ready and, later, gone; no sample passes there.

mod pair;
mod room;

use std::error::Error;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::pair::{Pair, Side};
use crate::room::Room;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Either end may take so long to make or to map its memory.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// How many empty looks pass between two at whether the other end is there.
const LOOKS: u32 = 1 << 16;

const USAGE: &str = "\
usage: iceoryx2_pingpong serve PORT
       iceoryx2_pingpong ping PORT SIZE MESSAGES WARMUP
       iceoryx2_pingpong --version";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["--version"] => {
            println!("iceoryx2 {}", version());
            Ok(())
        }
        ["serve", port] => number(port).and_then(serve),
        ["ping", port, size, messages, warmup] => Course::parse(size, messages, warmup)
            .and_then(|course| Ok((number(port)?, course)))
            .and_then(|(port, course)| ping(port, course)),
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

/// Of the library, as the lock file has it.
fn version() -> &'static str {
    let lock = include_str!("../Cargo.lock");
    let after = lock.split_once("name = \"iceoryx2\"\nversion = \"").map_or("", |(_, after)| after);
    after.split_once('"').map_or("unknown", |(version, _)| version)
}

fn number<T: std::str::FromStr>(text: &str) -> Outcome<T> {
    text.parse().map_err(|_| format!("`{text}` is not a number that fits").into())
}

/// What the client measures.
#[derive(Clone, Copy, Debug)]
struct Course {
    size_bytes: usize,
    messages: usize,
    warmup: usize,
}

impl Course {
    fn parse(size: &str, messages: &str, warmup: &str) -> Outcome<Self> {
        let course = Self { size_bytes: number(size)?, messages: number(messages)?, warmup: number(warmup)? };
        if course.size_bytes == 0 || course.messages == 0 {
            return Err("a size and a number of messages are at least 1".into());
        }
        Ok(course)
    }
}

/// The other end, by way of which nothing is measured.
#[derive(Debug)]
struct Line(BufReader<TcpStream>);

impl Line {
    fn new(stream: TcpStream) -> Outcome<Self> {
        stream.set_read_timeout(Some(READY_WITHIN))?;
        Ok(Self(BufReader::new(stream)))
    }

    fn say(&mut self, words: &str) -> Outcome {
        Ok(self.0.get_mut().write_all(format!("{words}\n").as_bytes())?)
    }

    fn hear(&mut self) -> Outcome<String> {
        let mut words = String::new();
        match self.0.read_line(&mut words)? {
            0 => Err("the other end is gone".into()),
            _ => Ok(words.trim().to_owned()),
        }
    }

    /// From here on nothing more is said, and only the other end's end is looked for.
    fn fall_silent(&self) -> Outcome {
        Ok(self.0.get_ref().set_nonblocking(true)?)
    }

    fn is_open(&mut self) -> bool {
        matches!(self.0.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
    }
}

/// Spins until a sample comes; false when the other end is gone.
fn await_sample(pair: &Pair, line: &mut Line) -> Outcome<bool> {
    for look in 1u32.. {
        if pair.take()? {
            return Ok(true);
        }
        if look.is_multiple_of(LOOKS) && !line.is_open() {
            return Ok(false);
        }
        std::hint::spin_loop();
    }
    Ok(false)
}

fn serve(port: u16) -> Outcome {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let mut line = Line::new(listener.accept()?.0)?;
    let size_bytes = number(&line.hear()?)?;
    let room = Room::new()?;
    let pair = Pair::open(&room, Side::Serves, size_bytes)?;
    line.say(room.name())?;
    line.hear()?;
    line.say("ready")?;
    line.fall_silent()?;
    while await_sample(&pair, &mut line)? {
        pair.send(size_bytes)?;
    }
    Ok(())
}

fn ping(port: u16, course: Course) -> Outcome {
    let Course { size_bytes, messages, warmup } = course;
    let mut line = Line::new(TcpStream::connect((Ipv4Addr::LOCALHOST, port))?)?;
    line.say(&size_bytes.to_string())?;
    let room = Room::of(&line.hear()?);
    let pair = Pair::open(&room, Side::Pings, size_bytes)?;
    line.say("ready")?;
    line.hear()?;
    line.fall_silent()?;
    let mut times_ns: Vec<u64> = Vec::new();
    times_ns.try_reserve_exact(messages)?;
    for turn in 0..warmup.saturating_add(messages) {
        let sent = Instant::now();
        pair.send(size_bytes)?;
        if !await_sample(&pair, &mut line)? {
            return Err("the other end is gone".into());
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
