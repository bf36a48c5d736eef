//! The endpoint: opens backends, listens, connects, and owns the driver.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::oneshot;
use tracing::Instrument;

use crate::address::resolve::resolve;
use crate::address::{Address, Scheme};
use crate::api::connection::Connection;
use crate::api::listener::Listener;
use crate::backend::caps::Caps;
use crate::backend::{self, Backend, Done, Inventory, Op, PLANNED, Probe};
use crate::connect::accept;
use crate::connect::dial::dial;
use crate::connect::establish::{CredentialSet, Credentials, Establisher, ProbeResults};
use crate::error::{Error, ErrorKind, Result};
use crate::handshake::{Admission, HANDSHAKE_TIME, Identity, Joins, Tls, Token};
use crate::memory::{AvailableMemory, BounceArena, Place, Pool};
#[cfg(feature = "metrics")]
use crate::metrics::Metrics;
use crate::platform::environment::{Environment, System};
use crate::platform::process::Own;
use crate::progress::core::OwnedCore;
use crate::progress::driver::Driver;
use crate::progress::waiting::Wait;
use crate::wire::record_budget::RecordBudget;

/// The default bound on idle memory of an endpoint's pool, in bytes.
const POOL_IDLE_BYTES_MAX: usize = 256 << 20;
/// The default size of an endpoint's bounce arena, in bytes.
const BOUNCE_ARENA_BYTES_MAX: usize = 512 << 20;
/// The pool, the bounce arena and incomplete records may each take one such share of the process's available
/// memory.
const MEMORY_SHARE: u64 = 8;

/// The default bound on a listener's unauthenticated peers.
const UNAUTHENTICATED_MAX: usize = 256;
/// The bound on an endpoint's peers that have authenticated and whose connection is not open yet.
const HALF_OPEN_MAX: usize = 128;

/// A process's entry point: listens at addresses and connects to others. Clones are handles to the same
/// endpoint.
///
/// It owns one driver thread, unless it was built with another [environment](Builder::environment), and needs
/// no async runtime of its own. A waiting caller uses its own tokio reactor where it has one (built with I/O
/// enabled). Dropping an endpoint never blocks. Connections that are still held stay open.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> towline::Result<()> {
/// use towline::{Endpoint, Message};
///
/// let endpoint = Endpoint::new()?;
/// let listener = endpoint.listen(&"towline://127.0.0.1:0".parse()?).await?;
///
/// let connection = endpoint.connect(listener.address()).await?;
/// connection.send(Message::new("hello")).await?;
///
/// let peer = listener.accept().await?;
/// assert_eq!(peer.recv().await?.header(), "hello");
/// endpoint.close().await; // sends pending messages first
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Endpoint {
    establisher: Own<Arc<Establisher>>,
    connect_time: Duration,
    insecure: bool,
    unauthenticated_max: usize,
}

/// Collects the settings of an [`Endpoint`]. [`build`](Self::build) starts it.
///
/// ```
/// use std::time::Duration;
/// use towline::{Endpoint, Token, Wait};
///
/// let endpoint = Endpoint::builder()
///     .token(Token::from_bytes("a secret that every peer knows")?)
///     .wait(Wait::Sleep)
///     .connect_time(Duration::from_secs(2))
///     .build()?;
/// # drop(endpoint);
/// # Ok::<(), towline::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct Builder {
    environment: Option<Arc<dyn Environment>>,
    backends: Vec<Arc<dyn Backend>>,
    pools: HashMap<Place, Pool>,
    pool_idle_time: Option<Duration>,
    bounce_arena_bytes_max: Option<usize>,
    token: Option<Token>,
    trusts_user: bool,
    tls: Option<Tls>,
    insecure: bool,
    wait: Wait,
    heartbeat: Duration,
    linger: Duration,
    handshake_time: Duration,
    connect_time: Duration,
    unauthenticated_max: usize,
}

/// One backend, as [`Endpoint::backends`] reports it.
#[derive(Clone, Debug)]
pub struct BackendReport {
    /// Its name.
    pub name: &'static str,
    /// Whether it works on this machine.
    pub state: BackendState,
}

