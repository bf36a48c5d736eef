//! What the examples on the task runtime share: the cluster that they run on, and how far they are.

use std::error::Error;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use towline::{Address, Arena, BufferMut, Endpoint, Token};
use towline_runtime::{Client, Future, LocalCluster, Registry, Worker};

/// What an example's functions end with.
pub type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// The most that [`buffer`] gives out at a time. It takes no memory before it is asked for some.
const ARENA_BYTES_MAX: usize = 8 << 30;

/// Which cluster an example runs on. Without options it is one within this process.
#[derive(Debug, clap::Args)]
pub struct ClusterOptions {
    /// Run on the workers of the scheduler at ADDRESS, which are this example with --work.
    #[arg(long, value_name = "ADDRESS")]
    scheduler: Option<Address>,
    /// Be a worker of that scheduler, until it ends.
    #[arg(long, requires = "scheduler")]
    work: bool,
    /// Where the worker listens, by default where the scheduler's address leads it to.
    #[arg(long, value_name = "ADDRESS", requires = "work")]
    listen: Option<Address>,
    /// Where others find the worker, if not where it listens.
    #[arg(long, value_name = "ADDRESS", requires = "work")]
    advertise: Option<Address>,
    /// A file with a secret that scheduler, workers and clients know.
    #[arg(long, value_name = "PATH", requires = "scheduler")]
    token: Option<PathBuf>,
    /// Workers of the cluster within this process; by default one for each processor.
    #[arg(long, value_name = "N", conflicts_with = "scheduler")]
    workers: Option<usize>,
}

/// The cluster that an example runs on.
#[derive(Debug)]
pub enum Cluster {
    /// All of it is in this process.
    Local(Box<LocalCluster>),
    /// Only the client is.
    Elsewhere(Client),
}

impl ClusterOptions {
    /// Joins the cluster. `None` where this process was a worker, whose scheduler has ended.
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
    /// Whom tasks are submitted to.
    pub const fn client(&self) -> &Client {
        match self {
            Self::Local(cluster) => cluster.client(),
            Self::Elsewhere(client) => client,
        }
    }
}

/// Waits until all of them are done, and tells on standard error how many are.
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

/// Memory for bulk data: of an arena, which changes hands between the processes of a host, and is used again while it is warm.
pub fn buffer(len: usize) -> Outcome<BufferMut> {
    static ARENA: LazyLock<Option<Arena>> = LazyLock::new(|| Arena::new(ARENA_BYTES_MAX).ok());
    match &*ARENA {
        Some(arena) => Ok(arena.take(len)?),
        // This kernel has none.
        None => Ok(BufferMut::with_capacity(len)),
    }
}

/// Runs an example on a runtime of its own, and says what went wrong.
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
