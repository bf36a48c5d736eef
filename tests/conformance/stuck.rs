//! Operations that cannot complete, for cases that end them.

use std::ptr;
use std::time::Duration;

use tokio::task::JoinHandle;
use towline::{Connection, Error, ErrorKind, Failed, Message, Receipt};

use crate::content::message;
use crate::polls::{in_time, within};

type Sent = Result<Receipt, Failed<Message>>;

/// Operations of every kind that cannot complete while the peer receives nothing: tasks, with their memory's
/// addresses.
pub(crate) struct Stuck {
    sends: Vec<(*const u8, JoinHandle<Sent>)>,
    recv: JoinHandle<towline::Result<Message>>,
    receipt: Option<Receipt>,
}

impl Stuck {
    /// Sends until all credit is used, and more.
    pub(crate) async fn on(connection: &Connection) -> Self {
        let receipt = in_time("a first message", connection.send(message(0, &[10]))).await.unwrap();
        let small = message(1, &[10]);
        let mut sends = Vec::new();
        while sends.is_empty() {
            let (connection, small) = (connection.clone(), small.clone());
            let mut send = tokio::spawn(async move { connection.send(small).await });
            if tokio::time::timeout(Duration::from_secs(1), &mut send).await.is_err() {
                sends.push((ptr::null(), send));
            }
        }
        for len in [100, 100_000, 5 << 20] {
            let message = message(2, &[len]);
            let start = message.frames()[0].as_ptr();
            let connection = connection.clone();
            sends.push((start, tokio::spawn(async move { connection.send(message).await })));
        }
        let connection = connection.clone();
        let recv = tokio::spawn(async move { connection.recv().await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(sends.iter().all(|(_, send)| !send.is_finished()), "the peer receives nothing");
        Self { sends, recv, receipt: Some(receipt) }
    }

    /// Asserts that all operations end within `limit` with one of these kinds, and return their memory.
    pub(crate) async fn assert_ended(mut self, limit: Duration, kinds: &[ErrorKind]) {
        let fits = |error: &Error| assert!(kinds.contains(&error.kind()), "{error} is none of {kinds:?}");
        for (start, send) in self.sends {
            let failed = within(limit, "a send", send).await.unwrap().unwrap_err();
            fits(&failed.error);
            let frame = failed.returned.into_parts().1.remove(0);
            if !start.is_null() {
                assert_eq!(frame.as_ptr(), start, "the same memory returns");
                assert!(frame.try_into_mut().is_ok(), "no other handle holds it");
            }
        }
        fits(&within(limit, "recv", self.recv).await.unwrap().unwrap_err());
        if let Some(receipt) = self.receipt.take() {
            fits(&within(limit, "a receipt", receipt.delivered()).await.unwrap_err());
        }
    }
}
