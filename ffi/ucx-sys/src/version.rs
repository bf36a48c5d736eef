//! Which UCX it is.

use std::fmt;

/// The version of a `libucp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct Version {
    /// 1 so far; another one is another interface.
    pub major: u32,
    /// Counts what was added.
    pub minor: u32,
    /// Counts what was mended.
    pub release: u32,
}

impl Version {
    /// The oldest that the bindings fit.
    pub const OLDEST: Self = Self::new(1, 13, 0);
    /// The newest, without its releases, that the tests have run with.
    pub const NEWEST_PROVEN: Self = Self::new(1, 22, 0);
    /// The first that takes a transport's setting by its full name.
    pub(crate) const TAKES_FULL_NAMES: Self = Self::new(1, 17, 0);
    /// The first that lists some of its settings if it is asked to.
    pub(crate) const FILTERS_SETTINGS: Self = Self::new(1, 19, 0);

    /// The version of these numbers.
    #[must_use]
    pub const fn new(major: u32, minor: u32, release: u32) -> Self {
        Self { major, minor, release }
    }

    /// Whether the bindings fit: from [`Version::OLDEST`] on all versions with this major number, which only add.
    #[must_use]
    pub const fn is_supported(self) -> bool {
        self.major == Self::OLDEST.major && self.minor >= Self::OLDEST.minor
    }

    /// Whether it lies between two versions that the tests have run with. A later one is expected to work.
    #[must_use]
    pub const fn is_proven(self) -> bool {
        self.is_supported() && self.minor <= Self::NEWEST_PROVEN.minor
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { major, minor, release } = self;
        write!(f, "{major}.{minor}.{release}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_versions_of_the_same_interface_are_supported_and_only_tried_ones_proven() {
        let verdict = |major, minor, release| {
            let version = Version::new(major, minor, release);
            (version.is_supported(), version.is_proven())
        };
        assert_eq!(verdict(1, 12, 9), (false, false));
        assert_eq!(verdict(1, 13, 0), (true, true));
        assert_eq!(verdict(1, 22, 7), (true, true));
        assert_eq!(verdict(1, 23, 0), (true, false));
        assert_eq!(verdict(2, 13, 0), (false, false));
        assert_eq!(Version::new(1, 13, 1).to_string(), "1.13.1");
    }
}
