//! Many senders and one receiver. All messages arrive, in memory bounded by the windows. Fairness depends on
//! the load of the machine: `towline bench --pattern incast` measures it.

use tokio::task::JoinSet;
use towline::{Connection, Endpoint, ErrorKind, Pool};
use towline_tests::polls::in_time;
use towline_tests::usage;

use crate::peer::Peer;

const SENDERS: usize = 64;
/// The bytes of all senders: far more than may be in flight at once.
const BYTES: usize = 1 << 30;
/// The bytes that one sender may have in flight besides the message being received: payload by pre-granted
/// credit, and a window of small messages.
const IN_FLIGHT_MAX: usize = 5 << 20;
/// The pool's idle memory, and all other memory.
const OTHER_BYTES_MAX: usize = 128 << 20;

pub(crate) async fn run(len: usize) {
    let endpoint = Endpoint::builder().pool(Pool::new(64 << 20)).build().unwrap();
    let listener = endpoint.listen(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let messages = BYTES / SENDERS / len;
    usage::trim();
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
    let growth = usage::peak().saturating_sub(before) as usize;
    assert!(
        growth <= SENDERS * (IN_FLIGHT_MAX + len) + OTHER_BYTES_MAX,
        "{growth} bytes for {SENDERS} senders"
    );
}

/// Receives all messages of one sender, and checks their order and length.
async fn receive(connection: Connection, messages: usize, len: usize) {
    for number in 0..messages {
        let message = in_time("a message", connection.recv()).await.unwrap();
        assert_eq!(message.header(), &number.to_le_bytes()[..]);
        assert_eq!(message.frames()[0].len(), len);
    }
    let end = in_time("the end", connection.recv()).await.unwrap_err();
    assert_eq!(end.kind(), ErrorKind::Closed, "{end}");
}
