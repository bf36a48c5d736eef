//! Endpoints over one UCX version, and their connections.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use towline::backend::Ucx;
use towline::{Address, Builder, Connection, Endpoint, Listener, Message};

use crate::libraries::Installed;
use crate::polls::in_time;

/// Over loopback. `versions=any` admits the older UCX, which is refused otherwise.
pub const TCP: &str = "ucx://127.0.0.1:0?TLS=tcp&NET_DEVICES=lo&versions=any";
/// Over shared memory.
pub const SHM: &str = "ucx://127.0.0.1:0?TLS=sysv,cma";
/// Over shared memory with names in the file system.
pub const POSIX: &str = "ucx://127.0.0.1:0?TLS=posix,cma";

/// Two connected ends and their listener.
#[derive(Debug)]
pub struct Pair {
    /// The connecting end.
    pub a: Connection,
    /// The accepting end.
    pub b: Connection,
    /// The listener of the accepting end.
    pub listener: Listener,
}

/// Returns the builder of an endpoint over this UCX alone.
pub fn builder(installed: &Installed) -> Builder {
    builder_with(&installed.libucp)
}

/// Returns the builder of an endpoint over the UCX at this path alone.
pub fn builder_with(libucp: &Path) -> Builder {
    Endpoint::builder().backends(vec![Arc::new(Ucx::default().library(libucp))])
}

/// Returns an endpoint over this UCX alone.
#[must_use]
pub fn endpoint(installed: &Installed) -> Endpoint {
    builder(installed).build().unwrap()
}

/// Connects two endpoints at that address.
pub async fn pair(installed: &Installed, address: &str) -> Pair {
    let (near, far) = (endpoint(installed), endpoint(installed));
    let listener = far.listen(&at(address)).await.unwrap();
    let (a, b) = meet(&near, &listener).await;
    Pair { a, b, listener }
}

/// Opens one more connection from `near` to `listener`. Returns the connecting end and the accepting one.
pub async fn meet(near: &Endpoint, listener: &Listener) -> (Connection, Connection) {
    let both = async { tokio::join!(near.connect(listener.address()), listener.accept()) };
    let (a, b) = in_time("a connection", both).await;
    (a.unwrap(), b.unwrap())
}

/// Parses a valid address.
#[must_use]
pub fn at(address: &str) -> Address {
    address.parse().unwrap()
}

/// Small, large, and larger than any single UCX message.
pub const LENS: [usize; 3] = [8, 100_000, 10 << 20];

/// Asserts that the peer echoes every byte.
pub async fn assert_echoes(connection: &Connection, lens: &[usize]) {
    for &len in lens {
        let sent = bytes(len);
        let message = Message::new("there and back").with_frame(sent.clone());
        let both = async { tokio::join!(connection.deliver(message), connection.recv()) };
        let (delivered, back) = in_time("an echo", both).await;
        delivered.unwrap();
        assert!(back.unwrap().frames()[0].to_vec().unwrap() == sent, "{len} bytes were altered");
    }
}

/// Asserts that messages of all lengths arrive in both directions.
pub async fn assert_goes_on(a: &Connection, b: &Connection) {
    for len in LENS {
        for (from, to) in [(a, b), (b, a)] {
            let bytes = bytes(len);
            let message = Message::new(len.to_le_bytes().to_vec()).with_frame(bytes.clone());
            let both = async { tokio::join!(from.deliver(message), to.recv()) };
            let (sent, taken) = in_time("a message", both).await;
            sent.unwrap();
            let taken = taken.unwrap();
            assert_eq!(taken.header()[..], len.to_le_bytes());
            assert!(taken.frames()[0].to_vec().unwrap() == bytes, "{len} bytes were altered");
        }
    }
}

/// Returns `len` bytes that depend on their positions.
#[must_use]
pub fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at ^ at >> 8 ^ at >> 16) as u8).collect()
}

/// Runs `work` with timers, on this thread and the endpoints' own.
pub fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}
