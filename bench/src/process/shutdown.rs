//! The end of a command by a signal, with 128 + the signal's number as its exit code.

use std::fs;
use std::time::Duration;

use rustix::process::Signal;
use tokio::runtime::Builder;
use tokio::signal::unix::{self, SignalKind, signal};
use tokio::sync::watch;

use crate::failure::Failure;

/// How long a command may take to stop.
pub(crate) const STOP_WITHIN: Duration = Duration::from_secs(2);

/// Reports that the command has to end. Clones report the same.
#[derive(Clone, Debug)]
pub(crate) struct Shutdown(watch::Receiver<Option<Signal>>);

impl Shutdown {
    /// Watches for signals on a separate thread, which a spinning wait does not delay. Handles SIGINT, SIGTERM,
    /// and with `hangups` SIGHUP, although they end a process by default: the first process of a PID namespace,
    /// as of a container, has no such default. A SIGHUP that was ignored at the start, as under `nohup`, stays
    /// ignored.
    ///
    /// A process that does not end within [`STOP_WITHIN`], or until the next signal, is ended after a call of
    /// `abandon`.
    pub(crate) fn watch(
        hangups: bool,
        abandon: impl FnOnce(&Failure) + Send + 'static,
    ) -> Result<Self, Failure> {
        let wrong = |error| Failure::run(format!("the thread that watches for signals: {error}"));
        let runtime = Builder::new_current_thread().enable_all().build().map_err(wrong)?;
        // The signals are handled from here on.
        let mut signals = {
            let _context = runtime.enter();
            let handled = |kind| signal(kind).map_err(wrong);
            Signals {
                interrupt: handled(SignalKind::interrupt())?,
                terminate: handled(SignalKind::terminate())?,
                hangup: match hangups && !is_ignored(Signal::HUP) {
                    true => Some(handled(SignalKind::hangup())?),
                    false => None,
                },
            }
        };
        let (sender, requested) = watch::channel(None);
        let watching = async move {
            let first = signals.next().await;
            sender.send_replace(Some(first));
            // A second signal ends the process at once.
            let _ = tokio::time::timeout(STOP_WITHIN, signals.next()).await;
            let failure = Failure::Interrupted(first);
            abandon(&failure);
            std::process::exit(failure.exit_code().into())
        };
        let watch = move || runtime.block_on(watching);
        std::thread::Builder::new().name("signals".to_owned()).spawn(watch).map_err(wrong)?;
        Ok(Self(requested))
    }

    /// Waits for a signal that ends the command, and returns the failure to end with.
    pub(crate) async fn requested(&self) -> Failure {
        let mut requested = self.0.clone();
        match requested.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(by)) => Failure::Interrupted(*by),
            // The watching thread ends only with the process.
            _ => std::future::pending().await,
        }
    }
}

/// The signals that end a command.
struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    hangup: Option<unix::Signal>,
}

impl Signals {
    async fn next(&mut self) -> Signal {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.terminate.recv() => Signal::TERM,
            _ = hangup => Signal::HUP,
        }
    }
}

/// Returns true if this process was started with `signal` ignored, according to /proc.
fn is_ignored(signal: Signal) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask >> (signal.as_raw() - 1) & 1 == 1
}

/// Lets a write beyond the limit on the size of files fail with `EFBIG`: by default SIGXFSZ ends the process
/// first. The signal is handled and not ignored, so that child processes start with the default.
pub(crate) fn keep_from_file_size_signal() -> Result<(), Failure> {
    let wrong = |error| Failure::run(format!("the signal of the limit on the size of files: {error}"));
    let runtime = Builder::new_current_thread().enable_io().build().map_err(wrong)?;
    let _context = runtime.enter();
    // The handler outlives this runtime.
    signal(SignalKind::from_raw(Signal::XFSZ.as_raw())).map(drop).map_err(wrong)
}
