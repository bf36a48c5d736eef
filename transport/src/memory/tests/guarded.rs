//! A place whose pages fault on any access outside its copy functions: code that passes here also works on a
//! device.

use std::io::Write;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};

use super::bytes;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Access, Allocation, Buffer, BufferMut, MemorySource, Place, Pool};
use crate::platform::mutex::Mutex;

/// A mapping that has no permissions except during a copy.
#[derive(Debug)]
struct Guarded {
    base: NonNull<u8>,
    len: usize,
    copying: Mutex<()>,
}

// SAFETY: the mapping stays at its address until drop, and only this value accesses it.
unsafe impl Send for Guarded {}
// SAFETY: the lock serialises the copies.
unsafe impl Sync for Guarded {}

impl Guarded {
    fn new(len: usize) -> Result<Self> {
        // SAFETY: a new anonymous mapping at an address that the kernel chooses.
        let base = unsafe {
            rustix::mm::mmap_anonymous(ptr::null_mut(), len, ProtFlags::empty(), MapFlags::PRIVATE)
        };
        let base = NonNull::new(base.map_err(std::io::Error::from)?.cast()).expect("not at zero");
        Ok(Self { base, len, copying: Mutex::new(()) })
    }

    fn unguarded<T>(&self, copy: impl FnOnce() -> T) -> Result<T> {
        let _copying = self.copying.lock();
        self.protect(MprotectFlags::READ | MprotectFlags::WRITE)?;
        let done = copy();
        self.protect(MprotectFlags::empty())?;
        Ok(done)
    }

    fn protect(&self, flags: MprotectFlags) -> Result<()> {
        // SAFETY: a whole mapping that this value owns.
        Ok(unsafe { rustix::mm::mprotect(self.base.as_ptr().cast(), self.len, flags) }
            .map_err(std::io::Error::from)?)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: a whole mapping that this value owns, with no handle left (M1).
        unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) }.unwrap();
    }
}

// SAFETY: a mapping stays at its address until drop (M1); no other code has the address (M2).
unsafe impl Allocation for Guarded {
    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn len(&self) -> usize {
        self.len
    }

    fn place(&self) -> Place {
        Place::Guarded
    }

    fn access(&self) -> Access {
        Access::Remote
    }

    fn writable(&self) -> bool {
        true
    }

    unsafe fn copy_out(&self, offset: usize, dst: &mut [MaybeUninit<u8>]) -> Result<()> {
        let from = self.base.as_ptr().wrapping_add(offset);
        // SAFETY: the caller's range, readable while unguarded.
        self.unguarded(|| unsafe { ptr::copy_nonoverlapping(from, dst.as_mut_ptr().cast(), dst.len()) })
    }

    unsafe fn copy_in(&self, offset: usize, src: &[u8]) -> Result<()> {
        let to = self.base.as_ptr().wrapping_add(offset);
        // SAFETY: the caller's range, writable while unguarded.
        self.unguarded(|| unsafe { ptr::copy_nonoverlapping(src.as_ptr(), to, src.len()) })
    }
}

/// Guarded memory without copy functions.
#[derive(Debug)]
struct NoCopy(Guarded);

// SAFETY: every property is the mapping's, which this value holds (M1, M2).
unsafe impl Allocation for NoCopy {
    fn base(&self) -> NonNull<u8> {
        self.0.base()
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn place(&self) -> Place {
        self.0.place()
    }

    fn access(&self) -> Access {
        self.0.access()
    }

    fn writable(&self) -> bool {
        self.0.writable()
    }
}

#[derive(Debug)]
struct GuardedSource;

impl MemorySource for GuardedSource {
    fn place(&self) -> Place {
        Place::Guarded
    }