/// Whether a backend works on this machine.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum BackendState {
    /// It works.
    Ready {
        /// The version of the library behind it, if there is one.
        version: Option<String>,
        /// What it can do on this machine.
        caps: Caps,
    },
    /// It does not work.
    Unavailable {
        /// Why it does not work.
        reason: String,
        /// What to do to make it work.
        remedy: String,
    },
    /// This version does not include it; a later one will.
    Planned,
}

impl Endpoint {
    /// Starts an endpoint with every backend of this build and the default settings of [`Builder`].
    ///
    /// # Errors
    /// `Io` if the driver thread cannot be started.
    pub fn new() -> Result<Self> {
        Self::builder().build()
    }

    /// Returns the default settings, to change before [`build`](Builder::build).
    pub fn builder() -> Builder {
        Builder {
            environment: None,
            backends: backend::all(),
            pools: HashMap::new(),
            pool_idle_time: None,
            bounce_arena_bytes_max: None,
            token: None,
            trusts_user: false,
            tls: None,
            insecure: false,
            wait: Wait::default(),
            heartbeat: Duration::from_secs(3),
            linger: Duration::from_secs(5),
            handshake_time: HANDSHAKE_TIME,
            connect_time: Duration::from_secs(5),
            unauthenticated_max: UNAUTHENTICATED_MAX,
        }
    }

    /// Returns the identity that peers see.
    pub fn identity(&self) -> &Identity {
        &self.establisher.identity
    }

    /// Returns the source of clock, timers and background tasks. A library built on the endpoint can run its
    /// tasks there: they need no runtime of a caller, and do not end with one.
    pub fn environment(&self) -> &Arc<dyn Environment> {
        &self.establisher.environment
    }

    /// Returns the pool of host memory. Received payload is written to it where the receiver names no memory.
    pub fn pool(&self) -> &Pool {
        &self.establisher.pools[&Place::Host]
    }

    /// Returns the endpoint's metrics, for Prometheus.
    #[cfg(feature = "metrics")]
    pub fn metrics(&self) -> Metrics {
        let Establisher { driver, pools, .. } = &**self.establisher;
        Metrics { meters: driver.meters.clone(), pools: pools.clone(), process: self.establisher.process() }
    }

    /// Reports every backend, in the order of preference, then the planned ones.
    pub fn backends(&self) -> Vec<BackendReport> {
        let report = |backend: &Arc<dyn Backend>| BackendReport {
            name: backend.name(),
            state: match backend.probe() {
                Probe::Ready { caps, version } => BackendState::Ready { version, caps },
                Probe::Unavailable { reason, remedy } => BackendState::Unavailable { reason, remedy },
            },
        };
        let planned = |name| BackendReport { name, state: BackendState::Planned };
        self.establisher.backends.iter().map(report).chain(PLANNED.map(planned)).collect()
    }

    /// Returns the library and the devices of the backend named `backend`. `None` if that backend does not
    /// exist or does not work on this machine. Blocks for some milliseconds while the library inspects the
    /// machine.
    pub fn inventory(&self, backend: &str) -> Option<Inventory> {
        let found = self.establisher.backends.iter().find(|known| known.name() == backend)?;
        matches!(found.probe(), Probe::Ready { .. }).then(|| found.inventory())
    }

    /// Listens at `address`. Port 0 lets the operating system choose a port, and `mem://` lets the endpoint
    /// choose a name. A host name with several addresses binds the first; [`Listener::address`] returns
    /// which.
    ///
    /// # Errors
    /// - `Invalid` if the address is not loopback and the endpoint has neither a token nor TLS, unless it is
    ///   `insecure`.
    /// - `Invalid` over TLS without a certificate.
    /// - `Unavailable` if the address is in use, or this machine does not have it.
    /// - `TimedOut` if a name is not resolved within the connect time.
    pub async fn listen(&self, address: &Address) -> Result<Listener> {
        let listening = async {
            self.check_scheme(address)?;
            if address.scheme().is_encrypted() {
                self.establisher.tls()?.server()?;
            }
            let deadline = self.environment().now() + self.connect_time;
            let sockets = match address.scheme() {
                Scheme::Mem => Vec::new(),
                _ => resolve(self.environment(), address, deadline).await?,
            };
            self.check_exposure(address, &sockets)?;
            accept::listen(&self.establisher, address, sockets, self.unauthenticated_max).await
        };
        let listened = self.establisher.process().run(listening).await;
        listened
            .and_then(|listened| listened)
            .map(Listener::new)
            .map_err(|error| error.during("listen").on(address))
    }

