//! The tasks of one simulation: what each does, its expected result by plain evaluation, and which errors are
//! allowed.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{Hash, Hasher};

use rustc_hash::FxHasher;

use super::rng::{Rng, mix};
use crate::error::{Error, ErrorKind};
use crate::protocol::Key;

/// A value, represented by its identity and its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Datum {
    pub(super) identity: u64,
    pub(super) bytes: u64,
}

/// What a task's function does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behavior {
    Returns,
    Fails,
    Panics,
    /// Its worker dies of it, this many times.
    Kills(u32),
    /// It is no function: a client scattered it.
    Scattered,
}

#[derive(Debug)]
pub(super) struct TaskSpec {
    pub(super) inputs: Vec<Key>,
    pub(super) behavior: Behavior,
    pub(super) micros: u64,
    pub(super) bytes: u64,
    pub(super) is_cancelled: bool,
    pub(super) has_killed: bool,
    /// The expected result, unless the task or one that it depends on fails.
    expected: Option<Datum>,
}

#[derive(Debug, Default)]
pub(super) struct Graph {
    specs: BTreeMap<Key, TaskSpec>,
    pub(super) outcomes: Outcomes,
}

/// How tasks ended: well, or with an error of that kind.
pub(super) type Outcomes = HashSet<Option<ErrorKind>>;

/// Conditions that make an outcome right or wrong.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Conditions {
    /// No faults but delays: only planned failures are allowed.
    pub(super) is_calm: bool,
    /// Memory is short.
    pub(super) is_tight: bool,
    /// Workers that died of injected faults, and tasks that killed workers.
    pub(super) death_causes: u32,
    /// No worker was present for the stall timeout.
    pub(super) had_no_worker: bool,
}

impl Behavior {
    /// The name of the function with this behavior.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Returns => "return",
            Self::Fails => "fail",
            Self::Panics => "panic",
            Self::Kills(_) => "kill",
            Self::Scattered => "none",
        }
    }

    pub(super) fn random(rng: &mut Rng, is_calm: bool) -> Self {
        match rng.below(60) {
            0 => Self::Fails,
            1 => Self::Panics,
            2 if !is_calm => Self::Kills([1, 2, u32::MAX][rng.below(3) as usize]),
            _ => Self::Returns,
        }
    }
}

impl Graph {
    pub(super) fn add(&mut self, key: Key, behavior: Behavior, inputs: Vec<Key>, micros: u64, bytes: u64) {
        let data: Option<Vec<Datum>> = inputs.iter().map(|input| self.specs[input].expected).collect();
        let expected = match behavior {
            Behavior::Fails | Behavior::Panics | Behavior::Kills(u32::MAX) => None,
            _ => data.map(|data| self.evaluated(key, &data, bytes)),
        };
        self.specs.insert(
            key,
            TaskSpec { inputs, behavior, micros, bytes, is_cancelled: false, has_killed: false, expected },
        );
    }

    pub(super) fn spec(&mut self, key: Key) -> &mut TaskSpec {
        self.specs.get_mut(&key).expect("a task that was submitted")
    }

    /// Returns the result of the task for these inputs.
    pub(super) fn evaluated(&self, key: Key, inputs: &[Datum], bytes: u64) -> Datum {
        let mut named = FxHasher::default();
        key.hash(&mut named);
        let begin = mix(named.finish());
        let identity = inputs.iter().fold(begin, |hash, input| mix(hash ^ input.identity).wrapping_add(1));
        Datum { identity, bytes }
    }

    /// # Panics
    /// If the outcome is not allowed.
    pub(super) fn check_outcome(&mut self, key: Key, outcome: &Result<Datum, Error>, conditions: Conditions) {
        self.outcomes.insert(outcome.as_ref().map_or_else(|error| Some(error.kind()), |_| None));
        let spec = &self.specs[&key];
        let error = match outcome {
            Ok(datum) => return assert_eq!(Some(*datum), spec.expected, "{key:?} has another value"),
            Err(error) => error,
        };
        let lineage = self.lineage(key);
        let any = |is_meant: &dyn Fn(&TaskSpec) -> bool| lineage.iter().any(|key| is_meant(&self.specs[key]));
        let is_right = match error.kind() {
            ErrorKind::Failed => any(&|spec| spec.behavior == Behavior::Fails),
            ErrorKind::Panicked => any(&|spec| spec.behavior == Behavior::Panics),
            ErrorKind::Killed => {
                conditions.death_causes >= 3 || any(&|spec| matches!(spec.behavior, Behavior::Kills(_)))
            }
            ErrorKind::Cancelled => any(&|spec| spec.is_cancelled),
            ErrorKind::Lost => !conditions.is_calm && any(&|spec| spec.behavior == Behavior::Scattered),
            ErrorKind::TooLarge => conditions.is_tight,
            ErrorKind::TimedOut => conditions.is_tight || conditions.had_no_worker,
            _ => false,
        };
        assert!(is_right, "{key:?} must not end like this: {error}; {conditions:?}");
        if let Some(name) = error.task() {
            assert!(any(&|spec| spec.behavior.name() == name), "{key:?} does not need {name}: {error}");
        }
    }

    /// Returns the task and all that it depends on.
    fn lineage(&self, key: Key) -> BTreeSet<Key> {
        let mut lineage = BTreeSet::new();
        let mut stack = vec![key];
        while let Some(key) = stack.pop() {
            if lineage.insert(key) {
                stack.extend(&self.specs[&key].inputs);
            }
        }
        lineage
    }
}
