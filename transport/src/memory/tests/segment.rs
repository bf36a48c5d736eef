//! Tests of shared memory: what the owner creates, and what the checks accept from an unauthenticated peer.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr;
use std::slice;

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};

use super::bytes;
use crate::error::ErrorKind;
use crate::memory::segment::{PeerSegment, Segment};

const PAGE: usize = 4096;
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE);

fn fill(segment: &Segment, content: &[u8]) {
    assert!(content.len() <= segment.len());
    // SAFETY: within a mapping that the test owns (M1) and that no one else has yet (M2).
    unsafe { ptr::copy_nonoverlapping(content.as_ptr(), segment.base().as_ptr(), content.len()) };
}

fn seen(segment: &PeerSegment) -> &[u8] {
    // SAFETY: within the mapping (M1), and the test does not write meanwhile (M2).
    unsafe { slice::from_raw_parts(segment.base().as_ptr(), segment.len()) }
}

fn received(segment: &Segment) -> OwnedFd {
    segment.descriptor().try_clone_to_owned().unwrap()
}

/// Creates a memfd of `len` bytes, all allocated, sealed with `seals`.
fn memfd(len: usize, seals: SealFlags) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(rustix::fs::memfd_create("towline-test", flags).unwrap());
    file.write_all(&vec![1; len]).unwrap();
    rustix::fs::fcntl_add_seals(&file, seals).unwrap();
    file.into()
}

#[track_caller]
fn assert_corrupt(descriptor: OwnedFd, why: &str) {
    let error = PeerSegment::map(descriptor, 1 << 20).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains(why), "{error}");
}

#[test]
fn a_peer_sees_what_the_owner_writes() {
    for (len, len_mapped) in [(1, PAGE), (PAGE, PAGE), (3 << 20, 3 << 20), ((2 << 20) + 1, (2 << 20) + PAGE)]
    {
        let segment = Segment::create("towline-test", len).unwrap();
        let peer = PeerSegment::map(received(&segment), len_mapped).unwrap();
        peer.populate().unwrap();
        assert_eq!((segment.len(), peer.len()), (len_mapped, len_mapped));
        assert_ne!(segment.base(), peer.base());
        assert!(seen(&peer).iter().all(|byte| *byte == 0));
        let align = if len_mapped >= 2 << 20 { 2 << 20 } else { PAGE };
        for base in [segment.base(), peer.base()] {
            assert_eq!(base.align_offset(align), 0);
        }
        fill(&segment, &bytes(len));
        assert!(seen(&peer)[..len] == bytes(len));
        drop(segment);
        assert!(seen(&peer)[..len] == bytes(len), "the mapping outlives the owner");
    }
}

#[test]
fn a_segment_has_no_name_and_is_not_inherited() {
    let segment = Segment::create("towline-test", 1).unwrap();
    let found = rustix::fs::fstat(segment.descriptor()).unwrap();
    assert_eq!(found.st_nlink, 0);
    let flags = rustix::io::fcntl_getfd(segment.descriptor()).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
}

#[test]
fn a_segment_keeps_its_size_its_pages_and_its_seals() {
    let segment = Segment::create("towline-test", 4 * PAGE).unwrap();
    let descriptor = segment.descriptor();
    for len in [0, PAGE, 8 * PAGE] {
        assert_eq!(rustix::fs::ftruncate(descriptor, len as u64), Err(Errno::PERM));
    }
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    assert_eq!(rustix::fs::fallocate(descriptor, punch, 0, PAGE as u64), Err(Errno::PERM));
    assert_eq!(rustix::io::pwrite(descriptor, b"x", 0), Err(Errno::PERM));
    assert_eq!(rustix::fs::fcntl_add_seals(descriptor, SealFlags::WRITE), Err(Errno::PERM));
    // The owner's own mapping cannot remove a page either.
    let base = segment.base().as_ptr().cast();
    // SAFETY: a page that the test owns. On success it would be zeroed.
    let removed = unsafe { rustix::mm::madvise(base, PAGE, rustix::mm::Advice::LinuxRemove) };
    assert_eq!(removed, Err(Errno::PERM));
}

#[test]
fn a_segment_cannot_be_mapped_writable() {
    let segment = Segment::create("towline-test", PAGE).unwrap();
    let peer = PeerSegment::map(received(&segment), PAGE).unwrap();
    // SAFETY: a mapping that only this test uses.
    let protected = unsafe {
        rustix::mm::mprotect(peer.base().as_ptr().cast(), PAGE, MprotectFlags::READ | MprotectFlags::WRITE)
    };
    assert_eq!(protected, Err(Errno::ACCESS));
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    let descriptor = segment.descriptor();
    // SAFETY: a new mapping at an address that the kernel chooses, if the call succeeded.
    let mapped =
        unsafe { rustix::mm::mmap(ptr::null_mut(), PAGE, protection, MapFlags::SHARED, descriptor, 0) };
    assert_eq!(mapped, Err(Errno::PERM));
}

