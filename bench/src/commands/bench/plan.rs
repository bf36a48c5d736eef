//! Expands the options into cases. An impossible request is refused here, before the run.

use towline::Endpoint;

use super::budget::Budget;
use super::memory::{Memory, PROCESS_BYTES};
use super::options::{Options, unique};
use super::task_cases;
use super::transports::{set_streams, transports, try_options};
use crate::against::RequestedTool;
use crate::case::{Case, Pattern, Transport};
use crate::data::payload::Check;
use crate::data::place::Places;
use crate::data::units::Size;
use crate::failure::Failure;
use crate::results::row::Row;

/// The memory of all messages in flight, unless `--window` is given.
const WINDOW_BYTES_MAX: usize = 256 << 20;

/// What both rings of a connection over shm take.
const RINGS_BYTES: usize = 640 << 10;

/// The default of `--workers`, and its maximum.
const WORKERS: u32 = 4;
const WORKERS_MAX: u32 = 64;

/// The maximum of `--window`.
const WINDOW_MAX: u32 = 65_536;

/// All cases of a run.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) cases: Vec<Case>,
    pub(super) budget: Budget,
}

impl Plan {
    /// Plans the cases of `options`, with the transports of `endpoint`.
    pub(crate) async fn make(options: &Options, endpoint: &Endpoint) -> Result<Self, Failure> {
        let mut transports = transports(options, &endpoint.backends())?;
        set_streams(options.streams, &mut transports)?;
        for transport in &transports {
            try_options(endpoint, transport).await?;
        }
        let Places { from, to } = options.places();
        for (option, place) in [("--from", from), ("--to", to)] {
            let option = if options.place.is_some() { "--place" } else { option };
            place.check().map_err(|failure| failure.during(option))?;
        }
        let cases = expand(options, &transports, &Memory::now())?;
        let against = RequestedTool::unique(&options.against);
        let planned = |case: &Case| {
            let entries = against.iter().map(|tool| tool.planned(case));
            Row { against: entries.collect(), ..Row::planned(case) }
        };
        let rows: Vec<Row> = cases.iter().map(planned).collect();
        for assertion in &options.assertions {
            assertion.check_plan(&rows).map_err(Failure::usage)?;
        }
        let tools = |row: &Row| row.against.iter().filter(|entry| entry.applies()).count() as u32;
        let timed: Vec<(&Case, u32)> = cases.iter().zip(rows.iter().map(tools)).collect();
        let budget = Budget::of(options, &timed);
        Ok(Self { cases, budget })
    }
}

