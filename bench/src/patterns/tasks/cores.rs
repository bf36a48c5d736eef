//! Pins each of the two threads to a core. If they share or change cores, a wake-up is sometimes a switch and
//! sometimes the end of a core's sleep, which takes ten times as long. A round trip and its ceiling would
//! then not be comparable.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::RuntimeThread;
use crate::failure::Failure;

/// Pins this thread to its core until it is dropped.
#[derive(Debug)]
pub(super) struct PinnedThreads {
    before: CpuSet,
}

impl PinnedThreads {
    /// Pins both threads. Returns `None` if this process has one core.
    pub(super) async fn keep(thread: &RuntimeThread) -> Result<Option<Self>, Failure> {
        let failed = |error: rustix::io::Errno| Failure::run(format!("a core for each thread: {error}"));
        let before = sched_getaffinity(None).map_err(failed)?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| before.is_set(*core)).map(|core| {
            let mut set = CpuSet::new();
            set.set(core);
            set
        });
        let (Some(ours), Some(theirs)) = (cores.next(), cores.next()) else { return Ok(None) };
        thread.run(async move { sched_setaffinity(None, &theirs) }).await?.map_err(failed)?;
        sched_setaffinity(None, &ours).map_err(failed)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for PinnedThreads {
    fn drop(&mut self) {
        // These cores were allowed before.
        let _ = sched_setaffinity(None, &self.before);
    }
}
