//! Processes, threads and signals: child processes, threads with a runtime, CPU time, and the end by a signal.

pub(crate) mod child;
pub(crate) mod cpu_clock;
pub(crate) mod program;
pub(crate) mod runtime_thread;
pub(crate) mod shutdown;
