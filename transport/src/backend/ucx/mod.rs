//! `ucx`: over the UCX library that is installed at run time, with all transports that it has.
//!
//! A session's records leave as active messages, and its payload by rendezvous, from memory to memory. In the
//! handshake each end sends the other its worker address (docs/ucx.md). The control stream detects a lost
//! peer.

mod context;
mod engine;
mod events;
mod exit_gate;
mod info;
mod inventory;
mod lingering;
mod link;
mod settings;
mod status;

use std::env;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ucx_sys::Library;

use self::context::Context;
use self::engine::Engine;
use self::events::ReceiverKey;
use self::info::EndpointInfo;
use self::lingering::LingeringEngine;
use self::link::{PACKET_LEN, UcxByteStream, UcxState};
use super::streamed::Streamed;
use super::{Backend, Caps, Identity, Inventory, LinkContext, Opened, Opening, Preference, Probe, Role};
use crate::address::Address;
use crate::error::{Error, ErrorKind, Result};
use crate::handshake::AttachKey;
use crate::platform::environment::{Environment, within};
use crate::platform::mutex::Mutex;
use crate::platform::process::Process;
use crate::wire::session::Session;

/// How often an end polls while it waits for the other's hello, and the number of polls without a pause
/// before that.
const SWEEP_EVERY: Duration = Duration::from_micros(500);
const SPIN_POLLS: u32 = 200;

/// The time for which the acceptor waits for the connector to connect first.
const CONNECTOR_FIRST_TIME: Duration = Duration::from_millis(250);

const CAPS: Caps = Caps::ONE_SIDED
    .union(Caps::SOFT_REVOKE)
    .union(Caps::CROSS_PROCESS)
    .union(Caps::CROSS_HOST)
    .union(Caps::NAMED_DESTINATION)
    .union(Caps::FLOW_CONTROL);

/// The process that used UCX first. A fork of it lacks UCX's thread, and would wait for that thread for ever.
static UCX_PROCESS: OnceLock<Process> = OnceLock::new();

/// The backend `ucx`: over the UCX library that is installed at run time, with all transports that it has.
///
/// ```
/// use towline::backend::{Backend, Probe, Ucx};
///
/// // Names a library. Without one, the loader's `libucp` is used.
/// let ucx = Ucx::default().library("/opt/ucx/lib/libucp.so.0");
/// if let Probe::Unavailable { reason, remedy } = ucx.probe() {
///     println!("no UCX: {reason}; {remedy}");
/// }
/// ```
#[derive(Debug, Default)]
pub struct Ucx {
    library: Option<PathBuf>,
    /// One context for each set of settings.
    contexts: Mutex<Vec<(Settings, Arc<Context>)>>,
}

/// Names and values.
type Settings = Vec<(String, String)>;

impl Ucx {
    /// Uses the `libucp` in this file instead of the one already loaded or found by the loader. A process can
    /// have only one `libucp`.
    pub fn library(mut self, path: impl Into<PathBuf>) -> Self {
        self.library = Some(path.into());
        self
    }

    /// Returns the UCX settings for connections of this address: the address's settings, and Towline's
    /// defaults for those that neither the address nor the environment sets.
    ///
    /// # Errors
    /// `Unavailable` without a UCX, `Invalid` for a setting that it does not have.
    pub fn settings(&self, address: &Address) -> Result<Vec<(String, String)>> {
        self.settings_in_force(settings_of(address)).map(|(_, settings)| settings)
    }