#[test]
fn an_unsealed_memfd_is_not_mapped() {
    PeerSegment::map(memfd(PAGE, SEALS), PAGE).unwrap();
    PeerSegment::map(memfd(PAGE, SEALS | SealFlags::WRITE | SealFlags::SEAL), PAGE).unwrap();
    for (missing, why) in [
        (SealFlags::SHRINK, "shrinking"),
        (SealFlags::GROW, "growing"),
        (SealFlags::FUTURE_WRITE, "future writes"),
    ] {
        assert_corrupt(memfd(PAGE, SEALS - missing), why);
    }
}

#[test]
fn a_descriptor_that_is_no_memfd_is_not_mapped() {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    assert_corrupt(reader, "no memfd");
    assert_corrupt(writer, "no memfd");
    assert_corrupt(File::open(std::env::current_exe().unwrap()).unwrap().into(), "no memfd");
    assert_corrupt(File::open("/dev/zero").unwrap().into(), "no memfd");
    let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    assert_corrupt(socket.into(), "no memfd");
    assert_corrupt(File::open("/").unwrap().into(), "no memfd");
}

#[test]
fn a_hugetlb_memfd_is_not_mapped() {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB;
    let Ok(descriptor) = rustix::fs::memfd_create("towline-test", flags) else {
        return; // a kernel without such memfds
    };
    rustix::fs::ftruncate(&descriptor, 2 << 20).unwrap();
    rustix::fs::fcntl_add_seals(&descriptor, SEALS).unwrap();
    let error = PeerSegment::map(descriptor, 2 << 20).unwrap_err();
    assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains("huge pages"), "{error}");
}

#[test]
fn a_memfd_of_another_length_is_not_mapped() {
    assert_corrupt(memfd(0, SEALS), "not whole pages");
    assert_corrupt(memfd(PAGE + 1, SEALS), "not whole pages");
    assert_corrupt(memfd((1 << 20) + PAGE, SEALS), "more than the 1048576 agreed");
    PeerSegment::map(memfd(1 << 20, SEALS), 1 << 20).unwrap();
}

#[test]
fn a_memfd_with_holes_is_not_mapped() {
    let sparse = |keep: &dyn Fn(&File)| {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(rustix::fs::memfd_create("towline-test", flags).unwrap());
        file.set_len(4 * PAGE as u64).unwrap();
        keep(&file);
        rustix::fs::fcntl_add_seals(&file, SEALS).unwrap();
        OwnedFd::from(file)
    };
    let page = PAGE as u64;
    let write = |file: &File, pages: &[u64]| {
        for at in pages {
            assert_eq!(rustix::io::pwrite(file, &[1; PAGE], at * page), Ok(PAGE));
        }
    };
    PeerSegment::map(sparse(&|file| write(file, &[0, 1, 2, 3])), 1 << 20).unwrap();
    for pages in [&[][..], &[1, 2, 3], &[0, 2, 3], &[0, 1, 2]] {
        assert_corrupt(sparse(&|file| write(file, pages)), "not allocated");
    }
    // As many blocks as a segment without holes, but some of them beyond its end.
    let behind = |file: &File| {
        write(file, &[0, 1, 2]);
        rustix::fs::fallocate(file.as_fd(), FallocateFlags::KEEP_SIZE, 4 * page, 4 * page).unwrap();
        assert!(file.metadata().unwrap().len() == 4 * page);
    };
    assert_corrupt(sparse(&behind), "not allocated");
}

#[test]
fn a_segment_beyond_the_machines_memory_is_an_error() {
    for len in [usize::MAX, isize::MAX as usize, 1 << 50] {
        assert_eq!(Segment::create("towline-test", len).unwrap_err().kind(), ErrorKind::TooLarge);
    }
}

#[test]
fn dropping_a_segment_unmaps_it() {
    let mapped = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().filter(|line| line.contains("/memfd:towline-gone")).count()
    };
    let segment = Segment::create("towline-gone", 5 << 20).unwrap();
    let peer = PeerSegment::map(received(&segment), 5 << 20).unwrap();
    assert_eq!(mapped(), 2);
    drop(segment);
    assert_eq!(mapped(), 1);
    drop(peer);
    assert_eq!(mapped(), 0);
}
