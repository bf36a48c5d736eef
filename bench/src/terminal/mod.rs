//! What a command writes: its result, its log, its progress, and sentences on stderr.

pub(crate) mod log;
pub(crate) mod output;
pub(crate) mod output_file;
pub(crate) mod print;
pub(crate) mod progress;
