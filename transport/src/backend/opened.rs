//! A link between its opening and the connection that takes it.

use std::sync::Arc;

use super::Link;
use crate::error::{Error, ErrorKind};

/// A link that was opened and that no connection has taken yet. Dropped, it ends: tasks and descriptors that live as long
/// as the link go with it, whatever kept the connection from being established.
#[derive(Debug)]
#[must_use = "a link that nobody takes ends"]
pub struct Opened {
    /// `None` once it is taken.
    link: Option<Arc<dyn Link>>,
}

impl Opened {
    /// Guards `link`.
    pub fn new(link: Arc<dyn Link>) -> Self {
        Self { link: Some(link) }
    }

    /// The link, which stays guarded.
    pub fn link(&self) -> &Arc<dyn Link> {
        self.link.as_ref().unwrap_or_else(|| unreachable!("taken out by `take` and `drop` only"))
    }

    /// The link, whose end is the caller's business from now on.
    pub fn take(mut self) -> Arc<dyn Link> {
        self.link.take().unwrap_or_else(|| unreachable!("taken out by `take` and `drop` only"))
    }

    /// The same with a wrapper around the link.
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
