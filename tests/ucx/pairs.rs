//! Two processes, with the same UCX or with another version each.

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Signal, set_parent_process_death_signal};
use towline::{Address, ErrorKind};
use ucx_sys::Library;

use crate::backend::{LENS, SHM, TCP, assert_echoes, at, builder_with, endpoint, run};
use crate::libraries::Installed;
use crate::polls::soon;

/// Names the address to listen at, and makes a process a server.
const SERVE: &str = "TOWLINE_UCX_SERVE";
/// The `libucp` to serve with.
const LIBUCP: &str = "TOWLINE_UCX_LIBUCP";

/// Long before any time-out would end it.
const AT_ONCE: Duration = Duration::from_secs(1);

/// A process that sends back what a peer sends. It dies with this, or with its parent.
pub(crate) struct Server(pub(crate) Child);

impl Server {
    fn start(libucp: &Path, at: &str) -> (Self, Address) {
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
pub(crate) fn serve_if_asked() -> Option<ExitCode> {
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

pub(crate) fn the_same_version_in_another_process_is_a_peer(installed: &Installed) {
    for address in [TCP, SHM] {
        let (mut server, address) = Server::start(&installed.libucp, address);
        run(async {
            let endpoint = endpoint(installed);
            let connection = soon("a connection", endpoint.connect(&address)).await.unwrap();
            assert_echoes(&connection, &LENS).await;
            soon("the end", connection.close()).await.unwrap();
        });
        assert!(server.0.wait().unwrap().success());
    }
}

/// 1.13 and 1.22 find each other unreachable over `tcp`, and misread each other in shared memory.
pub(crate) fn another_version_is_refused_with_the_reason(installed: &Installed) {
    for address in [TCP, SHM] {
        let (_server, address) = Server::start(&installed.other, address);
        run(async {
            let began = Instant::now();
            let refused = endpoint(installed).connect(&address).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
            let (why, ours) = (refused.to_string(), Library::open().unwrap().version());
            assert!(why.contains(&format!("the connector's UCX {ours} and the acceptor's 1.")), "{why}");
            assert!(why.contains("not of one version") && why.contains("?versions=any"), "{why}");
            assert!(began.elapsed() < AT_ONCE, "it took {:?}", began.elapsed());
        });
    }
}
