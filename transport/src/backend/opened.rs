//! A link that is open but not yet owned by a connection.

use std::sync::Arc;

use super::Link;
use crate::error::{Error, ErrorKind};

/// Guards an open link until a connection takes it. Dropping the guard ends the link, with its tasks and
/// descriptors, whatever kept the connection from being established.
#[derive(Debug)]
#[must_use = "dropping it ends the link"]
pub struct Opened {
    /// `None` once it is taken.
    link: Option<Arc<dyn Link>>,
}

impl Opened {
    /// Guards `link`.
    pub fn new(link: Arc<dyn Link>) -> Self {
        Self { link: Some(link) }
    }

    /// Returns the link, which stays guarded.
    pub fn link(&self) -> &Arc<dyn Link> {
        self.link.as_ref().unwrap_or_else(|| unreachable!("taken out by `take` and `drop` only"))
    }

    /// Returns the link; from now on the caller ends it.
    pub fn take(mut self) -> Arc<dyn Link> {
        self.link.take().unwrap_or_else(|| unreachable!("taken out by `take` and `drop` only"))
    }

    /// Wraps the link, and guards the wrapper.
    pub fn wrapped(self, wrap: impl FnOnce(Arc<dyn Link>) -> Arc<dyn Link>) -> Self {
        Self::new(wrap(self.take()))
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let Some(link) = self.link.take() {
            link.end(Error::new(ErrorKind::Closed, "the connection was not established"));
        }
    }
}
