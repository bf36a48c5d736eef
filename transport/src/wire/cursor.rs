//! Reads fields from the front of received bytes. It never reads past their end, and allocates nothing.

use crate::error::{Error, ErrorKind, Result};

/// The unread bytes of a received structure, whose integers are little-endian. A field that is not there is
/// `Corrupt`.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    unread: &'a [u8],
    /// The structure, for the error.
    what: &'static str,
}

impl<'a> Cursor<'a> {
    #[inline]
    pub(crate) const fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { unread: bytes, what }
    }

    /// Reads `len` bytes.
    #[inline]
    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let Some((taken, unread)) = self.unread.split_at_checked(len) else { return Err(self.truncated()) };
        self.unread = unread;
        Ok(taken)
    }

    /// Reads all bytes that are left.
    #[inline]
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.unread)
    }

    /// Returns how many bytes are left.
    #[inline]
    pub(crate) const fn len(&self) -> usize {
        self.unread.len()
    }

    #[inline]
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let Some((taken, unread)) = self.unread.split_first_chunk() else { return Err(self.truncated()) };
        self.unread = unread;
        Ok(*taken)
    }

    #[inline]
    pub(crate) fn u8(&mut self) -> Result<u8> {
        self.array().map(u8::from_le_bytes)
    }

    #[inline]
    pub(crate) fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_le_bytes)
    }

    #[inline]
    pub(crate) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    #[inline]
    pub(crate) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    #[cold]
    fn truncated(&self) -> Error {
        Error::new(ErrorKind::Corrupt, format!("{} is truncated", self.what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_in_order() {
        let bytes: Vec<u8> = (1..=20).collect();
        let mut cursor = Cursor::new(&bytes, "a sample");
        assert_eq!(cursor.u8().unwrap(), 1);
        assert_eq!(cursor.u16().unwrap(), 0x0302);
        assert_eq!(cursor.u32().unwrap(), 0x0706_0504);
        assert_eq!(cursor.u64().unwrap(), 0x0f0e_0d0c_0b0a_0908);
        assert_eq!(cursor.array().unwrap(), [16, 17]);
        assert_eq!((cursor.take(0).unwrap(), cursor.take(1).unwrap()), (&[][..], &[18][..]));
        assert_eq!((cursor.len(), cursor.rest(), cursor.len()), (2, &[19, 20][..], 0));
    }

    #[test]
    fn a_field_past_the_end_is_corrupt_and_consumes_nothing() {
        let mut cursor = Cursor::new(&[1, 2, 3], "a sample");
        let errors = [
            cursor.take(4).unwrap_err(),
            cursor.take(usize::MAX).unwrap_err(),
            cursor.array::<4>().unwrap_err(),
            cursor.u32().unwrap_err(),
            cursor.u64().unwrap_err(),
        ];
        for error in errors {
            assert_eq!((error.kind(), error.detail()), (ErrorKind::Corrupt, "a sample is truncated"));
        }
        assert_eq!(cursor.rest(), [1, 2, 3]);
        assert_eq!(cursor.u8().unwrap_err().kind(), ErrorKind::Corrupt);
    }
}
