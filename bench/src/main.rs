//! The `towline` command.
mod bench;
mod ceiling;
mod failure;
mod fingerprint;
mod payload;
mod units;
fn main() {}
