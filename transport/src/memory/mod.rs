//! Memory: owned, reference-counted bytes in one place, and pools that recycle them.
//!
//! [`Buffer`] is shared and immutable, [`BufferMut`] unique and writable; `freeze` turns the second into the first.
//! Both are a range of one [`Allocation`], which frees its memory when the last handle drops. The numbered invariants
//! (M1 …) that the unsafe blocks below cite are in `docs/safety.md`.

mod allocation;

pub(crate) mod arena;
mod available;
mod buffer;
mod buffer_mut;
mod class;
mod depot;
pub(crate) mod foreign;
mod host;
mod huge;
mod place;
mod pool;
mod reading;
mod segment;
mod shared;
#[cfg(test)]
mod tests;

pub use allocation::{Access, Allocation, Fence};
pub use arena::{Arena, ArenaStats};
pub use available::{AvailableMemory, MemoryBound};
pub use buffer::Buffer;
pub use buffer_mut::BufferMut;
pub use depot::Depot;
pub use place::Place;
pub use pool::{Pool, PoolStats, Source};
pub(crate) use segment::{PeerSegment, Segment};
pub(crate) use shared::{Shared, lines};
