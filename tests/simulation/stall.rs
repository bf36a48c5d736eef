//! A host that stops for good at any moment. Its peers must detect it in time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use towline::{Address, Endpoint, ErrorKind, Listener, Message};

use crate::network::Network;
use crate::rng::Rng;
use crate::run::endpoint;
use crate::simulation::Simulation;

/// Three heartbeats of 0.4 s and a sweep, or two steps of a handshake of 1 s each.
const NOTICED_MAX: Duration = Duration::from_millis(2500);

/// Runs one seed.
///
/// # Panics
/// Panics if the other host does not detect the stop in time.
pub(crate) fn run(seed: u64) {
    let mut rng = Rng::new(seed, 4);
    let simulation = Simulation::new(seed);
    let network = Arc::new(Mutex::new(Network { rng: Rng::new(seed, 3), cut_in: None }));
    let [user, server] = [0, 1].map(|host| endpoint(&simulation, host, &network));
    let address = Address::mem(format!("stopped-{seed}")).expect("a name");
    let listening = Arc::new(Mutex::new(None));
    let (listens, at) = (listening.clone(), address.clone());
    let listen = async move {
        let listener = server.listen(&at).await.expect("the name is free");
        *listens.lock().expect("one thread") = Some(listener);
    };
    simulation.spawn(1, Box::pin(listen));
    assert!(simulation.run_until(Duration::ZERO, || listening.lock().expect("one thread").is_some()));
    let listener = listening.lock().expect("one thread").take().expect("the listener is open");
    simulation.spawn(1, Box::pin(serve(listener)));
    let noticed = Arc::new(AtomicBool::new(false));
    let told = noticed.clone();
    simulation.spawn(
        0,
        Box::pin(async move {
            exchange_until_lost(user, address).await;
            told.store(true, Ordering::Relaxed);
        }),
    );
    let stops =
        Duration::from_micros(if rng.one_in(2) { rng.below(3000) } else { rng.below(300_000) } as u64);
    let began = simulation.clone();
    simulation.spawn(
        2,
        Box::pin(async move {
            began.sleep(stops).await;
            began.stop(1, Duration::from_secs(3600));
        }),
    );
    let is_over = || noticed.load(Ordering::Relaxed);
    assert!(simulation.run_until(stops + NOTICED_MAX, is_over), "stopped at {stops:?}, and not detected");
}

/// Echoes messages on one connection after another.
async fn serve(listener: Listener) {
    while let Ok(connection) = listener.accept().await {
        while let Ok(message) = connection.recv().await {
            if connection.send(message).await.is_err() {
                break;
            }
        }
    }
}

async fn exchange_until_lost(endpoint: Endpoint, address: Address) {
    let connection = match endpoint.connect(&address).await {
        Ok(connection) => connection,
        Err(error) => return assert_eq!(error.kind(), ErrorKind::TimedOut),
    };
    let lost = loop {
        if let Err(error) = connection.deliver(Message::new("ping")).await {
            break error;
        }
        if let Err(error) = connection.recv().await {
            break error;
        }
    };
    assert_eq!(lost.kind(), ErrorKind::PeerLost);
}
