//! The accepting side: sockets and names, admission of peers, and their handshakes.

use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;

use rustix::process::{Resource, getrlimit};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, oneshot};
use tracing::Instrument;

use super::bind::bind;
use super::establish::Establisher;
use super::names::names;
use crate::address::{Address, Scheme};
use crate::error::{Error, ErrorKind, Result};
use crate::events;
use crate::handshake::{Admission, Control, Source};
use crate::platform::environment::Environment;
use crate::progress::core::OwnedCore;

/// Made connections that wait for `accept`; more wait in the operating system's queue.
const ACCEPTED_MAX: usize = 1024;
/// Connections that are taken over in a row.
const ACCEPTS_MAX: usize = 8;
/// Unauthenticated peers may have one in so many of the process's descriptors.
const DESCRIPTORS_SHARE: usize = 4;
/// Connections that were made at one address, and what stops the making when dropped.
#[derive(Debug)]
pub(crate) struct Arrivals {
    accepted: tokio::sync::Mutex<mpsc::Receiver<OwnedCore>>,
    _open: Open,
}

/// Stops the accepting task, and gives a `mem` name back, when dropped.
#[derive(Debug)]
struct Open {
    name: Option<String>,
    closed: Arc<Notify>,
}

impl Arrivals {
    /// The next connection. Cancel-safe.
    ///
    /// # Errors
    /// `Closed` if the endpoint's driver ended.
    pub(crate) async fn next(&self) -> Result<OwnedCore> {
        self.accepted.lock().await.recv().await.ok_or_else(driver_ended)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            names().remove(name);
        }
        self.closed.notify_one();
    }
}

/// Listens at `sockets`, which `address` stands for, or at its name.
pub(crate) async fn listen(
    establisher: &Arc<Establisher>,
    address: &Address,
    sockets: Vec<SocketAddr>,
    unauthenticated_max: usize,
) -> Result<(Address, Arrivals)> {
    let (arrive, accepted) = mpsc::channel(ACCEPTED_MAX);
    let closed = Arc::new(Notify::new());
    let reception = Reception {
        establisher: establisher.clone(),
        address: address.clone(),
        arrive,
        admission: Admission::new(unauthenticated_max.min(descriptors_max() / DESCRIPTORS_SHARE)),
    };
    let environment = &establisher.environment;
    // Dropping this future ends what it began.
    let mut open = Open { name: None, closed: closed.clone() };
    let address = if address.scheme() == Scheme::Mem {
        let name = match address.name() {
            Some("") | None => free_name(&**environment),
            Some(name) => name.to_owned(),
        };
        let (callers, mut calls) = mpsc::channel(ACCEPTED_MAX);
        match names().entry(name.clone()) {
            Entry::Vacant(vacant) => drop(vacant.insert(callers)),
            Entry::Occupied(_) => {
                let why = "the name is in use in this process; choose another";
                return Err(Error::new(ErrorKind::Unavailable, why));
            }
        }
        open.name = Some(name.clone());
        let until = closed.clone();
        environment.spawn(Box::pin(async move {
            let receive = async {
                while reception.has_room().await
                    && let Some(stream) = calls.recv().await
                {
                    reception.receive(stream.into(), Source::Process, "mem://".into()).await;
                }
            };
            first(receive, until.notified()).await;
        }));
        Address::mem(name)?
    } else {
        let (until, asked) = (closed.clone(), address.clone());
        let (told, bound) = oneshot::channel();
        environment.spawn(Box::pin(async move {
            let (listener, bound) = match bind(&asked, &sockets) {
                Ok(bound) => bound,
                Err(error) => return drop(told.send(Err(error))),
            };
            // Whoever asked may have given up; the listener then ends with `until`.
            let _ = told.send(Ok(bound));
            first(reception.serve(listener), until.notified()).await;
        }));
        bound.await.map_err(|_| driver_ended())??
    };
    tracing::info!(%address, "listening");
    let arrivals = Arrivals { accepted: tokio::sync::Mutex::new(accepted), _open: open };
    Ok((address, arrivals))
}

/// What becomes of those who arrive.
struct Reception {
    establisher: Arc<Establisher>,
    /// Where they arrive.
    address: Address,
    arrive: mpsc::Sender<OwnedCore>,
    admission: Admission,
}

impl Reception {
    async fn serve(self, listener: TcpListener) {
        for number in 0_usize.. {
            // Whoever cannot be handed over waits in the operating system's queue.
            if !self.has_room().await {
                return;
            }
            let environment = &self.establisher.environment;
            match listener.accept().await {
                Ok((stream, from)) => {
                    // Without it small messages wait for acknowledgements; its failure costs speed alone.
                    let _ = stream.set_nodelay(true);
                    self.receive(stream.into(), from.ip().into(), format!("tcp://{from}")).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting failed; trying again");
                    let now = environment.now();
                    environment.sleep_until(now + self.admission.accept_failed(&error, now)).await;
                }
            }
            if number.is_multiple_of(ACCEPTS_MAX) {
                // Every peer that has said something is heard before more come, and it may have to make room for them.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Waits until a connection can be handed over; `false` once nobody will take one.
    async fn has_room(&self) -> bool {
        self.arrive.reserve().await.is_ok()
    }

    /// Greets one peer in a task of its own, once it has a place.
    async fn receive(&self, control: Control, source: Source, from: String) {
        let admitted = self.admission.place(source, &*self.establisher.environment).await;
        let (establisher, arrive) = (self.establisher.clone(), self.arrive.clone());
        let address = self.address.clone();
        let span = tracing::debug_span!("accept", %from);
        let greet = async move {
            let begin = establisher.environment.now();
            let result = establisher.accept(control, &address, from.clone(), admitted).await;
            let Some(result) = result.transpose() else { return };
            establisher.count("acceptor", begin, &result);
            match result {
                Ok(connection) => {
                    // A listener that is gone needs no more connections.
                    let _ = arrive.send(connection).await;
                }
                Err(error) => events::refused(from, &error),
            }
        };
        self.establisher.environment.spawn(Box::pin(greet.instrument(span)));
    }
}

/// How many descriptors this process may have.
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

/// Runs `task` until `end`.
async fn first(task: impl Future<Output = ()>, end: impl Future<Output = ()>) {
    let (mut task, mut end) = (std::pin::pin!(task), std::pin::pin!(end));
    std::future::poll_fn(|cx| {
        if end.as_mut().poll(cx).is_ready() {
            return std::task::Poll::Ready(());
        }
        task.as_mut().poll(cx)
    })
    .await;
}