/// Returns every combination, in the order of the options.
pub(super) fn expand(
    options: &Options,
    transports: &[Transport],
    memory: &Memory,
) -> Result<Vec<Case>, Failure> {
    let mut patterns = options.pattern.clone();
    if patterns.is_empty() {
        patterns = vec![Pattern::Latency, Pattern::Bandwidth];
    }
    if options.rate.is_some() {
        check_rate(options, &patterns)?;
    }
    if options.window.is_some() && !patterns.iter().any(|pattern| takes_window(options, *pattern)) {
        return Err(Failure::usage(
            "--window does not apply to the patterns latency and connect: one message is in flight",
        ));
    }
    let of_tasks_or_alone = |pattern: &Pattern| pattern.is_of_tasks() || !takes_window(options, *pattern);
    if options.buffers.is_some() && patterns.iter().all(of_tasks_or_alone) {
        return Err(Failure::usage(
            "--buffers does not apply to the patterns latency, connect, tasks and shuffle: no messages share a window there",
        ));
    }
    if options.frames.is_some() && !patterns.iter().any(|pattern| pattern.takes_frames()) {
        return Err(Failure::usage(
            "--frames does not apply to the patterns get and put: they move one range",
        ));
    }
    if options.read && !patterns.iter().any(|pattern| pattern.takes_read()) {
        return Err(Failure::usage(
            "--read does not apply to the patterns put and connect: they have no receiver of messages",
        ));
    }
    let places = options.places();
    if places != Places::default() && !patterns.iter().any(|pattern| pattern.takes_places()) {
        return Err(Failure::usage(
            "--from, --to and --place do not apply to the pattern connect: its connections have no place yet",
        ));
    }
    if options.workers.is_some()
        && !patterns.iter().any(|pattern| pattern.takes_workers() || *pattern == Pattern::Tasks)
    {
        return Err(Failure::usage(
            "--workers does not apply to these patterns: only incast, alltoall and tasks have more than two",
        ));
    }
    check_of_tasks(options, &patterns)?;
    if patterns.contains(&Pattern::Alltoall) {
        if options.connect.is_some() && transports.iter().any(Transport::is_encrypted) {
            return Err(Failure::usage(
                "--pattern alltoall --connect over TLS: the workers here connect to each other too, and have no certificate \
                 for that: leave one out",
            ));
        }
        if options.connect.is_none() && options.workers == Some(1) {
            return Err(Failure::usage(
                "--pattern alltoall: one worker has no peer: use --workers 2 or more",
            ));
        }
    }
    let asked: Vec<Size> = options.size.iter().flat_map(|sizes| sizes.0.iter().copied()).collect();
    let mut cases: Vec<Case> = Vec::new();
    for transport in transports {
        for pattern in unique(&patterns) {
            if pattern.is_of_tasks() {
                task_cases::expand(options, transport, pattern, memory, &mut cases)?;
                continue;
            }
            let defaults: Vec<Size> = pattern.default_sizes().iter().copied().map(Size).collect();
            let before = cases.len();
            for size in unique(if asked.is_empty() { &defaults } else { &asked }) {
                let workers = options.workers.unwrap_or(WORKERS) as usize;
                let workers = pattern.workers(workers, options.connect.is_some());
                let flows = pattern.flows(workers);
                let beside = beside(transport, workers, flows);
                let window = match window(options, pattern, flows, size, (memory, beside)) {
                    // A default size that does not fit is left out if a smaller one fits.
                    Err(_) if asked.is_empty() && cases.len() > before => continue,
                    window => window?,
                };
                let frames =
                    options.frames.filter(|_| pattern.takes_frames()).map_or(1, |frames| frames as usize);
                for wait in unique(&options.wait) {
                    let transport = transport.clone();
                    cases.push(Case {
                        transport,
                        pattern,
                        size,
                        wait,
                        frames,
                        window,
                        buffers: buffers(options, pattern, window),
                        workers,
                        rate: options.rate,
                        check: check(options, pattern),
                        places: if pattern.takes_places() { places } else { Places::default() },
                    });
                }
            }
        }
    }
    if cases.is_empty() {
        return Err(Failure::usage("no transport is ready on this machine: `towline info` shows why"));
    }
    Ok(cases)
}

/// Refuses options that do not apply to the task runtime's patterns, and numbers that only those allow.
fn check_of_tasks(options: &Options, patterns: &[Pattern]) -> Result<(), Failure> {
    if let Some(pattern) = patterns.iter().find(|pattern| pattern.is_of_tasks())
        && options.connect.is_some()
    {
        let why = "--connect does not apply to the pattern";
        return Err(Failure::usage(format!("{why} {}: its workers are started here", pattern.name())));
    }
    if !options.size.is_empty() && patterns.iter().all(|pattern| *pattern == Pattern::Tasks) {
        return Err(Failure::usage("--size does not apply to the pattern tasks: its tasks are empty"));
    }
    if let Some(pattern) = patterns.iter().find(|pattern| **pattern != Pattern::Tasks) {
        let name = pattern.name();
        if options.workers.is_some_and(|workers| workers > WORKERS_MAX) {
            return Err(Failure::usage(format!("--workers: at most {WORKERS_MAX} with the pattern {name}")));
        }
        if options.window.is_some_and(|window| window > WINDOW_MAX) {
            return Err(Failure::usage(format!("--window: at most {WINDOW_MAX} with the pattern {name}")));
        }
    }
    Ok(())
}

/// Refuses `--rate` with patterns and tools that have no schedule.
fn check_rate(options: &Options, patterns: &[Pattern]) -> Result<(), Failure> {
    if let Some(pattern) = patterns.iter().find(|pattern| !pattern.takes_rate()) {
        return Err(Failure::usage(format!(
            "--rate does not apply to the pattern {}: only latency, bandwidth and rate send by a schedule; leave one out",
            pattern.name()
        )));
    }
    if !options.against.is_empty() {
        return Err(Failure::usage("--rate and --against: those tools send by no schedule; leave one out"));
    }
    Ok(())
}

/// Returns what the receiver checks.
fn check(options: &Options, pattern: Pattern) -> Check {
    match (options.verify, options.read && pattern.takes_read()) {
        (true, _) => Check::Whole,
        (false, true) => Check::Read,
        (false, false) => Check::Edges,
    }
}

/// With a schedule, every pattern can have more than one message in flight.
fn takes_window(options: &Options, pattern: Pattern) -> bool {
    pattern.takes_window() || options.rate.is_some()
}

