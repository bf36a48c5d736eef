//! From two endpoints to a connected pair, with attempts that are given up at any step of the handshake.

use std::time::Duration;

use towline::{Address, Connection, Endpoint, Listener, Message};

use crate::dice::Dice;
use crate::scene::{Scene, polled, until};

const PATIENCE: Duration = Duration::from_secs(5);

/// Both ends of one connection, if nothing that may happen in this run prevents it.
pub(crate) async fn pair(
    scene: &Scene,
    ends: &[(usize, Endpoint); 2],
    number: usize,
    dice: &mut Dice,
) -> Option<[Connection; 2]> {
    let [(_, from), (_, to)] = ends;
    let address = Address::mem(format!("simulated-{}-{number}", scene.seed)).expect("a name");
    let listener = to.listen(&address).await.expect("nobody else has the name");
    let connected = connect(scene, from, &address, dice).await;
    // Those that were given up may have arrived, and end at once.
    let accepted = until(accept(&listener), scene.world.sleep(PATIENCE)).await;
    match (connected, accepted) {
        (Some(connected), Some(accepted)) => Some([connected, accepted]),
        (connected, accepted) => {
            let what = format!("connected: {}, accepted: {}", connected.is_some(), accepted.is_some());
            scene.may_fail(&what, towline::ErrorKind::TimedOut);
            None
        }
    }
}

async fn connect(scene: &Scene, from: &Endpoint, to: &Address, dice: &mut Dice) -> Option<Connection> {
    while dice.once_in(3) {
        // What the cancelled attempt leaves, its peer must notice.
        drop(polled(from.connect(to), 1 + dice.below(40)).await);
    }
    let connected = match from.connect(to).await {
        Ok(connection) => {
            connection.send(Message::new("this one")).await.map(|_| connection).map_err(Into::into)
        }
        Err(error) => Err(error),
    };
    connected.inspect_err(|error| scene.may_fail("connect", error.kind())).ok()
}

async fn accept(listener: &Listener) -> Connection {
    loop {
        let Ok(connection) = listener.accept().await else { continue };
        if connection.recv().await.is_ok_and(|message| message.header() == "this one") {
            return connection;
        }
    }
}
