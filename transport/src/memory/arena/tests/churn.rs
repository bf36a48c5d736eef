//! Claims about fragmentation, on offsets alone: hundreds of gigabytes come and go in a second.

use super::{Dice, PAGE};
use crate::memory::arena::room::{Room, Spot};

/// What an arena that has grown to 512 MiB consists of.
const SEGMENTS: [usize; 4] = [64 << 20, 64 << 20, 128 << 20, 256 << 20];
const ROUNDS: usize = 40_000;

/// What a long run saw, in thousandths.
#[derive(Clone, Copy, Debug)]
struct Report {
    churned_gib: usize,
    /// Of all takes, those refused though the level would have let them.
    refused: usize,
    /// Of what is free, how much can be had in one piece: on average, and at worst.
    one_piece: usize,
    one_piece_least: usize,
}

/// Blocks of `least` to `most` bytes, each doubling as likely as the next, of which random ones go until the next fits below
/// a `level` of use. One in sixteen lives sixteen times as long as the others, and pins what it lies in.
fn churn(seed: u64, (least, most): (usize, usize), level: usize) -> Report {
    let (mut dice, mut room) = (Dice(seed), Room::new(PAGE));
    SEGMENTS.iter().for_each(|len| room.add(*len));
    let level = room.bytes() / 1000 * level;
    let mut held: Vec<(Spot, u8)> = Vec::new();
    let (mut churned, mut refused, mut pieces) = (0, 0, Vec::new());
    for round in 0..ROUNDS {
        let len = dice.length(least, most);
        while room.in_use_bytes() + len > level {
            let at = dice.below(held.len());
            match held[at].1.checked_sub(1) {
                Some(lives) => held[at].1 = lives,
                None => room.give(held.swap_remove(at).0),
            }
        }
        match room.take(len) {
            Some(spot) => {
                churned += spot.len;
                held.push((spot, if dice.below(16) == 0 { 15 } else { 0 }));
            }
            None => refused += 1,
        }
        if round > ROUNDS / 2 && round % 100 == 0 {
            pieces.push(room.largest_free_bytes() / ((room.bytes() - room.in_use_bytes()) / 1000));
        }
    }
    Report {
        churned_gib: churned >> 30,
        refused: refused * 1000 / ROUNDS,
        one_piece: pieces.iter().sum::<usize>() / pieces.len(),
        one_piece_least: pieces.iter().copied().min().unwrap_or(0),
    }
}

#[test]
fn long_runs_leave_large_pieces() {
    // What is refused at most, and what can be had in one piece at least: on average, and at worst. What the runs show is
    // in docs/design/0014-arena.md; the margins are wide.
    let bounds = [(500, 0, 450, 200), (700, 15, 200, 60), (800, 120, 120, 40), (900, 350, 40, 12)];
    let mixes =
        [("all sizes", (64, 32 << 20)), ("large ones", (64 << 10, 32 << 20)), ("small ones", (64, 2 << 20))];
    for (name, lens) in mixes {
        for (level, refused_max, one_piece_min, least_min) in bounds {
            for seed in 0..2 {
                let report = churn(seed, lens, level);
                let enough = report.one_piece >= one_piece_min && report.one_piece_least >= least_min;
                let held = report.churned_gib >= 5 && report.refused <= refused_max && enough;
                assert!(held, "{name} at {level}, seed {seed}: {report:?}");
            }
        }
    }
}
