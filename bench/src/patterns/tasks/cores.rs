//! A core for each of the two threads. Where they share one, or move, a wake-up is now a switch and now the end of a core's
//! sleep, which takes ten times as long: a round trip and its ceiling would be of different machines.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::RuntimeThread;
use crate::failure::Failure;

/// This thread keeps to its core for as long as this lives.
#[derive(Debug)]
pub(super) struct PinnedThreads {
    before: CpuSet,
}

impl PinnedThreads {
    /// `None` where this process has one core.
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
        // It was allowed before.
        let _ = sched_setaffinity(None, &self.before);
    }
}
