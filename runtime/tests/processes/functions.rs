//! The functions of the workers in these tests.

use std::sync::OnceLock;
use std::thread::sleep;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use towline::{Arena, Buffer, BufferMut, Endpoint, Place};
use towline_runtime::{Data, Function, Registry, TaskResult};
use towline_tests::guarded::Guarded;

/// (seed, bytes, kind of memory, duration in ms).
pub(crate) const MAKE: Function<(u8, usize, MemoryKind, u64), Made> = Function::new("make");
/// Reports how its inputs arrived.
pub(crate) const INSPECT: Function<(Vec<Made>,), Vec<Inspection>> = Function::new("inspect");
/// Sleeps for this many ms. Returns the worker's process and the bytes it has copied.
pub(crate) const COPIED: Function<(u64,), (u32, u64)> = Function::new("copied");
/// Makes a block of a graph, from (seed, bytes).
pub(crate) const BLOCK: Function<(u8, usize), Data> = Function::new("block");
/// Mixes two blocks into one.
pub(crate) const MIX: Function<(Data, Data), Data> = Function::new("mix");
/// Sleeps for this many ms.
pub(crate) const SLEEP: Function<(u64,), u64> = Function::new("sleep");
pub(crate) const ABORT: Function<(), ()> = Function::new("abort");

/// The duration of a step of a graph.
const STEP: Duration = Duration::from_millis(3);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum MemoryKind {
    Host,
    Arena,
    Guarded,
}

/// A block of memory, and the process that made it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Made {
    pub(crate) process: u32,
    pub(crate) data: Data,
}

/// How a block arrived.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Inspection {
    /// The processes that made it and received it.
    pub(crate) maker: u32,
    pub(crate) inspector: u32,
    pub(crate) place: String,
    /// All its bytes are intact.
    pub(crate) is_whole: bool,
}

/// Returns the functions of a worker at this endpoint.
pub(crate) fn registry(endpoint: &Endpoint) -> Registry {
    let endpoint = endpoint.clone();
    Registry::new()
        .with(MAKE, make)
        .with(INSPECT, |made: Vec<Made>| TaskResult::Ok(made.into_iter().map(Made::inspect).collect()))
        .with(COPIED, move |millis| {
            sleep(Duration::from_millis(millis));
            TaskResult::Ok((std::process::id(), copied(&endpoint)))
        })
        .with(BLOCK, |seed: u8, len: usize| {
            sleep(STEP);
            TaskResult::Ok(Data::from(block(seed, len)))
        })
        .with(MIX, |a: Data, b: Data| {
            sleep(STEP);
            TaskResult::Ok(Data::from(mix(a.as_slice().unwrap(), b.as_slice().unwrap())))
        })
        .with(SLEEP, |millis| {
            sleep(Duration::from_millis(millis));
            TaskResult::Ok(millis)
        })
        .with(ABORT, || std::process::abort())
}

/// Returns the bytes that an endpoint's connections have copied in user space.
pub(crate) fn copied(endpoint: &Endpoint) -> u64 {
    let page = endpoint.metrics().text();
    let mut lines = page.lines().filter_map(|line| line.strip_prefix("towline_copied_bytes_total "));
    lines.next().unwrap().parse().unwrap()
}

pub(crate) fn block(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31) ^ seed).collect()
}

pub(crate) fn mix(a: &[u8], b: &[u8]) -> Vec<u8> {
    a.iter().zip(b).map(|(a, b)| a.wrapping_mul(3).wrapping_add(*b)).collect()
}

fn make(seed: u8, len: usize, kind: MemoryKind, millis: u64) -> TaskResult<Made> {
    static ARENA: OnceLock<Arena> = OnceLock::new();
    sleep(Duration::from_millis(millis));
    let bytes = block(seed, len);
    let filled = |mut buffer: BufferMut| -> TaskResult<Buffer> {
        buffer.extend_from_slice(&bytes)?;
        Ok(buffer.freeze())
    };
    let buffer = match kind {
        MemoryKind::Host => Buffer::from(bytes),
        MemoryKind::Arena => filled(ARENA.get_or_init(|| Arena::new(256 << 20).unwrap()).take(len)?)?,
        MemoryKind::Guarded => filled(Guarded::buffer(len)?)?,
    };
    Ok(Made { process: std::process::id(), data: buffer.into() })
}

impl Made {
    fn inspect(self) -> Inspection {
        let buffer = self.data.into_buffer();
        let place = buffer.place();
        let bytes = match place {
            Place::Guarded => buffer.to_vec().unwrap(),
            _ => buffer.as_slice().unwrap().to_vec(),
        };
        let is_whole = bytes == block(bytes[0], bytes.len());
        Inspection { maker: self.process, inspector: std::process::id(), place: place.to_string(), is_whole }
    }
}
