//! Shared memory as a model, for ends that lend each other frames.

use crate::memory::Buffer;
use crate::wire::lending::{LENT_FRAME_LEN, Lender, model};

/// One process's shared memory, which its peer reaches too.
#[derive(Clone, Debug, Default)]
pub struct ModelArena(model::ModelArena);

impl ModelArena {
    /// One with so much room for copies of frames that are in none.
    pub fn with_bounce_arena(bytes_max: usize) -> Self {
        Self(model::ModelArena::with_bounce_arena(bytes_max))
    }

    /// A frame in it; `bytes` are not empty.
    pub fn block(&self, bytes: Vec<u8>) -> Buffer {
        self.0.block(bytes)
    }

    /// Lends a frame of it to whoever has `peers`, and tells the loan as it travels.
    pub fn lend(&self, frame: &Buffer, peers: &Self) -> Option<[u8; LENT_FRAME_LEN]> {
        self.lender(peers, usize::MAX).lend(frame).map(|lent_frame| lent_frame.encode())
    }

    /// What must be true when the peer is gone, and nothing that it borrowed is left.
    ///
    /// # Panics
    /// If a frame was not there as long as the peer had it, or a lease did not come back, or twice.
    pub fn check(&self) {
        let borrowed = self.0.leases().borrowed;
        self.0.peer_is_gone();
        self.0.check();
        assert_eq!((borrowed, self.0.leases().out), (0, 0), "leases that never came back");
    }

    /// See [`Stream::lending`](super::Stream::lending).
    pub(super) fn lender(&self, peers: &Self, leases_max: usize) -> Box<dyn Lender> {
        self.0.lender(&peers.0, leases_max)
    }
}
