//! The version of UCX.

use std::fmt;

/// The version of a `libucp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct Version {
    /// 1 so far; another number is another interface.
    pub major: u32,
    /// Increases with additions.
    pub minor: u32,
    /// Increases with fixes.
    pub release: u32,
}

impl Version {
    /// The oldest version that fits the bindings.
    pub const OLDEST: Self = Self::new(1, 13, 0);
    /// The newest minor version that the tests have run with.
    pub const NEWEST_PROVEN: Self = Self::new(1, 22, 0);
    /// The first version that takes a transport's setting by its full name.
    pub(crate) const TAKES_FULL_NAMES: Self = Self::new(1, 17, 0);
    /// The first version that can list a selection of its settings.
    pub(crate) const FILTERS_SETTINGS: Self = Self::new(1, 19, 0);

    /// Creates a version from its numbers.
    #[must_use]
    pub const fn new(major: u32, minor: u32, release: u32) -> Self {
        Self { major, minor, release }
    }

    /// Returns true if the bindings fit: all versions with this major number from [`Version::OLDEST`] on,
    /// since they only add.
    #[must_use]
    pub const fn is_supported(self) -> bool {
        self.major == Self::OLDEST.major && self.minor >= Self::OLDEST.minor
    }

    /// Returns true if the version is in the range that the tests have run with. Later ones are expected to
    /// work.
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
    fn later_versions_are_supported_and_only_tested_ones_proven() {
        let check = |major, minor, release| {
            let version = Version::new(major, minor, release);
            (version.is_supported(), version.is_proven())
        };
        assert_eq!(check(1, 12, 9), (false, false));
        assert_eq!(check(1, 13, 0), (true, true));
        assert_eq!(check(1, 22, 7), (true, true));
        assert_eq!(check(1, 23, 0), (true, false));
        assert_eq!(check(2, 13, 0), (false, false));
        assert_eq!(Version::new(1, 13, 1).to_string(), "1.13.1");
    }
}
