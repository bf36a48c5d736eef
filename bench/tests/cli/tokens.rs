//! The token of a command that listens, read anew at SIGHUP: for connections to come, and without an end of those that are open.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;
use towline::{Connection, Endpoint, ErrorKind, Token};
use towline_runtime::Client;

use crate::command::{LIMIT, start, towline};
use crate::death::signal;

const OLD: &str = "the first secret of this test";
const NEW: &str = "the second secret of this test";

/// Somebody who came in before.
enum Inside {
    Peer(Connection),
    Client(Client),
}

impl Inside {
    async fn new(listener: &str, address: &str) -> Self {
        let endpoint = endpoint(OLD);
        let address = address.parse().unwrap();
        match listener {
            "serve" => Self::Peer(endpoint.connect(&address).await.unwrap()),
            _ => Self::Client(Client::connect(&endpoint, &address).await.unwrap()),
        }
    }

    async fn is_still_in(&self) {
        match self {
            // A served peer is told nothing until it asks, unless the connection ends.
            Self::Peer(connection) => {
                let told = tokio::time::timeout(Duration::from_millis(200), connection.recv()).await;
                assert!(told.is_err(), "{told:?}");
            }
            Self::Client(client) => assert_eq!(client.stats().await.unwrap().clients, 1),
        }
    }
}

fn endpoint(secret: &str) -> Endpoint {
    Endpoint::builder().token(Token::from_bytes(secret).unwrap()).build().unwrap()
}

async fn comes_in(secret: &str, address: &str) -> Result<(), ErrorKind> {
    let connected = endpoint(secret).connect(&address.parse().unwrap()).await;
    connected.map(|connection| connection.abort()).map_err(|error| error.kind())
}

#[test]
fn a_hangup_has_the_token_read_anew_and_open_connections_stay() {
    for listener in ["serve", "scheduler"] {
        let files = TempDir::new().unwrap();
        let token = files.path().join("token");
        fs::write(&token, OLD).unwrap();
        let mut command = start(&[listener, "tcp://127.0.0.1:0", "--token-file", token.to_str().unwrap()]);
        let (address, _rest) = command.first_line();
        let mut said = BufReader::new(command.0.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut hang_up = |wanted: &str| {
            signal(command.id(), Signal::HUP);
            assert!(said.any(|line| line.contains(wanted)), "{listener} ended");
        };
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let inside = runtime.block_on(Inside::new(listener, &address));
        let looks = async {
            assert_eq!(comes_in(NEW, &address).await, Err(ErrorKind::Unauthenticated), "{listener}");
            fs::write(&token, NEW).unwrap();
            assert_eq!(comes_in(NEW, &address).await, Err(ErrorKind::Unauthenticated), "{listener}");
            hang_up("read anew");
            inside.is_still_in().await;
            assert_eq!(comes_in(NEW, &address).await, Ok(()), "{listener}");
            assert_eq!(comes_in(OLD, &address).await, Err(ErrorKind::Unauthenticated), "{listener}");
            // What cannot be used changes nothing.
            fs::remove_file(&token).unwrap();
            hang_up("stay as they were");
            inside.is_still_in().await;
            assert_eq!(comes_in(NEW, &address).await, Ok(()), "{listener}");
        };
        runtime.block_on(async { tokio::time::timeout(LIMIT, looks).await.unwrap() });
        by_the_command(listener, &address, files.path());
    }
}

/// Those who come in by the command show what their file holds.
fn by_the_command(listener: &str, address: &str, files: &Path) {
    for (secret, code) in [(NEW, 0), (OLD, 1)] {
        let token = files.join("shown");
        fs::write(&token, secret).unwrap();
        let look =
            if listener == "serve" { vec!["explain"] } else { vec!["top", "--once", "--interval", "0.05"] };
        towline(&[&look[..], &[address, "--token-file", token.to_str().unwrap()]].concat()).exits_with(code);
    }
}
