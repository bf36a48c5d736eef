//! Peers that are killed while they connect, and settings under which UCX would abort the process.

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit};
use towline::{Address, ErrorKind};
use ucx_sys::Library;

use crate::echoing::Server;
use crate::libraries::Installed;
use crate::over_ucx::{POSIX, SHM, TCP, assert_goes_on, at, builder_with, endpoint, meet, pair, run};
use crate::polls::in_time;

/// Names the address to connect to. A process with this variable is a connector.
const CONNECT: &str = "TOWLINE_UCX_CONNECT";
const LIBUCP: &str = "TOWLINE_UCX_CONNECT_LIBUCP";
const KILLED: u32 = 20;
/// The kills are spread over this time: opening takes some milliseconds.
const SPAN_US: u32 = 12_000;

/// If this process is a connector, connects until it is killed.
pub(crate) fn connect_if_asked() -> Option<ExitCode> {
    let address: Address = env::var(CONNECT).ok()?.parse().unwrap();
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let libucp = env::var(LIBUCP).unwrap();
    run(async {
        let endpoint = builder_with(Path::new(&libucp)).build().unwrap();
        // Load UCX before connecting.
        let _ = endpoint.inventory("ucx");
        println!("connecting");
        std::io::stdout().flush().unwrap();
        let _connection = endpoint.connect(&address).await;
        std::future::pending::<()>().await;
    });
    Some(ExitCode::SUCCESS)
}

/// Kills a connector `after` it starts.
fn kill_one(libucp: &Path, address: &Address, after: Duration) {
    let mut command = Command::new(env::current_exe().unwrap());
    command.env(CONNECT, address.to_string()).env(LIBUCP, libucp).env("UCX_LOG_LEVEL", "fatal");
    let mut connector = Server(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(connector.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    sleep(after);
    drop(connector);
}

/// UCX would abort this process if it failed.
pub(crate) fn a_peer_killed_while_it_connects_ends_only_its_connection(installed: &Installed) {
    let is_sound = Library::open_at(&installed.libucp).unwrap().version().minor >= 14;
    let addresses: &[&str] = if is_sound { &[TCP, SHM] } else { &[SHM] };
    for address in addresses {
        run(async {
            let far = endpoint(installed);
            let listener = far.listen(&at(address)).await.unwrap();
            let at = listener.address().clone();
            let accepting = tokio::spawn(async move {
                // A connection that opened in time ends with its peer.
                while let Ok(connection) = listener.accept().await {
                    drop(connection);
                }
            });
            let libucp = installed.libucp.clone();
            let killing = tokio::task::spawn_blocking(move || {
                for number in 0..KILLED {
                    // Use every delay once, early and late ones alternating.
                    let after = (number * 17 % KILLED) * SPAN_US / KILLED;
                    kill_one(&libucp, &at, Duration::from_micros(after.into()));
                }
            });
            killing.await.unwrap();
            accepting.abort();
            let listener = far.listen(&crate::over_ucx::at(address)).await.unwrap();
            let (a, b) = meet(&endpoint(installed), &listener).await;
            assert_goes_on(&a, &b).await;
        });
    }
}

pub(crate) fn what_may_abort_over_tcp_is_refused(installed: &Installed) {
    let without = at(&TCP.replace("&versions=any", ""));
    run(async {
        let endpoint = endpoint(installed);
        if Library::open_at(&installed.libucp).unwrap().version().minor >= 14 {
            return drop(endpoint.listen(&without).await.unwrap());
        }
        let there = at(&TCP.replace("&versions=any", "").replace(":0", ":9"));
        for refused in [endpoint.listen(&without).await.map(drop), endpoint.connect(&there).await.map(drop)] {
            let refused = refused.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
            for word in ["may abort this process", "UCX 1.14 or later", "?versions=any"] {
                assert!(refused.to_string().contains(word), "{word}: {refused}");
            }
        }
        let (a, b) = meet(&endpoint, &endpoint.listen(&at(TCP)).await.unwrap()).await;
        assert_goes_on(&a, &b).await;
    });
}

pub(crate) fn shared_memory_has_no_names_unless_asked_for(installed: &Installed) {
    let endpoint = endpoint(installed);
    let inventory = endpoint.inventory("ucx").unwrap();
    let has = |name: &str| inventory.devices.iter().any(|device| device.starts_with(name));
    assert!(has("sysv/") && !has("posix/"), "{inventory:?}");
    run(async {
        let pair = pair(installed, "ucx://127.0.0.1:0").await;
        for end in [&pair.a, &pair.b] {
            let notes = end.explain().await.notes.concat();
            assert!(notes.contains("UCX uses ") && !notes.contains("posix"), "{notes}");
        }
        assert_goes_on(&pair.a, &pair.b).await;
    });
}

pub(crate) fn a_limit_on_file_size_ends_no_process(installed: &Installed) {
    let Rlimit { maximum, .. } = getrlimit(Resource::Fsize);
    let limit = |current| setrlimit(Resource::Fsize, Rlimit { current, maximum }).unwrap();
    run(async {
        let endpoint = endpoint(installed);
        // The listener opens before the limit is lowered.
        let listener = endpoint.listen(&at(POSIX)).await.unwrap();
        limit(Some(100 << 10));
        let refused = in_time("an answer", endpoint.connect(listener.address())).await.unwrap_err();
        assert!(refused.to_string().contains("RLIMIT_FSIZE"), "{refused}");
        assert!(endpoint.listen(&at(POSIX)).await.unwrap_err().to_string().contains("RLIMIT_FSIZE"));
        for address in [SHM, TCP, "ucx://127.0.0.1:0"] {
            let listener = endpoint.listen(&at(address)).await.unwrap();
            let (a, b) = meet(&endpoint, &listener).await;
            assert_goes_on(&a, &b).await;
        }
        limit(maximum);
        let (a, b) = meet(&endpoint, &listener).await;
        assert_goes_on(&a, &b).await;
    });
}
