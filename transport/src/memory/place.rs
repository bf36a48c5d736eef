//! The place of bytes, as a value, as text, and as a code on the wire.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind};

/// The kind of memory that holds some bytes.
///
/// ```
/// use towline::Place;
///
/// assert_eq!("cuda:1".parse::<Place>()?, Place::Cuda(1));
/// assert_eq!(Place::Cuda(1).to_string(), "cuda:1");
/// assert!(!Place::Cuda(1).cpu_can_touch());
/// # Ok::<(), towline::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Place {
    /// Ordinary memory of this process.
    #[default]
    Host,
    /// Host memory that is page-locked for direct copies to and from devices.
    Pinned,
    /// Host memory that trusted processes of this host map.
    Arena,
    /// Memory of the CUDA device with this ordinal.
    Cuda(u32),
    /// Host pages that the CPU can touch only in their copy functions. The test suite uses them in place of a
    /// device.
    Guarded,
}

impl Place {
    /// Returns true if the CPU can load and store there.
    pub const fn cpu_can_touch(self) -> bool {
        matches!(self, Self::Host | Self::Pinned | Self::Arena)
    }

    /// Returns the code of the place on the wire. A CUDA ordinal beyond 255 has none: it maps to a code that
    /// [`from_code`](Self::from_code) refuses, so that it never names another device.
    pub const fn code(self) -> u16 {
        match self.key() {
            key @ 0..CODES_END => key as u16,
            _ => u16::MAX,
        }
    }

    /// Returns the place for a code from the wire. `None` if no place has that code.
    pub const fn from_code(code: u16) -> Option<Self> {
        match code as u32 {
            key @ (0..=3 | CUDA..CODES_END) => Some(Self::from_key(key)),
            _ => None,
        }
    }

    /// Returns the place in 32 bits: `Place` itself takes 64, which would enlarge each buffer handle.
    pub(super) const fn key(self) -> u32 {
        match self {
            Self::Host => 0,
            Self::Pinned => 1,
            Self::Arena => 2,
            Self::Guarded => 3,
            Self::Cuda(ordinal) => CUDA.saturating_add(ordinal),
        }
    }

    pub(super) const fn from_key(key: u32) -> Self {
        match key {
            0 => Self::Host,
            1 => Self::Pinned,
            2 => Self::Arena,
            3 => Self::Guarded,
            _ => Self::Cuda(key.saturating_sub(CUDA)),
        }
    }
}

const CUDA: u32 = 0x100;
const CODES_END: u32 = 0x200;

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Pinned => "pinned",
            Self::Arena => "arena",
            Self::Guarded => "guarded",
            Self::Cuda(ordinal) => return write!(f, "cuda:{ordinal}"),
        })
    }
}

impl FromStr for Place {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let place = match text {
            "host" => Some(Self::Host),
            "pinned" => Some(Self::Pinned),
            "arena" => Some(Self::Arena),
            "guarded" => Some(Self::Guarded),
            _ => text.strip_prefix("cuda:").and_then(|ordinal| ordinal.parse().ok()).map(Self::Cuda),
        };
        place.ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                format!("{text:?} is no place; places are host, pinned, arena, guarded, cuda:N"),
            )
        })
    }
}