    /// Connects to the listener at `address`, over the best backend that both ends have and the address
    /// allows. Returns after the handshake.
    ///
    /// # Errors
    /// - `Refused` if no listener is there.
    /// - `Incompatible` if another service answers.
    /// - `Unavailable` without a route or a common backend.
    /// - `TimedOut` after the connect time or the handshake time (5 s each by default), also if a service is
    ///   there that never answers.
    /// - `Unauthenticated` if either end does not accept the other's credentials.
    pub async fn connect(&self, address: &Address) -> Result<Connection> {
        let connecting = async {
            self.check_scheme(address)?;
            if address.scheme().is_encrypted() {
                let tls = self.establisher.tls()?;
                tls.client().and_then(|_| tls.server_name(address.host()))?;
            }
            self.connect_on_driver(address).await
        };
        let span = tracing::debug_span!("connect", %address);
        let connected = self.establisher.process().run(connecting.instrument(span)).await;
        connected
            .and_then(|connected| connected)
            .map(Connection::from)
            .map_err(|error| error.during("connect").on(address))
    }

    /// Replaces the token, TLS, or both, for handshakes that begin from now on, at either end. Open
    /// connections keep theirs. An argument of `None` keeps the current value.
    ///
    /// ```no_run
    /// # use towline::{Endpoint, Tls, Token};
    /// # fn renew(endpoint: &Endpoint) -> Result<(), Box<dyn std::error::Error>> {
    /// let tls = Tls::builder().certificate(std::fs::read("cert.pem")?, std::fs::read("key.pem")?).build()?;
    /// endpoint.renew(Some(Token::from_file("token")?), Some(tls))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `Invalid` for a credential that the endpoint was built without. `Invalid` for TLS that does less than
    /// the endpoint's: it shows no certificate, trusts no authority, accepts any name, or asks peers for no
    /// certificate.
    /// Nothing changes then.
    pub fn renew(&self, token: Option<Token>, tls: Option<Tls>) -> Result<()> {
        self.establisher.process().check()?;
        self.establisher.credentials.renew(token, tls)
    }

    /// Closes every connection of this endpoint in good order, within `linger`. Does nothing in a process
    /// that inherited it.
    pub async fn close(&self) {
        let closing = async {
            let cores = self.establisher.driver.living();
            for core in &cores {
                core.link.load().submit(Op::Close(Done::with(|_| ())));
                core.end_after_linger();
            }
            for core in &cores {
                core.inbox.until_ended().await;
            }
        };
        // A forked child has nothing to close.
        let _ = self.establisher.process().run(closing).await;
    }

    /// Runs the handshake on the driver, so that any executor of the caller works.
    async fn connect_on_driver(&self, address: &Address) -> Result<OwnedCore> {
        let (mut done, connected) = oneshot::channel();
        let (this, address) = (self.clone(), address.clone());
        self.environment().spawn(Box::pin(async move {
            let begin = this.environment().now();
            let mut work = std::pin::pin!(this.dial_and_greet(&address));
            let result = std::future::poll_fn(|cx| {
                if done.poll_closed(cx).is_ready() {
                    return std::task::Poll::Ready(None);
                }
                work.as_mut().poll(cx).map(Some)
            })
            .await;
            if let Some(result) = result {
                this.establisher.count("connector", begin, &result);
                // If the caller has dropped its future, the connection closes itself.
                let _ = done.send(result);
            }
        }));
        connected.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Closed, "the endpoint's driver ended")))
    }

    async fn dial_and_greet(&self, address: &Address) -> Result<OwnedCore> {
        let control = dial(self.environment(), address, self.connect_time).await?;
        self.establisher.connect(control, address).await
    }

    fn check_scheme(&self, address: &Address) -> Result<()> {
        let name = address.scheme().as_str();
        if PLANNED.contains(&name) {
            let why = format!("the {name} backend is planned, and not in this version: use tcp or towline");
            return Err(Error::new(ErrorKind::Unavailable, why).by(address.scheme().as_str()));
        }
        address.check_options()?;
        let names_scheme = |backend: &&Arc<dyn Backend>| address.scheme().backend() == Some(backend.name());
        self.establisher.backends.iter().filter(names_scheme).try_for_each(|backend| backend.check(address))
    }

    /// Refuses to open a port to unauthenticated peers by accident.
    fn check_exposure(&self, address: &Address, sockets: &[SocketAddr]) -> Result<()> {
        let CredentialSet { token, tls } = self.establisher.credentials.now();
        if address.scheme() == Scheme::Mem || self.insecure || token.is_some() {
            return Ok(());
        }
        let encrypted = address.scheme().is_encrypted();
        if encrypted && tls.is_some_and(|tls| tls.knows_clients()) {
            return Ok(());
        }
        if sockets.iter().all(|at| at.ip().is_loopback()) {
            return Ok(());
        }
        if encrypted {
            tracing::warn!(%address, "anybody who can reach this listener may connect: give it a token, or an authority that signed its peers' certificates");
            return Ok(());
        }
        let why = "it would accept anybody who can reach this machine: give the endpoint a token, or make it insecure";
        Err(Error::new(ErrorKind::Invalid, why))
    }
}

