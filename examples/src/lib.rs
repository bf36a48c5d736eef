//! Shared by the examples of the task runtime: the cluster that they run on, and progress output.

use std::error::Error;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use towline::{Address, Arena, BufferMut, Endpoint, Token};
use towline_runtime::{Client, Future, LocalCluster, Registry, Worker};

/// The result type of an example's functions.
pub type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// Capacity of the arena of [`buffer`]. Memory is used only once it is taken.
const ARENA_BYTES_MAX: usize = 8 << 30;

/// The cluster that an example runs on. Without options it is one within this process.
#[derive(Debug, clap::Args)]
pub struct ClusterOptions {
    /// Run on the workers of the scheduler at ADDRESS. The workers are this example with --work.
    #[arg(long, value_name = "ADDRESS")]
    scheduler: Option<Address>,
    /// Be a worker of that scheduler, until it ends.
    #[arg(long, requires = "scheduler")]
    work: bool,
    /// Address at which the worker listens. The default follows the scheduler's address.
    #[arg(long, value_name = "ADDRESS", requires = "work")]
    listen: Option<Address>,
    /// Address at which others reach the worker, if it differs from the listener's.
    #[arg(long, value_name = "ADDRESS", requires = "work")]
    advertise: Option<Address>,
    /// File with a secret that scheduler, workers and clients share.
    #[arg(long, value_name = "PATH", requires = "scheduler")]
    token: Option<PathBuf>,
    /// Number of workers in this process; by default one for each processor.
    #[arg(long, value_name = "N", conflicts_with = "scheduler")]
    workers: Option<usize>,
}

/// The cluster that an example runs on.
#[derive(Debug)]
pub enum Cluster {
    /// All of it is in this process.
    Local(Box<LocalCluster>),
    /// Only the client is in this process.
    Elsewhere(Client),
}

impl ClusterOptions {
    /// Joins the cluster. Returns `None` if this process was a worker and its scheduler has ended.
    pub async fn join(&self, registry: Registry) -> Outcome<Option<Cluster>> {
        let Some(address) = &self.scheduler else {
            let processors = || std::thread::available_parallelism().map_or(1, usize::from);
            let workers = self.workers.unwrap_or_else(processors).max(1);
            return Ok(Some(Cluster::Local(Box::new(LocalCluster::start(workers, registry).await?))));
        };
        let mut endpoint = Endpoint::builder();
        if let Some(path) = &self.token {
            endpoint = endpoint.token(Token::from_file(path)?);
        }
        let endpoint = endpoint.build()?;
        if self.work {
            let mut builder = Worker::builder(registry);
            if let Some(listen) = &self.listen {
                builder = builder.listen(listen.clone());
            }
            if let Some(advertise) = &self.advertise {
                builder = builder.advertise(advertise.clone());
            }
            let mut worker = builder.start(&endpoint, address).await?;
            eprintln!("the worker ends: {}", worker.ended().await);
            return Ok(None);
        }
        Ok(Some(Cluster::Elsewhere(Client::connect(&endpoint, address).await?)))
    }
}

impl Cluster {
    /// The client that submits tasks.
    pub const fn client(&self) -> &Client {
        match self {
            Self::Local(cluster) => cluster.client(),
            Self::Elsewhere(client) => client,
        }
    }
}

/// Waits until all futures are done, and prints the progress on standard error.
pub async fn all_done<T>(what: &str, futures: &[Future<T>]) -> Outcome {
    let mut shown = Instant::now();
    for (done, future) in futures.iter().enumerate() {
        future.done().await?;
        if shown.elapsed() >= PROGRESS_EVERY {
            shown = Instant::now();
            let end = if io::stderr().is_terminal() { '\r' } else { '\n' };
            eprint!("{what}: {} of {}{end}", done + 1, futures.len());
        }
    }
    Ok(())
}

/// Takes memory for payload from an arena, which processes of a host hand over without a copy.
pub fn buffer(len: usize) -> Outcome<BufferMut> {
    static ARENA: LazyLock<Option<Arena>> = LazyLock::new(|| Arena::new(ARENA_BYTES_MAX).ok());
    match &*ARENA {
        Some(arena) => Ok(arena.take(len)?),
        // This kernel supports no arenas.
        None => Ok(BufferMut::with_capacity(len)),
    }
}

/// Runs an example on a runtime of its own, and prints its error.
pub fn run(name: &str, example: impl std::future::Future<Output = Outcome>) -> ExitCode {
    let outcome =
        tokio::runtime::Runtime::new().map_err(Into::into).and_then(|runtime| runtime.block_on(example));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}
