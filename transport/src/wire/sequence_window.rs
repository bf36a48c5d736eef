//! Consecutively numbered entries that are removed in any order.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Entries by number; the next one is numbered `next`. An entry that stays long costs later ones nothing.
#[derive(Debug)]
pub(crate) struct SequenceWindow<T> {
    next: u64,
    entries: HashMap<u64, T, BuildHasherDefault<SequenceHasher>>,
}

/// A fast hasher. Numbers are assigned by this end or checked to be consecutive, so a peer cannot choose them
/// to collide.
#[derive(Default)]
struct SequenceHasher(u64);

impl Hasher for SequenceHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("the keys are numbers")
    }

    fn write_u64(&mut self, number: u64) {
        // Both ends of the hash are used: multiplying by the golden ratio spreads consecutive numbers over
        // all of it.
        self.0 = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

impl<T> Default for SequenceWindow<T> {
    fn default() -> Self {
        Self { next: 0, entries: HashMap::default() }
    }
}

impl<T> SequenceWindow<T> {
    /// Returns the number of entries.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns the number that the next entry gets.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    pub(crate) fn push(&mut self, entry: T) -> u64 {
        let id = self.next;
        self.next += 1;
        self.entries.insert(id, entry);
        id
    }

    pub(crate) fn at(&mut self, id: u64) -> Option<&mut T> {
        self.entries.get_mut(&id)
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<T> {
        self.entries.remove(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.values()
    }

    /// Removes all entries.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.entries.drain().map(|(_, entry)| entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_leave_in_any_order() {
        let mut sequence_window = SequenceWindow::default();
        let ids: Vec<_> = ["a", "b", "c"].map(|entry| sequence_window.push(entry)).into();
        assert_eq!(ids, [0, 1, 2]);
        assert_eq!(sequence_window.remove(1), Some("b"));
        assert_eq!(sequence_window.remove(1), None);
        assert_eq!(sequence_window.remove(0), Some("a"));
        assert_eq!((sequence_window.len(), sequence_window.next()), (1, 3));
        assert_eq!(sequence_window.at(2), Some(&mut "c"));
        assert_eq!(sequence_window.at(3), None);
        assert_eq!(sequence_window.drain().collect::<Vec<_>>(), ["c"]);
        assert_eq!(sequence_window.push("d"), 3);
    }
}
