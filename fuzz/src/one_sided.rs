//! Gets and puts: whatever a peer requests or answers, it reads and writes only memory that it was granted.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use towline::internals::{PendingGet, PendingPut, Stream};
use towline::{Buffer, BufferMut, Error, ErrorKind, Region, RemoteRegion};

use crate::HeapMax;
use crate::script::Script;
use crate::wire::HostilePeer;

const HEARTBEAT: Duration = Duration::from_secs(3);
const STEPS_MAX: usize = 100;
/// Additional lanes, for inputs with several streams.
const LANES: usize = 2;
const HEAP_MAX: HeapMax = 32 << 20;
/// Requests and their answers.
const KINDS: [u8; 12] = [7, 8, 8, 8, 9, 10, 11, 7, 9, 10, 8, 5];
/// The length of a region, and of the guards before and behind it.
const REGION_LEN: usize = 20_000;
const GUARD_LEN: usize = 1000;
/// Fill bytes: of memory that no peer may read or change, of readable memory, and of writable memory.
const SECRET: u8 = 0xee;
const READABLE: u8 = 0x11;
const WRITABLE: u8 = 0x33;
/// Bytes in the destination of our own gets, which must not change.
const BEFORE: &[u8] = b"abc";

/// The first byte selects checksums and several streams.
pub fn run(input: &[u8]) -> HeapMax {
    let mut script = Script(input);
    let which = script.byte();
    let checked = which % 2 == 1;
    let lanes = if which & 8 == 0 { 0 } else { LANES };
    let mut owner = Owner::new(checked, lanes);
    let keys = vec![
        key(&owner.writable.as_ref().expect("it is new").remote()),
        key(&owner.readable.remote()),
        owner.foreign_key(),
    ];
    let mut hostile_peer = HostilePeer { checked, lanes, keys, ..HostilePeer::default() };
    let mut result = Ok(());
    for _ in 0..STEPS_MAX {
        if result.is_err() || script.is_over() {
            break;
        }
        match script.byte() {
            0..20 => owner.get(&mut script),
            20..40 => owner.put(&mut script),
            40..80 => owner.leave(),
            80..84 => owner.revoke(),
            _ => {
                let (stream, packet) = hostile_peer.packet(&mut script, &KINDS);
                let cut = if script.byte() % 2 == 0 { 0 } else { script.below(packet.len() + 1) };
                let (first, second) = packet.split_at(cut);
                result =
                    owner.stream.arrive(stream, first).and_then(|()| owner.stream.arrive(stream, second));
            }
        }
    }
    owner.leave();
    owner.finish(result, &hostile_peer);
    HEAP_MAX
}

fn key(region: &RemoteRegion) -> [u8; 16] {
    let bytes = region.to_bytes();
    std::array::from_fn(|at| bytes[16 + at])
}

/// The end that owns the memory.
struct Owner {
    stream: Stream,
    lanes: usize,
    /// The memory around the writable region.
    guards: [BufferMut; 2],
    writable: Option<Region<BufferMut>>,
    writable_key: [u8; 16],
    /// The writable region's buffer and bytes, once it was revoked.
    revoked: Option<(BufferMut, Vec<u8>)>,
    readable: Region<Buffer>,
    /// Another connection of the same process, and its regions.
    foreign: (Stream, Vec<Region<BufferMut>>),
    gets: Vec<PendingGet>,
    puts: Vec<(usize, PendingPut)>,
}

impl Owner {
    fn new(checked: bool, lanes: usize) -> Self {
        let stream = Stream::new(HEARTBEAT, checked, lanes);
        let mut front = filled(SECRET, GUARD_LEN * 2 + REGION_LEN);
        let mut region = front.split_off(GUARD_LEN);
        let back = region.split_off(REGION_LEN);
        region.as_mut_slice().expect("host").fill(WRITABLE);
        let writable = stream.expose_mut(region);
        let mut around = vec![SECRET; GUARD_LEN * 2 + REGION_LEN];
        around[GUARD_LEN..GUARD_LEN + REGION_LEN].fill(READABLE);
        let readable = stream.expose(Buffer::from(around).slice(GUARD_LEN..GUARD_LEN + REGION_LEN));
        let other = Stream::new(HEARTBEAT, checked, 0);
        // Keys are generated in order: the third one belongs to no region of this connection.
        let regions = (0..3).map(|_| other.expose_mut(filled(SECRET, 100))).collect();
        Self {
            writable_key: key(&writable.remote()),
            stream,
            lanes,
            guards: [front, back],
            writable: Some(writable),
            revoked: None,
            readable,
            foreign: (other, regions),
            gets: Vec::new(),
            puts: Vec::new(),
        }
    }

    fn foreign_key(&self) -> [u8; 16] {
        self.foreign.1.last().map(|region| key(&region.remote())).expect("there are three")
    }