/// Returns the number of buffers that messages are sent from, if it is less than the window.
fn buffers(options: &Options, pattern: Pattern, window: usize) -> Option<usize> {
    let asked = options.buffers.filter(|_| takes_window(options, pattern)).map(|buffers| buffers as usize);
    asked.filter(|buffers| *buffers < window)
}

/// Returns the messages in flight of each of `flows`.
fn window(
    options: &Options,
    pattern: Pattern,
    flows: usize,
    size: Size,
    (memory, beside): (&Memory, usize),
) -> Result<usize, Failure> {
    let window_bytes_max = WINDOW_BYTES_MAX.min(usize::try_from(memory.bytes / 8).unwrap_or(usize::MAX));
    let room = window_bytes_max / size.0.saturating_mul(flows);
    // A schedule does not wait for answers: the window only limits it.
    let default = if options.rate.is_some() { Pattern::Rate } else { pattern }.default_window();
    let window = match options.window.filter(|_| takes_window(options, pattern)) {
        Some(window) => window as usize,
        None if room == 0 && flows > 1 => {
            return Err(Failure::usage(format!(
                "{flows} messages of {size} at once are more than the {} MiB that are in flight by default: lower --size \
                 or --workers, or use --window 1",
                window_bytes_max >> 20
            )));
        }
        None => default.min(room.max(1)),
    };
    // Both ends hold a window, the receiver's pool keeps a little more than that warm, and so do the
    // ceilings.
    let messages = window.saturating_mul(flows);
    let held = messages.saturating_mul(5).saturating_add(flows.saturating_mul(3));
    let needed = size.0.checked_mul(held).and_then(|bytes| bytes.checked_add(beside));
    if memory.fits(needed) {
        return Ok(window);
    }
    let needed =
        needed.map_or_else(|| "more than there is".to_owned(), |bytes| format!("{} MiB", bytes >> 20));
    Err(Failure::usage(format!(
        "{messages} messages of {size} in flight do not fit: both ends and the ceilings need {needed}, and {memory}; lower \
         --size, --window or --workers"
    )))
}

/// Returns the bytes that the processes of a case take besides messages.
fn beside(transport: &Transport, workers: usize, flows: usize) -> usize {
    let of_flow = if ["shm", "auto"].contains(&transport.name) { RINGS_BYTES } else { 0 };
    (workers + 2) * PROCESS_BYTES + flows * of_flow
}

#[cfg(test)]
pub(super) mod tests {
    use clap::Parser;

    use super::*;

    use super::super::memory::tests::memory;

    #[derive(Debug, Parser)]
    struct CommandLine {
        #[command(flatten)]
        options: Options,
    }

    pub(in crate::commands::bench) fn options(line: &str) -> Options {
        let words = std::iter::once("bench").chain(line.split_whitespace());
        CommandLine::try_parse_from(words).unwrap().options
    }

    fn cases(line: &str) -> Result<Vec<Case>, String> {
        cases_in(64 << 30, line)
    }

    fn cases_in(bytes: u64, line: &str) -> Result<Vec<Case>, String> {
        let options = options(line);
        let transports = if options.transport.is_empty() {
            vec![Transport::plain("tcp")]
        } else {
            options.transport.clone()
        };
        expand(&options, &transports, &memory(bytes)).map_err(|failure| failure.to_string())
    }

    #[test]
    fn without_options_it_is_latency_and_bandwidth() {
        let names: Vec<String> = cases("").unwrap().iter().map(Case::to_string).collect();
        assert_eq!(
            names,
            [
                "tcp latency 8 (adaptive)",
                "tcp bandwidth 64K (adaptive)",
                "tcp bandwidth 1M (adaptive)",
                "tcp bandwidth 64M (adaptive)"
            ]
        );
    }

    #[test]
    fn lists_multiply_and_repetitions_count_once() {
        let line =
            "--transport tcp,mem --pattern latency,rate,latency --size 8..32,8 --wait spin,sleep --frames 2";
        let cases = cases(line).unwrap();
        assert_eq!(cases.len(), 2 * 2 * 3 * 2);
        assert!(cases.iter().all(|case| case.frames == 2));
    }

    #[test]
    fn little_memory_has_small_windows_and_fewer_default_sizes() {
        let little = 160 << 20;
        let windows = |line| -> Vec<(usize, usize)> {
            cases_in(little, line).unwrap().iter().map(|case| (case.size.0, case.window)).collect()
        };
        assert_eq!(windows("--pattern bandwidth"), [(64 << 10, 16), (1 << 20, 16)]);
        assert_eq!(windows("--pattern bandwidth --size 4M,8M"), [(4 << 20, 5), (8 << 20, 2)]);
        for line in ["--size 64M", "--pattern bandwidth --size 1M,64M", "--pattern shuffle"] {
            let refused = cases_in(little, line).unwrap_err();
            assert!(refused.contains("160 MiB of memory are available, by a test"), "{refused}");
        }
    }

