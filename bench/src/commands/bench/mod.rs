//! `towline bench`: moves data between two workers and reports what that costs, beside the ceilings of this machine.

mod budget;
mod memory;
mod options;
mod plan;
mod task_cases;
mod transports;

use std::io::Write;
use std::time::Instant;

use towline::{BackendState, Endpoint};

use self::budget::CaseBudget;
pub(crate) use self::options::Options;
use self::plan::Plan;
pub(crate) use self::transports::ready;
use crate::against::{PeerTools, tool_rows};
use crate::case::{Case, Transport, Wait};
use crate::failure::Failure;
use crate::machine::fingerprint::Fingerprint;
use crate::patterns::runner::CaseRunner;
use crate::peer::Peer;
use crate::process::shutdown::Shutdown;
use crate::report::assertion::{Assertion, Verdict};
use crate::report::history::EarlierRun;
use crate::report::{Report, table};
use crate::results::row::Row;
use crate::security::trust::Trust;
use crate::terminal::print::say;
use crate::terminal::progress::Progress;

pub(crate) async fn run(options: &Options, shutdown: &Shutdown) -> Result<(), Failure> {
    let begin = Instant::now();
    let prepared = tokio::select! {
        biased;
        prepared = prepare(options) => prepared?,
        interruption = shutdown.requested() => return Err(interruption),
    };
    let Prepared { trust, plan, peer_tools, earlier, fingerprint } = prepared;
    let warnings = fingerprint.warnings();
    warnings.iter().for_each(say);
    let printed = warnings.len();
    let (results, measured) = measure(options, &trust, (&plan, begin), &peer_tools, shutdown).await;
    if matches!(measured, Err(Failure::Usage(_))) {
        return measured;
    }
    let error = measured.as_ref().err().map(ToString::to_string);
    let report = Report::new(fingerprint, results, error);
    report.warnings.iter().skip(printed).for_each(say);
    let given = options.output.give(&report, |out: &mut dyn Write| {
        if options.html.is_on_stdout() || report.results.iter().all(|row| row.error.is_some()) {
            // Stdout is for the page, or every case failed and there is nothing to print.
            return Ok(());
        }
        table::write(out, &report)
    });
    // Each file is written even if another one fails.
    let (drawn, saved) = (options.html.write(&report), options.history.save(&report));
    given.and(drawn).and(saved)?;
    if matches!(measured, Err(Failure::Interrupted(_))) {
        // Unmeasured rows would count as failed assertions.
        return measured;
    }
    let compared = options.history.judge(earlier.as_ref(), &report);
    let judged = judge(&options.assertions, &report.results);
    measured.and(judged).and(compared)
}

/// The state before anything is measured.
struct Prepared {
    trust: Trust,
    plan: Plan,
    peer_tools: PeerTools,
    earlier: Option<EarlierRun>,
    fingerprint: Fingerprint,
}

/// Waits for the peer of `--connect`, if `--wait-for` is given.
async fn wait(options: &Options, endpoint: &Endpoint) -> Result<(), Failure> {
    let wait_for = options.wait_for;
    match &options.connect {
        Some(address) if wait_for.is_asked_for() => {
            let connect = async || endpoint.connect(address).await;
            let connection = wait_for.connect(connect, |error| Some(error.clone())).await?;
            Peer::new(connection).close().await
        }
        None if wait_for.is_asked_for() => Err(Failure::usage("--wait-for goes with --connect")),
        _ => Ok(()),
    }
}

/// Refuses impossible requests before the run.
async fn prepare(options: &Options) -> Result<Prepared, Failure> {
    if options.html.is_on_stdout() && options.output.is_on_stdout() {
        return Err(Failure::usage("--html - and --json: both want stdout: write one of them to a file"));
    }
    options.output.check()?;
    options.html.check()?;
    options.history.check()?;
    let trust = match &options.connect {
        Some(address) => options.trust.check(address).map(|()| options.trust.clone()),
        None => options.trust.within_one_run(options.transport.iter().any(Transport::is_encrypted)),
    }?;
    let endpoint = trust.endpoint(Wait::default())?;
    wait(options, &endpoint).await?;
    let plan = Plan::make(options, &endpoint).await?;
    let peer_tools = PeerTools::find(&options.against).await?;
    let planned: Vec<Row> = plan.cases.iter().map(Row::planned).collect();
    let earlier = options.history.open(&planned)?;
    let libraries = endpoint.backends().into_iter().filter_map(|backend| match backend.state {
        BackendState::Ready { version: Some(version), .. } => Some((backend.name.to_owned(), version)),
        _ => None,
    });
    let fingerprint = Fingerprint::read(libraries);
    Ok(Prepared { trust, plan, peer_tools, earlier, fingerprint })
}

