//! The accepting side: sockets and names, admission of peers, and their handshakes.

use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;

use rustix::process::{Resource, getrlimit};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::Instrument;

use super::bind::bind;
use super::establish::Establisher;
use super::names::listener_names;
use crate::address::{Address, Scheme};
use crate::error::{Error, ErrorKind, Result};
use crate::events;
use crate::handshake::{Admission, Control, Source};
use crate::platform::environment::Environment;
use crate::platform::mutex::Mutex;
use crate::progress::core::OwnedCore;

/// The most open connections that wait for `accept`. More peers wait in the operating system's queue.
const ACCEPTED_MAX: usize = 1024;
/// The most sockets accepted in a row before other tasks run.
const ACCEPTS_PER_TURN: usize = 8;
/// Unauthenticated peers may use one in so many of the process's descriptors.
const DESCRIPTOR_SHARE: usize = 4;
/// The open connections of one listener. Dropping it stops the listener.
#[derive(Debug)]
pub(crate) struct AcceptedConnections {
    accepted: tokio::sync::Mutex<mpsc::Receiver<OwnedCore>>,
    open: ListenGuard,
}

/// Stops the accepting task and releases a `mem` name when dropped.
#[derive(Debug)]
struct ListenGuard {
    name: Mutex<Option<String>>,
    /// True once the listener is closed. The accepting task and the callers of `accept` wait for it.
    closed: watch::Sender<bool>,
}

impl AcceptedConnections {
    /// Returns the next connection. Cancel-safe.
    ///
    /// # Errors
    /// `Closed` if the listener was closed or the endpoint's driver ended.
    pub(crate) async fn next(&self) -> Result<OwnedCore> {
        let accepted = async { self.accepted.lock().await.recv().await.ok_or_else(driver_ended) };
        tokio::select! {
            biased;
            () = until_closed(self.open.closed.subscribe()) => {}
            accepted = accepted => return accepted,
        }
        self.drop_accepted();
        Err(Error::new(ErrorKind::Closed, "the listener was closed"))
    }

    /// Stops listening, drops the connections that nobody has accepted, and ends the calls of `next`.
    pub(crate) fn close(&self) {
        self.open.close();
        self.drop_accepted();
    }

    fn drop_accepted(&self) {
        // A call of `next` that has the lock is about to end, and calls this.
        let Ok(mut accepted) = self.accepted.try_lock() else { return };
        accepted.close();
        while let Ok(connection) = accepted.try_recv() {
            drop(connection);
        }
    }
}

impl ListenGuard {
    fn close(&self) {
        if let Some(name) = self.name.lock().take() {
            listener_names().remove(&name);
        }
        self.closed.send_replace(true);
    }
}

impl Drop for ListenGuard {
    fn drop(&mut self) {
        self.close();
    }
}

/// Waits until the listener is closed or dropped.
async fn until_closed(mut closed: watch::Receiver<bool>) {
    // An error means that the listener was dropped.
    let _ = closed.wait_for(|closed| *closed).await;
}

/// Listens at `sockets`, the socket addresses of `address`, or at its `mem` name. Returns the address with
/// the port or name that was assigned.
pub(crate) async fn listen(
    establisher: &Arc<Establisher>,
    address: &Address,
    sockets: Vec<SocketAddr>,
    unauthenticated_max: usize,
) -> Result<(Address, AcceptedConnections)> {
    let (accepted_sender, accepted) = mpsc::channel(ACCEPTED_MAX);
    let (closed, until) = watch::channel(false);
    let acceptor = Acceptor {
        establisher: establisher.clone(),
        address: address.clone(),
        accepted_sender,
        admission: Admission::new(unauthenticated_max.min(descriptors_max() / DESCRIPTOR_SHARE)),
    };
    let environment = &establisher.environment;
    // Dropping this future stops the listener.
    let open = ListenGuard { name: Mutex::default(), closed };
    let address = if address.scheme() == Scheme::Mem {
        let name = match address.name() {
            Some("") | None => free_name(&**environment),
            Some(name) => name.to_owned(),
        };
        let (callers, mut calls) = mpsc::channel(ACCEPTED_MAX);
        match listener_names().entry(name.clone()) {
            Entry::Vacant(vacant) => drop(vacant.insert(callers)),
            Entry::Occupied(_) => {
                let why = "the name is in use in this process; choose another";
                return Err(Error::new(ErrorKind::Unavailable, why));
            }
        }
        *open.name.lock() = Some(name.clone());
        environment.spawn(Box::pin(async move {
            let receive = async {
                while acceptor.has_room().await
                    && let Some(stream) = calls.recv().await
                {
                    acceptor.receive(stream.into(), Source::Process, "mem://".into()).await;
                }
            };
            run_until(receive, until_closed(until)).await;
        }));
        Address::mem(name)?
    } else {
        let asked = address.clone();
        let (bound_sender, bound) = oneshot::channel();
        environment.spawn(Box::pin(async move {
            let (listener, bound) = match bind(&asked, &sockets) {
                Ok(bound) => bound,
                Err(error) => return drop(bound_sender.send(Err(error))),
            };
            // If the caller has dropped its future, `until` ends the listener.
            let _ = bound_sender.send(Ok(bound));
            run_until(acceptor.serve(listener), until_closed(until)).await;
        }));
        bound.await.map_err(|_| driver_ended())??
    };
    tracing::info!(%address, "listening");
    let accepted = AcceptedConnections { accepted: tokio::sync::Mutex::new(accepted), open };
    Ok((address, accepted))
}

