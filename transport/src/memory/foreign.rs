//! Copies of memory that others may write at the same time: other processes, or code of this process that is
//! not Rust. They use one processor instruction where there is one, and otherwise atomic accesses of whole
//! words.
//!
//! A concurrent writer can corrupt the content, but not the program: nothing forms a slice, reads a value
//! with invalid bit patterns, or reads a byte twice.

#![expect(unsafe_code, reason = "memory that others may write is reached through raw addresses")]

use std::mem::MaybeUninit;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU8, AtomicU64};

const WORD: usize = size_of::<u64>();

/// From this length on, the instruction outweighs its start-up cost: it copies at the rate of `memcpy`, 20
/// times that of words.
#[cfg(all(target_arch = "x86_64", not(miri)))]
const STRING_LEN_MIN: usize = 128;

/// Copies `len` bytes by an instruction that the compiler does not treat as a memory access that could race.
///
/// # Safety
///
/// `from` is readable and `to` writable for `len` bytes and the length of the call. Any other access to them
/// meanwhile comes from outside this program or is atomic.
#[cfg(all(target_arch = "x86_64", not(miri)))]
unsafe fn copy_string(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller promises both ranges (M1, M5). The direction flag is clear on entry, as for all
    // inline assembly.
    unsafe {
        std::arch::asm!("rep movsb", inout("rcx") len => _, inout("rsi") from => _, inout("rdi") to => _,
            options(nostack, preserves_flags));
    }
}

/// Copies `dst.len()` bytes from `from`.
///
/// # Safety
///
/// The bytes are readable for the length of the call. Any write to them meanwhile comes from outside this
/// program or is atomic.
pub(crate) unsafe fn load(from: *const u8, dst: &mut [MaybeUninit<u8>]) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if dst.len() >= STRING_LEN_MIN {
        // SAFETY: the caller's promise for the source, and a destination that is borrowed exclusively (M2,
        // M5).
        return unsafe { copy_string(from, dst.as_mut_ptr().cast(), dst.len()) };
    }
    let (head, rest) = dst.split_at_mut(from.align_offset(WORD).min(dst.len()));
    let aligned = from.wrapping_add(head.len());
    let (words, tail) = rest.as_chunks_mut::<WORD>();
    let end = aligned.wrapping_add(words.len() * WORD);

    for (at, byte) in head.iter_mut().enumerate() {
        // SAFETY: within the caller's range, hence readable now (M1); read only as an atomic (M5).
        let source = unsafe { AtomicU8::from_ptr(from.wrapping_add(at).cast_mut()) };
        byte.write(source.load(Relaxed));
    }
    for (at, word) in words.iter_mut().enumerate() {
        // SAFETY: within the caller's range (M1), word-aligned by `align_offset`; read only as an atomic
        // (M5).
        let source = unsafe { AtomicU64::from_ptr(aligned.wrapping_add(at * WORD).cast_mut().cast()) };
        word.write_copy_of_slice(&source.load(Relaxed).to_ne_bytes());
    }
    for (at, byte) in tail.iter_mut().enumerate() {
        // SAFETY: within the caller's range, hence readable now (M1); read only as an atomic (M5).
        let source = unsafe { AtomicU8::from_ptr(end.wrapping_add(at).cast_mut()) };
        byte.write(source.load(Relaxed));
    }
}

/// Copies `src` to `to`.
///
/// # Safety
///
/// The bytes are writable for the length of the call. Any other access to them meanwhile comes from outside
/// this program or is atomic.
pub(super) unsafe fn store(src: &[u8], to: *mut u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if src.len() >= STRING_LEN_MIN {
        // SAFETY: a source that is borrowed, hence not written (M2), and the caller's promise for the
        // destination (M1, M5).
        return unsafe { copy_string(src.as_ptr(), to, src.len()) };
    }
    let (head, rest) = src.split_at(to.align_offset(WORD).min(src.len()));
    let aligned = to.wrapping_add(head.len());
    let (words, tail) = rest.as_chunks::<WORD>();
    let end = aligned.wrapping_add(words.len() * WORD);

    for (at, byte) in head.iter().enumerate() {
        // SAFETY: within the caller's range, hence writable now (M1); written only as an atomic (M5).
        let target = unsafe { AtomicU8::from_ptr(to.wrapping_add(at)) };
        target.store(*byte, Relaxed);
    }
    for (at, word) in words.iter().enumerate() {
        // SAFETY: within the caller's range (M1), word-aligned by `align_offset`; written only as an atomic
        // (M5).
        let target = unsafe { AtomicU64::from_ptr(aligned.wrapping_add(at * WORD).cast()) };
        target.store(u64::from_ne_bytes(*word), Relaxed);
    }
    for (at, byte) in tail.iter().enumerate() {
        // SAFETY: within the caller's range, hence writable now (M1); written only as an atomic (M5).
        let target = unsafe { AtomicU8::from_ptr(end.wrapping_add(at)) };
        target.store(*byte, Relaxed);
    }
}
