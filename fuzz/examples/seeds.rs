//! Writes the seeds of the corpus, from recorded exchanges, into a folder: `cargo run --example seeds
//! FOLDER`.

use std::path::PathBuf;
use std::time::Duration;
use std::{env, fs, io};

use towline::backend::{Arrival, Delivery, Role};
use towline::internals::{GreetingConfig, Peer, PeerAction, Stream, greet};
use towline::{Buffer, BufferMut, Message};
use towline_fuzz::wire::head_len;

fn main() -> io::Result<()> {
    let folder = PathBuf::from(env::args_os().nth(1).ok_or_else(|| io::Error::other("name the folder"))?);
    let write = |target: &str, seeds: Vec<Vec<u8>>| {
        let folder = folder.join(target);
        fs::create_dir_all(&folder)?;
        seeds.iter().enumerate().try_for_each(|(at, seed)| fs::write(folder.join(format!("seed-{at}")), seed))
    };
    write("handshake", handshakes())?;
    write("control", [&[0, 0, 9, 200, 5][..], &[1, 0, 0, 200, 200, 255]].map(Vec::from).into())?;
    write("frames", exchanges())?;
    write("lent_frames", lent_frames())?;
    write("one_sided", accesses())?;
    write("addresses", texts(&ADDRESSES, None))?;
    write(
        "expressions",
        EXPRESSIONS.iter().flat_map(|(which, texts_of)| texts(texts_of, Some(*which))).collect(),
    )
}

const ADDRESSES: [&str; 10] = [
    "tcp://127.0.0.1:7000?integrity=crc32c&streams=4",
    "towline://[fe80::1%eth0]:7000",
    "tcp://[::ffff:10.0.0.1]:0",
    "shm://localhost:7000?socket=%2Ftmp%2Fx",
    "ucx://*:1?TLS=tcp",
    "ib://node-1.example.:65535?provider=verbs",
    "mem://worker-1",
    "mem://?a=%C3%BC",
    "tcp://0.0.0.0:1",
    "tcp://:0",
];

const EXPRESSIONS: [(u8, &[&str]); 6] = [
    (
        0,
        &[
            "tcp.bandwidth.1M[wait=spin,streams=4].gb_per_s>=1.5",
            "auto.bandwidth.1M[path=tcp].ceiling.memcpy.share!=0",
            "tcp.latency.8.against.iperf3.ratio<=1e3",
            "mem.rate.64KiB.cpu_s_per_gb.send==-0",
        ],
    ),
    (1, &["tcp?tls=on&integrity=crc32c&streams=4", "auto", "mem"]),
    (2, &["8", "64K", "8..64M", "3MiB", "1024G"]),
    (3, &["latency", "bidirectional", "shuffle"]),
    (4, &["host", "cuda:0"]),
    (5, &["0.5", "3600", "1e-3"]),
];

fn texts(texts: &[&str], which: Option<u8>) -> Vec<Vec<u8>> {
    texts.iter().map(|text| which.into_iter().chain(text.bytes()).collect()).collect()
}

/// Records what one end of a handshake sends, and answers nothing.
struct Listener(Vec<u8>);

