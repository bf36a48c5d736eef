//! One case: what is measured, with every choice made.

mod pace;
mod pattern;
mod transport;
mod wait;

use std::fmt;

pub(crate) use self::pace::Pace;
pub(crate) use self::pattern::Pattern;
pub(crate) use self::transport::Transport;
pub(crate) use self::wait::Wait;
use crate::data::payload::{Check, Layout, MessageSpec};
use crate::data::place::Places;
use crate::data::units::Size;

/// One combination of transport, pattern, size and wait, and its parameters.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) transport: Transport,
    pub(crate) pattern: Pattern,
    pub(crate) size: Size,
    pub(crate) wait: Wait,
    pub(crate) frames: usize,
    pub(crate) window: usize,
    /// The number of buffers that messages are sent from in turn, if it is not the window.
    pub(crate) buffers: Option<usize>,
    /// All workers that move data.
    pub(crate) workers: usize,
    /// Messages a second of an open loop.
    pub(crate) rate: Option<u32>,
    /// What the receiver checks.
    pub(crate) check: Check,
    pub(crate) places: Places,
}

impl Case {
    pub(crate) fn layout(&self) -> Layout {
        let layout = Layout::new(self.size.0, self.window);
        Layout { buffers: self.buffers.unwrap_or(layout.buffers), ..layout }
    }

    pub(crate) fn spec(&self) -> MessageSpec {
        MessageSpec { layout: self.layout(), frames: self.frames, check: self.check, places: self.places }
    }
}

impl fmt::Display for Case {
    /// `tcp bandwidth 64K (adaptive)`, `shm latency 64K (spin) in arena`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { transport, pattern, size, wait, places, .. } = self;
        write!(f, "{transport} {} {size} ({}){places}", pattern.name(), wait.name())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn case(transport: &'static str, pattern: Pattern, size: usize) -> Case {
        Case {
            transport: Transport::plain(transport),
            pattern,
            size: Size(size),
            wait: Wait::Adaptive,
            frames: 1,
            window: 16,
            buffers: None,
            workers: pattern.workers(1, false),
            rate: None,
            check: Check::Edges,
            places: Places::default(),
        }
    }
}
