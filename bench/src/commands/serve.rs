//! `towline serve`: the echo, sink and region peer for `explain` and `bench --connect`.

use std::io::Read;

use super::listening::{Listening, refused};
use crate::failure::Failure;
use crate::peer;
use crate::process::cpu_clock::CpuClock;

/// The default address, also of `towline explain`.
pub(crate) const ADDRESS: &str = "towline://127.0.0.1:7000";

const EXAMPLE: &str = "\
Examples:
  towline serve    # at towline://127.0.0.1:7000, for this machine
  towline serve 'towline://*:7000' --token-file secret    # any path that both ends have
  towline serve 'tls://*:7000' --cert cert.pem --key key.pem --ca ca.pem    # whom ca.pem signed comes in
  towline serve tcp://127.0.0.1:7000 --metrics 127.0.0.1:9100
  towline bench --connect tcp://127.0.0.1:7000            # in another terminal

At SIGHUP it reads certificates, keys and the token anew, for connections to come.";

/// Serve the other end of `explain` and `bench --connect`, until interrupted (exit code 130) or terminated
/// (143)
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = EXAMPLE,
    mut_arg("address", |address| address.required(false).default_value(ADDRESS))
)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) listening: Listening,
    /// End when standard input ends: this detects the death of the parent process
    #[arg(long, hide = true)]
    until_stdin_ends: bool,
}

impl Options {
    /// Returns true if a user started it, and not `towline bench`.
    pub(crate) fn is_for_people(&self) -> bool {
        !self.until_stdin_ends
    }
}

pub(crate) async fn run(options: &Options) -> Result<(), Failure> {
    let listening = &options.listening;
    let endpoint = listening.endpoint()?;
    let listener = endpoint.listen(&listening.address).await.map_err(refused)?;
    listening.announce(listener.address(), &endpoint, None).await?;
    let serving = peer::serve(listener, CpuClock::Process);
    if options.until_stdin_ends {
        tokio::select! {
            outcome = serving => outcome,
            () = stdin_ends() => Ok(()),
        }
    } else {
        serving.await
    }
}

async fn stdin_ends() {
    let (ended, wait) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut byte = [0; 64];
        while std::io::stdin().read(&mut byte).is_ok_and(|count| count > 0) {}
        // The receiver may be gone if the command has ended first.
        let _ = ended.send(());
    });
    // A dropped sender also means that the thread has ended.
    let _ = wait.await;
}
