//! The size classes of a pool's blocks.

use crate::error::{Error, ErrorKind, Result};

/// A size class: multiples of 64 bytes up to 256, then four to a doubling, so that at most a fifth is wasted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SizeClass {
    pub(super) index: usize,
    pub(super) bytes: usize,
}

impl SizeClass {
    /// Returns the smallest class that holds `capacity` bytes. `capacity` is not zero.
    pub(super) fn of(capacity: usize) -> Result<Self> {
        if capacity > isize::MAX as usize / 2 {
            return Err(Error::new(ErrorKind::TooLarge, format!("{capacity} bytes from a pool")));
        }
        if capacity <= 256 {
            let steps = capacity.div_ceil(64);
            return Ok(Self { index: steps - 1, bytes: steps * 64 });
        }
        let doubling = (capacity - 1).ilog2() as usize;
        let (below, step) = (1 << doubling, 1 << (doubling - 2));
        let steps = (capacity - below).div_ceil(step);
        Ok(Self { index: 4 + (doubling - 8) * 4 + steps - 1, bytes: below + steps * step })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_dense_ordered_and_tight() {
        let mut capacities = (1..70_000).chain((17..62).flat_map(|p| [(1 << p) - 1, 1 << p, (1 << p) + 1]));
        let mut last = SizeClass::of(1).unwrap();
        assert!(capacities.all(|capacity| {
            let class = SizeClass::of(capacity).unwrap();
            let same = class == last;
            let later = class.index > last.index && class.bytes > last.bytes;
            last = class;
            let tight = capacity <= 256 || class.bytes - capacity < class.bytes / 5 + 1;
            (same || later) && class.bytes >= capacity && class.bytes.is_multiple_of(64) && tight
        }));
        assert_eq!(SizeClass::of(usize::MAX).unwrap_err().kind(), ErrorKind::TooLarge);
    }
}
