//! Many connections at once: the cost of each at either end, and many senders to one receiver.
//!
//! The tests run one after another, each with a peer in a process of its own, since they measure the usage of a
//! process.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod idle;
mod incast;
mod peer;

use std::process::ExitCode;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use rustix::process::{Resource, getrlimit};
use towline_tests::need;
use towline_tests::polls::within;

/// The time limit of a test.
const TEST_TIME: Duration = Duration::from_secs(150);

fn main() -> ExitCode {
    if let Ok(role) = std::env::var(peer::ROLE) {
        return peer::run(&role);
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let ten_thousand = "ten_thousand_idle_connections_cost_a_descriptor_and_20_kib_each_at_either_end";
    let trials = vec![
        match lack_of_files() {
            None => Trial::test(ten_thousand, || run(idle::ten_thousand())),
            Some(reason) => Trial::ignorable_test(ten_thousand, move || need::skip("files", &reason)),
        },
        Trial::test("incast_of_64_senders_of_64_kib_uses_bounded_memory", || run(incast::run(64 << 10))),
        Trial::test("incast_of_64_senders_of_1_mib_uses_bounded_memory", || run(incast::run(1 << 20))),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Returns the reason if this machine cannot open enough descriptors for the tests.
fn lack_of_files() -> Option<String> {
    let most = getrlimit(Resource::Nofile).maximum?;
    (most < idle::FILES).then(|| format!("a process may open {most} files, and {} are needed", idle::FILES))
}

fn run(test: impl Future<Output = ()>) -> Result<(), Failed> {
    peer::runtime().block_on(within(TEST_TIME, "the test", test));
    Ok(())
}