    fn library_here(&self) -> Result<&'static Library, ucx_sys::Unavailable> {
        self.library.as_ref().map_or_else(Library::open, |path| Library::open_at(path))
    }

    fn ucx(&self) -> Result<&'static Library> {
        self.library_here().map_err(|why| Error::new(ErrorKind::Unavailable, why.to_string()))
    }

    /// Returns the library, and these settings of an address completed with the defaults.
    fn settings_in_force(&self, settings: Settings) -> Result<(&'static Library, Settings)> {
        let ucx = self.ucx()?;
        settings::check(ucx, &settings)?;
        let in_environment = |name: &str| env::var(format!("UCX_{name}")).ok();
        Ok((ucx, settings::with_defaults(&settings, in_environment)))
    }

    /// Returns the context with these settings.
    fn context(&self, settings: Settings) -> Result<Arc<Context>> {
        let mut contexts = self.contexts.lock();
        if let Some((_, context)) = contexts.iter().find(|(known, _)| *known == settings) {
            return Ok(context.clone());
        }
        let (ucx, in_force) = self.settings_in_force(settings.clone())?;
        UCX_PROCESS.get_or_init(Process::current);
        let context = Arc::new(Context::open(ucx, &in_force)?);
        contexts.push((settings, context.clone()));
        Ok(context)
    }

    /// Returns the context for an address and for peers of this host or of others. Fails if its transports
    /// could abort this process.
    fn context_of(&self, address: &Address, within_host: bool) -> Result<Arc<Context>> {
        let context = self.context(settings_of(address))?;
        context.check(within_host, allows_any(address))?;
        Ok(context)
    }

    /// Returns the peer's endpoint info, or an error if the two versions do not work together.
    fn peer(&self, context: &LinkContext) -> Result<EndpointInfo> {
        let (ours, theirs) = (self.ucx()?.version(), EndpointInfo::decode(&context.peer_info)?);
        let (connector, acceptor) = match context.role {
            Role::Connector => (ours, theirs.version),
            Role::Acceptor => (theirs.version, ours),
        };
        info::check_pair(connector, acceptor, allows_any(&context.address))?;
        Ok(theirs)
    }
}

impl crate::backend::sealed::Sealed for Ucx {}

impl Backend for Ucx {
    fn name(&self) -> &'static str {
        "ucx"
    }

    fn probe(&self) -> Probe {
        if UCX_PROCESS.get().is_some_and(|user| !user.is_this()) {
            let why = "this process was forked from one that uses UCX, which does not survive a fork";
            let remedy = "open the first endpoint after the fork, or start processes by spawn";
            return Probe::Unavailable { reason: why.to_owned(), remedy: remedy.to_owned() };
        }
        match self.library_here() {
            Ok(ucx) => Probe::Ready { caps: CAPS, version: Some(ucx.version().to_string()) },
            Err(why) => Probe::Unavailable { reason: why.reason(), remedy: why.remedy().to_owned() },
        }
    }

    fn inventory(&self) -> Inventory {
        self.context(Settings::new()).map_or_else(
            |error| Inventory { notes: vec![error.to_string()], ..Inventory::default() },
            |context| inventory::of(&context),
        )
    }

    fn check(&self, address: &Address) -> Result<()> {
        let checked = match self.probe() {
            Probe::Ready { .. } => self.context_of(address, true).map(drop),
            Probe::Unavailable { reason, remedy } => {
                Err(Error::new(ErrorKind::Unavailable, format!("{reason}; {remedy}")))
            }
        };
        checked.map_err(|error| error.by("ucx"))
    }

    fn offer(&self, _: Role, _: &Address, _: &Arc<dyn Environment>) -> Result<Vec<u8>> {
        // Unauthenticated peers do not see the version of UCX, which is not loaded before a peer wants it.
        Ok(Vec::new())
    }

    fn reach(&self, _: &Identity, _: &Identity) -> Result<(), String> {
        Ok(())
    }

    /// Loading UCX changes a process (threads, hooks in its memory), and a second copy hangs it. So UCX is
    /// used if the address asks for it, if it is loaded already, or if hardware needs it.
    fn preference(&self) -> Preference {
        if UCX_PROCESS.get().is_some_and(|user| !user.is_this()) {
            return Preference::Aside(
                "this process was forked from one that uses UCX, which does not survive a fork".into(),
            );
        }
        if self.library.is_some() || Library::is_loaded() || has_rdma_device() {
            return Preference::Probed;
        }
        let why = "this machine has no RDMA device, and over sockets UCX gains nothing over tcp: ucx://host:port forces it";
        Preference::Aside(why.into())
    }

    fn checks(&self) -> bool {
        true
    }

    fn prepare(&self, context: &mut LinkContext) -> Result<()> {
        let prepared = || {
            if context.role == Role::Acceptor {
                self.peer(context)?;
            }
            let context = self.context_of(&context.address, context.local.same_host(&context.peer))?;
            let engine = Engine::open(&context)?;
            let info = EndpointInfo { version: context.ucx.version(), address: engine.address()? };
            Ok((engine, info.encode()))
        };
        let (engine, info) = prepared().map_err(|error: Error| error.by("ucx"))?;
        context.info = info;
        context.prepared = Some(Box::new(Mutex::new(engine)));
        Ok(())
    }

    fn open<'a>(&'a self, context: &'a mut LinkContext) -> Opening<'a> {
        Box::pin(async {
            let opened = async { open(&self.peer(context)?.address, context).await };
            opened.await.map_err(|error| error.by("ucx"))
        })
    }
}

