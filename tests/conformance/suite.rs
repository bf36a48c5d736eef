//! The cases, and how each runs: in a process of its own, with a time limit.

use std::fs::File;
use std::future::Future;
use std::io::{Read, Seek};
use std::net::TcpListener;
use std::pin::Pin;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use rustix::fs::{MemfdFlags, memfd_create};
use tokio::sync::Semaphore;
use towline::Caps;
use towline_tests::faulting::Faulting;
use towline_tests::libraries;
use towline_tests::polls::block_on;

use crate::backends::Row;
use crate::namespaces;

/// Environment variable: the case to run in this process.
pub(crate) const CASE: &str = "TOWLINE_CASE";
/// Time limit of a case.
const CASE_TIME: Duration = Duration::from_secs(90);
/// Time after that limit until the parent kills the case's process: the case's own timer may not run.
const HANG_TIME: Duration = Duration::from_secs(10);
/// Cases that run at once on each core by default. Most cases wait most of the time.
const CASES_PER_CORE: usize = 6;

/// A claim about every backend that has the capabilities.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) claims: &'static Claims,
    pub(crate) name: &'static str,
    pub(crate) load: Load,
    pub(crate) run: CaseFn,
}

/// Claims of one file that apply to the same backends.
pub(crate) struct Claims {
    pub(crate) module: &'static str,
    pub(crate) needs: Caps,
    pub(crate) lacks: Caps,
    pub(crate) environment: Option<Need>,
    pub(crate) cases: &'static [(&'static str, Load, CaseFn)],
}

/// What a case demands of the machine while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// Mostly waits: up to [`CASES_PER_CORE`] run on each core.
    Light,
    /// Computes most of the time, or measures time: at most one runs on each core.
    Core,
}

/// The slots in which cases run, shared by all threads of the parent. The semaphore is fair: light cases do
/// not starve a case that waits for a core.
pub(crate) struct Slots {
    free: Semaphore,
    count: usize,
    /// Slots that a case of [`Load::Core`] takes.
    per_core: usize,
}

/// Starts a case on a row.
pub(crate) type CaseFn = fn(&'static Row) -> Run;

/// A case in progress.
pub(crate) type Run = Pin<Box<dyn Future<Output = ()>>>;

/// A feature that a machine may lack.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Need {
    /// Network namespaces: root, and the `ip` command.
    Netns,
    /// An IPv6 loopback.
    Ipv6,
    /// A userfaultfd that also handles faults of the kernel: root.
    Userfaultfd,
    /// Both UCX versions that `cargo xtask install` provides.
    Ucx,
}

