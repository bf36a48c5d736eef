//! The error type of the runtime: what happened to which task.

use std::error::Error as StdError;
use std::fmt::{self, Write};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::protocol::NAME_LEN_MAX;

/// Shorthand for results of the runtime. Where the compiler asks for the error type of a block, end it with
/// `Result::<_>::Ok(())`: see [`towline::Result`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The error that a task's function may return.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// The return type of a task's function.
pub type TaskResult<T> = std::result::Result<T, BoxError>;

/// The kind of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The function returned an error: the detail is that error and its sources.
    Failed,
    /// The function panicked: the detail is its message.
    Panicked,
    /// The client cancelled the task, or one that it depends on.
    Cancelled,
    /// Three workers died while they ran the task.
    Killed,
    /// All workers that had the data are gone or unreachable, and it cannot be recomputed.
    Lost,
    /// It fits neither into a message nor into the memory of any worker. The detail names the limit.
    TooLarge,
    /// No function of that name is registered at the worker.
    UnknownFunction,
    /// Bytes do not decode: the arguments have other types than the function's parameters, or the peer has
    /// another version.
    Invalid,
    /// The scheduler is gone, and all its tasks with it.
    SchedulerLost,
    /// A stated time limit passed.
    TimedOut,
    /// This end was closed.
    Closed,
    /// The transport failed: see the source.
    Transport,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failed => "failed",
            Self::Panicked => "panicked",
            Self::Cancelled => "cancelled",
            Self::Killed => "killed its workers",
            Self::Lost => "lost",
            Self::TooLarge => "too large",
            Self::UnknownFunction => "unknown function",
            Self::Invalid => "invalid",
            Self::SchedulerLost => "scheduler lost",
            Self::TimedOut => "timed out",
            Self::Closed => "closed",
            Self::Transport => "transport failed",
        })
    }
}

/// An error of the runtime. It reads as a sentence:
/// `task "parse": failed: line 7: invalid digit found in string`.
///
/// A task that fails fails all its dependents with the same error, which names the task that failed first.
#[derive(Clone)]
pub struct Error(Arc<ErrorInner>);

struct ErrorInner {
    failure: Failure,
    source: Option<towline::Error>,
}

/// The part of an error that is sent to peers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) kind: ErrorKind,
    /// The function of the task that failed first, if the failure comes from a task.
    pub(crate) task: Option<String>,
    pub(crate) detail: String,
}

/// The longest detail that is sent, in bytes.
const DETAIL_LEN_MAX: usize = 4096;
/// Maximum number of causes in a detail; the causes of an error may form a cycle.
const CAUSES_MAX: usize = 32;

impl Error {
    /// An error of `kind`. `detail` says what happened and, where there is a remedy, what to do.
    pub(crate) fn new(kind: ErrorKind, detail: impl Into<String>) -> Self {
        Failure::new(kind, detail).into()
    }

    pub(crate) fn closed() -> Self {
        Self::new(ErrorKind::Closed, "this end was closed")
    }

    pub(crate) fn environment_ended() -> Self {
        Self::new(ErrorKind::Closed, "the endpoint's environment ended")
    }

    /// Converts the error that ended a connection to the scheduler.
    pub(crate) fn as_scheduler_lost(&self) -> Self {
        let failure = match &self.0.source {
            Some(_) => Failure::new(ErrorKind::SchedulerLost, "the connection to the scheduler ended"),
            None => Failure::new(ErrorKind::SchedulerLost, self.to_string()),
        };
        Self(Arc::new(ErrorInner { failure, source: self.0.source.clone() }))
    }

    /// The kind, for callers that handle errors.
    pub fn kind(&self) -> ErrorKind {
        self.0.failure.kind
    }

    /// The function of the task that failed first, if the failure comes from a task.
    pub fn task(&self) -> Option<&str> {
        self.0.failure.task.as_deref()
    }

    /// What happened, without the task's name.
    pub fn detail(&self) -> &str {
        &self.0.failure.detail
    }

    /// Returns whether a connection ended or could not be established.
    pub(crate) fn is_transport(&self) -> bool {
        self.0.source.is_some()
    }

    /// Returns whether the peer closed the connection in an orderly way.
    pub(crate) fn is_closed_by_peer(&self) -> bool {
        self.0.source.as_ref().is_some_and(|source| source.kind() == towline::ErrorKind::Closed)
    }

    pub(crate) fn failure(&self) -> &Failure {
        &self.0.failure
    }
}

impl Failure {
    pub(crate) fn new(kind: ErrorKind, detail: impl Into<String>) -> Self {
        Self { kind, task: None, detail: detail.into() }
    }

    /// The error that a function returned, with all its causes.
    pub(crate) fn from_error(error: &BoxError) -> Self {
        let mut detail = DetailWriter::default();
        let mut next: Option<&dyn StdError> = Some(&**error);
        for number in 0..=CAUSES_MAX {
            let Some(cause) = next.filter(|_| !detail.is_cut) else { break };
            let separator = if number > 0 { ": " } else { "" };
            // A cause whose formatting fails is left out.
            let _ = write!(detail, "{separator}{cause}");
            next = cause.source();
        }
        detail.is_cut |= next.is_some();
        Self::new(ErrorKind::Failed, detail.text())
    }

