//! Why UCX is unavailable, and what to do about it.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;

use crate::version::Version;

/// Why UCX cannot be used in this process. Displays as a sentence that ends with the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unavailable {
    /// The loader found no such library.
    NotLoaded {
        /// The name to search for, or the path.
        library: PathBuf,
        /// The loader's message.
        reason: String,
    },
    /// The library is older than the bindings, or has another interface.
    WrongVersion {
        /// The file.
        library: PathBuf,
        /// The version that it reports.
        version: Version,
    },
    /// The library lacks a function: it is not a complete UCX.
    NoSymbol {
        /// The file.
        library: PathBuf,
        /// The version that it reports, if any.
        version: Option<Version>,
        /// The function.
        symbol: String,
    },
    /// A part of UCX would be loaded twice: each copy hooks the same functions of this process, and they
    /// hang.
    SecondCopy {
        /// The file that this process has loaded.
        loaded: PathBuf,
        /// The second file.
        other: PathBuf,
    },
}

impl Unavailable {
    /// Returns the reason, without the remedy.
    #[must_use]
    pub fn reason(&self) -> String {
        match self {
            Self::NotLoaded { library, reason } => {
                format!("{} cannot be loaded: {reason}", library.display())
            }
            Self::WrongVersion { library, version } => {
                format!("{} is UCX {version}, and {} or newer is needed", library.display(), Version::OLDEST)
            }
            Self::NoSymbol { library, version: Some(version), symbol } => {
                format!("{} (UCX {version}) has no {symbol}", library.display())
            }
            Self::NoSymbol { library, version: None, symbol } => {
                format!("{} has no {symbol}", library.display())
            }
            Self::SecondCopy { loaded, other } => {
                let (loaded, other) = (loaded.display(), other.display());
                format!("{loaded} is loaded, and a second copy of UCX in one process hangs: {other}")
            }
        }
    }

    /// Returns what the user can do.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NotLoaded { .. } => {
                "apt install libucx0, or pip install libucx-cu12 and name its libucx/lib/libucp.so.0"
            }
            Self::WrongVersion { .. } => {
                "install UCX 1.13 or newer, and name its libucp.so.0 if there are several"
            }
            Self::NoSymbol { .. } => "name the libucp.so.0 of a complete UCX",
            Self::SecondCopy { .. } => {
                "name the copy that is loaded, or none, and make all other code in this process load the same copy"
            }
        }
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.reason(), self.remedy())
    }
}

impl Error for Unavailable {}
