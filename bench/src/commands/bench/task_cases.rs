//! The cases of the task runtime's patterns.

use super::Options;
use super::memory::{Memory, PROCESS_BYTES};
use super::options::unique;
use crate::case::{Case, Pattern, Transport};
use crate::data::payload::Check;
use crate::data::place::Places;
use crate::data::units::Size;
use crate::failure::Failure;

/// Default loads: tasks submitted at once, and workers.
const LOADS: [(usize, usize); 6] =
    [(1, 1), (1_000, 2), (10_000, 2), (100_000, 2), (1_000_000, 2), (10_000, 200)];

/// Workers of a shuffle.
const SHUFFLERS: usize = 2;

/// The memory of a submitted task, at all ends together.
const TASK_BYTES: usize = 1 << 10;

fn bytes_of_tasks(window: usize, workers: usize) -> Option<usize> {
    let processes = workers.checked_add(2)?.checked_mul(PROCESS_BYTES)?;
    window.checked_mul(TASK_BYTES)?.checked_add(processes)
}

/// Adds the cases of `pattern` over `transport`.
pub(super) fn expand(
    options: &Options,
    transport: &Transport,
    pattern: Pattern,
    memory: &Memory,
    cases: &mut Vec<Case>,
) -> Result<(), Failure> {
    let case = |size, window, workers, wait| Case {
        transport: transport.clone(),
        pattern,
        size,
        wait,
        frames: 1,
        window,
        buffers: None,
        workers,
        rate: None,
        check: Check::Edges,
        places: Places::default(),
    };
    let (window, workers) = (options.window.map(|it| it as usize), options.workers.map(|it| it as usize));
    if pattern == Pattern::Tasks {
        let loads = match (window, workers) {
            (None, None) => LOADS.to_vec(),
            (window, workers) => vec![(window.unwrap_or(1), workers.unwrap_or(1))],
        };
        let before = cases.len();
        for (window, workers) in loads {
            if !memory.fits(bytes_of_tasks(window, workers)) {
                // A default load that does not fit is left out if a smaller one fits.
                if cases.len() > before {
                    continue;
                }
                return Err(Failure::usage(format!(
                    "--pattern tasks: {window} tasks at once for {workers} workers do not fit: {memory}; lower --window or \
                     --workers"
                )));
            }
            cases.extend(unique(&options.wait).into_iter().map(|wait| case(Size(0), window, workers, wait)));
        }
        return Ok(());
    }
    let asked: Vec<Size> = options.size.iter().flat_map(|sizes| sizes.0.iter().copied()).collect();
    let defaults: Vec<Size> = pattern.default_sizes().iter().copied().map(Size).collect();
    let window = window.unwrap_or_else(|| pattern.default_window());
    for size in unique(if asked.is_empty() { &defaults } else { &asked }) {
        if size.0 < window * window {
            return Err(Failure::usage(format!(
                "--pattern shuffle: {window} blocks of {window} parts are more than {size}: raise --size or lower --window"
            )));
        }
        // The blocks, and the parts that have arrived.
        if !memory.fits(size.0.checked_mul(3)) {
            return Err(Failure::usage(format!(
                "--pattern shuffle: blocks of {size} and the parts that arrive do not fit: {memory}; lower --size"
            )));
        }
        cases.extend(unique(&options.wait).into_iter().map(|wait| case(size, window, SHUFFLERS, wait)));
    }
    Ok(())
}
