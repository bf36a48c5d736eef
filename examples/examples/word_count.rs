//! Counts the words of all files below a directory: a shuffle of two stages, checked against a plain count.
//!
//! ```text
//! cargo run --release -p towline-examples --example word_count -- DIRECTORY
//! cargo run --release -p towline-examples --example word_count -- --scheduler ADDRESS --work    # once or more often; then:
//! cargo run --release -p towline-examples --example word_count -- --scheduler ADDRESS DIRECTORY
//! ```
//!
//! Each `count` reads some files, and returns one table for each partition of the words. `part` extracts one
//! table on the worker that has them, so that only this table is transferred. Each `merge` adds the tables of
//! its partition, which share no words with other partitions. Workers read the files themselves: they must
//! see the same directory as this process.

use std::collections::HashMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use towline_examples::{ClusterOptions, Outcome, all_done, run};
use towline_runtime::{Data, Function, Registry, TaskResult};

/// Limits of a task: the total size of its files, and their number. A longer file is a task by itself.
const TASK_BYTES: u64 = 8 << 20;
/// The paths are arguments, which are limited to 1 MiB for a task.
const TASK_FILES: usize = 1000;

const COUNT: Function<(Vec<PathBuf>, u64), Vec<Data>> = Function::new("count");
const PART: Function<(Vec<Data>, usize), Data> = Function::new("part");
const MERGE: Function<(Vec<Data>,), Data> = Function::new("merge");

/// Counts the words of all files below a directory.
#[derive(Debug, Parser)]
#[command(name = "word_count")]
struct Arguments {
    #[command(flatten)]
    cluster: ClusterOptions,
    /// Number of words to print, the most frequent first.
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
    /// Number of partitions of the words.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=4096))]
    partitions: u64,
    /// The directory to read.
    #[arg(default_value = ".")]
    directory: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    run("word_count", count_words(arguments))
}

async fn count_words(arguments: Arguments) -> Outcome {
    let registry = Registry::new().with(COUNT, count).with(PART, part).with(MERGE, merge);
    let Some(cluster) = arguments.cluster.join(registry).await? else { return Ok(()) };
    let client = cluster.client();
    let begun = Instant::now();
    let batches = batches(&arguments.directory)?;
    let files: Vec<PathBuf> = batches.iter().flatten().cloned().collect();

    let counted = client.map(COUNT, batches.into_iter().map(|files| (files, arguments.partitions)))?;
    let merged = (0..arguments.partitions as usize).map(|number| {
        let parts = client.map(PART, counted.iter().map(|tables| (tables, number)))?;
        client.submit(MERGE, (&parts,))
    });
    let merged = merged.collect::<Result<Vec<_>, _>>()?;
    all_done("files counted", &counted).await?;
    drop(counted);
    all_done("partitions merged", &merged).await?;
    let mut words = Vec::new();
    for table in client.gather(&merged).await? {
        words.extend(entries(&table)?.map(|(word, count)| (word.to_owned(), count)));
    }
    let took = begun.elapsed();

    let begun = Instant::now();
    let mut expected = HashMap::new();
    for file in &files {
        count_file(file, &mut expected)?;
    }
    let alone = begun.elapsed();
    let total: u64 = words.iter().map(|(_, count)| count).sum();
    if words.len() != expected.len() || words.iter().any(|(word, count)| expected.get(word) != Some(count)) {
        return Err("the count differs from that of a plain loop over the files".into());
    }

    words.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let mut out = io::stdout().lock();
    for (word, count) in words.iter().take(arguments.top) {
        writeln!(out, "{count} {word}")?;
    }
    let (files, different) = (files.len(), words.len());
    writeln!(
        out,
        "{total} words in {files} files, {different} different, in {took:.2?}; a plain loop: {alone:.2?}"
    )?;
    Ok(())
}

// ---- What workers run ----

/// Counts the words of these files, in a table for each partition.
fn count(files: Vec<PathBuf>, partitions: u64) -> TaskResult<Vec<Data>> {
    let mut words = HashMap::new();
    for file in &files {
        count_file(file, &mut words)?;
    }
    let mut tables = vec![Vec::new(); partitions as usize];
    for (word, count) in words {
        let mut hash = DefaultHasher::new();
        word.hash(&mut hash);
        writeln!(tables[(hash.finish() % partitions) as usize], "{word} {count}")?;
    }
    Ok(tables.into_iter().map(Data::from).collect())
}

fn part(mut tables: Vec<Data>, number: usize) -> TaskResult<Data> {
    Ok(tables.swap_remove(number))
}

fn merge(tables: Vec<Data>) -> TaskResult<Data> {
    let mut words: HashMap<&str, u64> = HashMap::new();
    for table in &tables {
        for (word, count) in entries(table)? {
            *words.entry(word).or_default() += count;
        }
    }
    let mut merged = Vec::new();
    for (word, count) in words {
        writeln!(merged, "{word} {count}")?;
    }
    Ok(merged.into())
}

/// Parses a table: one line for each word, with its count.
fn entries(table: &Data) -> Outcome<impl Iterator<Item = (&str, u64)>> {
    let text = str::from_utf8(table.as_slice().unwrap_or_default())?;
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    Ok(lines.filter_map(|(word, count)| Some((word, count.parse().ok()?))))
}

/// Words are runs of letters and digits, in lower case. Bytes that are not UTF-8 separate words.
fn count_file(file: &Path, words: &mut HashMap<String, u64>) -> Outcome {
    let bytes = fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    for chunk in bytes.utf8_chunks() {
        let found = chunk.valid().split(|letter: char| !letter.is_alphanumeric());
        for word in found.filter(|word| !word.is_empty()) {
            *words.entry(word.to_lowercase()).or_default() += 1;
        }
    }
    Ok(())
}

/// Returns all files below the directory, in batches of one task each. Links are not followed.
fn batches(directory: &Path) -> Outcome<Vec<Vec<PathBuf>>> {
    let (mut batches, mut batch, mut batch_bytes) = (Vec::new(), Vec::new(), 0);
    let mut directories = vec![directory.canonicalize()?];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).map_err(|error| format!("{}: {error}", directory.display()))? {
            let entry = entry?;
            let about = entry.metadata()?;
            if about.is_dir() {
                directories.push(entry.path());
            } else if about.is_file() {
                let is_full = batch_bytes + about.len() > TASK_BYTES || batch.len() == TASK_FILES;
                if is_full && !batch.is_empty() {
                    batches.push(std::mem::take(&mut batch));
                    batch_bytes = 0;
                }
                batch.push(entry.path());
                batch_bytes += about.len();
            }
        }
    }
    batches.extend((!batch.is_empty()).then_some(batch));
    Ok(batches)
}
