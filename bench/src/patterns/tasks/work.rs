//! `towline task-work`: a worker of `bench --pattern shuffle`, until standard input ends.

use std::io::{Read, stdin};

use tokio::sync::oneshot;
use towline::{Address, Pool};
use towline_runtime::Worker;

use super::shuffle;
use crate::case::Wait;
use crate::failure::Failure;
use crate::security::trust::Trust;

/// Take part in the shuffle of a scheduler
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Where the scheduler listens
    scheduler: Address,
    /// Where to listen for the other worker
    listen: Address,
    /// Which worker this is
    #[arg(long)]
    number: u32,
    /// Bytes of memory for blocks
    #[arg(long)]
    memory: u64,
    /// How to wait for the peers
    #[arg(long, value_name = "HOW", default_value = "adaptive")]
    wait: Wait,
    #[command(flatten)]
    trust: Trust,
}

pub(crate) async fn run(options: &Options) -> Result<(), Failure> {
    // Data that arrives in one round reuses the memory of an earlier one, so all of it stays warm.
    let pool = Pool::new(usize::try_from(options.memory).unwrap_or(usize::MAX));
    let endpoint = options.trust.builder(options.wait)?.pool(pool).build()?;
    let builder = Worker::builder(shuffle::registry(options.number)).slots(1);
    let builder = builder.memory_bytes_max(options.memory).listen(options.listen.clone());
    let mut worker = builder.start(&endpoint, &options.scheduler).await?;
    tokio::select! {
        error = worker.ended() => Err(error.into()),
        // The process that started this one has ended.
        () = input_ends() => Ok(()),
    }
}

async fn input_ends() {
    let (end, ended) = oneshot::channel::<()>();
    std::thread::spawn(move || {
        let _end = end;
        // An error also ends the input.
        let _ = stdin().read_to_end(&mut Vec::new());
    });
    let _ = ended.await;
}
