//! The place of the bytes at either end, and memory there.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use towline::{Arena, BufferMut, Error, Pool};

use crate::failure::Failure;

/// The place of the bytes at one end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Place {
    /// Ordinary memory of the process.
    #[default]
    Host,
    /// Memory that trusted processes of the same host map.
    Arena,
}

impl Place {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Arena => "arena",
        }
    }

    /// Returns the same place in the library's type.
    pub(crate) fn of_library(self) -> towline::Place {
        match self {
            Self::Host => towline::Place::Host,
            Self::Arena => towline::Place::Arena,
        }
    }

    /// Refuses a place that this machine does not have, with the reason.
    pub(crate) fn check(self) -> Result<(), Failure> {
        let wrong =
            |error| Failure::usage(format!("this machine has no memory in `{}`: {error}", self.name()));
        self.room(1).map(drop).map_err(wrong)
    }

    /// Returns an empty buffer with room for `len` bytes, in memory that was not used before.
    pub(crate) fn room(self, len: usize) -> Result<BufferMut, Error> {
        match self {
            Self::Host => Ok(BufferMut::with_capacity(len)),
            Self::Arena => arena(room_bytes(1, len))?.take(len),
        }
    }

    /// Returns `len` zeros.
    pub(crate) fn zeroed(self, len: usize) -> Result<BufferMut, Error> {
        match self {
            Self::Host => Ok(BufferMut::zeroed(len)),
            Self::Arena => self.filled(vec![0; len]),
        }
    }

    /// Returns `bytes`, in memory that was not used before.
    pub(crate) fn filled(self, bytes: Vec<u8>) -> Result<BufferMut, Error> {
        if self == Self::Host {
            return Ok(BufferMut::from(bytes));
        }
        let mut memory = self.room(bytes.len())?;
        memory.extend_from_slice(&bytes)?;
        Ok(memory)
    }

    /// Returns a pool with room for `count` buffers of `len` bytes each at once. It allocates on demand.
    pub(crate) fn pool(self, count: usize, len: usize) -> Result<Pool, Error> {
        // A pool hands out blocks of up to twice the requested length.
        let bytes = room_bytes(count, len.saturating_mul(2));
        match self {
            Self::Host => Ok(Pool::new(bytes)),
            Self::Arena => Ok(Pool::with_source(Arc::new(arena(bytes)?), bytes)),
        }
    }
}

/// The unit to which an arena's memory is rounded up.
const HUGE_PAGE: usize = 2 << 20;

/// Returns the most that the buffers take, each rounded up to pages.
fn room_bytes(count: usize, len: usize) -> usize {
    len.saturating_add(len / 8).saturating_add(16 << 10).saturating_mul(count)
}

/// Returns an arena of at least `bytes`.
fn arena(bytes: usize) -> Result<Arena, Error> {
    Arena::new(bytes.checked_next_multiple_of(HUGE_PAGE).unwrap_or(bytes))
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "host" => Ok(Self::Host),
            "arena" => Ok(Self::Arena),
            _ if text == "pinned" || text.starts_with("cuda:") => {
                Err(format!("this version does not place bytes in `{text}` yet: only `host` and `arena`"))
            }
            _ => Err(format!(
                "`{text}` is not a place: choose from host, arena, pinned, cuda:N (this version: host, arena)"
            )),
        }
    }
}

/// The places of the bytes at both ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Places {
    /// At the end that gives them.
    pub(crate) from: Place,
    /// At the end that takes them.
    pub(crate) to: Place,
}

impl fmt::Display for Places {
    /// Writes nothing for the default.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.from, self.to) {
            (Place::Host, Place::Host) => Ok(()),
            (from, to) if from == to => write!(f, " in {}", from.name()),
            (from, to) => write!(f, " from {} to {}", from.name(), to.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_planned_is_told_from_what_is_wrong() {
        for text in ["cuda:0", "pinned"] {
            assert!(text.parse::<Place>().unwrap_err().contains("yet: only `host` and `arena`"));
        }
        for text in ["moon", "guarded"] {
            assert!(text.parse::<Place>().unwrap_err().contains("is not a place"));
        }
        for place in [Place::Host, Place::Arena] {
            assert_eq!(place.name().parse(), Ok(place));
            assert_eq!(place.of_library().to_string(), place.name());
            place.check().unwrap();
        }
    }

    #[test]
    fn memory_is_where_it_is_asked_for_and_there_is_enough() {
        for place in [Place::Host, Place::Arena] {
            for (count, len) in [(1, 1), (3, 8), (100, 5000), (16, 100_000), (2, 5 << 20)] {
                let zeros = place.zeroed(len).unwrap();
                assert_eq!((zeros.place(), zeros.len()), (place.of_library(), len));
                let pool = place.pool(count, len).unwrap();
                let taken: Vec<_> = (0..count).map(|_| pool.take(len).unwrap()).collect();
                assert!(taken.iter().all(|buffer| buffer.place() == place.of_library()));
            }
            let filled = place.filled(b"towline".to_vec()).unwrap();
            assert_eq!((filled.place(), filled.as_slice()), (place.of_library(), Some(&b"towline"[..])));
        }
    }

    #[test]
    fn places_are_named_where_they_do_not_go_without_saying() {
        let text = |from, to| Places { from, to }.to_string();
        assert_eq!(text(Place::Host, Place::Host), "");
        assert_eq!(text(Place::Arena, Place::Arena), " in arena");
        assert_eq!(text(Place::Arena, Place::Host), " from arena to host");
    }
}
