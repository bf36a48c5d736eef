//! Backends that promise not to copy do not copy.

use towline::{BufferMut, Destination};

use crate::backends::{Pair, Row};
use crate::content::{assert_message, message};
use crate::polls::in_time;
use crate::suite::cases;

cases! {
    NAMED_DESTINATION:
        payload_goes_straight_to_its_named_destination,
        payload_goes_straight_into_one_buffer,
        a_receiver_that_names_its_destinations_again_gets_no_copies;
    MOVES_OWNERSHIP:
        the_receiver_gets_the_senders_own_buffers;
}

const LENS: [usize; 4] = [16 << 10, 100_000, (1 << 20) + 1, 32 << 20];

#[track_caller]
fn assert_nothing_copied(pair: &Pair) {
    assert_eq!(pair.a.stats().bytes_copied, 0, "at the sender");
    assert_eq!(pair.b.stats().bytes_copied, 0, "at the receiver");
}

async fn payload_goes_straight_to_its_named_destination(row: &'static Row) {
    let pair = row.pair().await;
    for len in LENS {
        let take = async {
            let incoming = pair.b.incoming().await.unwrap();
            let destinations: Vec<_> = (0..2).map(|_| BufferMut::with_capacity(len)).collect();
            let starts: Vec<_> = destinations.iter().map(BufferMut::as_ptr).collect();
            let taken = incoming
                .accept_into(destinations.into_iter().map(Destination::Buffer).collect())
                .await
                .unwrap();
            assert_eq!(taken.frames().iter().map(|frame| frame.as_ptr()).collect::<Vec<_>>(), starts);
            taken
        };
        let sending = pair.a.deliver(message(1, &[len, len]));
        let (sent, taken) = in_time("a message", async { tokio::join!(sending, take) }).await;
        sent.unwrap();
        assert_message(&taken, 1, &[len, len]);
        assert_nothing_copied(&pair);
    }
}

async fn payload_goes_straight_into_one_buffer(row: &'static Row) {
    let pair = row.pair().await;
    for len in LENS {
        let buffer = BufferMut::with_capacity(2 * len);
        let start = buffer.as_ptr();
        let both = async { tokio::join!(pair.a.deliver(message(1, &[len, len])), pair.b.recv_into(buffer)) };
        let (sent, taken) = in_time("a message", both).await;
        sent.unwrap();
        let taken = taken.unwrap();
        assert_eq!(taken.frames()[0].as_ptr(), start);
        assert_eq!(taken.frames()[1].as_ptr(), start.wrapping_add(len));
        assert_message(&taken, 1, &[len, len]);
        assert_nothing_copied(&pair);
    }
}

async fn a_receiver_that_names_its_destinations_again_gets_no_copies(row: &'static Row) {
    const LEN: usize = 200_000;
    let pair = row.pair().await;
    // In pool memory, to which later messages may use pre-granted credit.
    for number in 0..5 {
        let both = async { tokio::join!(pair.a.deliver(message(number, &[LEN])), pair.b.recv()) };
        let (sent, taken) = in_time("a message", both).await;
        sent.unwrap();
        assert_message(&taken.unwrap(), number, &[LEN]);
    }
    assert_nothing_copied(&pair);
    let mut copied = Vec::new();
    for number in 0..6 {
        let take = async {
            let incoming = pair.b.incoming().await.unwrap();
            let destination = BufferMut::with_capacity(LEN);
            let start = destination.as_ptr();
            let taken = incoming.accept_into(vec![Destination::Buffer(destination)]).await.unwrap();
            assert_eq!(taken.frames()[0].as_ptr(), start);
            taken
        };
        let before = pair.b.stats().bytes_copied;
        let sending = pair.a.deliver(message(number, &[LEN]));
        let (sent, taken) = in_time("a message", async { tokio::join!(sending, take) }).await;
        sent.unwrap();
        assert_message(&taken, number, &[LEN]);
        copied.push(pair.b.stats().bytes_copied - before);
    }
    // The first messages may have left before the sender received the change.
    assert_eq!(copied[2..], [0; 4], "bytes copied for each message: {copied:?}");
}

async fn the_receiver_gets_the_senders_own_buffers(row: &'static Row) {
    let pair = row.pair().await;
    for len in [1, 1000, 1 << 20] {
        let sent = message(1, &[len, len]);
        let starts: Vec<_> = sent.frames().iter().map(|frame| frame.as_ptr()).collect();
        let (delivered, taken) = tokio::join!(pair.a.deliver(sent), pair.b.recv());
        delivered.unwrap();
        let frames = taken.unwrap().into_parts().1;
        assert_eq!(frames.iter().map(|frame| frame.as_ptr()).collect::<Vec<_>>(), starts);
        for frame in frames {
            assert!(frame.try_into_mut().is_ok(), "no other handle holds them");
        }
        assert_nothing_copied(&pair);
    }
}
