//! Sorts a file of fixed-size records on a cluster with a distributed sample sort, then reads the output back
//! and checks it.
//!
//! ```text
//! cargo run --release -p towline-examples --example sample_sort                        # a file of 100 MB is made for it
//! cargo run --release -p towline-examples --example sample_sort -- FILE --output SORTED
//! cargo run --release -p towline-examples --example sample_sort -- --scheduler ADDRESS --work    # once or more often; then:
//! cargo run --release -p towline-examples --example sample_sort -- --scheduler ADDRESS FILE --output SORTED
//! ```
//!
//! `sample` samples the records of each piece of the file, and `splitters` divide the samples into equal
//! parts. Each `split` sorts its piece and cuts it into parts. `part` extracts one part on the worker that
//! has the piece, so that only this part is transferred. Each `sort` merges the pieces of its part, and
//! `write` writes it at its offset. Records compare as bytes, from the first byte. Workers read and write the
//! files themselves: they must see the same files as this process.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use serde::{Deserialize, Serialize};
use towline_examples::{ClusterOptions, Outcome, all_done, buffer, run};
use towline_runtime::{Data, Function, Registry, TaskResult};

/// Maximum bytes of a piece of the file.
const PIECE_BYTES: usize = 8 << 20;
/// Samples of each piece for each part.
const SAMPLES: usize = 16;

const SAMPLE: Function<(Piece, usize), Data> = Function::new("sample");
const SPLITTERS: Function<(Vec<Data>, usize, usize), Data> = Function::new("splitters");
const SPLIT: Function<(Piece, Data), Vec<Data>> = Function::new("split");
const PART: Function<(Vec<Data>, usize), Data> = Function::new("part");
const SORT: Function<(Vec<Data>, usize), Data> = Function::new("sort");
const LENGTH: Function<(Data,), u64> = Function::new("length");
const WRITE: Function<(PathBuf, u64, Data), ()> = Function::new("write");

/// Sorts a file of fixed-size records.
#[derive(Debug, Parser)]
#[command(name = "sample_sort")]
struct Arguments {
    #[command(flatten)]
    cluster: ClusterOptions,
    /// Bytes of a record.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    record_bytes: u32,
    /// Number of parts.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=4096))]
    parts: u32,
    /// Number of records in the generated file, if no file is given.
    #[arg(long, value_name = "N", default_value_t = 1_000_000, conflicts_with = "file")]
    records: u64,
    /// Output file; an existing one is replaced. Without it the sorted records are only checked.
    #[arg(long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// Input file: records without separators.
    file: Option<PathBuf>,
}

/// Records of a file that are read together.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Piece {
    file: PathBuf,
    begin: u64,
    len: usize,
    record_bytes: usize,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    run("sample_sort", sort_file(arguments))
}

async fn sort_file(arguments: Arguments) -> Outcome {
    let registry =
        Registry::new().with(SAMPLE, sample).with(SPLITTERS, splitters).with(SPLIT, split).with(PART, part);
    let registry = registry.with(SORT, sort).with(LENGTH, length).with(WRITE, write);
    let Some(cluster) = arguments.cluster.join(registry).await? else { return Ok(()) };
    let client = cluster.client();
    let (record_bytes, parts) = (arguments.record_bytes as usize, arguments.parts as usize);
    let made = tempfile::TempDir::new()?;
    let file = match arguments.file {
        Some(file) => file.canonicalize()?,
        None => make_records(&made.path().join("records"), arguments.records, record_bytes)?,
    };
    let output = arguments.output.unwrap_or_else(|| made.path().join("sorted"));
    // The workers write the parts. The file must be empty by then, and its path absolute.
    File::create(&output)?;
    let output = output.canonicalize()?;
    let begun = Instant::now();

    let pieces = pieces(&file, record_bytes)?;
    let samples = client.map(SAMPLE, pieces.iter().map(|piece| (piece.clone(), SAMPLES * parts)))?;
    let splitters = client.submit(SPLITTERS, (&samples, parts, record_bytes))?;

    let split = client.map(SPLIT, pieces.into_iter().map(|piece| (piece, &splitters)))?;
    let sorted = (0..parts).map(|number| {
        let parts = client.map(PART, split.iter().map(|pieces| (pieces, number)))?;
        client.submit(SORT, (&parts, record_bytes))
    });
    let sorted = sorted.collect::<Result<Vec<_>, _>>()?;
    all_done("pieces split", &split).await?;
    drop(split);
    all_done("parts sorted", &sorted).await?;
    let lengths = client.map(LENGTH, sorted.iter().map(|part| (part,)))?;
    let mut end = 0;
    let places = client.gather(&lengths).await?.into_iter().map(|len| {
        end += len;
        end - len
    });
    let written = client.map(WRITE, places.zip(&sorted).map(|(at, part)| (output.clone(), at, part)))?;
    drop(sorted);
    all_done("parts written", &written).await?;
    let took = begun.elapsed();

    let (before, after) = (summarize(&file, record_bytes)?, summarize(&output, record_bytes)?);
    if !after.is_sorted {
        return Err("the output is not in order".into());
    }
    if (before.records, before.checksum) != (after.records, after.checksum) {
        return Err("the output has other records than the input".into());
    }
    let rate = end as f64 / 1e6 / took.as_secs_f64();
    println!(
        "sorted {} records, {end} bytes in {took:.2?}, {rate:.0} MB/s; checksum {:016x}",
        after.records, after.checksum
    );
    Ok(())
}

