//! `towline scheduler`: the scheduler of a task runtime's workers and clients.

use towline_runtime::Scheduler;

use super::listening::{Listening, refused};
use crate::failure::{Failure, transport};
use crate::process::shutdown::{STOP_WITHIN, Shutdown};

/// The default address, also of `towline top`.
pub(crate) const ADDRESS: &str = "towline://127.0.0.1:7100";

const EXAMPLE: &str = "\
Examples:
  towline scheduler    # at towline://127.0.0.1:7100, for this machine
  towline scheduler 'towline://*:7100' --token-file secret    # workers and clients show the same secret
  towline scheduler towline://127.0.0.1:7100 --metrics 127.0.0.1:9100
  towline top towline://127.0.0.1:7100                        # in another terminal: how it is

A worker is a program with functions of yours in it, in ten lines: examples/examples/worker.rs.
It ends in good order when it is interrupted (exit code 130) or terminated (143). At SIGHUP it reads certificates, keys and
the token anew, for connections to come.";

/// Run the scheduler of a task runtime, to which workers and clients connect
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = EXAMPLE,
    mut_arg("address", |address| address.required(false).default_value(ADDRESS))
)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) listening: Listening,
}

pub(crate) async fn run(options: &Options, shutdown: &Shutdown) -> Result<(), Failure> {
    let listening = &options.listening;
    let endpoint = listening.endpoint()?;
    let started = Scheduler::start(&endpoint, &listening.address).await;
    let scheduler = started.map_err(|error| transport(&error).map_or_else(|| error.into(), refused))?;
    listening.announce(scheduler.address(), &endpoint, Some(&scheduler)).await?;
    let interruption = shutdown.requested().await;
    // A peer that does not respond must not delay the end.
    let _ = tokio::time::timeout(STOP_WITHIN / 2, scheduler.close()).await;
    Err(interruption)
}
