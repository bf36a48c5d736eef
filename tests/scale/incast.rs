//! A crowd of senders and one receiver: all are served, in memory that the windows bound. How alike they are served is a
//! matter of time, which a busy machine shares out: `towline bench --pattern incast` judges it.

use tokio::task::JoinSet;
use towline::{Connection, Endpoint, ErrorKind, Pool};
use towline_tests::polls::in_time;
use towline_tests::usage;

use crate::peer::Peer;

const SENDERS: usize = 64;
/// What all send together: far more than they may have on its way at once.
const BYTES: usize = 1 << 30;
/// What one sender may have on its way beside the message that is being taken: payload ahead, and a window of small things.
const IN_FLIGHT_MAX: usize = 5 << 20;
/// What the pool keeps, and everything else.
const OTHER_BYTES_MAX: usize = 128 << 20;

pub(crate) async fn run(len: usize) {
    let endpoint = Endpoint::builder().pool(Pool::new(64 << 20)).build().unwrap();
    let listener = endpoint.listen(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let messages = BYTES / SENDERS / len;
    usage::reset_peak();
    let before = usage::peak();

    let _peer = Peer::sending(listener.address(), SENDERS, messages, len);
    let mut connections = Vec::new();
    for _ in 0..SENDERS {
        connections.push(in_time("a sender", listener.accept()).await.unwrap());
    }
    let mut receivers = JoinSet::new();
    for connection in connections {
        receivers.spawn(receive(connection, messages, len));
    }
    receivers.join_all().await;
    let growth = (usage::peak() - before) as usize;
    assert!(
        growth <= SENDERS * (IN_FLIGHT_MAX + len) + OTHER_BYTES_MAX,
        "{growth} bytes for {SENDERS} senders"
    );
}

/// Takes everything that one sender sends, in order and whole.
async fn receive(connection: Connection, messages: usize, len: usize) {
    for number in 0..messages {
        let message = in_time("a message", connection.recv()).await.unwrap();
        assert_eq!(message.header(), &number.to_le_bytes()[..]);
        assert_eq!(message.frames()[0].len(), len);
    }
    let end = in_time("the end", connection.recv()).await.unwrap_err();
    assert_eq!(end.kind(), ErrorKind::Closed, "{end}");
}
