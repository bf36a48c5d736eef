//! Tests of short, pending, failing and misbehaving readers, and of the buffer's content after them.

use std::collections::VecDeque;
use std::error::Error as _;
use std::future::Future;
use std::io::{self, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, ReadBuf};

use super::bytes;
use crate::error::{Error, ErrorKind};
use crate::memory::{Arena, BufferMut, Place, Pool};

/// The result of one read. A reader without further steps has ended.
enum Step {
    Give(Vec<u8>),
    Fail(io::Error),
    Wait,
}

struct ScriptedReader(VecDeque<Step>);

impl ScriptedReader {
    fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self(steps.into_iter().collect())
    }
}

impl Read for ScriptedReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.0.pop_front() {
            None => Ok(0),
            Some(Step::Fail(error)) => Err(error),
            Some(Step::Wait) => Err(io::ErrorKind::WouldBlock.into()),
            Some(Step::Give(mut bytes)) => {
                let n = bytes.len().min(into.len());
                into[..n].copy_from_slice(&bytes[..n]);
                let rest = bytes.split_off(n);
                if !rest.is_empty() {
                    self.0.push_front(Step::Give(rest));
                }
                Ok(n)
            }
        }
    }
}

impl AsyncRead for ScriptedReader {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(Step::Wait) = this.0.front() {
            this.0.pop_front();
            return Poll::Pending;
        }
        let n = this.read(into.initialize_unfilled())?;
        into.advance(n);
        Poll::Ready(Ok(()))
    }
}

/// Runs the same steps through `read_from` and `read_from_async`.
fn read_both(
    buffer: impl Fn() -> BufferMut,
    steps: impl Fn() -> Vec<Step>,
    check: impl Fn(crate::Result<usize>, BufferMut),
) {
    let mut filled = buffer();
    check(filled.read_from(ScriptedReader::new(steps())), filled);
    let mut filled = buffer();
    let result = ready_output(filled.read_from_async(ScriptedReader::new(steps())));
    check(result, filled);
}

/// Returns the output of a future that is ready at once.
fn ready_output<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the future is pending"),
    }
}

/// Splits bytes into pieces of 1, 2, 3 … bytes.
fn short_reads(content: &[u8]) -> Vec<Step> {
    let mut rest = content;
    let mut steps = Vec::new();
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.len().min(steps.len() + 1));
        steps.push(Step::Give(piece.to_vec()));
        rest = after;
    }
    steps
}

#[test]
fn short_reads_fill_a_buffer_up_to_the_end() {
    let content = bytes(600_000); // more than is zeroed at once
    for capacity in [1, 1000, 599_999, 600_000, 600_001, 700_000] {
        let buffer = || BufferMut::with_capacity(capacity);
        read_both(
            buffer,
            || short_reads(&content),
            |n, filled| {
                let expected = capacity.min(content.len());
                assert_eq!(n.unwrap(), expected);
                assert!(filled.as_slice().unwrap() == &content[..expected]);
                assert_eq!(filled.capacity(), capacity);
            },
        );
    }
}

#[test]
fn reading_appends_to_what_is_filled() {
    let buffer = || {
        let mut buffer = BufferMut::with_capacity(10);
        buffer.extend_from_slice(b"tow").unwrap();
        buffer
    };
    read_both(
        buffer,
        || short_reads(b"line"),
        |n, filled| {
            assert_eq!((n.unwrap(), filled.as_slice()), (4, Some(&b"towline"[..])));
        },
    );
}

#[test]
fn a_full_buffer_does_not_call_the_reader() {
    let fails = || vec![Step::Give(b"ab".to_vec()), Step::Fail(io::Error::other("asked again"))];
    read_both(
        || BufferMut::with_capacity(2),
        fails,
        |n, filled| {
            assert_eq!((n.unwrap(), filled.len()), (2, 2));
        },
    );
    let fails = || vec![Step::Fail(io::Error::other("asked"))];
    read_both(|| BufferMut::zeroed(2), fails, |n, filled| assert_eq!((n.unwrap(), filled.len()), (0, 2)));
    read_both(BufferMut::new, fails, |n, _| assert_eq!(n.unwrap(), 0));
    // The bytes beyond the capacity stay in the reader.
    let mut reader = &b"towline"[..];
    BufferMut::with_capacity(3).read_from(&mut reader).unwrap();
    assert_eq!(reader, b"line");
}

