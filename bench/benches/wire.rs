//! Cost of the wire format alone: records and handshake messages, encoded and decoded, without a socket or a
//! session.

#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]
#![expect(missing_docs, reason = "criterion's macro makes a public function")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use towline::Place;
use towline::backend::FrameInfo;
use towline::internals::{Sample, decode, decode_greeting, hello};

criterion_group! {
    name = wire;
    config = Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(2));
    targets = records, handshake
}
criterion_main!(wire);

/// Returns records of each sort, with names.
fn samples() -> [(&'static str, Sample); 5] {
    let frame = FrameInfo { len: 1 << 20, place: Place::Host };
    [
        ("a message of 8 bytes", Sample::Announcement(vec![1; 8])),
        ("a table of 64 frames", Sample::Table(vec![frame; 64])),
        ("64 acknowledgements", Sample::Acks(64)),
        ("a get", Sample::Get),
        ("a put of 8 bytes", Sample::Put(vec![1; 8])),
    ]
}

fn records(criterion: &mut Criterion) {
    let mut bytes = Vec::new();
    for (name, sample) in samples() {
        bytes.clear();
        sample.encode(&mut bytes);
        let encoded = bytes.clone();
        let mut group = criterion.benchmark_group("encode");
        group.throughput(Throughput::Bytes(encoded.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| {
                bytes.clear();
                black_box(&sample).encode(&mut bytes);
                black_box(&bytes);
            });
        });
        group.finish();
        let mut group = criterion.benchmark_group("decode");
        group.throughput(Throughput::Bytes(encoded.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| decode(black_box(&encoded)).unwrap());
        });
        group.finish();
    }
}

/// Encodes and decodes a `Hello` with two offers, the first message of every connection.
fn handshake(criterion: &mut Criterion) {
    let encoded = hello(&["mem", "tcp"]).unwrap();
    let mut group = criterion.benchmark_group("encode");
    group.bench_function("a hello", |bencher| bencher.iter(|| hello(black_box(&["mem", "tcp"])).unwrap()));
    group.finish();
    let mut group = criterion.benchmark_group("decode");
    group.bench_function("a hello", |bencher| {
        bencher.iter(|| decode_greeting(black_box(&encoded)).unwrap());
    });
    group.finish();
}