impl Peer for Listener {
    fn receive(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn send(&mut self, _: usize) -> PeerAction {
        PeerAction::End
    }
}

/// Returns the messages of a connector, and scripts of conversations of each sort.
fn handshakes() -> Vec<Vec<u8>> {
    let mut listener = Listener(vec![0]);
    let config = GreetingConfig {
        role: Role::Connector,
        token: None,
        offers: &["tcp", "shm"],
        time: Duration::from_secs(5),
    };
    drop(greet(&config, &mut listener));
    let mut said = listener.0;
    for (kind, body) in [
        (2, &[0; 32][..]),
        (3, b"tcp"),
        (4, b""),
        (5, b"no device"),
        (6, b"\x02wrong token"),
        (7, b"\x04tcp"),
        (8, &[1; 49]),
        (9, b"\x01\x03tcpa endpoint info"),
        (10, b"an endpoint info"),
    ] {
        said.extend(
            [b"TOWLINE\x1a", &[kind, 0, 0, 0][..], &(body.len() as u32).to_le_bytes(), body].concat(),
        );
    }
    // A `Hello`, a proof, a proposal or its answer: each choice starts a valid message of that sort.
    let conversation = |which, choices: [u8; 3]| vec![which, choices[0], 0, 3, choices[1], choices[2], 0, 0];
    let choices =
        [[53, 121, 171], [53, 122, 211], [53, 123, 231], [53, 52, 241], [53, 124, 253], [53, 124, 255]];
    (1..16)
        .filter(|which| which % 4 > 0)
        .flat_map(|which| choices.map(|choices| conversation(which, choices)))
        .chain([said])
        .collect()
}

/// Returns what two ends sent to each other, with and without checksums: whole messages of all sorts.
fn exchanges() -> Vec<Vec<u8>> {
    [false, true].into_iter().flat_map(recorded).collect()
}

fn recorded(checked: bool) -> Vec<Vec<u8>> {
    let ends = || Stream::new(Duration::from_secs(3), checked, 0);
    let (mut a, mut b) = (ends(), ends());
    b.expect(true);
    for lens in [&[][..], &[5], &[0, 300, 20], &[0x4000], &[100, 20_000]] {
        let frames = lens.iter().map(|len| Buffer::from(vec![0x22; *len])).collect();
        drop(a.send(Message::from_parts("head", frames), lens.len() == 1, false));
    }
    let region = b.expose(Buffer::from(vec![1; 100])).remote();
    drop(a.get(region, 3, BufferMut::with_capacity(50)));
    let region = b.expose_mut(BufferMut::zeroed(100)).remote();
    drop(a.put(region, 3, Buffer::from(vec![2; 50])));
    let (mut there, mut back) = (Vec::new(), Vec::new());
    for round in 0..20 {
        if round == 10 {
            drop(a.close());
        }
        let before = [there.len(), back.len()];
        a.leave(0, &mut there);
        b.arrive(0, &there[before[0]..]).expect("a good end");
        let announced: Vec<_> = b.announced().collect();
        for message in announced {
            match message.arrival {
                Arrival::AtSender => {
                    let destinations =
                        message.frames.iter().map(|frame| Some(BufferMut::with_capacity(frame.len)));
                    drop(b.accept(message.id, destinations.collect()));
                }
                _ => b.ack(message.id, Delivery::Delivered, true),
            }
        }
        b.leave(0, &mut back);
        a.arrive(0, &back[before[1]..]).expect("a good end");
    }
    let raw = |bytes: &[u8]| [&[2 | u8::from(checked), 0, 255, 1][..], bytes].concat();
    let head_len = head_len(checked, false);
    let records_len = u32::from_le_bytes([there[0], there[1], there[2], there[3]]) as usize;
    let records = [&[0], &there[head_len..head_len + records_len]].concat();
    vec![raw(&there), raw(&back), records]
}

/// Returns scripts of a get and a put, requested and answered.
fn accesses() -> Vec<Vec<u8>> {
    // A choice above 83 is a packet; then follow the number of its records and the kind of each.
    let get = [0, 90, 1, 0, 0, 0, 0, 0, 1, 0, 8, 0, 0];
    let put = [0, 90, 1, 1, 0, 0, 0, 0, 1, 0, 8, 0, 0];
    let large = [0, 90, 1, 2, 0, 0, 0, 0, 200, 1, 0, 0, 0, 50];
    let ours = [1, 5, 2, 0, 0, 25, 3, 0, 50, 90, 0, 1, 0, 1, 50, 16, 0];
    [&get[..], &put, &large, &ours].map(Vec::from).into()
}

/// Returns scripts of exported segments, borrowed and returned frames, lent frames, and a protocol violation.
fn lent_frames() -> Vec<Vec<u8>> {
    let shown = [0, 0, 0, 0];
    let borrowed = [60, 0, 1, 0, 0, 0, 50, 2, 0, 9, 0, 0, 0];
    let dropped = [140, 0, 0];
    let lent = [180, 180, 215, 0, 0, 180];
    let ours = [&shown[..], &borrowed, &dropped, &borrowed].concat();
    let both = [&ours[..], &lent, &borrowed].concat();
    let violation = [&lent[..], &[240, 0, 0, 210]].concat();
    vec![ours, both, violation, lent.to_vec()]
}