/// Measures every case, each repeat in turn with its ceilings and the peer tools, and reports each row at
/// once. A case that fails is a row with an error, and the others continue. An interruption is the last row.
async fn measure(
    options: &Options,
    trust: &Trust,
    (plan, begin): (&Plan, Instant),
    peer_tools: &PeerTools,
    shutdown: &Shutdown,
) -> (Vec<Row>, Result<(), Failure>) {
    let mut progress = Progress::start();
    let count = plan.cases.len();
    let cases = if count == 1 { "case" } else { "cases" };
    progress.keep(&format!("{count} {cases}, {}", plan.budget));
    let mut runner = CaseRunner::new(plan.budget.pace, trust, options.connect.as_ref(), &mut progress);
    let mut rows = Vec::with_capacity(count);
    let (mut failed, mut refused) = (0, 0);
    for (index, case) in plan.cases.iter().enumerate() {
        let at = format!("{}/{count}", index + 1);
        let budget = plan.budget.case(begin.elapsed(), count - index);
        let measured = tokio::select! {
            biased;
            measured = measure_case(case, &at, (budget, begin), peer_tools, &mut runner) => measured,
            interruption = shutdown.requested() => Err(interruption),
        };
        let failure = match measured {
            Ok(row) => {
                runner.progress.keep(&format!("{at} {}", table::line(&row)));
                rows.push(row);
                continue;
            }
            Err(failure) => failure,
        };
        rows.push(Row::failed(case, &failure));
        if matches!(failure, Failure::Interrupted(_)) {
            return (rows, Err(failure));
        }
        refused += usize::from(matches!(failure, Failure::Usage(_)));
        failed += 1;
        runner.progress.keep(&format!("{at} {}", failure.during(case)));
    }
    let why = format!("{failed} of {count} cases failed");
    let outcome = match failed {
        0 => Ok(()),
        // None of the cases is possible here.
        _ if refused == count => Err(Failure::usage(why)),
        _ => Err(Failure::run(why)),
    };
    (rows, outcome)
}

/// Measures as many repeats as there is time for. A repeat that takes too long fails the case if it is the
/// first, and is left out otherwise.
async fn measure_case(
    case: &Case,
    at: &str,
    (mut budget, begin): (CaseBudget<'_>, Instant),
    peer_tools: &PeerTools,
    runner: &mut CaseRunner<'_>,
) -> Result<Row, Failure> {
    let (mut path, mut samples, mut ceilings) = (String::new(), Vec::new(), Vec::new());
    let mut beside = Vec::new();
    while budget.goes_on(begin.elapsed()) {
        runner.progress.show(&format!("{at} {case}, repeat {}", samples.len() + 1));
        let (started, limit) = (Instant::now(), budget.limit(begin.elapsed()));
        let measured = async {
            let repeat = runner.repeat(case).await?;
            let tools = peer_tools.turn(case, &repeat, runner.pace, runner.progress).await?;
            Ok((repeat, tools))
        };
        let measured = match limit {
            None => measured.await,
            Some(limit) => match tokio::time::timeout(limit, measured).await {
                Ok(measured) => measured,
                Err(_) if !samples.is_empty() => break,
                Err(_) => Err(Failure::run(format!(
                    "slow: no result within {:.1} s, and a run without options ends within a minute",
                    limit.as_secs_f64()
                ))),
            },
        };
        let (repeat, tools) = measured?;
        budget.took(started.elapsed());
        path = repeat.path;
        samples.push(repeat.sample);
        ceilings.push(repeat.ceilings);
        beside.push(tools);
    }
    let mut row = Row::measured(case, path, &samples, &ceilings);
    row.against = tool_rows(&row, &beside);
    row.remark(budget.note());
    Ok(row)
}

/// Writes every assertion's verdict to stderr; a broken assertion fails the run.
fn judge(assertions: &[Assertion], rows: &[Row]) -> Result<(), Failure> {
    let mut broken = 0;
    for assertion in assertions {
        match assertion.judge(rows) {
            Verdict::Holds(ours) => say(format_args!("holds: {assertion} ({ours})")),
            Verdict::Broken(why) => {
                broken += 1;
                say(format_args!("does not hold: {assertion}: {why}"));
            }
        }
    }
    match broken {
        0 => Ok(()),
        _ => Err(Failure::run(format!("{broken} of {} assertions do not hold", assertions.len()))),
    }
}
