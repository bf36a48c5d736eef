//! The ucx backend over RDMA verbs, without a device that has them: soft-RoCE in a virtual machine, emulated. Each case runs in
//! there, in this program once more; the machine is booted once, for all of them.
//!
//! What holds here holds of UCX's `rc_verbs`, and of our calls of it; nothing here says how fast anything is.
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

/// This process runs in the machine, whose script says so.
const GUEST: &str = "TOWLINE_RDMA";
/// What a case that passed says, before its name.
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
                    Err("not in the machine, which says above why".into())
                }
            }
            Err(reason) => need::skip("rdma", &reason),
        })
    };
    let mut trials: Vec<_> = CASES.iter().map(|(name, _)| trial(name, has_passed)).collect();
    // Whatever became of the program after the last case.
    trials.push(trial("the_machine_ends_well", |_, outcome| outcome.passed));
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// In the machine: one after another.
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

/// Which cases were asked for, as arguments.
fn chosen(arguments: &Arguments) -> Vec<String> {
    let mut chosen: Vec<String> = arguments.filter.iter().cloned().collect();
    chosen.extend(arguments.exact.then(|| "--exact".to_owned()));
    chosen.extend(arguments.skip.iter().map(|skipped| format!("--skip={skipped}")));
    chosen
}

/// Whether the machine lived to say that a case passed.
fn has_passed(name: &str, outcome: &Outcome) -> bool {
    let passed = format!("{PASSED} {name}");
    outcome.lines.iter().any(|line| line.ends_with(&passed))
}
