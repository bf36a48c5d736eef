//! Connecting to addresses with and without a listener.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use towline::backend::Mem;
use towline::{Address, CandidateState, Connection, ErrorKind, Scheme};

use crate::backends::{Row, connect_pair};
use crate::content::{assert_message, message};
use crate::peer::{Home, Peer, echo};
use crate::polls::{all, in_time, polled, within};
use crate::suite::cases;

cases! {
    ANY:
        many_connect_at_once,
        the_path_names_the_chosen_backend,
        an_address_without_a_listener_is_refused,
        a_closed_listener_accepts_nobody;
    CROSS_HOST:
        the_towline_scheme_chooses_the_first_path_that_reaches,
        a_name_is_resolved,
        a_name_that_does_not_resolve_is_unavailable,
        a_silent_server_times_out,
        a_server_that_closes_is_lost,
        a_server_of_another_kind_is_refused,
        an_address_that_names_no_listener_is_invalid;
}

async fn many_connect_at_once(row: &'static Row) {
    const COUNT: usize = 60;
    let pair = row.pair().await;
    let connecting = all((0..COUNT).map(|_| pair.near.connect(pair.listener.address())));
    let accepting = async {
        let mut accepted = Vec::new();
        for _ in 0..COUNT {
            accepted.push(pair.listener.accept().await.unwrap());
        }
        accepted
    };
    let (connected, accepted) = in_time("sixty peers", async { tokio::join!(connecting, accepting) }).await;
    let sending = all(connected.into_iter().map(|connected| async {
        let connection = connected.unwrap();
        connection.deliver(message(1, &[1000])).await.unwrap();
        connection
    }));
    let taking = all(accepted.iter().map(|accepted| accepted.recv()));
    let (_connected, taken) = in_time("their messages", async { tokio::join!(sending, taking) }).await;
    for message in taken {
        assert_message(&message.unwrap(), 1, &[1000]);
    }
}

async fn the_path_names_the_chosen_backend(row: &'static Row) {
    let pair = row.pair().await;
    let scheme = row.address().scheme();
    let backend = scheme.backend().unwrap();
    // Data within a process needs no encryption.
    let encryption = if scheme.is_encrypted() { "tls" } else { "none" };
    for end in [&pair.a, &pair.b] {
        let path = end.path();
        assert_eq!((path.chosen(), path.encryption()), (backend, encryption));
        let chosen: Vec<_> = path
            .candidates()
            .iter()
            .filter(|candidate| candidate.state == CandidateState::Chosen)
            .map(|candidate| candidate.name)
            .collect();
        assert_eq!(chosen, [backend]);
        for candidate in path.candidates() {
            assert!(
                !candidate.reason.is_empty(),
                "{} is {:?} without a reason",
                candidate.name,
                candidate.state
            );
        }
    }
    assert_eq!(pair.a.path().address(), pair.listener.address().to_string());
    assert_eq!(pair.a.peer(), pair.far.identity());
    assert_eq!(pair.b.peer(), pair.near.identity());
}

async fn a_closed_listener_accepts_nobody(row: &'static Row) {
    let pair = row.pair().await;
    let address = pair.listener.address().clone();
    // Nobody accepts this one, so it ends with the listener.
    let left = in_time("a connection", pair.near.connect(&address)).await.unwrap();
    pair.listener.close();
    let why = in_time("the end of accept", pair.listener.accept()).await.unwrap_err();
    assert_eq!(why.kind(), ErrorKind::Closed, "{why}");
    in_time("the end of what nobody accepted", left.closed()).await;
    // The driver closes the socket, and resets a connection that the system had accepted already.
    let refused =
        async { while pair.near.connect(&address).await.unwrap_err().kind() != ErrorKind::Refused {} };
    in_time("a refusal", refused).await;
    pair.b.send(message(1, &[700])).await.unwrap();
    assert_message(&in_time("a message", pair.a.recv()).await.unwrap(), 1, &[700]);

    // A call that waits already.
    let listener = pair.far.listen(&row.address()).await.unwrap();
    let mut accepting = std::pin::pin!(listener.accept());
    assert!(polled(accepting.as_mut(), 3).await.is_none());
    listener.close();
    assert_eq!(in_time("the end of accept", accepting).await.unwrap_err().kind(), ErrorKind::Closed);
}

