//! Each call into a backend fails once. No layer above hangs, panics or loses memory.

use std::time::Duration;

use tokio::sync::oneshot;
use towline::backend::{Faults, Faulty};
use towline::{BufferMut, Caps, Connection, Error, ErrorKind, Message, RemoteRegion, Result};

use crate::backends::Row;
use crate::content::{assert_bytes, assert_message, bytes, message};
use crate::polls::{eventually, within};
use crate::suite::cases;
use crate::usage;

cases! {
    ANY: every_call_may_fail;
}

const RUN_TIME: Duration = Duration::from_secs(10);
/// A run has fewer calls.
const CALLS_MAX: u64 = 2000;
const LENS: [usize; 3] = [100, 20_000, 300_000];
const REGION_LEN: usize = 50_000;

async fn every_call_may_fail(row: &'static Row) {
    // The first run creates what is created once.
    within(RUN_TIME, "the first run", run(row, &Faults::nth(CALLS_MAX))).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = usage::descriptors();
    for n in 1..CALLS_MAX {
        let faults = Faults::nth(n);
        let what = format!("the run whose call {n} fails");
        let result = within(RUN_TIME, &what, run(row, &faults)).await;
        eventually(&format!("{what} leaves no descriptor"), || usage::descriptors() <= before).await;
        if !faults.fired() {
            result.unwrap();
            assert!(n > 10, "a run has more calls than {n}");
            return;
        }
        // A fault may be hidden by another backend or attempt. Otherwise the caller gets an error.
        if let Err(error) = result {
            let known = [
                ErrorKind::Io,
                ErrorKind::Unavailable,
                ErrorKind::PeerLost,
                ErrorKind::Closed,
                ErrorKind::TimedOut,
                ErrorKind::Refused,
                // A receiver whose accept failed rejects the message.
                ErrorKind::Rejected,
            ];
            assert!(known.contains(&error.kind()), "call {n}: {error:?}");
        }
    }
    panic!("a run has more than {CALLS_MAX} calls");
}

/// Uses every operation once, between two endpoints that share the fault. Returns after both ends have ended
/// and freed their memory.
async fn run(row: &Row, faults: &Faults) -> Result<()> {
    let endpoint = || {
        let backends = (row.backends)().into_iter().map(|backend| Faulty::over(backend, faults.clone()));
        let builder = row.builder().backends(backends.collect());
        builder.heartbeat(Duration::from_millis(250)).linger(Duration::from_millis(500)).build().unwrap()
    };
    let (near, far) = (endpoint(), endpoint());
    let listener = far.listen(&row.address()).await?;
    let address = listener.address().clone();
    let (gone, is_gone) = oneshot::channel();
    let serving = tokio::spawn(async move {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted?,
            // A connector that failed never arrives, or has arrived already.
            Err(_) = is_gone => tokio::time::timeout(Duration::from_millis(50), listener.accept()).await
                .map_err(|_| Error::new(ErrorKind::Refused, "no peer connected"))??,
        };
        serve(&accepted).await
    });
    let using = {
        let near = near.clone();
        tokio::spawn(async move {
            let _gone: oneshot::Sender<()> = gone;
            use_connection(&near.connect(&address).await?).await
        })
    };
    let (used, served) = (using.await.unwrap(), serving.await.unwrap());
    for end in [&near, &far] {
        eventually("the pool has its memory back", || end.pool().stats().in_use_bytes == 0).await;
    }
    used.and(served)
}

async fn use_connection(connection: &Connection) -> Result<()> {
    for (number, len) in LENS.into_iter().enumerate() {
        connection.deliver(message(number, &[len, 3])).await?;
        assert_message(&connection.recv().await?, number, &[len, 3]);
    }
    if connection.caps().contains(Caps::ONE_SIDED) {
        let regions = connection.recv().await?;
        let (read, write) = regions.header().split_at(32);
        let (read, write) = (RemoteRegion::from_bytes(read)?, RemoteRegion::from_bytes(write)?);
        let got = connection.get(&read, 0, BufferMut::with_capacity(REGION_LEN)).await?;
        assert_bytes(got.as_slice().unwrap(), 1, 0);
        connection.put(&write, 0, bytes(2, REGION_LEN).into()).await?;
        connection.deliver(Message::new("written")).await?;
    }
    connection.close().await
}

async fn serve(connection: &Connection) -> Result<()> {
    for number in 0..LENS.len() {
        let incoming = connection.incoming().await?;
        let message = if number == 0 { incoming.accept().await? } else { accept_named(incoming).await? };
        connection.deliver(message).await?;
    }
    if connection.caps().contains(Caps::ONE_SIDED) {
        let lifetime = Duration::from_secs(60);
        let read = connection.expose(bytes(1, REGION_LEN).into(), lifetime)?;
        let write = connection.expose_mut(BufferMut::zeroed(REGION_LEN), lifetime)?;
        let header = [read.remote().to_bytes(), write.remote().to_bytes()].concat();
        connection.deliver(Message::new(header)).await?;
        connection.recv().await?;
        assert_bytes(write.revoke().await.as_slice().unwrap(), 2, 0);
    }
    match connection.recv().await {
        Ok(_) => panic!("there is no further message"),
        Err(end) if end.kind() == ErrorKind::Closed => Ok(()),
        Err(end) => Err(end),
    }
}

async fn accept_named(incoming: towline::Incoming) -> Result<Message> {
    let destinations = incoming.frames().iter().map(|frame| BufferMut::with_capacity(frame.len));
    let destinations = destinations.map(towline::Destination::Buffer).collect();
    Ok(incoming.accept_into(destinations).await?)
}
