//! CPU time, as the kernel counts it.

use rustix::time::{ClockId, clock_gettime};

/// The clock of the CPU time of one end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CpuClock {
    /// That of the process: each end is a process.
    Process,
    /// That of the thread: both ends are threads of this process.
    Thread,
}

impl CpuClock {
    /// Returns the seconds spent so far, in user space and in the kernel.
    pub(crate) fn seconds(self) -> f64 {
        let time = clock_gettime(match self {
            Self::Process => ClockId::ProcessCPUTime,
            Self::Thread => ClockId::ThreadCPUTime,
        });
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_costs_time_and_sleep_does_not() {
        let before = CpuClock::Thread.seconds();
        std::thread::sleep(std::time::Duration::from_millis(20));
        let slept = CpuClock::Thread.seconds() - before;
        let mut x = 1u64;
        while CpuClock::Thread.seconds() - before - slept < 0.01 {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        assert!(slept < 0.01, "{slept}");
        assert!(CpuClock::Process.seconds() >= before + 0.01);
    }
}
