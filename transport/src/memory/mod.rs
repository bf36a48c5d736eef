//! Memory: owned, reference-counted bytes in one place, and pools that recycle them.
//!
//! [`Buffer`] is shared and immutable, [`BufferMut`] is unique and writable, and `freeze` turns the second
//! into the first. Both are a range of one [`Allocation`], which frees its memory when the last handle drops.
//! `docs/safety.md` lists the numbered invariants (M1 …) that the unsafe blocks below cite.
//!
//! ```
//! use towline::memory::{Arena, Buffer, BufferMut, Place, Pool};
//!
//! // A buffer can take over any host memory without a copy.
//! let from_vec = Buffer::from(vec![1, 2, 3]);
//!
//! // Writable memory is fresh, recycled by a pool, or part of an arena.
//! let fresh = BufferMut::with_capacity(4096);
//! let recycled = Pool::new(64 << 20).take(4096)?;
//! let mut shared = Arena::new(64 << 20)?.take(4096)?;
//! assert_eq!([fresh.place(), recycled.place(), shared.place()], [Place::Host, Place::Host, Place::Arena]);
//!
//! shared.fill_from(&from_vec)?;
//! shared.resize(100, 0)?;
//! let frozen = shared.freeze();
//! assert_eq!(frozen.slice(..4).as_slice(), Some(&[1, 2, 3, 0][..]));
//! # Ok::<(), towline::Error>(())
//! ```

mod allocation;

pub(crate) mod arena;
mod available;
mod bounce_arena;
mod buffer;
mod buffer_mut;
mod class;
pub(crate) mod foreign;
mod host;
mod huge;
mod pins;
mod place;
mod pool;
mod raw_bytes;
mod reading;
mod segment;
mod shared;
#[cfg(test)]
mod tests;

pub use allocation::{Access, Allocation, Fence};
pub use arena::{Arena, ArenaStats, ForeignBlock};
pub use available::{AvailableMemory, MemoryBound};
pub use bounce_arena::BounceArena;
pub use buffer::Buffer;
pub use buffer_mut::BufferMut;
pub use pins::Pins;
pub use place::Place;
pub use pool::{MemorySource, Pool, PoolStats};
pub(crate) use raw_bytes::RawBytes;
pub(crate) use segment::{PeerSegment, Segment};
pub(crate) use shared::{SharedBlock, lines};
