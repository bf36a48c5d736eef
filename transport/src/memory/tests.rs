//! Tests of buffers. The submodules test pools, guarded memory, readers, shared segments and memory limits.

#![expect(unsafe_code, reason = "the tests fill spare memory and bring allocations of their own")]

mod available;
mod guarded;
mod pool;
mod reading;
mod segment;

use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use super::{Access, Allocation, Buffer, BufferMut, Fence, Place};
use crate::error::{Error, ErrorKind, Result};

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 251) as u8).collect()
}

#[test]
fn handles_are_small_send_and_sync() {
    fn crosses_threads<T: Send + Sync>() {}
    crosses_threads::<(Buffer, BufferMut, super::Pool)>();
    assert!(size_of::<Buffer>() <= 56 && size_of::<BufferMut>() <= 56);
}

#[test]
fn places_round_trip_through_text_and_codes() {
    use Place::{Arena, Cuda, Guarded, Host, Pinned};
    for (place, text, code) in [
        (Host, "host", 0),
        (Pinned, "pinned", 1),
        (Arena, "arena", 2),
        (Guarded, "guarded", 3),
        (Cuda(0), "cuda:0", 0x100),
        (Cuda(255), "cuda:255", 0x1ff),
    ] {
        assert_eq!(place.to_string(), text);
        assert_eq!(text.parse::<Place>().unwrap(), place);
        assert_eq!((place.code(), Place::from_code(code)), (code, Some(place)));
        assert_eq!(Place::from_key(place.key()), place);
    }
    for text in ["", "Host", "cuda", "cuda:", "cuda:-1", "cuda:x"] {
        assert_eq!(text.parse::<Place>().unwrap_err().kind(), ErrorKind::Invalid, "{text}");
    }
    assert_eq!(Place::from_code(Cuda(256).code()), None, "no code names another device");
    assert!([4, 0xff, 0x200, u16::MAX].into_iter().all(|code| Place::from_code(code).is_none()));
    assert_eq!(Place::default(), Host);
}

#[test]
fn clones_and_slices_share_the_memory() {
    let whole = Buffer::from(bytes(100));
    let part = whole.slice(10..=19);
    assert_eq!(whole.clone().as_ptr(), whole.as_ptr());
    assert_eq!(part.as_ptr(), whole.as_ptr().wrapping_add(10));
    assert_eq!(part.slice(3..).slice(..2).as_slice().unwrap(), &bytes(100)[13..15]);
    drop(whole);
    assert_eq!(part.as_slice().unwrap(), &bytes(100)[10..20]);
    assert_eq!(format!("{part:?}"), "Buffer { place: host, len: 10 }");
}

#[test]
#[should_panic(expected = "range 2..4 is not within a buffer of 3")]
fn a_slice_beyond_the_end_panics() {
    let _ = Buffer::from("abc").slice(2..4);
}

#[test]
fn empty_buffers_keep_nothing_alive() {
    let whole = Buffer::from(bytes(10));
    let (empty, mut rest) = (whole.slice(5..5), whole);
    let taken = rest.split_to(10);
    assert!(empty.is_empty() && empty.allocation().is_none());
    assert!(rest.is_empty() && rest.allocation().is_none());
    assert!(taken.try_into_mut().is_ok(), "the empty ones are no handles");
    for empty in [Buffer::new(), Buffer::from(Vec::new()), Buffer::from(""), Buffer::from(Bytes::new())] {
        assert!(empty.allocation().is_none());
        assert_eq!(empty.as_slice(), Some(&[][..]));
        assert_eq!(empty.to_vec().unwrap(), empty.try_into_vec().unwrap());
    }
    assert_eq!(BufferMut::with_capacity(0).freeze().try_into_mut().unwrap().capacity(), 0);
}

#[test]
fn splits_divide_and_rejoin() {
    let content = bytes(64);
    for at in [0, 1, 31, 64] {
        let mut head = Buffer::from(content.clone());
        let address = head.as_ptr();
        let tail = head.split_off(at);
        assert_eq!((head.as_slice().unwrap(), tail.as_slice().unwrap()), content.split_at(at));
        let mut tail = tail;
        let front = tail.split_to(tail.len() / 2);
        head.rejoin(front).unwrap();
        head.rejoin(tail).unwrap();
        assert_eq!((head.as_ptr(), head.as_slice()), (address, Some(&content[..])));
        assert_eq!(head.try_into_vec().unwrap(), content);
    }
}