/// Divides the file into pieces of whole records.
fn pieces(file: &Path, record_bytes: usize) -> Outcome<Vec<Piece>> {
    let file_len = fs::metadata(file)?.len();
    if file_len % record_bytes as u64 != 0 {
        return Err(format!("{}: {file_len} bytes are no records of {record_bytes}", file.display()).into());
    }
    let piece_len = (PIECE_BYTES / record_bytes).max(1) * record_bytes;
    let piece = |begin: u64| {
        let len = (file_len - begin).min(piece_len as u64) as usize;
        Piece { file: file.to_owned(), begin, len, record_bytes }
    };
    Ok((0..file_len).step_by(piece_len).map(piece).collect())
}

// ---- What workers run ----

/// Returns some records, evenly spread over the piece.
fn sample(piece: Piece, count: usize) -> TaskResult<Data> {
    let file = File::open(&piece.file)?;
    let records = piece.len / piece.record_bytes;
    let count = count.min(records);
    let mut sampled = vec![0; count * piece.record_bytes];
    for (number, record) in sampled.chunks_exact_mut(piece.record_bytes).enumerate() {
        let at = number * records / count * piece.record_bytes;
        file.read_exact_at(record, piece.begin + at as u64)?;
    }
    Ok(sampled.into())
}

/// Returns the records that divide the samples into this many equal parts.
fn splitters(samples: Vec<Data>, parts: usize, record_bytes: usize) -> TaskResult<Data> {
    let mut records: Vec<&[u8]> =
        samples.iter().flat_map(|sample| bytes(sample).chunks_exact(record_bytes)).collect();
    records.sort_unstable();
    let evenly = (1..parts).filter_map(|part| records.get(part * records.len() / parts).copied());
    Ok(evenly.collect::<Vec<_>>().concat().into())
}

/// Sorts the piece, and cuts it at the splitters.
fn split(piece: Piece, splitters: Data) -> TaskResult<Vec<Data>> {
    let mut read = vec![0; piece.len];
    File::open(&piece.file)?.read_exact_at(&mut read, piece.begin)?;
    let mut records: Vec<&[u8]> = read.chunks_exact(piece.record_bytes).collect();
    records.sort_unstable();
    let sorted = concat(&records)?;
    let mut begin = 0;
    let ends = bytes(&splitters).chunks_exact(piece.record_bytes);
    let ends = ends.map(|splitter| records.partition_point(|record| *record < splitter));
    let cut = |end| {
        let part = sorted.buffer().slice(begin * piece.record_bytes..end * piece.record_bytes);
        begin = end;
        Data::from(part)
    };
    Ok(ends.chain([records.len()]).map(cut).collect())
}

/// Extracts one part of a piece. With fewer splitters than requested, the last parts are empty.
fn part(pieces: Vec<Data>, number: usize) -> TaskResult<Data> {
    Ok(pieces.into_iter().nth(number).unwrap_or_default())
}

/// Sorts records that consist of sorted runs.
fn sort(pieces: Vec<Data>, record_bytes: usize) -> TaskResult<Data> {
    let mut records: Vec<&[u8]> =
        pieces.iter().flat_map(|piece| bytes(piece).chunks_exact(record_bytes)).collect();
    // The stable sort detects sorted runs and merges them.
    records.sort();
    concat(&records)
}

fn length(part: Data) -> TaskResult<u64> {
    Ok(part.buffer().len() as u64)
}

fn write(file: PathBuf, at: u64, part: Data) -> TaskResult<()> {
    File::options().write(true).open(file)?.write_all_at(bytes(&part), at)?;
    Ok(())
}

fn concat(records: &[&[u8]]) -> Outcome<Data> {
    let mut all = buffer(records.iter().map(|record| record.len()).sum())?;
    for record in records {
        all.extend_from_slice(record)?;
    }
    Ok(all.freeze().into())
}

fn bytes(data: &Data) -> &[u8] {
    data.as_slice().unwrap_or_default()
}

// ---- The file before and after ----

/// A summary of a file: its records in any order, and whether they are in order.
#[derive(Debug, Default)]
struct Summary {
    records: u64,
    /// The sum of the records' hashes.
    checksum: u64,
    is_sorted: bool,
}

fn summarize(file: &Path, record_bytes: usize) -> Outcome<Summary> {
    let mut looked = Summary { is_sorted: true, ..Summary::default() };
    let mut file = BufReader::with_capacity(1 << 20, File::open(file)?);
    let (mut before, mut record) = (vec![0; record_bytes], vec![0; record_bytes]);
    while !std::io::BufRead::fill_buf(&mut file)?.is_empty() {
        file.read_exact(&mut record)?;
        let mut hash = DefaultHasher::new();
        hash.write(&record);
        looked.checksum = looked.checksum.wrapping_add(hash.finish());
        looked.is_sorted &= before <= record;
        looked.records += 1;
        std::mem::swap(&mut before, &mut record);
    }
    Ok(looked)
}

/// Writes a file of pseudo-random records, equal each time.
fn make_records(path: &Path, records: u64, record_bytes: usize) -> Outcome<PathBuf> {
    let mut file = BufWriter::new(File::create(path)?);
    let mut state = 1u64;
    for _ in 0..records * (record_bytes as u64).div_ceil(8) {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        file.write_all(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes())?;
    }
    let file = file.into_inner()?;
    file.set_len(records * record_bytes as u64)?;
    Ok(path.to_owned())
}
