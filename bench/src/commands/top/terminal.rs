//! The terminal of a live table: its size, and the key that ends it.

use std::io::{self, IsTerminal, Read, stdin, stdout};

use rustix::process::getpgrp;
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr,
};
use tokio::sync::oneshot;

/// A terminal without line buffering and echo. Dropping this restores its settings.
#[derive(Debug)]
pub(super) struct Terminal {
    before: Termios,
    quit: oneshot::Receiver<()>,
}

impl Terminal {
    /// Opens the terminal of stdin, if this process is in its foreground group: reading in the background
    /// would stop it.
    pub(super) fn open() -> Option<Self> {
        let is_ours = || tcgetpgrp(stdin()).is_ok_and(|group| group == getpgrp());
        if !stdin().is_terminal() || !stdout().is_terminal() || !is_ours() {
            return None;
        }
        let before = tcgetattr(stdin()).ok()?;
        let mut by_key = before.clone();
        by_key.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
        by_key.special_codes[SpecialCodeIndex::VMIN] = 1;
        by_key.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(stdin(), OptionalActions::Now, &by_key).ok()?;
        let (give, quit) = oneshot::channel();
        // This thread ends with the process.
        std::thread::spawn(move || {
            if stdin().lock().bytes().map_while(io::Result::ok).any(|key| matches!(key, b'q' | b'Q')) {
                let _ = give.send(());
            }
        });
        Some(Self { before, quit })
    }

    /// Waits for the key `q`.
    pub(super) async fn quit(&mut self) {
        if (&mut self.quit).await.is_err() {
            // Stdin has ended.
            std::future::pending().await
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Fails only if the terminal is gone.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.before);
    }
}

/// Returns the columns and rows of the terminal on stdout, if stdout is one.
pub(super) fn size() -> Option<(usize, usize)> {
    let size = tcgetwinsize(stdout()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then(|| (size.ws_col.into(), size.ws_row.into()))
}