#[test]
fn a_failed_read_keeps_the_earlier_bytes_and_can_continue() {
    let broken = || vec![Step::Give(b"tow".to_vec()), Step::Fail(io::ErrorKind::ConnectionReset.into())];
    read_both(
        || BufferMut::with_capacity(100),
        broken,
        |result, mut filled| {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io, "the reader's peer is not a towline peer: {error}");
            let source = error.source().and_then(|source| source.downcast_ref::<io::Error>()).unwrap();
            assert_eq!(source.kind(), io::ErrorKind::ConnectionReset);
            assert_eq!(filled.as_slice(), Some(&b"tow"[..]));
            assert_eq!(filled.read_from(&b"line"[..]).unwrap(), 4);
            assert_eq!(filled.as_slice(), Some(&b"towline"[..]));
        },
    );
}

#[test]
fn a_towline_error_of_a_reader_is_returned_unchanged() {
    let ours = || Error::new(ErrorKind::PeerLost, "of a test").during("recv");
    let broken = || vec![Step::Fail(io::Error::other(ours()))];
    read_both(
        || BufferMut::with_capacity(100),
        broken,
        |result, _| {
            assert_eq!(result.unwrap_err().to_string(), ours().to_string());
        },
    );
}

#[test]
fn an_interrupted_read_is_tried_again() {
    let interrupted = || {
        let interrupted = || Step::Fail(io::ErrorKind::Interrupted.into());
        vec![interrupted(), Step::Give(b"tow".to_vec()), interrupted(), Step::Give(b"line".to_vec())]
    };
    read_both(
        || BufferMut::with_capacity(100),
        interrupted,
        |n, filled| {
            assert_eq!((n.unwrap(), filled.as_slice()), (7, Some(&b"towline"[..])));
        },
    );
}

#[test]
fn a_read_that_would_block_continues_in_the_next_call() {
    let mut reader =
        ScriptedReader::new([Step::Give(b"tow".to_vec()), Step::Wait, Step::Give(b"line".to_vec())]);
    let mut buffer = BufferMut::with_capacity(100);
    assert_eq!(buffer.read_from(&mut reader).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(buffer.read_from(&mut reader).unwrap(), 4);
    assert_eq!(buffer.as_slice(), Some(&b"towline"[..]));
}

#[test]
fn a_dropped_future_loses_nothing() {
    let mut reader =
        ScriptedReader::new([Step::Give(b"tow".to_vec()), Step::Wait, Step::Give(b"line".to_vec())]);
    let mut buffer = BufferMut::with_capacity(100);
    {
        let reading = pin!(buffer.read_from_async(&mut reader));
        assert!(reading.poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    assert_eq!(buffer.as_slice(), Some(&b"tow"[..]));
    assert_eq!(ready_output(buffer.read_from_async(&mut reader)).unwrap(), 4);
    assert_eq!(buffer.as_slice(), Some(&b"towline"[..]));
}

/// Fills its whole buffer with ones, and returns the given number of bytes.
struct OverreportingReader(usize);

impl Read for OverreportingReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        into.fill(1);
        Ok(self.0)
    }
}

#[test]
fn a_reader_that_returns_too_large_a_count_is_an_error() {
    let mut buffer = BufferMut::with_capacity(10);
    buffer.extend_from_slice(b"tow").unwrap();
    for claimed in [8, usize::MAX] {
        assert_eq!(buffer.read_from(OverreportingReader(claimed)).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(buffer.as_slice(), Some(&b"tow"[..]));
    }
}

/// The addresses of the arrays that `BufferSwappingReader` leaks. They keep the arrays reachable, so that
/// AddressSanitizer does not report a leak.
static LEAKED: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// Replaces the buffer it is given with one of its own.
struct BufferSwappingReader(&'static [u8]);

impl AsyncRead for BufferSwappingReader {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let array = Box::leak(Box::new([1; 64]));
        LEAKED.lock().unwrap().push(array.as_ptr().expose_provenance());
        *into = ReadBuf::new(array);
        into.put_slice(self.0);
        Poll::Ready(Ok(()))
    }
}

#[test]
fn a_reader_that_swaps_its_buffer_exposes_no_old_bytes() {
    let pool = dirty_pool(7);
    let mut buffer = pool.take(7).unwrap();
    assert_eq!(ready_output(buffer.read_from_async(BufferSwappingReader(b"towline"))).unwrap(), 7);
    assert_eq!(buffer.as_slice(), Some(&[0; 7][..]));
    buffer.clear();
    let error = ready_output(buffer.read_from_async(BufferSwappingReader(b"too much for it"))).unwrap_err();
    assert_eq!((error.kind(), buffer.len()), (ErrorKind::Invalid, 0));
}

#[test]
fn a_panicking_reader_keeps_the_earlier_bytes() {
    struct PanickingReader(bool);
    impl Read for PanickingReader {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            assert!(!std::mem::replace(&mut self.0, true), "of a test");
            into[..3].copy_from_slice(b"tow");
            Ok(3)
        }
    }
    let mut buffer = BufferMut::with_capacity(10);
    catch_unwind(AssertUnwindSafe(|| buffer.read_from(PanickingReader(false)))).unwrap_err();
    assert_eq!(buffer.as_slice(), Some(&b"tow"[..]));
}

/// Returns a pool whose next block of that size is full of ones.
fn dirty_pool(len: usize) -> Pool {
    let pool = Pool::new(1 << 20);
    let mut buffer = pool.take(len).unwrap();
    buffer.resize(len, 1).unwrap();
    drop(buffer);
    pool
}

#[test]
fn a_reader_sees_zeroes_and_no_old_bytes() {
    struct ZeroCheckingReader(usize);
    impl Read for ZeroCheckingReader {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            // The bytes of the previous read are still there: the buffer is zeroed only once.
            let expected = if self.0 == 0 { 0 } else { 2 };
            assert!(into.iter().all(|byte| *byte == expected), "read {}", self.0);
            into.fill(2);
            self.0 += 1;
            Ok(if self.0 < 10 { 100 } else { 0 })
        }
    }
    let pool = dirty_pool(5000);
    let mut buffer = pool.take(5000).unwrap();
    assert_eq!(buffer.read_from(ZeroCheckingReader(0)).unwrap(), 900);
    assert_eq!((buffer.as_slice(), pool.stats().hits), (Some(&[2; 900][..]), 1));
}

