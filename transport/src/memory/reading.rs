//! Fills a buffer in place from a reader or a writer, in safe code. A reader only ever gets initialised
//! bytes.

use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::pin::pin;
use std::task::{Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use super::{Access, BufferMut};
use crate::error::{Error, ErrorKind, Result};

/// Few enough that the zeroes are still in the processor's cache when the reader overwrites them.
const ZEROED_AT_ONCE_BYTES: usize = 256 << 10;

impl BufferMut {
    /// Appends bytes from `reader` until the buffer is full or `reader` ends, and returns how many. Blocks as long as `reader` does.
    ///
    /// A return value below the remaining capacity means that `reader` ended. A full buffer does not: nothing
    /// beyond it is read. To read less, pass `reader.take(n)`.
    ///
    /// ```
    /// use std::fs::File;
    /// use std::io::Read;
    ///
    /// use towline::{Arena, Message};
    ///
    /// let arena = Arena::new(1 << 20)?;
    /// let mut file = File::open("Cargo.toml")?;
    /// let mut buffer = arena.take(4096)?;
    /// let n = buffer.read_from((&mut file).take(20))?;
    /// assert_eq!((n, buffer.len()), (20, 20));
    ///
    /// buffer.read_from(&mut file)?;
    /// let message = Message::new("Cargo.toml").with_frame(buffer); // no copy was made on the way
    /// # assert_eq!(message.frames()[0].to_vec()?, std::fs::read("Cargo.toml")?[..message.payload_len() as usize]);
    /// # Ok::<(), towline::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Io` if `reader` fails, with its error as the source, or this library's own error if `reader` returned
    /// one. The bytes read before stay appended, and a further call continues after them.
    /// `ErrorKind::Interrupted` is retried. `Unsupported` outside [`Access::Owned`], as in device memory:
    /// read into host memory, then use [`fill_from`](Self::fill_from).
    pub fn read_from(&mut self, mut reader: impl Read) -> Result<usize> {
        let mut spare = SpareCapacity::of(self)?;
        while let Some(piece) = spare.piece()? {
            let read = reader.read(piece);
            if spare.is_last(read)? {
                break;
            }
        }
        Ok(spare.filled())
    }

    /// Appends bytes from `reader` until the buffer is full or `reader` ends, and returns how many.
    ///
    /// As [`read_from`](Self::read_from), for asynchronous readers, on any executor that drives them. A
    /// dropped future loses nothing: the bytes read so far are appended.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> towline::Result<()> {
    /// use tokio::io::AsyncWriteExt;
    /// use towline::BufferMut;
    ///
    /// let (mut near, mut far) = tokio::io::duplex(16);
    /// near.write_all(b"towline").await?;
    /// drop(near);
    ///
    /// let mut buffer = BufferMut::with_capacity(100);
    /// let n = buffer.read_from_async(&mut far).await?;
    /// assert_eq!((n, buffer.as_slice()), (7, Some(&b"towline"[..])));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`read_from`](Self::read_from).
    pub async fn read_from_async(&mut self, reader: impl AsyncRead) -> Result<usize> {
        let mut reader = pin!(reader);
        let mut spare = SpareCapacity::of(self)?;
        while let Some(piece) = spare.piece()? {
            let read = poll_fn(|cx| {
                let mut piece = ReadBuf::new(piece);
                ready!(reader.as_mut().poll_read(cx, &mut piece))?;
                Poll::Ready(Ok(piece.filled().len()))
            })
            .await;
            if spare.is_last(read)? {
                break;
            }
        }
        Ok(spare.filled())
    }
}

/// The remaining capacity of a buffer while a reader fills it. While this value lives, the buffer's length
/// includes zeroes that the reader has not overwritten yet. They are written once, and dropped with this
/// value.
struct SpareCapacity<'a> {
    buffer: &'a mut BufferMut,
    len_before: usize,
    len_read: usize,
}

impl<'a> SpareCapacity<'a> {
    fn of(buffer: &'a mut BufferMut) -> Result<Self> {
        if buffer.access() != Access::Owned {
            let why = format!(
                "a reader cannot fill {} memory: read into host memory, then use fill_from",
                buffer.place()
            );
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        let len = buffer.len();
        Ok(Self { buffer, len_before: len, len_read: len })
    }

    /// Returns initialised bytes for the reader to overwrite; `None` if the buffer is full.
    fn piece(&mut self) -> Result<Option<&mut [u8]>> {
        if self.buffer.len() == self.len_read {
            let len = (self.buffer.capacity() - self.len_read).min(ZEROED_AT_ONCE_BYTES);
            self.buffer.resize(self.len_read + len, 0)?;
        }
        let filled = self.buffer.as_mut_slice().unwrap_or_default();
        Ok(filled.get_mut(self.len_read..).filter(|piece| !piece.is_empty()))
    }

    /// Counts the bytes that the reader wrote to the front of the piece. Returns true if the reader has
    /// ended.
    fn is_last(&mut self, read: io::Result<usize>) -> Result<bool> {
        match read {
            Ok(n) if n <= self.buffer.len() - self.len_read => {
                self.len_read += n;
                Ok(n == 0)
            }
            Ok(n) => {
                let why =
                    format!("the reader returned {n} bytes, which is more than the length of its buffer");
                Err(Error::new(ErrorKind::Invalid, why))
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            Err(error) => Err(match error.downcast::<Error>() {
                Ok(ours) => ours,
                Err(error) => Error::new(ErrorKind::Io, "the reader failed").caused_by(error),
            }),
        }
    }

    const fn filled(&self) -> usize {
        self.len_read - self.len_before
    }
}

impl Drop for SpareCapacity<'_> {
    fn drop(&mut self) {
        self.buffer.truncate(self.len_read);
    }
}

/// Appends, in any place that [`extend_from_slice`](BufferMut::extend_from_slice) can write. A full buffer
/// accepts 0 bytes, so that `write_all` and `write!` fail with `WriteZero`. `flush` does nothing.
///
/// ```
/// use std::io::Write;
///
/// let mut buffer = towline::Arena::new(1 << 20)?.take(100)?;
/// write!(buffer, "step {} of {}", 3, 10)?;
/// assert_eq!(buffer.as_slice(), Some(&b"step 3 of 10"[..]));
/// # Ok::<(), towline::Error>(())
/// ```
impl Write for BufferMut {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(self.capacity() - self.len());
        self.extend_from_slice(&bytes[..n]).map_err(|error| match error.kind() {
            ErrorKind::Unsupported => io::Error::new(io::ErrorKind::Unsupported, error),
            _ => io::Error::other(error),
        })?;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
