//! A model of shared memory, for ends that lend each other frames.

use crate::memory::Buffer;
use crate::wire::lending::{LENT_FRAME_LEN, Lender, model};

/// The shared memory of one process, which its peer can map.
#[derive(Clone, Debug, Default)]
pub struct FuzzArena(model::ModelArena);

impl FuzzArena {
    /// Creates one with a bounce arena of `bytes_max` bytes.
    pub fn with_bounce_arena(bytes_max: usize) -> Self {
        Self(model::ModelArena::with_bounce_arena(bytes_max))
    }

    /// Returns a frame in it; `bytes` must not be empty.
    pub fn block(&self, bytes: Vec<u8>) -> Buffer {
        self.0.block(bytes)
    }

    /// Lends a frame of it to the owner of `peers`, and returns the encoded lent frame.
    pub fn lend(&self, frame: &Buffer, peers: &Self) -> Option<[u8; LENT_FRAME_LEN]> {
        self.lender(peers, usize::MAX).lend(frame).map(|lent_frame| lent_frame.encode())
    }

    /// Checks the final state, once the peer has gone and nothing that it borrowed is left.
    ///
    /// # Panics
    /// Panics if a frame was freed while the peer had it, or if a lease was not returned exactly once.
    pub fn check(&self) {
        let borrowed = self.0.leases().borrowed;
        self.0.peer_is_gone();
        self.0.check();
        assert_eq!((borrowed, self.0.leases().out), (0, 0), "leases were never returned");
    }

    /// See [`Stream::lending`](super::Stream::lending).
    pub(super) fn lender(&self, peers: &Self, leases_max: usize) -> Box<dyn Lender> {
        self.0.lender(&peers.0, leases_max)
    }
}
