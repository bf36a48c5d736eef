//! An echo server over UCX in a process of its own, which runs this program again.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use rustix::process::{Signal, set_parent_process_death_signal};
use towline::Address;

use crate::over_ucx::{at, builder_with, run};
use crate::polls::in_time;

/// The address to listen at. Its presence makes a process a server.
const SERVE: &str = "TOWLINE_UCX_SERVE";
/// The `libucp` of the server.
const LIBUCP: &str = "TOWLINE_UCX_LIBUCP";

/// A server process. It ends when this value is dropped, or when its parent ends.
#[derive(Debug)]
pub struct Server(pub Child);

impl Server {
    /// Starts a server with this `libucp`. Returns it and the address it listens at.
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
        // The process may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the server if this process is one.
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
        let connection = in_time("a peer", listener.accept()).await.unwrap();
        while let Ok(message) = in_time("a message", connection.recv()).await {
            in_time("an echo", connection.deliver(message)).await.unwrap();
        }
    });
    Some(ExitCode::SUCCESS)
}
