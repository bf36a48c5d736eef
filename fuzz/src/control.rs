//! The control stream: whatever bytes a peer sends, and whenever, our end replies only to pings and ends
//! correctly.

use std::time::Duration;

use towline::ErrorKind;
use towline::internals::{PeerAction, attend};

use crate::HeapMax;
use crate::script::Script;

const HEARTBEAT: Duration = Duration::from_secs(3);
const ASK: u8 = 1;
const ANSWER: u8 = 2;
const OVER: u8 = 3;
const WORDS: [u8; 3] = [ASK, ANSWER, OVER];

/// The first byte decides whether the peer reads, and whether and when our link drains.
pub fn run(input: &[u8]) -> HeapMax {
    const HEAP_MAX: HeapMax = 256 << 10;
    let mut script = Script(input);
    let first = script.byte();
    let deaf = first % 4 == 0;
    let parts_at = (first / 4 % 4 == 1).then_some(usize::from(first / 16));
    let mut steps = Vec::new();
    while !script.is_over() {
        steps.push(match script.byte() {
            choice @ 0..160 => {
                PeerAction::Bytes(script.take(usize::from(choice % 5 + 1)).iter().map(word).collect())
            }
            160..250 => PeerAction::Wait,
            _ => PeerAction::End,
        });
        if steps.last() == Some(&PeerAction::End) {
            break;
        }
    }
    let hung_up = steps.last() == Some(&PeerAction::End);
    if hung_up {
        // An end that has started to drain gives up only after the peer closed.
        steps.extend([PeerAction::Wait, PeerAction::Wait]);
    }
    let outcome = attend(HEARTBEAT, &steps, deaf, parts_at);
    let end = outcome.end.expect("the control task ends when its connection is over");
    let kind = end.as_ref().map(towline::Error::kind);
    let told = || {
        steps.iter().filter_map(|step| if let PeerAction::Bytes(bytes) = step { Some(bytes) } else { None })
    };
    let count = |word: u8| told().flatten().filter(|byte| **byte == word).count();
    let nonsense = told().flatten().any(|byte| !WORDS.contains(byte)) || count(OVER) > 1;
    match kind {
        Some(ErrorKind::Corrupt) => assert!(nonsense, "{end:?}"),
        Some(ErrorKind::PeerLost) => assert!(hung_up || outcome.took >= HEARTBEAT * 3, "{end:?}"),
        Some(ErrorKind::Closed) => assert!(parts_at.is_some_and(|at| at < steps.len()), "{end:?}"),
        Some(_) => panic!("{end:?}"),
        None => assert!(deaf || !(nonsense || hung_up), "the control task missed the end"),
    }
    assert!(outcome.sent.iter().all(|byte| WORDS.contains(byte)));
    let said = |word: u8| outcome.sent.iter().filter(|byte| **byte == word).count();
    assert!(said(OVER) <= usize::from(parts_at.is_some()), "it parted more often than it did");
    let (asked, answers) = (count(ASK), said(ANSWER));
    assert!(answers <= asked, "{answers} pongs to {asked} pings");
    assert!(deaf || kind.is_some() || asked == 0 || answers > 0, "no ping was answered");
    HEAP_MAX
}

/// Maps a byte to a control code, mostly a valid one.
fn word(byte: &u8) -> u8 {
    match byte {
        0..120 => ASK,
        120..245 => ANSWER,
        245..250 => OVER,
        other => *other,
    }
}
