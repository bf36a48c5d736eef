//! A process over UCX that sends back what a peer sends: this program once more.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use rustix::process::{Signal, set_parent_process_death_signal};
use towline::Address;

use crate::over_ucx::{at, builder_with, run};
use crate::polls::soon;

/// Names the address to listen at, and makes a process a server.
const SERVE: &str = "TOWLINE_UCX_SERVE";
/// The `libucp` to serve with.
const LIBUCP: &str = "TOWLINE_UCX_LIBUCP";

/// A process that sends back what a peer sends. It dies with this, or with its parent.
#[derive(Debug)]
pub struct Server(pub Child);

impl Server {
    /// Starts one with this `libucp`, and tells where it listens.
    pub fn start(libucp: &Path, at: &str) -> (Self, Address) {
        let mut command = Command::new(env::current_exe().unwrap());
        command.env(SERVE, at).env(LIBUCP, libucp).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut server = Self(command.spawn().unwrap());
        let mut line = String::new();
        BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        (server, line.trim().parse().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// This process is a server.
#[must_use]
pub fn serve_if_asked() -> Option<ExitCode> {
    let address = env::var(SERVE).ok()?;
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let libucp = env::var(LIBUCP).unwrap();
    run(async {
        let endpoint = builder_with(Path::new(&libucp)).build().unwrap();
        let listener = endpoint.listen(&at(&address)).await.unwrap();
        println!("{}", listener.address());
        std::io::stdout().flush().unwrap();
        let connection = soon("a peer", listener.accept()).await.unwrap();
        while let Ok(message) = soon("a message", connection.recv()).await {
            soon("an echo", connection.deliver(message)).await.unwrap();
        }
    });
    Some(ExitCode::SUCCESS)
}
