//! Consecutively numbered entries that leave in any order.

use std::collections::VecDeque;

/// Entries by number; the next one is always `next`.
#[derive(Debug)]
pub(crate) struct Ledger<T> {
    first: u64,
    entries: VecDeque<Option<T>>,
    len: usize,
}

impl<T> Default for Ledger<T> {
    fn default() -> Self {
        Self { first: 0, entries: VecDeque::new(), len: 0 }
    }
}

impl<T> Ledger<T> {
    /// How many are in.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The number that the next entry gets.
    pub(crate) fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    pub(crate) fn push(&mut self, entry: T) -> u64 {
        let id = self.next();
        self.entries.push_back(Some(entry));
        self.len += 1;
        id
    }

    pub(crate) fn at(&mut self, id: u64) -> Option<&mut T> {
        let index = usize::try_from(id.checked_sub(self.first)?).ok()?;
        self.entries.get_mut(index)?.as_mut()
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<T> {
        let index = usize::try_from(id.checked_sub(self.first)?).ok()?;
        let entry = self.entries.get_mut(index)?.take()?;
        self.len -= 1;
        while let Some(None) = self.entries.front() {
            self.entries.pop_front();
            self.first += 1;
        }
        Some(entry)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().flatten()
    }

    /// Takes everything out, in order.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.first = self.next();
        self.len = 0;
        self.entries.drain(..).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_leave_in_any_order() {
        let mut ledger = Ledger::default();
        let ids: Vec<_> = ["a", "b", "c"].map(|entry| ledger.push(entry)).into();
        assert_eq!(ids, [0, 1, 2]);
        assert_eq!(ledger.remove(1), Some("b"));
        assert_eq!(ledger.remove(1), None);
        assert_eq!(ledger.remove(0), Some("a"));
        assert_eq!((ledger.len(), ledger.next()), (1, 3));
        assert_eq!(ledger.at(2), Some(&mut "c"));
        assert_eq!(ledger.at(3), None);
        assert_eq!(ledger.drain().collect::<Vec<_>>(), ["c"]);
        assert_eq!(ledger.push("d"), 3);
    }
}