impl Builder {
    /// Sets the source of clock, timers, randomness and tasks. By default the system's, with one driver
    /// thread.
    pub fn environment(mut self, environment: Arc<dyn Environment>) -> Self {
        self.environment = Some(environment);
        self
    }

    /// Sets the backends, in the order of preference. By default all of this build.
    pub fn backends(mut self, backends: Vec<Arc<dyn Backend>>) -> Self {
        self.backends = backends;
        self
    }

    /// Adds a pool for received payload of its place. By default host memory has a pool that keeps 256 MiB
    /// idle, or an eighth of the process's [available memory](AvailableMemory), where that is less.
    pub fn pool(mut self, pool: Pool) -> Self {
        self.pools.insert(pool.place(), pool);
        self
    }

    /// Sets after which time idle memory of the endpoint's pools is freed. A block goes once nothing has used
    /// it for one to two of these times, of at least 10 ms each. By default idle memory is kept up to the
    /// pool's bound.
    pub fn pool_idle_time(mut self, time: Duration) -> Self {
        self.pool_idle_time = Some(time.max(Duration::from_millis(10)));
        self
    }

    /// Sets how much shared memory may hold copies of payload that is sent from memory outside arenas.
    ///
    /// It serves trusted peers of this host that receive without naming memory: they read the payload there,
    /// so it is copied once. By default 512 MiB, or an eighth of the process's [available
    /// memory](AvailableMemory), where that is less. With 0, or while none is free, payload is copied at both
    /// ends. Memory that a peer keeps stays in use.
    pub fn bounce_arena(mut self, bytes_max: usize) -> Self {
        self.bounce_arena_bytes_max = Some(bytes_max);
        self
    }

    /// Sets the secret that every peer must have. The secret itself is never sent.
    pub fn token(mut self, token: Token) -> Self {
        self.token = Some(token);
        self
    }

    /// Sets whether every process of this user on this host is trusted as if it had the token.
    ///
    /// A trusted peer receives arena buffers without a copy, may read all of the arenas that contain them,
    /// and is trusted not to write to what it lent. Processes of one user can access one another's memory
    /// anyway, unless something else separates them. With a token, peers that have it are trusted by default.
    pub fn trust_user(mut self, trust: bool) -> Self {
        self.trusts_user = trust;
        self
    }

    /// Sets the certificates that `tls://` and `towlines://` present and trust.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Allows a listener beyond loopback to accept any peer, without a token and without TLS.
    pub fn insecure(mut self, insecure: bool) -> Self {
        self.insecure = insecure;
        self
    }

    /// Sets how waiting callers divide their time between spinning and sleeping.
    pub fn wait(mut self, wait: Wait) -> Self {
        self.wait = wait;
        self
    }

