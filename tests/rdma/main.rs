//! The ucx backend over RDMA verbs, emulated: soft-RoCE in a virtual machine. The machine is booted once, and
//! runs this program again with all cases.
//!
//! The cases prove UCX's `rc_verbs` and our use of it. They measure no speed.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cases;
mod machine;

use std::env;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use libtest_mimic::{Arguments, Completion, Trial};
use towline_tests::{echoing, need};

use cases::CASES;
use machine::{Machine, Outcome};

/// Set by the machine's script: this process runs in the machine.
const GUEST: &str = "TOWLINE_RDMA";
/// Printed before the name of a case that passed.
const PASSED: &str = "passed:";

fn main() -> ExitCode {
    if let Some(outcome) = echoing::serve_if_asked() {
        return outcome;
    }
    let arguments = Arguments::from_args();
    if env::var_os(GUEST).is_some() {
        return run_in_guest(arguments);
    }
    let (chosen, booted) = (Arc::new(chosen(&arguments)), Arc::new(OnceLock::new()));
    let trial = |name: &'static str, holds: fn(&str, &Outcome) -> bool| {
        let (chosen, booted) = (chosen.clone(), booted.clone());
        Trial::ignorable_test(name, move || match Machine::find() {
            Ok(machine) => {
                let outcome = booted.get_or_init(|| machine.run(&env::current_exe().unwrap(), &chosen));
                let passed = holds(name, outcome.as_ref()?);
                if passed {
                    Ok(Completion::Completed)
                } else {
                    Err("failed in the machine; its output is above".into())
                }
            }
            Err(reason) => need::skip("rdma", &reason),
        })
    };
    let mut trials: Vec<_> = CASES.iter().map(|(name, _)| trial(name, has_passed)).collect();
    // The exit status of the program in the machine.
    trials.push(trial("the_machine_ends_well", |_, outcome| outcome.passed));
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Runs the cases in the machine, one after another.
fn run_in_guest(arguments: Arguments) -> ExitCode {
    let trials = CASES.map(|(name, case)| {
        Trial::test(name, move || {
            case();
            println!("{PASSED} {name}");
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments { test_threads: Some(1), ..arguments }, trials.into()).exit_code()
}

/// Returns the filter of the cases as arguments.
fn chosen(arguments: &Arguments) -> Vec<String> {
    let mut chosen: Vec<String> = arguments.filter.iter().cloned().collect();
    chosen.extend(arguments.exact.then(|| "--exact".to_owned()));
    chosen.extend(arguments.skip.iter().map(|skipped| format!("--skip={skipped}")));
    chosen
}

/// Returns true if the machine printed that the case passed.
fn has_passed(name: &str, outcome: &Outcome) -> bool {
    let passed = format!("{PASSED} {name}");
    outcome.lines.iter().any(|line| line.ends_with(&passed))
}