async fn open(peer: &[u8], context: &mut LinkContext) -> Result<Opened> {
    let engine = context.prepared.take().and_then(|prepared| prepared.downcast::<Mutex<Engine>>().ok());
    let missing = || Error::new(ErrorKind::Invalid, "this end was not prepared");
    let engine = engine.ok_or_else(missing)?.into_inner();
    let mut session = Streamed::<UcxByteStream>::session(context).in_packets(PACKET_LEN);
    let mut state = UcxState::new(LingeringEngine::new(engine, &context.environment), keys(context));
    // The connector connects first: if both connect at the same time, UCX 1.13 may lose one direction over
    // tcp. If only the acceptor's direction works, the acceptor connects after a while.
    if context.role == Role::Acceptor {
        let by = context.environment.now() + CONNECTOR_FIRST_TIME;
        let hello_received = wait_until_connected(&mut state, &mut session, &context.environment);
        within(&*context.environment, by, hello_received).await.unwrap_or(Ok(()))?;
    }
    state.connect(peer)?;
    wait_until_connected(&mut state, &mut session, &context.environment).await?;
    let stream = UcxByteStream::new(&mut state, &context.environment)?;
    Ok(Opened::new(Streamed::open(stream, state, session, CAPS, context)))
}

/// Waits until the peer's hello has arrived.
async fn wait_until_connected(
    state: &mut UcxState,
    session: &mut Session,
    environment: &Arc<dyn Environment>,
) -> Result<()> {
    for polls in 0.. {
        if state.is_connected(session)? {
            break;
        }
        if polls < SPIN_POLLS {
            tokio::task::yield_now().await;
        } else {
            environment.sleep_until(environment.now() + SWEEP_EVERY).await;
        }
    }
    Ok(())
}

fn has_rdma_device() -> bool {
    fs::read_dir("/sys/class/infiniband").is_ok_and(|mut devices| devices.next().is_some())
}

/// Returns true if the address allows versions of UCX that are refused otherwise.
fn allows_any(address: &Address) -> bool {
    address.option("versions") == Some("any")
}

fn settings_of(address: &Address) -> Settings {
    address.settings().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Returns this end's key and the peer's, which only the two ends of the handshake know.
fn keys(context: &LinkContext) -> (ReceiverKey, ReceiverKey) {
    let key = AttachKey::new(context.secret);
    let key_of = |role: Role| {
        let proof = key.proof(role, b"ucx");
        std::array::from_fn(|at| proof[at])
    };
    let peer = match context.role {
        Role::Connector => Role::Acceptor,
        Role::Acceptor => Role::Connector,
    };
    (key_of(context.role), key_of(peer))
}
