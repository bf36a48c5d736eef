//! How both ends wait for each other.

use clap::ValueEnum;

/// How both ends wait for each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Wait {
    /// Poll and never sleep: needs a core for each end.
    Spin,
    /// Spin briefly, then sleep; sleep at once if other threads need the core.
    #[default]
    Adaptive,
    /// Sleep at once.
    Sleep,
}

impl Wait {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Spin => "spin",
            Self::Adaptive => "adaptive",
            Self::Sleep => "sleep",
        }
    }
}

impl From<Wait> for towline::Wait {
    fn from(wait: Wait) -> Self {
        match wait {
            Wait::Spin => Self::Spin,
            Wait::Adaptive => Self::Adaptive,
            Wait::Sleep => Self::Sleep,
        }
    }
}
