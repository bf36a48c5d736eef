//! Why there is no UCX, and what to do about that.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;

use crate::version::Version;

/// Why UCX cannot be used in this process. Reads as a sentence that ends with the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unavailable {
    /// The loader has no such library.
    NotLoaded {
        /// What it was asked for: a name to search for, or a path.
        library: PathBuf,
        /// Its own words.
        reason: String,
    },
    /// It is older than the bindings, or of another interface.
    WrongVersion {
        /// The file.
        library: PathBuf,
        /// What it says it is.
        version: Version,
    },
    /// It lacks a function: it is no whole UCX.
    NoSymbol {
        /// The file.
        library: PathBuf,
        /// What it says it is, if it can say so.
        version: Option<Version>,
        /// The function.
        symbol: String,
    },
    /// It, or a part of it, would be there twice: each copy hooks the same functions of this process, and they hang.
    SecondCopy {
        /// What this process has loaded.
        loaded: PathBuf,
        /// What came besides, or would have.
        other: PathBuf,
    },
}

impl Unavailable {
    /// Why, without the remedy.
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

    /// What a person can do.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NotLoaded { .. } => {
                "apt install libucx0, or pip install libucx-cu12 and name its libucx/lib/libucp.so.0"
            }
            Self::WrongVersion { .. } => {
                "install UCX 1.13 or newer, and name its libucp.so.0 if there are several"
            }
            Self::NoSymbol { .. } => "name the libucp.so.0 of a whole UCX",
            Self::SecondCopy { .. } => {
                "name the copy that is loaded, or none, and see that whatever else uses UCX in this process loads the same"
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