/// `CAP | CAP - CAP, need: claim, #[core] claim;` lists the functions of a file that are cases. It states what
/// they need: a backend with some capabilities and without others, and a feature that a machine may lack.
/// `#[core]` marks a case of [`Load::Core`].
macro_rules! cases {
    ($($($cap:ident)|+ $(- $lack:ident)? $(, $need:ident)?: $($(#[$load:ident])? $case:ident),+;)+) => {
        pub(crate) const CASES: &[$crate::suite::Claims] = &[$($crate::suite::Claims {
            module: module_path!(),
            needs: towline::Caps::empty()$(.union($crate::suite::caps!($cap)))+,
            lacks: towline::Caps::empty()$(.union($crate::suite::caps!($lack)))?,
            environment: $crate::suite::need!($($need)?),
            cases: &[
                $((stringify!($case), $crate::suite::load!($($load)?), |row| Box::pin($case(row)))),+
            ],
        }),+];
    };
}
macro_rules! caps {
    (ANY) => {
        towline::Caps::empty()
    };
    ($cap:ident) => {
        towline::Caps::$cap
    };
}
macro_rules! load {
    () => {
        $crate::suite::Load::Light
    };
    (core) => {
        $crate::suite::Load::Core
    };
}
macro_rules! need {
    () => {
        None
    };
    (netns) => {
        Some($crate::suite::Need::Netns)
    };
    (userfaultfd) => {
        Some($crate::suite::Need::Userfaultfd)
    };
}
pub(crate) use {caps, cases, load, need};

impl Case {
    /// Returns all cases that fit `row`.
    pub(crate) fn all(row: &Row, groups: &[&'static [Claims]]) -> Vec<Self> {
        let claims = groups.iter().flat_map(|group| group.iter());
        let wanted = |claims: &Claims| row.only.is_none_or(|only| only.contains(&claims.file()));
        let fits = |claims: &Claims| row.caps.contains(claims.needs) && !row.caps.intersects(claims.lacks);
        let fitting = claims.filter(|claims| fits(claims) && wanted(claims));
        let cases = fitting.flat_map(|claims| {
            claims.cases.iter().map(move |(name, load, run)| Self { claims, name, load: *load, run: *run })
        });
        let is_excepted = |case: &Self| {
            let file = case.claims.file();
            row.but
                .iter()
                .copied()
                .flatten()
                .any(|but| *but == file || but.strip_prefix(file) == Some(&format!("::{}", case.name)))
        };
        cases.filter(|case| !is_excepted(case)).collect()
    }

    /// Returns the name in the list of tests, as `tcp::messages::sizes_around_every_threshold`.
    pub(crate) fn full_name(&self, row: &Row) -> String {
        format!("{}::{}::{}", row.name, self.claims.file(), self.name)
    }
}

impl Slots {
    /// As many slots as the user asked for, or [`CASES_PER_CORE`] for each core. A case of [`Load::Core`] takes
    /// one core's share of them.
    pub(crate) fn new(asked: Option<usize>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let count = asked.unwrap_or(cores * CASES_PER_CORE);
        Self { free: Semaphore::new(count), count, per_core: (count / cores).max(1) }
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Calls `run` with the slots that `load` demands. Blocks until they are free.
    pub(crate) fn with<T>(&self, load: Load, run: impl FnOnce() -> T) -> T {
        let slots = match load {
            Load::Light => 1,
            Load::Core => self.per_core,
        };
        let _slots = block_on(self.free.acquire_many(slots as u32)).expect("nothing closes the semaphore");
        run()
    }
}

impl Claims {
    /// Returns the file's name without its extension.
    fn file(&self) -> &'static str {
        self.module.rsplit("::").next().unwrap_or_default()
    }
}

impl Need {
    /// Returns what `case` on `row` needs and this machine lacks, and the reason.
    pub(crate) fn unmet(row: &Row, case: Case) -> Option<(Self, String)> {
        let needs = [row.environment, case.claims.environment];
        needs.into_iter().flatten().find_map(|need| need.lacking().map(|reason| (need, reason)))
    }

    /// Returns why this machine lacks this feature, if so.
    fn lacking(self) -> Option<String> {
        match self {
            Self::Netns => namespaces::unavailable(),
            Self::Ipv6 => TcpListener::bind("[::1]:0").err().map(|error| error.to_string()),
            Self::Userfaultfd => Faulting::new(4096).err().map(|error| error.to_string()),
            Self::Ucx => libraries::older().and_then(|_| libraries::newer()).err(),
        }
    }

    /// Returns its name in `TOWLINE_REQUIRE`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Netns => "netns",
            Self::Ipv6 => "ipv6",
            Self::Userfaultfd => "userfaultfd",
            Self::Ucx => "ucx",
        }
    }
}

/// Runs a case in this process.
pub(crate) fn run_here(row: &'static Row, case: Case) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let limited = async {
        if tokio::time::timeout(CASE_TIME, (case.run)(row)).await.is_err() {
            panic!("{} is not done after {} s", case.full_name(row), CASE_TIME.as_secs());
        }
    };
    runtime.unwrap().block_on(limited);
}

/// Runs a case in a process of its own.
pub(crate) fn run_in_child(row: &'static Row, case: Case) -> Result<(), Failed> {
    let name = case.full_name(row);
    let mut output = File::from(memfd_create("output", MemfdFlags::CLOEXEC).map_err(std::io::Error::from)?);
    let mut child = Command::new(std::env::current_exe()?)
        .env(CASE, &name)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .spawn()?;
    let limit = Instant::now() + CASE_TIME + HANG_TIME;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if Instant::now() > limit {
            child.kill()?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    namespaces::remove_those_of(child.id());
    if status.is_some_and(|status| status.success()) {
        return Ok(());
    }
    let mut text = String::new();
    output.rewind()?;
    output.read_to_string(&mut text)?;
    let how = status.map_or_else(|| "hangs: killed".to_owned(), ended);
    Err(format!("{name} {how}\n{text}").into())
}

fn ended(status: ExitStatus) -> String {
    format!("failed, {status}")
}
