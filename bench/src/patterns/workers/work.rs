//! `towline work`: a worker that is a process, until standard input ends.

use std::io::{Write, stdin, stdout};

use tokio::sync::{mpsc, oneshot};

use super::worker::Worker;
use super::{WorkerCommand, WorkerReply};
use crate::case::Wait;
use crate::failure::Failure;
use crate::process::cpu_clock::CpuClock;
use crate::security::trust::Trust;

/// Send as a worker of `bench --pattern incast` or `alltoall`, by the commands on standard input
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// How to wait for the peers
    #[arg(long, value_name = "HOW", default_value = "adaptive")]
    wait: Wait,
    #[command(flatten)]
    trust: Trust,
}

pub(crate) async fn run(options: &Options) -> Result<(), Failure> {
    let endpoint = options.trust.endpoint(options.wait)?;
    let (orders, ended) = orders();
    tokio::select! {
        () = Worker::new(endpoint, CpuClock::Process).work(orders, say) => {}
        // The process that sends the commands has ended.
        _ = ended => {}
    }
    Ok(())
}

/// Reads commands on a thread; the second value resolves when the input ends.
fn orders() -> (mpsc::UnboundedReceiver<WorkerCommand>, oneshot::Receiver<()>) {
    let ((give, orders), (end, ended)) = (mpsc::unbounded_channel(), oneshot::channel());
    std::thread::spawn(move || {
        // Dropped with this thread.
        let _end: oneshot::Sender<()> = end;
        for line in stdin().lines() {
            let Ok(order) = line.map_err(drop).and_then(|line| serde_json::from_str(&line).map_err(drop))
            else {
                return;
            };
            if give.send(order).is_err() {
                return;
            }
        }
    });
    (orders, ended)
}

fn say(answer: WorkerReply) {
    if let Ok(line) = serde_json::to_string(&answer) {
        // This fails only if the reader is gone; the input then ends too.
        let _ = writeln!(stdout(), "{line}");
    }
}
