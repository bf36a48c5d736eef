//! The token of a listening command, reloaded at SIGHUP: it applies to future connections, and open ones
//! stay.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;
use towline::{Connection, Endpoint, ErrorKind, Token};
use towline_runtime::Client;

use crate::command::{LIMIT, start, towline};
use crate::interruptions::signal;

const OLD: &str = "the first secret of this test";
const NEW: &str = "the second secret of this test";

/// A peer that connected before.
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

    async fn is_still_connected(&self) {
        match self {
            // A served peer receives nothing until it sends a request, unless the connection ends.
            Self::Peer(connection) => {
                let received = tokio::time::timeout(Duration::from_millis(200), connection.recv()).await;
                assert!(received.is_err(), "{received:?}");
            }
            Self::Client(client) => assert_eq!(client.stats().await.unwrap().clients, 1),
        }
    }
}

fn endpoint(secret: &str) -> Endpoint {
    Endpoint::builder().token(Token::from_bytes(secret).unwrap()).build().unwrap()
}

async fn connects(secret: &str, address: &str) -> Result<(), ErrorKind> {
    let connected = endpoint(secret).connect(&address.parse().unwrap()).await;
    connected.map(|connection| connection.abort()).map_err(|error| error.kind())
}

#[test]
fn sighup_reloads_the_token_and_keeps_open_connections() {
    for listener in ["serve", "scheduler"] {
        let files = TempDir::new().unwrap();
        let token = files.path().join("token");
        fs::write(&token, OLD).unwrap();
        let mut command = start(&[listener, "tcp://127.0.0.1:0", "--token-file", token.to_str().unwrap()]);
        let (address, _rest) = command.first_line();
        let mut errors = BufReader::new(command.0.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut hang_up = |wanted: &str| {
            signal(command.id(), Signal::HUP);
            assert!(errors.any(|line| line.contains(wanted)), "{listener} ended");
        };
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let inside = runtime.block_on(Inside::new(listener, &address));
        let looks = async {
            assert_eq!(connects(NEW, &address).await, Err(ErrorKind::Unauthenticated), "{listener}");
            fs::write(&token, NEW).unwrap();
            assert_eq!(connects(NEW, &address).await, Err(ErrorKind::Unauthenticated), "{listener}");
            hang_up("read anew");
            inside.is_still_connected().await;
            assert_eq!(connects(NEW, &address).await, Ok(()), "{listener}");
            assert_eq!(connects(OLD, &address).await, Err(ErrorKind::Unauthenticated), "{listener}");
            // An unusable file changes nothing.
            fs::remove_file(&token).unwrap();
            hang_up("are unchanged");
            inside.is_still_connected().await;
            assert_eq!(connects(NEW, &address).await, Ok(()), "{listener}");
        };
        runtime.block_on(async { tokio::time::timeout(LIMIT, looks).await.unwrap() });
        by_the_command(listener, &address, files.path());
    }
}

/// Connects by the command, which presents the token of its file.
fn by_the_command(listener: &str, address: &str, files: &Path) {
    for (secret, code) in [(NEW, 0), (OLD, 1)] {
        let token = files.join("shown");
        fs::write(&token, secret).unwrap();
        let look =
            if listener == "serve" { vec!["explain"] } else { vec!["top", "--once", "--interval", "0.05"] };
        towline(&[&look[..], &[address, "--token-file", token.to_str().unwrap()]].concat()).exits_with(code);
    }
}