async fn an_address_without_a_listener_is_refused(row: &'static Row) {
    let pair = row.pair().await;
    let address = match row.address().name() {
        Some(_) => Address::mem("no-such-name").unwrap(),
        // A port that was bound and never listened, so that no other process takes it.
        None => {
            let socket = std::net::TcpListener::bind((row.address().host(), 0)).unwrap();
            let port = socket.local_addr().unwrap().port();
            drop(socket);
            Address::new(row.address().scheme(), row.address().host(), port).unwrap()
        }
    };
    let error = within(Duration::from_secs(2), "connect", pair.near.connect(&address)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    let sentence = error.to_string();
    assert!(sentence.contains("connect") && sentence.contains(&address.to_string()), "{sentence}");
}

async fn the_towline_scheme_chooses_the_first_path_that_reaches(row: &'static Row) {
    let open = Address::new(Scheme::Towline, row.address().host(), 0).unwrap();
    let state_of = |connection: &Connection, name| {
        let candidates = connection.path().candidates();
        candidates.iter().find(|candidate| candidate.name == name).map(|candidate| candidate.state)
    };
    // Within a process.
    let (near, far) = (row.endpoint(), row.endpoint());
    let listener = far.listen(&open).await.unwrap();
    let (a, b) = in_time("a connection", connect_pair(&near, &listener)).await;
    for end in [&a, &b] {
        assert_eq!(end.path().chosen(), "mem");
        assert_eq!(state_of(end, "tcp"), Some(CandidateState::Available));
    }
    for number in 0..20 {
        let lengths = [number * 10_000];
        let both = async { tokio::join!(a.deliver(message(number, &lengths)), b.recv()) };
        let (sent, taken) = in_time("a message", both).await;
        sent.unwrap();
        assert_message(&taken.unwrap(), number, &lengths);
    }
    in_time("close", a.close()).await.unwrap();
    assert_eq!(in_time("the end", b.recv()).await.unwrap_err().kind(), ErrorKind::Closed);

    // Between two processes.
    let (_peer, address) = Peer::listening("serve", row, Home::Here, &open.to_string()).await;
    let connection = in_time("a connection", near.connect(&address)).await.unwrap();
    assert_eq!(connection.path().chosen(), "shm");
    assert_eq!(state_of(&connection, "mem"), Some(CandidateState::Refused));
    echo(&connection, 100_000).await;

    // The only path of one end is missing at the other.
    let only_mem = row.builder().backends(vec![Arc::new(Mem)]).build().unwrap();
    let error = in_time("connect", only_mem.connect(&address)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("another process"), "it gives the reason: {error}");
}

async fn a_name_is_resolved(row: &'static Row) {
    let pair = row.pair().await;
    let by_name = format!("{}://localhost:0", row.address().scheme()).parse().unwrap();
    let listener = pair.far.listen(&by_name).await.unwrap();
    assert_eq!(listener.address().host(), "localhost");
    let (a, b) = in_time("a connection", connect_pair(&pair.near, &listener)).await;
    let (sent, taken) = tokio::join!(a.deliver(message(1, &[10])), b.recv());
    sent.unwrap();
    assert_message(&taken.unwrap(), 1, &[10]);
}

async fn a_name_that_does_not_resolve_is_unavailable(row: &'static Row) {
    let endpoint = row.builder().connect_time(Duration::from_secs(5)).build().unwrap();
    let address = format!("{}://no-such-host.invalid:7000", row.address().scheme()).parse().unwrap();
    let error = within(Duration::from_secs(8), "connect", endpoint.connect(&address)).await.unwrap_err();
    // A resolver that gets no answer may use the whole limit.
    assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::TimedOut), "{error}");
    assert!(error.to_string().contains("no-such-host.invalid"), "{error}");
    let error = within(Duration::from_secs(12), "listen", endpoint.listen(&address)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

/// Returns a server that does not speak Towline, and its address.
async fn foreign_server(row: &Row) -> (TcpListener, Address) {
    let listener = TcpListener::bind((row.address().host(), 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, Address::new(row.address().scheme(), row.address().host(), port).unwrap())
}

async fn a_silent_server_times_out(row: &'static Row) {
    let (_server, address) = foreign_server(row).await;
    let endpoint = row.builder().handshake_time(Duration::from_millis(500)).build().unwrap();
    let began = Instant::now();
    let error = within(Duration::from_secs(3), "connect", endpoint.connect(&address)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    assert!(began.elapsed() >= Duration::from_millis(450), "after {:?}", began.elapsed());
}

async fn a_server_that_closes_is_lost(row: &'static Row) {
    let (server, address) = foreign_server(row).await;
    let closing = tokio::spawn(async move { drop(server.accept().await.unwrap()) });
    let error = in_time("connect", row.endpoint().connect(&address)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PeerLost, "{error}");
    closing.await.unwrap();
}

async fn a_server_of_another_kind_is_refused(row: &'static Row) {
    let (server, address) = foreign_server(row).await;
    let answering = tokio::spawn(async move {
        for answer in
            ["HTTP/1.1 400 Bad Request\r\n\r\n", "SSH-2.0-OpenSSH_9.6\r\n", "\x15\x03\x01\x00\x02\x02\x28"]
        {
            let (mut stream, _) = server.accept().await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            // Wait until the connector has closed.
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    });
    for quoted in ["HTTP/1.1", "SSH-2.0", "TLS"] {
        let error = in_time("connect", row.endpoint().connect(&address)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Incompatible, "{error}");
        assert!(error.to_string().contains(quoted), "it quotes the answer: {error}");
    }
    answering.await.unwrap();
}

async fn an_address_that_names_no_listener_is_invalid(row: &'static Row) {
    let endpoint = row.endpoint();
    let scheme = row.address().scheme();
    for address in [format!("{scheme}://127.0.0.1:0"), format!("{scheme}://*:7000")] {
        let error = in_time("connect", endpoint.connect(&address.parse().unwrap())).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
}
