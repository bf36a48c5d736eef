//! The control stream: whatever bytes a peer sends, and whenever, our end replies only to pings and ends
//! correctly.

use std::time::Duration;

use towline::ErrorKind;
use towline::internals::{PeerAction, attend};

use crate::HeapMax;
use crate::script::Script;

const HEARTBEAT: Duration = Duration::from_secs(3);
const PING: u8 = 1;
const PONG: u8 = 2;
const DRAINED: u8 = 3;
const CODES: [u8; 3] = [PING, PONG, DRAINED];

/// The first byte decides whether the peer reads, and whether and when our link drains.
pub fn run(input: &[u8]) -> HeapMax {
    const HEAP_MAX: HeapMax = 256 << 10;
    let mut script = Script(input);
    let first = script.byte();
    let ignores_output = first % 4 == 0;
    let drains_at = (first / 4 % 4 == 1).then_some(usize::from(first / 16));
    let mut steps = Vec::new();
    while !script.is_over() {
        steps.push(match script.byte() {
            choice @ 0..160 => {
                PeerAction::Bytes(script.take(usize::from(choice % 5 + 1)).iter().map(code).collect())
            }
            160..250 => PeerAction::Wait,
            _ => PeerAction::End,
        });
        if steps.last() == Some(&PeerAction::End) {
            break;
        }
    }
    let has_closed = steps.last() == Some(&PeerAction::End);
    if has_closed {
        // An end that has started to drain gives up only after the peer closed.
        steps.extend([PeerAction::Wait, PeerAction::Wait]);
    }
    let outcome = attend(HEARTBEAT, &steps, ignores_output, drains_at);
    let end = outcome.end.expect("the control task ends when its connection is over");
    let kind = end.as_ref().map(towline::Error::kind);
    let received = || {
        steps.iter().filter_map(|step| if let PeerAction::Bytes(bytes) = step { Some(bytes) } else { None })
    };
    let count = |code: u8| received().flatten().filter(|byte| **byte == code).count();
    let is_violation = received().flatten().any(|byte| !CODES.contains(byte)) || count(DRAINED) > 1;
    match kind {
        Some(ErrorKind::Corrupt) => assert!(is_violation, "{end:?}"),
        Some(ErrorKind::PeerLost) => assert!(has_closed || outcome.took >= HEARTBEAT * 3, "{end:?}"),
        Some(ErrorKind::Closed) => assert!(drains_at.is_some_and(|at| at < steps.len()), "{end:?}"),
        Some(_) => panic!("{end:?}"),
        None => assert!(
            ignores_output || !(is_violation || has_closed),
            "the control task did not detect the end"
        ),
    }
    assert!(outcome.sent.iter().all(|byte| CODES.contains(byte)));
    let sent = |code: u8| outcome.sent.iter().filter(|byte| **byte == code).count();
    assert!(sent(DRAINED) <= usize::from(drains_at.is_some()), "the link drained more than once");
    let (pings, pongs) = (count(PING), sent(PONG));
    assert!(pongs <= pings, "{pongs} pongs to {pings} pings");
    assert!(ignores_output || kind.is_some() || pings == 0 || pongs > 0, "no ping got a pong");
    HEAP_MAX
}

/// Maps a byte to a control code, mostly a valid one.
fn code(byte: &u8) -> u8 {
    match byte {
        0..120 => PING,
        120..245 => PONG,
        245..250 => DRAINED,
        other => *other,
    }
}
