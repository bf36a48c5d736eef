//! Runs the `worker` example as users do: in processes of their own, with a scheduler that ends.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use towline::Endpoint;
use towline_runtime::{Client, Function, Scheduler};

const COUNT_PRIMES: Function<(u32, u32), usize> = Function::new("count_primes");
const LONG: Duration = Duration::from_secs(60);

/// A process that is killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn two_workers_count_primes_and_end_with_their_scheduler() {
    let endpoint = Endpoint::new().unwrap();
    let scheduler = Scheduler::start(&endpoint, &"towline://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("examples/worker");
    assert!(program.exists(), "build it first: cargo build -p towline-examples --examples");
    let start = || {
        let mut command = Command::new(&program);
        command.arg(scheduler.address().to_string()).stderr(Stdio::piped());
        Process(command.spawn().unwrap())
    };
    let workers = [start(), start()];
    let client = Client::connect(&endpoint, scheduler.address()).await.unwrap();
    // A worker that joins while the scheduler closes reports a failed transport instead.
    let joined = async {
        while client.stats().await.unwrap().workers.len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, joined).await.unwrap();
    let counts = client.map(COUNT_PRIMES, (0..20).map(|part| (part * 500, (part + 1) * 500))).unwrap();
    let counts = tokio::time::timeout(LONG, client.gather(&counts)).await.unwrap().unwrap();
    assert_eq!(counts.iter().sum::<usize>(), 1229);

    drop(client);
    tokio::time::timeout(LONG, scheduler.close()).await.unwrap();
    for mut worker in workers {
        let output = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            let mut stderr = worker.0.stderr.take().unwrap();
            std::io::Read::read_to_string(&mut stderr, &mut text).unwrap();
            (worker.0.wait().unwrap().success(), text)
        });
        let (is_success, stderr) = tokio::time::timeout(LONG, output).await.unwrap().unwrap();
        assert!(!is_success && stderr.contains("scheduler lost"), "{stderr}");
    }
}