    fn get(&mut self, script: &mut Script<'_>) {
        let len = script.one_of(&[0, 1, 16, 200, 0x4000, 20_000]);
        let mut into = BufferMut::with_capacity(BEFORE.len() + len);
        into.extend_from_slice(BEFORE).expect("it fits");
        self.gets.push(self.stream.get(remote(1), script.number(), into));
    }

    fn put(&mut self, script: &mut Script<'_>) {
        let len = script.one_of(&[0, 1, 16, 200, 0x4000, 20_000]);
        self.puts.push((len, self.stream.put(remote(2), script.number(), Buffer::from(vec![0x22; len]))));
    }

    /// Encodes the pending packets, and asserts that they contain no secret bytes.
    fn leave(&mut self) {
        let mut out = Vec::new();
        for stream in 0..=self.lanes {
            for _ in 0..4 {
                if !self.stream.leave(stream, &mut out) {
                    break;
                }
            }
        }
        // Compared in steps, so that a long input stays fast: a leak would be longer.
        let secret = |bytes: &[u8]| *bytes == [SECRET; 32];
        assert!(!out.chunks_exact(32).any(secret), "a packet contains bytes that no peer was granted");
    }

    fn revoke(&mut self) {
        let Some(region) = self.writable.take() else { return };
        let buffer = now(region.revoke());
        let bytes = buffer.as_slice().expect("host").to_vec();
        self.revoked = Some((buffer, bytes));
    }

    fn finish(mut self, result: Result<(), Error>, hostile_peer: &HostilePeer) {
        if let Err(error) = &result {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        }
        let why = result.err().unwrap_or_else(|| Error::new(ErrorKind::Closed, "the input is over"));
        self.stream.give_up(&why);
        for got in self.gets {
            let (buffer, whole) = match got.try_take().expect("a get ends") {
                Ok(buffer) => (buffer, true),
                Err(failed) => (failed.returned, false),
            };
            let bytes = buffer.as_slice().expect("host");
            assert!(bytes.starts_with(BEFORE));
            assert_eq!(bytes.len(), if whole { buffer.capacity() } else { BEFORE.len() });
        }
        for (len, put) in self.puts {
            if let Err(failed) = put.try_take().expect("a put ends") {
                assert_eq!(failed.returned.len(), len);
            }
        }
        for guard in &self.guards {
            assert!(all(guard.as_slice().expect("host"), SECRET), "a put wrote outside the region");
        }
        for region in self.foreign.1.drain(..) {
            let buffer = now(region.revoke());
            assert!(all(buffer.as_slice().expect("host"), SECRET), "a put wrote another connection's region");
        }
        let readable = now(self.readable.revoke());
        assert!(all(readable.as_slice().expect("host"), READABLE), "a put wrote a readable region");
        if let Some((buffer, bytes)) = &self.revoked {
            assert!(buffer.as_slice().expect("host") == bytes, "a put wrote after the region was revoked");
        }
        let buffer = match (self.writable, self.revoked) {
            (Some(region), _) => now(region.revoke()),
            (None, Some((buffer, _))) => buffer,
            (None, None) => return,
        };
        assert_granted(buffer.as_slice().expect("host"), self.writable_key, hostile_peer);
        let pool = self.stream.pool().clone();
        drop(self.stream);
        assert_eq!(pool.stats().in_use_bytes, 0, "memory was not returned");
    }
}

/// Asserts that every changed byte of the region is in the range of a put with its key.
fn assert_granted(bytes: &[u8], key: [u8; 16], hostile_peer: &HostilePeer) {
    if hostile_peer.altered {
        return;
    }
    let ranges = hostile_peer.written.iter().filter(|(asked, offset, len)| {
        *asked == key && offset.checked_add(*len).is_some_and(|end| end <= REGION_LEN as u64)
    });
    let mut rest = bytes.to_vec();
    for (_, offset, len) in ranges {
        rest[*offset as usize..(offset + len) as usize].fill(WRITABLE);
    }
    assert!(all(&rest, WRITABLE), "a byte changed outside the range of every put");
}

/// Returns true if every byte of the slice is `byte`. Compares the slice as a whole, which is not
/// instrumented.
fn all(bytes: &[u8], byte: u8) -> bool {
    let Some((first, rest)) = bytes.split_first() else { return true };
    *first == byte && *rest == bytes[..rest.len()]
}

fn filled(byte: u8, len: usize) -> BufferMut {
    let mut buffer = BufferMut::zeroed(len);
    buffer.as_mut_slice().expect("host").fill(byte);
    buffer
}

/// Returns the key of a region of the peer.
fn remote(access: u8) -> RemoteRegion {
    let mut bytes = [1; 32];
    bytes[1] = access;
    RemoteRegion::from_bytes(&bytes).expect("32 bytes")
}

/// Returns the output of a future that is ready at once.
fn now<T>(task: impl Future<Output = T>) -> T {
    match pin!(task).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("an access is in flight after its connection has ended"),
    }
}