#[test]
fn buffers_that_are_not_adjacent_do_not_rejoin() {
    let mut one = Buffer::from(bytes(8));
    let gap = one.slice(6..);
    let mut front = one.split_to(4);
    assert_eq!(front.rejoin(gap).unwrap_err().len(), 2);
    assert_eq!(front.rejoin(Buffer::from(bytes(8))).unwrap_err().len(), 8);
    one.rejoin(front).unwrap_err();
}

#[test]
fn conversions_of_vec_string_bytes_and_static_do_not_copy() {
    let vec = bytes(1000);
    let address = vec.as_ptr();
    let shared = Buffer::from(vec);
    assert_eq!(shared.as_ptr(), address);
    let second = shared.clone();
    let shared = shared.try_into_vec().unwrap_err();
    drop(second);
    let shared = shared.slice(1..).try_into_vec().unwrap_err();
    assert_eq!(shared.as_slice().unwrap(), &bytes(1000)[1..]);

    let text = "towline".repeat(10);
    let (address, text) = (text.as_ptr(), Buffer::from(text));
    let vec = text.try_into_vec().unwrap();
    assert_eq!((vec.as_ptr(), vec.len()), (address, 70));

    let foreign = Bytes::from(bytes(100));
    let (address, foreign) = (foreign.as_ptr(), Buffer::from(foreign));
    assert_eq!(foreign.as_ptr(), address);
    let foreign = foreign.try_into_mut().unwrap_err().try_into_vec().unwrap_err();
    let back = foreign.slice(1..).try_into_bytes().unwrap();
    assert_eq!((back.as_ptr(), &back[..]), (address.wrapping_add(1), &bytes(100)[1..]));

    static WORDS: &[u8] = b"towline";
    assert_eq!(Buffer::from(WORDS).as_ptr(), WORDS.as_ptr());
    assert!(Buffer::from(WORDS).try_into_mut().is_err());
}

#[test]
fn a_vec_returns_with_its_capacity_and_content() {
    let mut vec = Vec::with_capacity(100);
    vec.extend_from_slice(b"tow");
    let address = vec.as_ptr();
    let mut buffer = BufferMut::from(vec);
    buffer.extend_from_slice(b"line").unwrap();
    let vec = buffer.freeze().try_into_vec().unwrap();
    assert_eq!((vec.as_ptr(), vec.capacity(), &vec[..]), (address, 100, &b"towline"[..]));
}

#[test]
fn freezing_keeps_the_address_and_the_filled_part() {
    let mut buffer = BufferMut::with_capacity(100);
    buffer.extend_from_slice(&bytes(60)).unwrap();
    let address = buffer.as_ptr();
    let frozen = Buffer::from(buffer);
    assert_eq!((frozen.as_ptr(), frozen.as_slice().unwrap()), (address, &bytes(60)[..]));
    let thawed = frozen.try_into_mut().unwrap();
    assert_eq!((thawed.as_ptr(), thawed.len(), thawed.capacity()), (address, 60, 60));
}

#[test]
fn only_the_last_handle_becomes_writable() {
    let whole = Buffer::from(bytes(100));
    let part = whole.slice(50..);
    let whole = whole.try_into_mut().unwrap_err();
    drop(whole);
    let mut part = part.try_into_mut().unwrap();
    part.as_mut_slice().unwrap().fill(7);
    assert_eq!(part.freeze().as_slice().unwrap(), [7; 50]);

    let mut head = BufferMut::zeroed(100);
    let tail = head.split_off(50);
    let head = head.freeze().try_into_mut().unwrap_err();
    drop(tail);
    assert!(head.try_into_mut().is_ok());
}

#[test]
fn host_memory_is_aligned_by_size() {
    for (capacity, align) in [(1, 64), (4095, 64), (4096, 4096), (100_000, 4096), (3 << 20, 2 << 20)] {
        let mut buffer = BufferMut::with_capacity(capacity);
        assert_eq!((buffer.capacity(), buffer.as_ptr().align_offset(align)), (capacity, 0));
        let spare = buffer.spare_mut().unwrap();
        spare[0].write(1);
        spare[capacity - 1].write(2);
        let zeroed = BufferMut::zeroed(capacity);
        assert!(zeroed.as_slice().unwrap().iter().all(|byte| *byte == 0));
    }
    for (capacity, align) in [(10, 1), (10, 8192), (5000, 1 << 16), (2 << 20, 4 << 20)] {
        let buffer = BufferMut::with_alignment(capacity, align).unwrap();
        assert_eq!(buffer.as_ptr().align_offset(align), 0);
    }
    for align in [0, 3, 100] {
        assert_eq!(BufferMut::with_alignment(10, align).unwrap_err().kind(), ErrorKind::Invalid);
    }
    for capacity in [usize::MAX, isize::MAX as usize, 1 << 62] {
        assert_eq!(BufferMut::with_alignment(capacity, 64).unwrap_err().kind(), ErrorKind::TooLarge);
    }
}

