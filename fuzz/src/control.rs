//! The control stream: whatever a peer says on it, and whenever, our end answers in kind and ends as it should.

use std::time::Duration;

use towline::ErrorKind;
use towline::internals::{Said, attend};

use crate::HeapMax;
use crate::script::Script;

const HEARTBEAT: Duration = Duration::from_secs(3);
const ASK: u8 = 1;
const ANSWER: u8 = 2;

/// The first byte says whether the peer reads.
pub fn run(input: &[u8]) -> HeapMax {
    const HEAP_MAX: HeapMax = 256 << 10;
    let mut script = Script(input);
    let deaf = script.byte() % 4 == 0;
    let mut steps = Vec::new();
    while !script.is_over() {
        steps.push(match script.byte() {
            choice @ 0..160 => {
                Said::Bytes(script.take(usize::from(choice % 5 + 1)).iter().map(word).collect())
            }
            160..250 => Said::Nothing,
            _ => Said::End,
        });
        if steps.last() == Some(&Said::End) {
            break;
        }
    }
    let attended = attend(HEARTBEAT, &steps, deaf);
    let end = attended.end.expect("it ends when its connection is over");
    let kind = end.as_ref().map(towline::Error::kind);
    let told =
        || steps.iter().filter_map(|step| if let Said::Bytes(bytes) = step { Some(bytes) } else { None });
    let nonsense = told().flatten().any(|byte| ![ASK, ANSWER].contains(byte));
    let hung_up = steps.last() == Some(&Said::End);
    match kind {
        Some(ErrorKind::Corrupt) => assert!(nonsense, "{end:?}"),
        Some(ErrorKind::PeerLost) => assert!(hung_up || attended.took >= HEARTBEAT * 3, "{end:?}"),
        Some(_) => panic!("{end:?}"),
        None => assert!(deaf || !(nonsense || hung_up), "it missed the end"),
    }
    assert!(attended.said.iter().all(|byte| [ASK, ANSWER].contains(byte)));
    let asked = told().flatten().filter(|byte| **byte == ASK).count();
    let answers = attended.said.iter().filter(|byte| **byte == ANSWER).count();
    assert!(answers <= asked, "{answers} answers to {asked} questions");
    assert!(deaf || kind.is_some() || asked == 0 || answers > 0, "nothing was answered");
    HEAP_MAX
}

/// Mostly words of the protocol.
fn word(byte: &u8) -> u8 {
    match byte {
        0..120 => ASK,
        120..250 => ANSWER,
        other => *other,
    }
}
