//! Leases over shared memory. Whatever a trusted peer exports, lends and returns, this end borrows only
//! correctly lent frames and keeps frames that are not returned. In the end it holds nothing of the peer's
//! memory and all of its own.

use towline::internals::{Exported, LendingHarness};
use towline::{Buffer, Error, ErrorKind};

use crate::HeapMax;
use crate::script::Script;

const STEPS_MAX: usize = 100;
const ARENA_LEN: usize = 64 << 10;
const FRAME_LEN: usize = 4096;
/// Slots in which the peer lends, in most steps.
const SLOTS: usize = 6;
/// The numbers of the segments that the peer exports.
const NUMBERS: [u32; 4] = [0, 1, 7, u32::MAX];
const HEAP_MAX: HeapMax = 4 << 20;

/// A lease of the peer that this end holds.
struct BorrowedFrame {
    slot: usize,
    generation: u64,
    frame: Buffer,
}

/// An input is a list of steps.
pub fn run(input: &[u8]) -> HeapMax {
    let mut script = Script(input);
    let mut ends = LendingHarness::new(ARENA_LEN).expect("a little memory");
    let arena = ends.arena().clone();
    let mut held: Vec<BorrowedFrame> = Vec::new();
    // Outstanding leases of this end: slot and generation.
    let mut out: Vec<(usize, u64)> = Vec::new();
    for _ in 0..STEPS_MAX {
        if script.is_over() || ends.has_violated() {
            break;
        }
        let goes_on = match script.byte() {
            0..40 => {
                export(&ends, &mut script);
                true
            }
            40..50 => ends.tend().inspect_err(assert_corrupt).is_ok(),
            50..130 => borrow(&mut ends, &mut held, &mut script),
            130..170 if !held.is_empty() => {
                let BorrowedFrame { slot, generation, frame } = held.swap_remove(script.below(held.len()));
                drop(frame);
                assert_eq!(ends.returned(slot), generation, "a dropped frame was not returned");
                true
            }
            170..210 => {
                lend(&mut ends, &mut out);
                true
            }
            210..235 if !out.is_empty() => {
                let (slot, generation) = out.swap_remove(script.below(out.len()));
                ends.give_back(slot, generation);
                true
            }
            235.. => {
                // Mostly a protocol violation. From here on only the absence of crashes is checked.
                ends.give_back(script.below(SLOTS), script.number());
                lend(&mut ends, &mut Vec::new());
                drop(arena.stats());
                false
            }
            _ => true,
        };
        if !goes_on {
            break;
        }
        assert_eq!(arena.stats().leases, out.len(), "the leases are not those outstanding");
    }
    drop(ends);
    // The peer is gone; frames that it lent stay readable.
    for BorrowedFrame { frame, .. } in held {
        assert_readable(&frame);
    }
    let stats = arena.stats();
    assert_eq!(
        (stats.in_use_bytes, stats.leases, stats.quarantined_bytes),
        (0, 0, 0),
        "memory was not returned"
    );
    HEAP_MAX
}

fn assert_corrupt(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

fn export(ends: &LendingHarness, script: &mut Script<'_>) {
    let what = match script.byte() {
        0..190 => Exported::Whole,
        190..220 => Exported::Forwarded,
        220..246 => Exported::Retract,
        246..250 => Exported::Pipe,
        _ => Exported::Two,
    };
    let number = script.one_of(&NUMBERS).to_le_bytes();
    let len = if script.byte() < 250 { 4 } else { script.below(4) + 1 };
    // Errors are expected: invalid exports are refused.
    let _ = ends.export(&number[..len], what);
}

/// Borrows a frame, mostly a valid one. Returns true if the connection continues.
fn borrow(ends: &mut LendingHarness, held: &mut Vec<BorrowedFrame>, script: &mut Script<'_>) -> bool {
    let slot = if script.byte() < 250 { script.below(SLOTS) } else { script.below(4096) };
    let last = ends.returned(slot);
    let generation = if script.byte() < 250 { last + 1 } else { script.number() & u64::MAX >> 12 };
    let len = if script.byte() < 230 { 1 + script.below(FRAME_LEN) } else { script.number().max(1) as usize };
    let offset = if script.byte() < 230 { script.below(FRAME_LEN) as u64 } else { script.number() };
    let segment = if script.byte() < 250 { script.one_of(&NUMBERS) } else { script.number() as u32 };
    let mut lent_frame = [0; 20];
    lent_frame[..4].copy_from_slice(&segment.to_le_bytes());
    lent_frame[4..12].copy_from_slice(&offset.to_le_bytes());
    lent_frame[12..].copy_from_slice(&(slot as u64 | generation << 12).to_le_bytes());
    let is_out = held.iter().any(|held| held.slot == slot);
    match ends.borrow(&lent_frame, len) {
        Ok(frame) => {
            assert!(
                !is_out && generation == last + 1,
                "the lease is outstanding, or its generation is not the next"
            );
            assert_eq!(frame.len(), len);
            assert!(
                offset.checked_add(len as u64).is_some_and(|end| end <= LendingHarness::SEGMENT_LEN as u64)
            );
            assert_readable(&frame);
            held.push(BorrowedFrame { slot, generation, frame });
            true
        }
        Err(error) => {
            assert_corrupt(&error);
            false
        }
    }
}

/// Lends a frame of this end.
fn lend(ends: &mut LendingHarness, out: &mut Vec<(usize, u64)>) {
    let Ok(frame) = ends.arena().take(FRAME_LEN) else { return };
    let mut frame = frame;
    frame.extend_from_slice(&[0x22; FRAME_LEN]).expect("room for it");
    if let Some(lent_frame) = ends.lend(&frame.freeze()) {
        let lease = u64::from_le_bytes(std::array::from_fn(|at| lent_frame[12 + at]));
        let (slot, generation) = ((lease & 0xfff) as usize, lease >> 12);
        assert!(out.iter().all(|(other, _)| *other != slot), "an outstanding lease was granted again");
        out.push((slot, generation));
    }
}

fn assert_readable(frame: &Buffer) {
    let bytes = frame.as_slice().expect("memory of this host");
    assert!(bytes.iter().all(|byte| *byte == 0), "the frame holds bytes that no end wrote");
}