    #[test]
    fn windows_fit_in_memory() {
        let windows = |line| -> Vec<usize> { cases(line).unwrap().iter().map(|case| case.window).collect() };
        assert_eq!(windows("--pattern latency,bandwidth,rate,connect --size 8"), [1, 16, 256, 1]);
        assert_eq!(windows("--pattern bandwidth --size 16M,64M,1G"), [16, 4, 1]);
        assert_eq!(windows("--pattern bandwidth,latency --size 64M --window 5"), [5, 1]);
        assert!(
            cases("--pattern bandwidth --size 1G --window 64")
                .unwrap_err()
                .contains("lower --size, --window or --workers")
        );
        assert!(cases("--size 512G").unwrap_err().contains("do not fit"));
        assert!(cases("--size 512G").unwrap_err().contains("65536 MiB of memory are available, by a test"));
        assert!(cases("--pattern latency --window 4").unwrap_err().contains("--window does not apply"));
        let buffers =
            |line| -> Vec<Option<usize>> { cases(line).unwrap().iter().map(|case| case.buffers).collect() };
        assert_eq!(buffers("--pattern latency,bandwidth --size 8 --buffers 1"), [None, Some(1)]);
        assert_eq!(buffers("--pattern bandwidth --size 16M,64M --buffers 4"), [Some(4), None]);
        for pattern in ["latency", "connect", "tasks", "shuffle"] {
            let refused = cases(&format!("--pattern {pattern} --buffers 1")).unwrap_err();
            assert!(refused.contains("--buffers does not apply"), "{refused}");
        }
        assert!(cases("--pattern get --frames 4").unwrap_err().contains("--frames does not apply"));
    }

    #[test]
    fn many_senders_share_the_window_bound() {
        let line = "--pattern incast,alltoall --workers 4 --size 1M,16M";
        let of = |case: Case| (case.workers, case.window);
        let cases_of = |line| cases(line).unwrap().into_iter().map(of).collect::<Vec<_>>();
        assert_eq!(cases_of(line), [(5, 16), (5, 4), (4, 16), (4, 1)]);
        assert_eq!(cases_of("--pattern incast --workers 64 --size 1M"), [(65, 4)]);
        assert_eq!(cases_of("--pattern incast --workers 8 --size 64M --window 1"), [(9, 1)]);
        // The peer of `--connect` is one more worker of alltoall.
        assert_eq!(
            cases_of("--connect tcp://127.0.0.1:1 --pattern incast,alltoall --workers 3 --size 16M"),
            [(4, 5), (4, 1)]
        );
        assert_eq!(
            cases_of("--connect tcp://127.0.0.1:1 --pattern incast,alltoall --workers 1 --size 16M"),
            [(2, 16), (2, 8)]
        );
        let refused = |line| cases(line).unwrap_err();
        assert!(refused("--pattern incast --workers 8 --size 64M").contains("or use --window 1"));
        assert!(refused("--pattern alltoall --workers 8 --size 1G --window 1").contains("56 messages of 1G"));
        assert!(refused("--pattern rate --workers 8").contains("--workers does not apply"));
    }

    #[test]
    fn a_rate_is_for_patterns_that_have_a_schedule() {
        let of = |case: Case| (case.pattern.name(), case.rate, case.window);
        let cases_of = |line| cases(line).unwrap().into_iter().map(of).collect::<Vec<_>>();
        assert_eq!(
            cases_of("--rate 1000 --pattern latency,bandwidth,rate --size 1M"),
            [("latency", Some(1000), 256), ("bandwidth", Some(1000), 256), ("rate", Some(1000), 256)]
        );
        assert_eq!(cases_of("--rate 5 --pattern latency --window 4"), [("latency", Some(5), 4)]);
        for (line, says) in [
            ("--pattern latency,get", "does not apply to the pattern get: only latency, bandwidth and rate"),
            ("--pattern alltoall", "the pattern alltoall"),
            ("--against iperf3", "--rate and --against: those tools send by no schedule; leave one out"),
        ] {
            let refused = cases(&format!("--rate 1000 {line}")).unwrap_err();
            assert!(refused.contains(says), "{line}: {refused}");
        }
    }
}
