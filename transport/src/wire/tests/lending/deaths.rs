//! Either end dies at any step of lending, borrowing, returning and taking back, by a seed. Borrowed memory
//! stays unchanged while it is read, and everything is returned.

use super::*;

const SEEDS: u64 = 5000;
const STEPS_MAX: usize = 80;

/// Two processes, and what their applications hold.
struct DeathScenario {
    ends: [End; 2],
    arenas: [ModelArena; 2],
    /// Blocks of each end's own arena.
    own: [Vec<Buffer>; 2],
    /// The frames that each end received.
    held: [Vec<Buffer>; 2],
    lent: usize,
}

impl DeathScenario {
    fn new(seed: &mut Seed) -> Self {
        let LendingPair { a, b, arenas } = LendingPair::new([1, 4, LEASES][seed.below(3)]);
        Self { ends: [a, b], arenas, own: [Vec::new(), Vec::new()], held: [Vec::new(), Vec::new()], lent: 0 }
    }

    /// Lets one event happen at one end.
    fn step(&mut self, seed: &mut Seed) {
        let at = seed.below(2);
        let cut = [1, 20, 400, 100_000][seed.below(4)];
        match seed.below(9) {
            0 | 1 => self.send(at, seed),
            2 | 3 => {
                let [a, b] = &mut self.ends;
                let (from, to) = if at == 0 { (a, b) } else { (b, a) };
                from.write(&mut to.wire, cut);
            }
            4 | 5 => {
                self.ends[at].read(cut).expect("a good peer");
            }
            6 => self.take(at),
            7 => {
                if let Some(Announced { id, arrival, .. }) = self.ends[at].announced.pop_front() {
                    self.ends[at].session.ack(id, Delivery::Rejected, false);
                    drop(arrival);
                }
            }
            _ => {
                let one_of = if seed.below(3) == 0 { &mut self.own[at] } else { &mut self.held[at] };
                if !one_of.is_empty() {
                    drop(one_of.swap_remove(seed.below(one_of.len())));
                }
            }
        }
    }

    /// Frames of its own arena, old and new, received frames, and others; all small enough to be eager.
    fn send(&mut self, at: usize, seed: &mut Seed) {
        let count = 1 + seed.below(3);
        let frame = |_| {
            let from = match seed.below(4) {
                0 => &self.held[at],
                1 => &self.own[at],
                _ => {
                    let block = self.arenas[at].block(vec![seed.below(250) as u8; 700 + seed.below(4000)]);
                    self.own[at].push(block.clone());
                    return block;
                }
            };
            match from.len() {
                0 => Buffer::from(vec![9; seed.below(300)]),
                len => {
                    let old = &from[seed.below(len)];
                    old.slice(seed.below(old.len() + 1)..)
                }
            }
        };
        let frames: Vec<_> = (0..count).map(frame).collect();
        drop(self.ends[at].send(Message::from_parts("", frames)));
    }

    fn take(&mut self, at: usize) {
        if let Some(taken) = self.ends[at].take() {
            let frames = taken.frames();
            frames.iter().for_each(assert_whole);
            self.lent += frames.iter().filter(|frame| frame.place() == Place::Arena).count();
            self.held[at].extend(frames);
        }
    }

    /// One end dies with everything that its process holds. The other reads what has arrived, and ends.
    fn die(self, dead: usize) -> usize {
        let Self { ends, arenas, own, held, mut lent } = self;
        let of = |both: [Vec<Buffer>; 2]| {
            both.into_iter().enumerate().partition::<Vec<_>, _>(|(at, _)| *at == dead)
        };
        let ((own_of_dead, own), (held_of_dead, held)) = (of(own), of(held));
        let [a, b] = ends;
        let (gone, mut survivor) = if dead == 0 { (a, b) } else { (b, a) };
        drop((gone, own_of_dead, held_of_dead));
        while survivor.read(1000).expect("a peer that was good") {}
        let taken: Vec<_> = std::iter::from_fn(|| survivor.take()).flat_map(Taken::frames).collect();
        survivor.session.give_up(&crate::Error::new(ErrorKind::PeerLost, "it died"));
        drop(survivor);
        // The dead end's leases return to the survivor.
        arenas[1 - dead].peer_is_gone();
        assert_eq!(arenas[1 - dead].leases().out, 0, "leases of the dead end");
        lent += taken.iter().filter(|frame| frame.place() == Place::Arena).count();
        let held: Vec<Buffer> = held.into_iter().flat_map(|(_, frames)| frames).chain(taken).collect();
        held.iter().for_each(assert_whole);
        drop(own);
        held.iter().for_each(assert_whole);
        let borrowed = arenas[dead].leases().borrowed;
        assert!(borrowed <= held.len());
        drop(held);
        for arena in &arenas {
            arena.check();
            assert_eq!(arena.leases().borrowed, 0, "the survivor has none");
        }
        // Blocks and leases of the model refer to each other; a process's memory disappears with it.
        arenas[dead].peer_is_gone();
        lent
    }
}

fn assert_whole(frame: &Buffer) {
    let bytes = frame.as_slice().expect("memory of this host");
    assert!(bytes.iter().all(|byte| Some(byte) == bytes.first()), "a frame is of one block");
}

#[test]
fn after_either_end_dies_leases_return_and_borrowed_frames_stay_readable() {
    let mut lent = 0;
    for number in 0..SEEDS {
        let mut seed = Seed(number);
        let mut scene = DeathScenario::new(&mut seed);
        for _ in 0..seed.below(STEPS_MAX) {
            scene.step(&mut seed);
        }
        // A panic names the seed.
        let dead = seed.below(2);
        let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| scene.die(dead)));
        lent += died.unwrap_or_else(|_| panic!("seed {number}"));
    }
    assert!(lent as u64 > SEEDS, "{lent} frames were lent");
}