#[test]
fn arena_memory_is_filled_in_place() {
    let content = bytes(300_000);
    let arena = Arena::new(1 << 20).unwrap();
    read_both(
        || arena.take(400_000).unwrap(),
        || short_reads(&content),
        |n, filled| {
            let address = filled.as_ptr();
            let frozen = filled.freeze();
            assert_eq!((n.unwrap(), frozen.place(), frozen.as_ptr()), (300_000, Place::Arena, address));
            assert!(frozen.as_slice().unwrap() == content);
        },
    );
    let mut dirty = arena.take(5000).unwrap();
    dirty.resize(5000, 1).unwrap();
    drop(dirty);
    assert_eq!(arena.take_zeroed(5000).unwrap().as_slice(), Some(&[0; 5000][..]));
    assert_eq!(arena.take_zeroed(2 << 20).unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(arena.take_zeroed(0).unwrap().place(), Place::Arena);
}

#[test]
fn a_buffer_is_resized_within_its_capacity() {
    let mut buffer = BufferMut::with_capacity(8);
    buffer.resize(3, 1).unwrap();
    buffer.resize(5, 2).unwrap();
    assert_eq!(buffer.as_slice(), Some(&[1, 1, 1, 2, 2][..]));
    buffer.resize(2, 9).unwrap();
    assert_eq!(buffer.as_slice(), Some(&[1, 1][..]));
    for len in [9, usize::MAX] {
        assert_eq!(buffer.resize(len, 0).unwrap_err().kind(), ErrorKind::TooLarge);
    }
    assert_eq!((buffer.len(), buffer.capacity()), (2, 8));
    BufferMut::new().resize(0, 0).unwrap();
}

#[test]
fn a_full_buffer_takes_no_more_writes() {
    let mut buffer = BufferMut::with_capacity(8);
    write!(buffer, "{}", 12345).unwrap();
    assert_eq!(buffer.write(b"towline").unwrap(), 3);
    assert_eq!(buffer.write(b"x").unwrap(), 0);
    assert_eq!(buffer.write_all(b"x").unwrap_err().kind(), io::ErrorKind::WriteZero);
    buffer.flush().unwrap();
    assert_eq!(buffer.as_slice(), Some(&b"12345tow"[..]));
    buffer.clear();
    assert_eq!(io::copy(&mut &b"towline"[..], &mut buffer).unwrap(), 7);
}