/// Admits, authenticates and opens the peers of one listener.
struct Acceptor {
    establisher: Arc<Establisher>,
    /// The listener's address.
    address: Address,
    accepted_sender: mpsc::Sender<OwnedCore>,
    admission: Admission,
}

impl Acceptor {
    async fn serve(self, listener: TcpListener) {
        for number in 0_usize.. {
            // A peer without room in the channel waits in the operating system's queue.
            if !self.has_room().await {
                return;
            }
            let environment = &self.establisher.environment;
            match listener.accept().await {
                Ok((stream, from)) => {
                    // Without it small messages wait for TCP acknowledgements. A failure costs only speed.
                    let _ = stream.set_nodelay(true);
                    self.receive(stream.into(), from.ip().into(), format!("tcp://{from}")).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "accept failed, retrying");
                    let now = environment.now();
                    environment.sleep_until(now + self.admission.accept_failed(&error, now)).await;
                }
            }
            if number.is_multiple_of(ACCEPTS_PER_TURN) {
                // Let the handshakes of admitted peers advance before more peers arrive, since those may
                // replace them.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Waits for room for one connection in the channel. `false` once the listener is dropped.
    async fn has_room(&self) -> bool {
        self.accepted_sender.reserve().await.is_ok()
    }

    /// Runs the handshake of one peer in a task of its own, once the peer is admitted.
    async fn receive(&self, control: Control, source: Source, from: String) {
        let admitted = self.admission.place(source, &*self.establisher.environment).await;
        let (establisher, accepted_sender) = (self.establisher.clone(), self.accepted_sender.clone());
        let address = self.address.clone();
        let span = tracing::debug_span!("accept", %from);
        let greet = async move {
            let begin = establisher.environment.now();
            let result = establisher.accept(control, &address, from.clone(), admitted).await;
            let Some(result) = result.transpose() else { return };
            establisher.count("acceptor", begin, &result);
            match result {
                Ok(connection) => {
                    // If the listener is dropped, the connection is dropped.
                    let _ = accepted_sender.send(connection).await;
                }
                Err(error) => events::refused(from, &error),
            }
        };
        self.establisher.environment.spawn(Box::pin(greet.instrument(span)));
    }
}

/// Returns the process's limit on open descriptors.
fn descriptors_max() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.and_then(|limit| limit.try_into().ok()).unwrap_or(usize::MAX)
}

fn free_name(environment: &dyn Environment) -> String {
    let mut random = [0; 8];
    environment.random(&mut random);
    format!("{:016x}", u64::from_le_bytes(random))
}

fn driver_ended() -> Error {
    Error::new(ErrorKind::Closed, "the endpoint's driver ended")
}

/// Runs `task` until `end` is ready.
async fn run_until(task: impl Future<Output = ()>, end: impl Future<Output = ()>) {
    let (mut task, mut end) = (std::pin::pin!(task), std::pin::pin!(end));
    std::future::poll_fn(|cx| {
        if end.as_mut().poll(cx).is_ready() {
            return std::task::Poll::Ready(());
        }
        task.as_mut().poll(cx)
    })
    .await;
}
