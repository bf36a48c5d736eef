//! Establishes a pair of connections between two endpoints. Some attempts are cancelled at any step of the
//! handshake.

use std::time::Duration;

use towline::{Address, Connection, Endpoint, Listener, Message};

use crate::rng::Rng;
use crate::run::{Run, Scenario, poll_then_drop, until};

const ACCEPT_TIME: Duration = Duration::from_secs(5);

/// Returns both ends of one connection, or `None` if a fault of this run prevented it.
pub(crate) async fn pair(
    run: &Run,
    ends: &[(usize, Endpoint); 2],
    number: usize,
    rng: &mut Rng,
) -> Option<[Connection; 2]> {
    let [(_, from), (_, to)] = ends;
    let address = Address::mem(format!("simulated-{}-{number}", run.seed)).expect("a name");
    let listener = to.listen(&address).await.expect("the name is free");
    let mut turns = Rng::new(rng.next(), 0);
    let accepting = until(accept(&listener, &mut turns), run.simulation.sleep(ACCEPT_TIME));
    let (connected, accepted) = tokio::join!(connect(run, from, &address, rng), accepting);
    match (connected, accepted) {
        (Some(connected), Some(accepted)) => Some([connected, accepted]),
        (connected, accepted) => {
            let what = format!("connected: {}, accepted: {}", connected.is_some(), accepted.is_some());
            run.may_fail(&what, towline::ErrorKind::TimedOut);
            None
        }
    }
}

async fn connect(run: &Run, from: &Endpoint, to: &Address, rng: &mut Rng) -> Option<Connection> {
    while rng.one_in(3) {
        // The peer must detect the end of the cancelled attempt.
        drop(poll_then_drop(from.connect(to), 1 + rng.below(40)).await);
    }
    loop {
        let connected =
            from.connect(to).await.inspect_err(|error| run.may_fail("connect", error.kind())).ok()?;
        match connected.recv().await {
            Ok(welcome) => assert_eq!(welcome.header(), "welcome"),
            // The acceptor aborted or dropped it.
            Err(_) if run.scenario == Scenario::NoFaults => continue,
            Err(_) => return None,
        }
        let sent = connected.send(Message::new("this one")).await;
        return sent.map(|_| connected).inspect_err(|failed| run.may_fail("send", failed.error.kind())).ok();
    }
}

/// Accepts connections, and returns the first that neither this end nor its peer ends early.
async fn accept(listener: &Listener, rng: &mut Rng) -> Connection {
    loop {
        let connection = listener.accept().await.expect("the driver lives");
        match rng.below(6) {
            0 => connection.abort(),
            1 => drop(connection),
            _ => {
                let welcomed = connection.send(Message::new("welcome")).await.is_ok();
                if welcomed && connection.recv().await.is_ok_and(|message| message.header() == "this one") {
                    return connection;
                }
            }
        }
    }
}
