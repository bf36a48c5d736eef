//! Not a test: the last program that `cargo test` runs. It lists the skipped tests and the reasons.

#![expect(clippy::print_stdout, reason = "the list is this program's output")]

use towline_tests::need::Record;

fn main() {
    // There are no tests to list.
    if std::env::args().any(|argument| argument == "--list") {
        return;
    }
    let Some(record) = Record::of_this_run() else { return };
    let skipped = record.take();
    if skipped.is_empty() {
        println!("\nskipped: nothing\n");
        return;
    }
    println!("\nskipped for what is missing here (tests, need: reason):");
    for (why, count) in &skipped {
        println!("{count:>6}  {why}");
    }
    println!("`cargo xtask test --install` installs what can be installed, and runs all tests.\n");
}
