//! The failure of a command: a sentence, and its exit code.

use std::fmt;

use rustix::process::Signal;
use towline::ErrorKind;

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A request that is written wrongly or is not possible here. Exit code 2.
    Usage(String),
    /// The run failed, or an assertion is false. Exit code 1.
    Run(String),
    /// A signal ended the command. Exit code 128 + the signal's number, as in a shell: 130 for Ctrl-C, 143
    /// for SIGTERM, 129 for SIGHUP.
    Interrupted(Signal),
}

impl Failure {
    pub(crate) fn usage(sentence: impl Into<String>) -> Self {
        Self::Usage(sentence.into())
    }

    pub(crate) fn run(sentence: impl Into<String>) -> Self {
        Self::Run(sentence.into())
    }

    /// Puts `what: ` before the sentence.
    pub(crate) fn during(self, what: impl fmt::Display) -> Self {
        match self {
            Self::Usage(sentence) => Self::Usage(format!("{what}: {sentence}")),
            Self::Run(sentence) => Self::Run(format!("{what}: {sentence}")),
            Self::Interrupted(by) => Self::Interrupted(by),
        }
    }

    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Run(_) => 1,
            Self::Usage(_) => 2,
            Self::Interrupted(by) => 128 + by.as_raw() as u8,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(sentence) | Self::Run(sentence) => f.write_str(sentence),
            Self::Interrupted(_) => f.write_str("interrupted"),
        }
    }
}

/// An impossible request is wrong usage.
impl From<towline::Error> for Failure {
    fn from(error: towline::Error) -> Self {
        match error.kind() {
            ErrorKind::Invalid => Self::Usage(error.to_string()),
            _ => Self::Run(error.to_string()),
        }
    }
}

impl From<towline_runtime::Error> for Failure {
    fn from(error: towline_runtime::Error) -> Self {
        transport(&error).map_or_else(|| Self::Run(error.to_string()), Self::from)
    }
}

/// Returns the transport's error, if it caused the failure of a cluster's member.
pub(crate) fn transport(error: &towline_runtime::Error) -> Option<towline::Error> {
    std::error::Error::source(error)?.downcast_ref::<towline::Error>().cloned()
}

impl<T> From<towline::Failed<T>> for Failure {
    fn from(failed: towline::Failed<T>) -> Self {
        failed.error.into()
    }
}
