//! Captures what C code prints as a string.

#![expect(unsafe_code, reason = "no safe crate has a stream of C's that writes to memory")]

use std::ptr;
use std::slice;

use libc::FILE;

/// The most bytes kept. UCX's longest text, all settings with their descriptions, has 0.2 MB.
const LEN_MAX: usize = 4 << 20;

/// Returns what `print` writes to its stream, cut after 4 MiB; empty if memory is short. The stream is closed
/// on return, and bytes that are not UTF-8 are replaced.
pub fn text_of(print: impl FnOnce(*mut FILE)) -> String {
    let (mut text, mut len) = (ptr::null_mut(), 0);
    // SAFETY: L2: the stream writes to the two locals, and is closed before they go, also where `print`
    // panics.
    let file = unsafe { libc::open_memstream(&raw mut text, &raw mut len) };
    if file.is_null() {
        return String::new();
    }
    let open = Open(file);
    print(file);
    drop(open);
    if text.is_null() {
        return String::new();
    }
    // SAFETY: L1: a closed stream leaves `len` bytes there, which belong to the caller of `open_memstream`.
    let bytes = unsafe { slice::from_raw_parts(text.cast::<u8>(), len.min(LEN_MAX)) };
    let kept = String::from_utf8_lossy(bytes).into_owned();
    // SAFETY: L1: it is freed once, and `kept` is a copy.
    unsafe { libc::free(text.cast()) };
    kept
}

/// A stream, closed on drop.
struct Open(*mut FILE);

impl Drop for Open {
    fn drop(&mut self) {
        // SAFETY: L1: it is open, and nothing uses it after this.
        unsafe { libc::fclose(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prints these bytes `times` times.
    fn printed(bytes: &[u8], times: usize) -> String {
        text_of(|file| {
            // SAFETY: L2: it reads a slice, and writes to a stream that is open.
            let write = || unsafe { libc::fwrite(bytes.as_ptr().cast(), 1, bytes.len(), file) };
            assert!((0..times).all(|_| write() == bytes.len()));
        })
    }

    #[test]
    fn a_text_is_the_printed_bytes() {
        assert_eq!(printed(b"", 0), "");
        assert_eq!(printed(b"tcp/lo\n", 2), "tcp/lo\ntcp/lo\n");
        assert_eq!(printed(b"\xff\0.", 1), "\u{fffd}\0.");
    }

    #[test]
    fn a_long_text_is_cut() {
        assert_eq!(printed(&[b'x'; 1 << 16], (LEN_MAX >> 16) + 3).len(), LEN_MAX);
    }
}
