//! A worker in ten lines. Start a scheduler, and as many workers as you like:
//!
//! ```text
//! cargo run -p towline-bench -- scheduler towline://127.0.0.1:7100
//! cargo run -p towline-examples --example worker -- towline://127.0.0.1:7100
//! ```
//!
//! It listens at the loopback interface if the scheduler does. For other hosts give the endpoint a token: the
//! worker then listens at every interface, and the scheduler publishes the address that it observes.
//! `.listen(…)` and `.advertise(…)` change that.

use towline::Endpoint;
use towline_runtime::{Function, Registry, Result, TaskResult, Worker};

/// Clients use the same constant.
const COUNT_PRIMES: Function<(u32, u32), usize> = Function::new("count_primes");

#[tokio::main]
async fn main() -> Result<()> {
    let scheduler =
        std::env::args().nth(1).expect("the first argument is the scheduler's address").parse()?;
    let is_prime = |n: u32| n > 1 && (2..).take_while(|d| *d <= n / d).all(|d| !n.is_multiple_of(d));
    let count_primes = move |from: u32, to: u32| TaskResult::Ok((from..to).filter(|n| is_prime(*n)).count());
    let registry = Registry::new().with(COUNT_PRIMES, count_primes);
    let mut worker = Worker::builder(registry).start(&Endpoint::new()?, &scheduler).await?;
    Err(worker.ended().await)
}
