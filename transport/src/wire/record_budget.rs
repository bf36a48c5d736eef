//! A memory budget for unfinished records of all connections of an endpoint, which no credit covers.
//!
//! Invariant: when the budget is exceeded, the connection whose records have been unfinished for longest
//! ends.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};

use crate::error::{Error, ErrorKind, Result};
use crate::platform::mutex::Mutex;

/// The length that each connection may hold uncounted, in bytes.
const FREE_LEN: usize = 64 << 10;

/// The budget of an endpoint.
#[derive(Clone, Debug)]
pub(crate) struct RecordBudget(Arc<Mutex<RecordBudgetState>>);

#[derive(Debug)]
struct RecordBudgetState {
    bytes_max: u64,
    bytes: u64,
    next: u64,
    /// By age number: the oldest first.
    records: BTreeMap<u64, Records>,
}

/// The unfinished records of one connection.
#[derive(Debug)]
struct Records {
    bytes: u64,
    is_evicted: Arc<AtomicBool>,
}

/// One connection's share of the budget.
#[derive(Debug)]
pub(crate) struct BudgetShare {
    budget: RecordBudget,
    /// The number of its unfinished records, while they are counted.
    number: Option<u64>,
    is_evicted: Arc<AtomicBool>,
}

impl RecordBudget {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self(Arc::new(Mutex::new(RecordBudgetState {
            bytes_max,
            bytes: 0,
            next: 0,
            records: BTreeMap::new(),
        })))
    }

    pub(crate) fn share(&self) -> BudgetShare {
        BudgetShare { budget: self.clone(), number: None, is_evicted: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, RecordBudgetState> {
        self.0.lock()
    }
}

impl RecordBudgetState {
    fn remove(&mut self, number: u64) -> Option<Records> {
        let records = self.records.remove(&number)?;
        self.bytes -= records.bytes;
        Some(records)
    }
}

impl BudgetShare {
    /// Records that `len` bytes of unfinished records have arrived, with more to come.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub(crate) fn grown(&mut self, len: usize) -> Result<()> {
        if len <= FREE_LEN {
            return Ok(());
        }
        let mut state = self.budget.state();
        let next = state.next;
        let number = *self.number.get_or_insert(next);
        if number == next {
            state.next += 1;
            state.records.insert(number, Records { bytes: 0, is_evicted: self.is_evicted.clone() });
        }
        if let Some(records) = state.records.get_mut(&number) {
            let more = (len as u64).saturating_sub(records.bytes);
            records.bytes += more;
            state.bytes += more;
        }
        while state.bytes > state.bytes_max
            && let Some((oldest, _)) = state.records.first_key_value()
        {
            let oldest = *oldest;
            if let Some(records) = state.remove(oldest) {
                records.is_evicted.store(true, Ordering::Relaxed);
            }
        }
        drop(state);
        self.check()
    }

    /// Records that the unfinished records are complete.
    pub(crate) fn finished(&mut self) {
        if let Some(number) = self.number.take() {
            self.budget.state().remove(number);
        }
    }

    /// # Errors
    /// `TooLarge` if this connection must end to free memory for others.
    pub(crate) fn check(&self) -> Result<()> {
        if !self.is_evicted.load(Ordering::Relaxed) {
            return Ok(());
        }
        let why = "the peer's records stayed unfinished, and the memory for unfinished records of all peers is used up";
        Err(Error::new(ErrorKind::TooLarge, why))
    }
}

impl Drop for BudgetShare {
    fn drop(&mut self) {
        self.finished();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 1 << 20;

    #[test]
    fn beyond_the_budget_the_oldest_connection_ends() {
        let budget = RecordBudget::new(3 * LEN as u64);
        let mut shares: Vec<_> = (0..4).map(|_| budget.share()).collect();
        shares[..3].iter_mut().for_each(|share| share.grown(LEN).unwrap());
        // Its new records are the youngest.
        shares[0].finished();
        shares[0].grown(LEN).unwrap();
        shares[3].grown(LEN).unwrap();
        let ended: Vec<_> = shares.iter().map(|share| share.check().is_err()).collect();
        assert_eq!(ended, [false, true, false, false]);
        assert_eq!(shares[1].grown(2 * LEN).unwrap_err().kind(), ErrorKind::TooLarge);
        drop(shares);
        assert_eq!(budget.state().bytes, 0);
        assert!(budget.state().records.is_empty());
    }

    #[test]
    fn the_free_allowance_is_not_counted() {
        let budget = RecordBudget::new(0);
        let mut share = budget.share();
        share.grown(FREE_LEN).unwrap();
        share.finished();
        assert!(share.grown(FREE_LEN + 1).is_err(), "more than the allowance needs budget");
    }
}