#[test]
fn filling_counts_only_what_was_written() {
    let mut buffer = BufferMut::with_capacity(10);
    assert_eq!(buffer.as_slice(), Some(&[][..]));
    buffer.spare_mut().unwrap()[..4].write_copy_of_slice(b"towl");
    // SAFETY: the previous line wrote these four bytes (M4).
    unsafe { buffer.set_len(4) };
    buffer.extend_from_slice(b"ine").unwrap();
    assert_eq!(buffer.spare_mut().unwrap().len(), 3);
    assert_eq!(buffer.extend_from_slice(b"four").unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(buffer.as_slice(), Some(&b"towline"[..]));
    buffer.truncate(3);
    buffer.truncate(5);
    assert_eq!(buffer.as_slice(), Some(&b"tow"[..]));
    buffer.clear();
    assert_eq!((buffer.len(), buffer.capacity()), (0, 10));
}

#[test]
fn filling_in_place_appends_what_the_reader_wrote() {
    let mut buffer = BufferMut::with_capacity(10);
    for piece in [&b"tow"[..], b"", b"line"] {
        let room_len = buffer.capacity() - buffer.len();
        let n = buffer.fill_with(|room| {
            assert_eq!(room.len(), room_len);
            Ok(room[..piece.len()].write_copy_of_slice(piece))
        });
        assert_eq!(n.unwrap(), piece.len());
    }
    let failed = buffer.fill_with(|_| Err(Error::new(ErrorKind::Io, "no")));
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(buffer.as_slice(), Some(&b"towline"[..]));
}

#[test]
#[should_panic(expected = "not the front of its argument")]
fn fill_with_panics_unless_the_slice_is_its_front() {
    let _ = BufferMut::with_capacity(10).fill_with(|room| Ok(room[1..4].write_copy_of_slice(b"tow")));
}

#[test]
fn writable_splits_divide_the_filled_part() {
    for (filled, at) in [(0, 4), (3, 4), (6, 4), (10, 4), (6, 0), (6, 10)] {
        let mut head = BufferMut::with_capacity(10);
        head.extend_from_slice(&bytes(filled)).unwrap();
        let tail = head.split_off(at);
        assert_eq!((head.capacity(), tail.capacity()), (at, 10 - at));
        assert_eq!((head.len(), tail.len()), (filled.min(at), filled.saturating_sub(at)));
        head.rejoin(tail).unwrap();
        assert_eq!((head.capacity(), head.as_slice().unwrap()), (10, &bytes(filled)[..]));
    }
    let mut head = BufferMut::zeroed(10);
    let tail = head.split_off(5);
    head.truncate(3);
    let tail = head.rejoin(tail).unwrap_err();
    let mut tail = head.rejoin(BufferMut::zeroed(5)).map_err(|_| tail).unwrap_err();
    assert!(tail.rejoin(head).is_err(), "the parts are in the wrong order");
}

#[test]
fn two_threads_write_the_halves_of_a_buffer() {
    let mut head = BufferMut::with_capacity(1 << 16);
    let mut tail = head.split_off(1 << 15);
    std::thread::scope(|scope| {
        scope.spawn(|| head.extend_from_slice(&[1; 1 << 15]).unwrap());
        scope.spawn(|| tail.extend_from_slice(&[2; 1 << 15]).unwrap());
    });
    head.rejoin(tail).unwrap();
    let whole = head.freeze();
    assert!(whole.slice(..1 << 15).as_slice().unwrap().iter().all(|byte| *byte == 1));
    assert!(whole.slice(1 << 15..).as_slice().unwrap().iter().all(|byte| *byte == 2));
}

#[test]
fn copies_need_a_destination_of_equal_length() {
    let buffer = Buffer::from(bytes(10));
    let mut room = [0; 10];
    buffer.copy_to(&mut room).unwrap();
    assert_eq!(&room[..], &bytes(10)[..]);
    assert_eq!(buffer.copy_to(&mut room[..9]).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(
        buffer.copy_to_uninit(&mut [MaybeUninit::uninit(); 11]).unwrap_err().kind(),
        ErrorKind::Invalid
    );
}

#[derive(Debug, Default)]
struct ManualFence(AtomicBool);

impl Fence for ManualFence {
    fn is_ready(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    fn wait(&self) -> Result<()> {
        self.0.store(true, Ordering::Release);
        Ok(())
    }
}

#[test]
fn bytes_are_not_readable_before_their_fence() {
    let (first, second) = (Arc::new(ManualFence::default()), Arc::new(ManualFence::default()));
    let buffer = Buffer::from(bytes(10)).with_fence(first.clone()).with_fence(second.clone());
    assert!(buffer.as_slice().is_none() && buffer.slice(3..).as_slice().is_none());
    let buffer = buffer.try_into_mut().unwrap_err().try_into_vec().unwrap_err();
    let buffer = buffer.try_into_bytes().unwrap_err();
    second.wait().unwrap();
    assert!(buffer.as_slice().is_none(), "a second fence does not lift the first");
    assert_eq!(buffer.to_vec().unwrap(), bytes(10));
    assert!(first.is_ready() && buffer.fence().is_some());
    assert_eq!(buffer.try_into_vec().unwrap(), bytes(10));
}

/// Host memory that claims to have other writers.
#[derive(Debug)]
struct ForeignMemory(super::host::HostMemory);

// SAFETY: host memory that promises less than it could.
unsafe impl Allocation for ForeignMemory {
    fn base(&self) -> NonNull<u8> {
        self.0.base()
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn place(&self) -> Place {
        Place::Arena
    }

    fn access(&self) -> Access {
        Access::Foreign
    }

    fn writable(&self) -> bool {
        true
    }
}

#[test]
fn foreign_memory_is_only_copied() {
    let memory = super::host::HostMemory::new(200, 64, false).unwrap();
    let mut buffer = BufferMut::from_allocation(Arc::new(ForeignMemory(memory))).unwrap();
    assert!(buffer.as_slice().is_none() && buffer.as_mut_slice().is_none() && buffer.spare_mut().is_none());
    let filled = buffer.fill_with(|_| panic!("there is no room to fill in place"));
    assert_eq!(filled.unwrap_err().kind(), ErrorKind::Unsupported);
    let content = bytes(200);
    // Pieces of many lengths, so that words start and end at any offset.
    let mut rest = &content[..];
    for len in [3, 1, 7, 8, 9, 64, 50, 0, 58] {
        let (piece, after) = rest.split_at(len);
        buffer.extend_from_slice(piece).unwrap();
        rest = after;
    }
    let frozen = buffer.freeze();
    assert!(frozen.as_slice().is_none());
    for begin in 0..9 {
        for end in [begin, begin + 1, begin + 7, begin + 8, 191, 200] {
            assert_eq!(frozen.slice(begin..end).to_vec().unwrap(), &content[begin..end]);
        }
    }
    assert!(frozen.allocation().is_some_and(|found| (found as &dyn std::any::Any).is::<ForeignMemory>()));
}

#[test]
fn foreign_bytes_are_copied_at_any_alignment() {
    let memory = super::host::HostMemory::new(400, 64, false).unwrap();
    let mut foreign = BufferMut::from_allocation(Arc::new(ForeignMemory(memory))).unwrap();
    foreign.extend_from_slice(&bytes(400)).unwrap();
    let (foreign, owned) = (foreign.freeze(), Buffer::from(bytes(400)));
    assert!(foreign.raw_bytes().unwrap().as_slice().is_none());
    assert_eq!(owned.raw_bytes().unwrap().as_slice(), Some(&bytes(400)[..]));
    for buffer in [&foreign, &owned] {
        for begin in 0..9 {
            for len in [0, 1, 7, 8, 9, 127, 128, 129, 390] {
                let (_, rest) = buffer.raw_bytes().unwrap().split_at(begin);
                let (part, after) = rest.split_at(len);
                assert_eq!((part.len(), after.len()), (len, 400 - begin - len));
                let mut copy = vec![1, 2];
                part.append_to(&mut copy);
                assert_eq!(copy, [&[1, 2], &bytes(400)[begin..begin + len]].concat());
            }
        }
    }
    let mut private = foreign.clone();
    assert_eq!((private.copy_if_foreign(), private.copy_if_foreign()), (400, 0));
    assert_eq!(private.as_slice(), Some(&bytes(400)[..]));
    assert_ne!(private.as_ptr(), foreign.as_ptr());
}

#[test]
fn an_allocation_with_two_handles_is_not_writable() {
    let memory: Arc<dyn Allocation> = Arc::new(super::host::HostMemory::new(10, 1, true).unwrap());
    let second = Arc::clone(&memory);
    let memory = BufferMut::from_allocation(memory).unwrap_err();
    drop(second);
    let weak = Arc::downgrade(&memory);
    let memory = BufferMut::from_allocation(memory).unwrap_err();
    drop(weak);
    assert_eq!(BufferMut::from_allocation(memory).unwrap().capacity(), 10);
}