    /// Sets how long a peer may be silent before this end sends a ping. A peer silent for three times as long
    /// is lost. Detecting that takes at most 3.5 times as long. By default 3 s, and so at most 10.5 s. At
    /// least 10 ms.
    pub fn heartbeat(mut self, heartbeat: Duration) -> Self {
        self.heartbeat = heartbeat.max(Duration::from_millis(10));
        self
    }

    /// Sets how long a graceful close may take. By default 5 s.
    pub fn linger(mut self, linger: Duration) -> Self {
        self.linger = linger;
        self
    }

    /// Sets how long a handshake may take. By default 5 s.
    pub fn handshake_time(mut self, handshake_time: Duration) -> Self {
        self.handshake_time = handshake_time;
        self
    }

    /// Sets how long resolving a name and connecting to its host may take together. A listener's name has as
    /// long. By default 5 s.
    pub fn connect_time(mut self, connect_time: Duration) -> Self {
        self.connect_time = connect_time;
        self
    }

    /// Sets how many unauthenticated peers a listener may have at once; at most a quarter of the process's
    /// limit on open files. At the limit, a new peer replaces the one that has been silent the longest. By
    /// default 256.
    pub fn unauthenticated_max(mut self, unauthenticated_max: usize) -> Self {
        self.unauthenticated_max = unauthenticated_max.max(1);
        self
    }

    /// Starts the endpoint.
    ///
    /// # Errors
    /// `Io` if the driver thread cannot be started.
    pub fn build(mut self) -> Result<Endpoint> {
        let environment = match self.environment {
            Some(environment) => environment,
            None => Arc::new(System::start()?),
        };
        let bounded = |bytes: usize| AvailableMemory::bounded(bytes as u64, MEMORY_SHARE) as usize;
        self.pools.entry(Place::Host).or_insert_with(|| Pool::new(bounded(POOL_IDLE_BYTES_MAX)));
        let bounce_arena_bytes_max =
            self.bounce_arena_bytes_max.unwrap_or_else(|| bounded(BOUNCE_ARENA_BYTES_MAX));
        let driver = Driver::start(environment.clone(), self.heartbeat)?;
        let pools = Arc::new(self.pools);
        if let Some(time) = self.pool_idle_time {
            environment.spawn(Box::pin(age_pools(environment.clone(), Arc::downgrade(&pools), time)));
        }
        let establisher = Establisher {
            identity: Identity::of_this_process(&*environment),
            environment,
            driver,
            backends: self.backends,
            credentials: Credentials::new(self.token, self.tls),
            trusts_user: self.trusts_user,
            pools,
            bounce_arena: BounceArena::new(bounce_arena_bytes_max),
            unfinished: RecordBudget::new(AvailableMemory::bounded(u64::MAX, MEMORY_SHARE)),
            wait: self.wait,
            heartbeat: self.heartbeat,
            linger: self.linger,
            handshake_time: self.handshake_time,
            joins: Joins::default(),
            half_open: Admission::new(HALF_OPEN_MAX),
            probe_results: ProbeResults::default(),
        };
        Ok(Endpoint {
            establisher: Own::new(Arc::new(establisher)),
            connect_time: self.connect_time,
            insecure: self.insecure,
            unauthenticated_max: self.unauthenticated_max,
        })
    }
}

/// Ages the pools every `time`, until the endpoint and its connections are gone.
async fn age_pools(environment: Arc<dyn Environment>, pools: Weak<HashMap<Place, Pool>>, time: Duration) {
    loop {
        environment.sleep_until(environment.now().saturating_add(time)).await;
        let Some(pools) = pools.upgrade() else { return };
        pools.values().for_each(Pool::age);
    }
}

#[cfg(all(test, not(feature = "tls")))]
mod tests {
    use super::Endpoint;
    use crate::error::ErrorKind;

    #[tokio::test]
    async fn tls_addresses_fail_and_name_the_missing_feature() {
        let endpoint = Endpoint::new().unwrap();
        for address in ["tls://127.0.0.1:1", "towlines://127.0.0.1:1"] {
            let address = address.parse().unwrap();
            let (listened, connected) = (endpoint.listen(&address).await, endpoint.connect(&address).await);
            for error in [listened.unwrap_err(), connected.unwrap_err()] {
                assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
                assert!(error.detail().contains("feature `tls`"), "{error}");
            }
        }
    }
}
