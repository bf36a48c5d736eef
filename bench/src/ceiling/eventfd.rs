//! Two processes wake each other through bare eventfds, in turn: a lower bound for a hand-over between
//! sleeping processes.

use std::io::{self, stdin, stdout};
use std::os::fd::AsFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use crate::failure::Failure;
use crate::process::child::Child;
use crate::results::ceiling::Ceiling;
use crate::results::sample::Sample;

/// Return every value read from standard input (an eventfd) on standard output (another eventfd), until the
/// parent process ends
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// The process that started this one
    parent: i32,
}

/// Runs the far end: `towline beat`.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let failed = |error: rustix::io::Errno| Failure::run(format!("the far half of an eventfd: {error}"));
    // An eventfd has no end of file. The signal follows the death of the measuring thread.
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed)?;
    let (input, output) = (stdin(), stdout());
    while getppid().is_some_and(|parent| parent.as_raw_nonzero().get() == options.parent) {
        wait(&input).and_then(|()| wake(&output)).map_err(failed)?;
    }
    Ok(())
}

/// Sleeps until the other end wakes this one.
fn wait(own: impl AsFd) -> rustix::io::Result<()> {
    rustix::io::read(own, &mut [0; 8]).map(drop)
}

fn wake(other: impl AsFd) -> rustix::io::Result<()> {
    rustix::io::write(other, &1u64.to_ne_bytes()).map(drop)
}

/// Measures half round trips for `duration`; the first tenth of the time warms up.
pub(crate) fn measure(duration: Duration) -> io::Result<Ceiling> {
    let (there, back) = (eventfd(0, EventfdFlags::CLOEXEC)?, eventfd(0, EventfdFlags::CLOEXEC)?);
    let ends = [Stdio::from(there.try_clone()?), Stdio::from(back.try_clone()?)];
    let _far = Child::start_with(["beat".to_owned(), std::process::id().to_string()], ends)?;
    let round_trip = || -> io::Result<Duration> {
        let sent = Instant::now();
        wake(&there)?;
        wait(&back)?;
        Ok(sent.elapsed())
    };
    // The first round trip waits for the process to start.
    round_trip()?;
    let mut sample = Sample::new();
    let begin = Instant::now();
    while begin.elapsed() < duration / 10 {
        round_trip()?;
    }
    while begin.elapsed() < duration || sample.times.is_empty() {
        sample.record(round_trip()? / 2);
    }
    Ok(Ceiling::latency("eventfd", sample.times.value_at_quantile(0.5) as f64 / 1e3))
}
