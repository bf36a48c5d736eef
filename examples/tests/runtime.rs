//! Runs the examples of the task runtime as users do: within one process, and on workers in processes of
//! their own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use towline::Endpoint;
use towline_runtime::Scheduler;

/// Time limit for each run.
const LONG: Duration = Duration::from_secs(120);

/// The example that cargo built along with this test.
fn example(name: &str, arguments: &[&str]) -> Command {
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(program.exists(), "build it first: cargo build -p towline-examples --examples");
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs it to its end, which must be successful. Returns its output.
fn run(name: &str, arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } = finished(&mut example(name, arguments));
    let printed = String::from_utf8(stdout).unwrap();
    assert!(status.success(), "{status}\n{printed}\n{}", String::from_utf8_lossy(&stderr));
    printed
}

fn finished(command: &mut Command) -> Output {
    let mut child = KilledOnDrop(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let [out, err] = [read(child.0.stdout.take().unwrap()), read(child.0.stderr.take().unwrap())];
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.0.try_wait().unwrap() {
            break status;
        }
        assert!(begun.elapsed() < LONG, "it does not end");
        thread::sleep(Duration::from_millis(2));
    };
    Output { status, stdout: out.join().unwrap(), stderr: err.join().unwrap() }
}

fn read(mut from: impl std::io::Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// A process that is killed when this is dropped.
struct KilledOnDrop(Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        // Both calls fail if the process has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Calls `work` with the options for a scheduler of this process, whose two workers are processes of the
/// example.
fn with_workers(name: &str, work: impl FnOnce(&[&str])) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let address = "towline://127.0.0.1:0".parse().unwrap();
    let scheduler =
        runtime.block_on(async { Scheduler::start(&Endpoint::new().unwrap(), &address).await.unwrap() });
    let address = scheduler.address().to_string();
    let options = ["--scheduler", &address];
    let worker =
        || KilledOnDrop(example(name, &options).arg("--work").stderr(Stdio::null()).spawn().unwrap());
    let _workers = [worker(), worker()];
    work(&options);
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

/// Counts the words of all files below `directory` in a plain loop.
fn words_below(directory: &Path, words: &mut HashMap<String, u64>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            words_below(&path, words);
        } else {
            let text = fs::read_to_string(&path).unwrap().to_lowercase();
            for word in text.split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty()) {
                *words.entry(word.to_owned()).or_default() += 1;
            }
        }
    }
}

fn counts_the_words_of_docs(cluster: &[&str]) {
    let docs = docs();
    let printed = run(
        "word_count",
        &[cluster, &["--top", "1000000", "--partitions", "5", docs.to_str().unwrap()]].concat(),
    );
    let mut expected = HashMap::new();
    words_below(&docs, &mut expected);
    let (summary, counts) = {
        let mut lines: Vec<_> = printed.lines().collect();
        (lines.pop().unwrap(), lines)
    };
    assert!(counts.len() > 1000 && counts.len() == expected.len(), "{summary}");
    for line in counts {
        let (count, word) = line.split_once(' ').unwrap();
        assert_eq!(expected.get(word), Some(&count.parse().unwrap()), "{word}");
    }
    let total: u64 = expected.values().sum();
    assert!(summary.starts_with(&format!("{total} words in ")), "{summary}");
}

#[test]
fn words_of_a_directory_are_counted() {
    counts_the_words_of_docs(&["--workers", "3"]);
}

#[test]
fn words_are_counted_by_workers_in_other_processes() {
    with_workers("word_count", counts_the_words_of_docs);
}

fn sorts_a_file(cluster: &[&str]) {
    let folder = tempfile::TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    // Text in records of 16 bytes, over several pieces; some of them are equal.
    let mut text = Vec::new();
    for entry in
        fs::read_dir(docs()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file())
    {
        text.extend(fs::read(entry).unwrap());
    }
    let text = text.repeat((20 << 20) / text.len() + 1);
    let records = text.as_chunks::<16>().0;
    fs::write(path("records"), records.as_flattened()).unwrap();
    let printed = run(
        "sample_sort",
        &[cluster, &["--record-bytes", "16", "--parts", "5", &path("records"), "--output", &path("sorted")]]
            .concat(),
    );
    assert!(printed.starts_with(&format!("sorted {} records, ", records.len())), "{printed}");
    let mut expected = records.to_vec();
    expected.sort();
    assert!(
        fs::read(path("sorted")).unwrap() == expected.as_flattened(),
        "the output differs from a plain sort"
    );
}

#[test]
fn a_file_of_records_is_sorted() {
    sorts_a_file(&["--workers", "2"]);
}

#[test]
fn a_file_is_sorted_by_workers_in_other_processes() {
    with_workers("sample_sort", sorts_a_file);
}

#[test]
fn a_file_to_sort_is_generated_unless_given() {
    assert!(run("sample_sort", &["--records", "1234"]).starts_with("sorted 1234 records, 123400 bytes "));
    assert!(run("sample_sort", &["--records", "0"]).starts_with("sorted 0 records, 0 bytes "));
}

#[test]
fn a_file_of_partial_records_is_refused() {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let refused = finished(&mut example("sample_sort", &["--record-bytes", "65521", manifest]));
    assert_eq!(refused.status.code(), Some(1));
    let printed = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(printed.contains("bytes are no records of 65521"), "{printed}");
}

#[test]
fn matrices_are_multiplied_in_blocks() {
    let printed = run("matmul", &["--workers", "2", "--size", "192", "--block", "64"]);
    assert!(printed.starts_with("192 x 192 in blocks of 64, "), "{printed}");
}

#[test]
fn matrices_are_multiplied_by_workers_in_other_processes() {
    with_workers("matmul", |cluster| {
        let printed = run("matmul", &[cluster, &["--size", "128", "--block", "32"]].concat());
        assert!(printed.starts_with("128 x 128 in blocks of 32, "), "{printed}");
    });
}