    fn allocate(&self, len: usize) -> Result<Arc<dyn Allocation>> {
        Ok(Arc::new(Guarded::new(len)?))
    }
}

fn guarded(capacity: usize) -> BufferMut {
    let memory = Guarded::new(capacity).unwrap();
    BufferMut::from_allocation(Arc::new(memory)).unwrap()
}

#[test]
fn guarded_memory_offers_no_slices() {
    let mut buffer = guarded(100);
    assert!(buffer.as_slice().is_none() && buffer.as_mut_slice().is_none() && buffer.spare_mut().is_none());
    buffer.extend_from_slice(b"towline").unwrap();
    let frozen = buffer.freeze();
    assert!(frozen.as_slice().is_none());
    assert_eq!((frozen.place(), frozen.access()), (Place::Guarded, Access::Remote));
    assert_eq!((frozen.slice(..0).place(), frozen.slice(..0).to_vec().unwrap()), (Place::Guarded, vec![]));
}

#[test]
fn guarded_memory_is_resized_and_written_by_copies() {
    // More than one piece, and not a multiple of one.
    let len = (2 << 20) + 77;
    let mut buffer = guarded(len + 8);
    buffer.write_all(b"towline!").unwrap();
    buffer.resize(len + 8, 7).unwrap();
    assert_eq!(buffer.write(b"x").unwrap(), 0);
    assert_eq!(buffer.resize(len + 9, 7).unwrap_err().kind(), ErrorKind::TooLarge);
    let content = buffer.freeze().to_vec().unwrap();
    assert!(content.strip_prefix(b"towline!").unwrap() == vec![7; len]);

    let pool = Pool::with_source(Arc::new(GuardedSource), 1 << 20);
    let mut dirty = pool.take(5000).unwrap();
    dirty.resize(5000, 1).unwrap();
    drop(dirty);
    let zeroed = pool.take_zeroed(5000).unwrap();
    assert_eq!((pool.stats().hits, zeroed.place()), (1, Place::Guarded));
    assert_eq!(zeroed.freeze().to_vec().unwrap(), vec![0; 5000]);
}

#[test]
fn read_from_refuses_guarded_memory() {
    let mut buffer = guarded(100);
    let refused = buffer.read_from(&b"towline"[..]).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert!(refused.detail().contains("guarded") && refused.detail().contains("fill_from"), "{refused}");
    assert!(buffer.is_empty());
}

#[test]
fn memory_without_copy_functions_returns_unsupported() {
    let mut buffer = BufferMut::from_allocation(Arc::new(NoCopy(Guarded::new(100).unwrap()))).unwrap();
    assert_eq!(buffer.resize(10, 0).unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(buffer.read_from(&b"x"[..]).unwrap_err().kind(), ErrorKind::Unsupported);
    let refused = buffer.write(b"x").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::Unsupported);
    assert_eq!(Error::io(refused).kind(), ErrorKind::Unsupported, "the error comes back out");
    assert!(buffer.is_empty());
}

#[test]
fn guarded_memory_keeps_its_bytes() {
    let mut buffer = guarded(100);
    buffer.extend_from_slice(b"tow").unwrap();
    buffer.extend_from_slice(b"").unwrap();
    let mut tail = buffer.split_off(3);
    tail.fill_from(&Buffer::from("line")).unwrap();
    buffer.rejoin(tail).unwrap();
    let mut copy = [0; 7];
    buffer.copy_to(&mut copy).unwrap();
    assert_eq!(&copy, b"towline");
    let frozen = buffer.freeze();
    assert_eq!(frozen.slice(2..5).to_vec().unwrap(), b"wli");
    assert_eq!(frozen.try_into_vec().unwrap_err().try_into_mut().unwrap().capacity(), 7);
}

#[test]
fn every_pair_of_places_copies() {
    // More than one bounce copy, and not a multiple of one.
    let content = bytes((2 << 20) + 77);
    let places: [fn(usize) -> BufferMut; 2] = [BufferMut::with_capacity, guarded];
    for from in places {
        for to in places {
            let mut source = from(content.len());
            source.fill_from(&Buffer::from(content.clone())).unwrap();
            let mut target = to(content.len() + 4);
            target.extend_from_slice(b"head").unwrap();
            target.fill_from(&source.freeze()).unwrap();
            assert_eq!(target.fill_from(&Buffer::from("x")).unwrap_err().kind(), ErrorKind::TooLarge);
            let back = target.freeze().slice(4..).to_vec().unwrap();
            assert!(back == content);
        }
    }
}

#[test]
fn guarded_pools_recycle() {
    let pool = Pool::with_source(Arc::new(GuardedSource), 1 << 20);
    assert_eq!((pool.place(), pool.take(0).unwrap().place()), (Place::Guarded, Place::Guarded));
    let mut buffer = pool.take(5000).unwrap();
    buffer.extend_from_slice(&bytes(5000)).unwrap();
    let (address, frozen) = (buffer.as_ptr(), buffer.freeze());
    assert_eq!(frozen.slice(4990..).to_vec().unwrap(), &bytes(5000)[4990..]);
    drop(frozen);
    let again = pool.take(5100).unwrap();
    assert_eq!((again.as_ptr(), pool.stats().hits), (address, 1));
    let inner = again.allocation().unwrap() as &dyn std::any::Any;
    assert!(inner.is::<Guarded>(), "a backend finds its own memory under the pool");

    let mut destinations = pool.destinations([100, 0, 20_000].into_iter()).unwrap();
    destinations[0].extend_from_slice(&bytes(100)).unwrap();
    assert_eq!(destinations.remove(0).freeze().to_vec().unwrap(), bytes(100));
}
