//! Advertised addresses and their options: clusters whose scheduler is the command.

use std::fs;
use std::io::Write;

use tempfile::{NamedTempFile, TempDir};
use towline::{Address, Endpoint, Tls, Token};
use towline_runtime::{Client, Stats, Worker};
use towline_tests::certificates::{Authority, Kind};

use crate::bench::{SHORT, rows};
use crate::cluster::{BLOCK_LEN, FILL, LEN, registry};
use crate::command::{LIMIT, start, towline};

const SECRET: &str = "of this cluster";

/// Has two workers, made by `start` with an endpoint each, exchange a block. Returns what the scheduler has
/// recorded.
fn exchange(
    address: &str,
    endpoint: impl Fn() -> Endpoint,
    listen: &str,
    advertise: Option<&str>,
    look: impl AsyncFnOnce(&Client),
) -> Stats {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let address: Address = address.parse().unwrap();
    let exchanged = async {
        let mut workers = Vec::new();
        for _ in 0..2 {
            let mut builder = Worker::builder(registry()).slots(1).listen(listen.parse().unwrap());
            if let Some(advertise) = advertise {
                builder = builder.advertise(advertise.parse().unwrap());
            }
            workers.push(builder.start(&endpoint(), &address).await.unwrap());
        }
        let client = Client::connect(&endpoint(), &address).await.unwrap();
        let blocks = client.map(FILL, [(1, BLOCK_LEN), (2, BLOCK_LEN)]).unwrap();
        // Each worker has one of the blocks, so one of them fetches the other's.
        let len = client.submit(LEN, (&blocks,)).unwrap().result().await.unwrap();
        assert_eq!(len, 2 * BLOCK_LEN);
        // The client fetches from both.
        for block in client.gather(&blocks).await.unwrap() {
            assert_eq!(block.buffer().len(), BLOCK_LEN);
        }
        look(&client).await;
        client.stats().await.unwrap()
    };
    runtime.block_on(async { tokio::time::timeout(LIMIT, exchanged).await.unwrap() })
}

#[test]
fn schedulers_and_workers_are_reached_at_advertised_addresses() {
    let token = NamedTempFile::new().unwrap();
    fs::write(token.path(), SECRET).unwrap();
    let token = token.path().to_str().unwrap();
    let line = ["scheduler", "tcp://0.0.0.0:0", "--advertise", "tcp://127.0.0.2:0", "--token-file", token];
    let mut scheduler = start(&line);
    let (address, _rest) = scheduler.first_line();
    assert!(address.starts_with("tcp://127.0.0.2:") && !address.ends_with(":0"), "{address}");

    let endpoint = || Endpoint::builder().token(Token::from_bytes(SECRET).unwrap()).build().unwrap();
    // Workers as in containers, whose ports are published at another address.
    let stats = exchange(&address, endpoint, "tcp://0.0.0.0:0", Some("tcp://127.0.0.3:0"), async |client| {
        let address = address.clone();
        let top = ["top", &address, "--once", "--json", "--interval", "0.1", "--token-file", token]
            .map(str::to_owned);
        let look = move || towline(&top.each_ref().map(String::as_str)).document();
        let document = tokio::task::spawn_blocking(look).await.unwrap();
        let workers = document["workers"].as_array().unwrap();
        assert_eq!(workers.len(), 2, "{document}");
        for worker in workers
            .iter()
            .map(|worker| worker["address"].as_str().unwrap())
            .chain(client.workers().iter().map(String::as_str))
        {
            assert!(worker.starts_with("tcp://127.0.0.3:") && !worker.ends_with(":0"), "{worker}");
        }
    });
    let [pair] = &stats.pairs[..] else { panic!("one pair exchanged data: {stats:#?}") };
    assert_eq!((pair.values, &pair.path[..]), (1, "tcp"), "{stats:#?}");
    assert!(pair.bytes >= BLOCK_LEN as u64, "{stats:#?}");
}

#[test]
fn bench_connects_to_the_advertised_address() {
    let mut token = NamedTempFile::new().unwrap();
    token.write_all(SECRET.as_bytes()).unwrap();
    let token = token.path().to_str().unwrap();
    let line = ["serve", "tcp://0.0.0.0:0", "--advertise", "tcp://127.0.0.2:0", "--token-file", token];
    let mut serve = start(&line);
    let (address, _rest) = serve.first_line();
    assert!(address.starts_with("tcp://127.0.0.2:"), "{address}");
    let line = ["bench", "--connect", &address, "--token-file", token, "--pattern", "latency", "--json"];
    assert_eq!(rows(&towline(&[&line[..], &SHORT].concat())).len(), 1);
    for nowhere in ["tcp://*:0", "mem://x"] {
        let line = ["serve", "tcp://127.0.0.1:0", "--advertise", nowhere];
        towline(&line).is_wrong_usage("cannot be advertised");
    }
}

/// Workers connect to each other with the options and the TLS of the scheduler's address.
#[test]
fn options_of_a_scheduler_reach_the_connections_between_its_workers_over_tls() {
    let files = TempDir::new().unwrap();
    let authority = Authority::new(1);
    let certificate = authority.sign(&["127.0.0.1"], 2, Kind::Usual);
    let file = |name: &str, text: &str| {
        let path = files.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let [ca, cert, key] =
        [("ca", authority.pem()), ("cert", certificate.chain.clone()), ("key", certificate.key.clone())]
            .map(|(name, text)| file(name, &text));
    let line = ["scheduler", "tls://127.0.0.1:0", "--cert", &cert, "--key", &key, "--ca", &ca];
    let mut scheduler = start(&line);
    let (address, _rest) = scheduler.first_line();
    let endpoint = || {
        let tls = certificate.shown_by(Tls::builder()).authority(authority.pem()).build().unwrap();
        Endpoint::builder().tls(tls).build().unwrap()
    };
    let asked = format!("{address}?integrity=crc32c&streams=3");
    let stats = exchange(&asked, endpoint, "tls://127.0.0.1:0", None, async |client| {
        let workers = client.workers();
        assert_eq!(workers.len(), 2);
        for worker in &workers {
            let worker: Address = worker.parse().unwrap();
            // The blocks were moved by the connections of the other worker and of the client, with that many
            // sockets each.
            let sockets = established_at(worker.port());
            assert!(sockets >= 3 && sockets.is_multiple_of(3), "{worker}: {sockets} sockets");
            let connection = endpoint().connect(&worker).await.unwrap();
            let path = connection.path();
            assert_eq!(
                (path.encryption(), path.integrity(), path.streams()),
                ("tls", "crc32c", 3),
                "{worker}"
            );
            connection.abort();
        }
        // No connection without TLS was possible.
        let plain = workers[0].replace("tls://", "tcp://").parse().unwrap();
        let refused = Endpoint::new().unwrap().connect(&plain).await.unwrap_err();
        assert!(refused.to_string().contains("only over TLS"), "{refused}");
    });
    let [pair] = &stats.pairs[..] else { panic!("one pair exchanged data: {stats:#?}") };
    assert_eq!((pair.values, &pair.path[..]), (1, "tcp"), "{stats:#?}");
}

/// Returns the connected sockets of this host that were accepted at a loopback port.
fn established_at(port: u16) -> usize {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    // proc_pid_net(5): `sl local_address rem_address st …`, where state 01 is established.
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row[1].ends_with(&format!(":{port:04X}")) && row[3] == "01").count()
}