    /// The payload of a panic of a function.
    pub(crate) fn from_panic(payload: &(dyn std::any::Any + Send)) -> Self {
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let mut detail = DetailWriter::default();
        // Writing fails only where the detail is truncated.
        let _ = detail.write_str(text.unwrap_or("with a payload that is no text"));
        Self::new(ErrorKind::Panicked, detail.text())
    }

    /// Sets the task's name, unless one is set, and truncates what is too long to send.
    #[must_use]
    pub(crate) fn of(mut self, task: &str) -> Self {
        self.task.get_or_insert_with(|| task.to_owned());
        self.truncated()
    }

    /// Truncates what is too long to send. A peer's failure is truncated before it is stored, since many
    /// tasks may fail with it.
    #[must_use]
    pub(crate) fn truncated(mut self) -> Self {
        truncate(&mut self.detail, DETAIL_LEN_MAX);
        self.task.iter_mut().for_each(|task| truncate(task, NAME_LEN_MAX));
        self
    }

    /// Prefixes the detail with the context of the refusal.
    #[must_use]
    pub(crate) fn refused(mut self, who: &str) -> Self {
        self.detail = format!("{who}: {}", self.detail);
        self
    }
}

fn truncate(text: &mut String, len_max: usize) {
    if text.len() > len_max {
        text.truncate(text.floor_char_boundary(len_max));
        text.push('…');
    }
}

/// Writes the beginning of a text, up to the length limit, and then fails the writer.
#[derive(Default)]
struct DetailWriter {
    text: String,
    is_cut: bool,
}

impl DetailWriter {
    fn text(mut self) -> String {
        if self.is_cut {
            self.text.push('…');
        }
        self.text
    }
}

impl fmt::Write for DetailWriter {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = DETAIL_LEN_MAX - self.text.len();
        self.text.push_str(&text[..text.floor_char_boundary(room)]);
        self.is_cut |= text.len() > room;
        if self.is_cut { Err(fmt::Error) } else { Ok(()) }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self(Arc::new(ErrorInner { failure, source: None }))
    }
}

impl From<towline::Error> for Error {
    fn from(source: towline::Error) -> Self {
        let kind = match source.kind() {
            towline::ErrorKind::TimedOut => ErrorKind::TimedOut,
            towline::ErrorKind::TooLarge => ErrorKind::TooLarge,
            _ => ErrorKind::Transport,
        };
        let failure = Failure::new(kind, "the transport says");
        Self(Arc::new(ErrorInner { failure, source: Some(source) }))
    }
}

impl<T> From<towline::Failed<T>> for Error {
    fn from(failed: towline::Failed<T>) -> Self {
        failed.error.into()
    }
}

impl From<postcard::Error> for Error {
    fn from(error: postcard::Error) -> Self {
        Self::new(ErrorKind::Invalid, format!("bytes that do not decode: {error}"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure { kind, task, detail } = &self.0.failure;
        if let Some(task) = task {
            write!(f, "task {task:?}: ")?;
        }
        write!(f, "{kind}: {detail}")?;
        match &self.0.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As text, so that `unwrap` and a `main` that returns it print the sentence.
        fmt::Display::fmt(self, f)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_reads_as_a_sentence_with_all_its_causes() {
        let cause: BoxError = "x7".parse::<u32>().map_err(Box::new).unwrap_err();
        let error = Error::from(Failure::from_error(&cause).of("parse"));
        assert_eq!(error.to_string(), "task \"parse\": failed: invalid digit found in string");
        assert_eq!((error.kind(), error.task()), (ErrorKind::Failed, Some("parse")));

        let lost = Error::from(towline::Error::new(towline::ErrorKind::PeerLost, "gone")).as_scheduler_lost();
        assert_eq!(
            lost.to_string(),
            "scheduler lost: the connection to the scheduler ended: peer lost: gone"
        );
    }

    #[test]
    fn cyclic_error_causes_are_bounded() {
        #[derive(Debug)]
        struct Circle;
        impl fmt::Display for Circle {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("round")
            }
        }
        impl StdError for Circle {
            fn source(&self) -> Option<&(dyn StdError + 'static)> {
                Some(self)
            }
        }
        let detail = Failure::from_error(&(Box::new(Circle) as BoxError)).detail;
        assert_eq!(detail, format!("round{}…", ": round".repeat(CAUSES_MAX)));
    }

    #[test]
    fn endless_error_text_is_truncated() {
        #[derive(Debug)]
        struct Endless;
        impl fmt::Display for Endless {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                loop {
                    f.write_str("on and ")?;
                }
            }
        }
        impl StdError for Endless {}
        let failure = Failure::from_error(&(Box::new(Endless) as BoxError)).of("x");
        assert!(failure.detail.len() <= DETAIL_LEN_MAX + '…'.len_utf8());
        assert!(failure.detail.ends_with('…'));
    }

    #[test]
    fn long_detail_is_truncated_at_a_character() {
        let failure = Failure::new(ErrorKind::Failed, "ü".repeat(10_000)).of("x");
        assert!(failure.detail.len() <= DETAIL_LEN_MAX + '…'.len_utf8());
        assert!(failure.detail.ends_with("ü…"));
    }

    #[test]
    fn the_task_that_failed_first_stays_named() {
        assert_eq!(Failure::new(ErrorKind::Failed, "").of("a").of("b").task.as_deref(), Some("a"));
    }
}
