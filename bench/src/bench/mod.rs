//! `towline bench`: moves data between two workers and reports what that costs, beside the ceilings of this machine.

pub(crate) mod assertion;
pub(crate) mod case;
mod crowd;
mod drive;
mod history;
pub(crate) mod load;
mod of_tasks;
mod options;
mod patterns;
mod plan;
pub(crate) mod report;
mod sample;
mod transports;

use std::io::Write;

use towline::BackendState;

use self::assertion::{Assertion, Verdict};
use self::case::Transport;
pub(crate) use self::drive::{Drive, Repeat};
pub(crate) use self::history::Times;
pub(crate) use self::options::Options;
pub(crate) use self::plan::Pace;
use self::plan::Plan;
use self::report::{Report, Row};
pub(crate) use self::sample::Sample;
pub(crate) use self::transports::ready;
use crate::against::{Entry, Peers};
use crate::failure::Failure;
use crate::fingerprint::Fingerprint;
use crate::progress::Progress;
use crate::trust::Trust;

pub(crate) async fn run(options: &Options) -> Result<(), Failure> {
    options.output.check()?;
    options.html.check()?;
    let trust = match &options.connect {
        Some(address) => options.trust.check(address).map(|()| options.trust.clone()),
        None => options.trust.within_one_run(options.transport.iter().any(Transport::is_encrypted)),
    }?;
    let endpoint = trust.endpoint(case::Wait::default())?;
    let plan = Plan::make(options, &endpoint).await?;
    let peers = Peers::find(&options.against).await?;
    let planned: Vec<Row> = plan.cases.iter().map(Row::planned).collect();
    let earlier = options.history.open(&planned)?;
    let libraries = endpoint.backends().into_iter().filter_map(|backend| match backend.state {
        BackendState::Ready { version: Some(version), .. } => Some((backend.name.to_owned(), version)),
        _ => None,
    });
    let fingerprint = Fingerprint::read(libraries);
    drop(endpoint);
    let results = measure(options, &trust, &plan, &peers).await?;
    let report = Report { schema: 1, fingerprint, results };
    options.output.give(&report, |out: &mut dyn Write| {
        writeln!(out, "{}", report.fingerprint)?;
        report::table(out, &report.results)
    })?;
    options.html.write(&report)?;
    options.history.save(&report)?;
    let compared = options.history.judge(earlier.as_ref(), &report);
    judge(&options.assertions, &report.results).and(compared)
}

/// Every case, each repeat in turn with its ceilings and with the peers' tools.
async fn measure(options: &Options, trust: &Trust, plan: &Plan, peers: &Peers) -> Result<Vec<Row>, Failure> {
    let mut progress = Progress::start();
    let mut drive = Drive::new(plan.pace, trust, options.connect.as_ref(), &mut progress);
    let mut rows = Vec::with_capacity(plan.cases.len());
    for (index, case) in plan.cases.iter().enumerate() {
        let (mut path, mut samples, mut ceilings) = (String::new(), Vec::new(), Vec::new());
        let mut turns = Vec::new();
        for turn in 1..=plan.repeats {
            let line = format!("{}/{} {case}, {turn} of {}", index + 1, plan.cases.len(), plan.repeats);
            drive.progress.tell(&line);
            let repeat = drive.repeat(case).await.map_err(|failure| failure.during(case))?;
            let turn = peers.turn(case, &repeat, plan.pace, drive.progress).await;
            turns.push(turn.map_err(|failure| failure.during(case))?);
            path = repeat.path;
            samples.push(repeat.sample);
            ceilings.push(repeat.ceilings);
        }
        let mut row = Row::measured(case, path, &samples, &ceilings);
        row.against = Entry::all(&row, &turns);
        rows.push(row);
    }
    Ok(rows)
}

/// Every assertion's verdict on stderr; one that does not hold fails the run.
fn judge(assertions: &[Assertion], rows: &[Row]) -> Result<(), Failure> {
    let mut broken = 0;
    for assertion in assertions {
        match assertion.judge(rows) {
            Verdict::Holds(ours) => eprintln!("towline: holds: {assertion} ({ours})"),
            Verdict::Broken(why) => {
                broken += 1;
                eprintln!("towline: does not hold: {assertion}: {why}");
            }
        }
    }
    match broken {
        0 => Ok(()),
        _ => Err(Failure::run(format!("{broken} of {} assertions do not hold", assertions.len()))),
    }
}
