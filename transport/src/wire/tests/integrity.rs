//! Flips bits at every byte of an exchange.

use super::*;

/// The result of one exchange: the error that ended it, and how many bytes each end sent.
struct Outcome {
    ended: Result<()>,
    lens: [usize; 2],
}

/// Exchanges small messages, a get, a put and a close, with one bit flipped at a byte of the stream from `a`
/// (0) or `b` (1).
fn exchange(flip: Option<(usize, usize)>) -> Outcome {
    let (mut a, mut b) = (End::with(true), End::with(true));
    let source: Vec<u8> = (0..50).collect();
    let readable = b.regions.expose(source.clone().into(), Duration::MAX);
    // At the other end: the simulated world gives all regions of one end the same key.
    let writable = a.regions.expose_mut(BufferMut::zeroed(20), Duration::MAX);
    let mut completions = Vec::new();
    for text in ["one", "two"] {
        let message = Message::new(text).with_frame(text.as_bytes().to_vec()).with_frame(vec![7; 9]);
        completions.push(a.send(message));
    }
    let (into, got) = Operation::new(BufferMut::with_capacity(50));
    a.session.get(readable.remote(), 0, into);
    let (from, put) = Operation::new(Buffer::from(vec![9; 20]));
    b.session.put(writable.remote(), 0, from);
    let (done, _closed) = Done::new();
    a.session.close(done);
    let mut lens = [0; 2];
    let mut taken = Vec::new();
    let ended = loop {
        let mut moved = false;
        for (which, len) in lens.iter_mut().enumerate() {
            let (from, to) = if which == 0 { (&mut a, &mut b) } else { (&mut b, &mut a) };
            let before = to.wire.len();
            moved |= from.write(&mut to.wire, usize::MAX);
            let more = to.wire.len() - before;
            match flip {
                Some((end, at)) if end == which && (*len..*len + more).contains(&at) => {
                    to.wire[before + at - *len] ^= 1 << (at % 8);
                }
                _ => {}
            }
            *len += more;
        }
        match b.read(usize::MAX).and_then(|read| Ok(read | a.read(usize::MAX)?)) {
            Ok(read) => moved |= read,
            Err(error) => break Err(error),
        }
        taken.extend(std::iter::from_fn(|| b.take()));
        if !moved {
            break Ok(());
        }
    };
    for (taken, text) in taken.into_iter().zip(["one", "two"]) {
        let frames = taken.frames();
        assert_eq!(frames[0].to_vec().unwrap(), text.as_bytes(), "{flip:?}");
        assert_eq!(frames[1].to_vec().unwrap(), [7; 9], "{flip:?}");
    }
    let why = crate::Error::new(ErrorKind::Closed, "over");
    a.session.give_up(&why);
    b.session.give_up(&why);
    match got.try_take().expect("the get ends") {
        Ok(got) => assert_eq!(got.as_slice().unwrap(), source, "{flip:?}"),
        Err(_) => assert!(ended.is_err(), "{flip:?}"),
    }
    if put.try_take().expect("the put ends").is_err() {
        assert!(ended.is_err(), "{flip:?}");
    }
    for (sent, acked) in completions {
        assert!(sent.try_take().is_some() && acked.try_take().is_some(), "everything ends");
    }
    Outcome { ended, lens }
}

#[test]
fn a_bit_flipped_at_any_byte_is_corrupt_and_never_delivered() {
    let whole = exchange(None);
    whole.ended.expect("nothing is damaged");
    for (end, len) in whole.lens.into_iter().enumerate() {
        assert!(len > 100, "end {end} wrote {len} bytes");
        for at in 0..len {
            let error = exchange(Some((end, at))).ended.expect_err("it is detected");
            assert_eq!(error.kind(), ErrorKind::Corrupt, "byte {at} of end {end}: {error}");
            assert!(error.detail().starts_with("damaged in transit"), "byte {at} of end {end}: {error}");
        }
    }
}

/// Puts over a number of lanes with a flipped bit in the payload. Returns the contents of the region.
fn damaged_put(lanes: usize, seed: &mut Seed, len: usize) -> Vec<u8> {
    let (mut a, mut b) = match lanes {
        0 => (End::with(true), End::with(true)),
        _ => (End::striped(true, lanes), End::striped(true, lanes)),
    };
    let region = b.regions.expose_mut(BufferMut::zeroed(len), Duration::MAX);
    let (from, put) = Operation::new(Buffer::from(vec![0xff; len]));
    a.session.put(region.remote(), 0, from);
    let error = (0..100_000)
        .find_map(|_| {
            b.write(&mut a.wire, usize::MAX);
            a.read(usize::MAX).expect("nothing is damaged");
            a.write(&mut b.wire, 1 + seed.below(len));
            for stream in 1..=lanes {
                a.write_lane(stream, &mut b.lanes[stream - 1], 1 + seed.below(len));
            }
            // In the middle of every run of payload, whose bytes are all ones.
            for wire in std::iter::once(&mut b.wire).chain(&mut b.lanes) {
                let middle = wire.len() / 2;
                if wire.len() > 1000 && wire.range(middle..middle + 100).all(|byte| *byte == 0xff) {
                    wire[middle] ^= 4;
                }
            }
            (0..=lanes).find_map(|stream| b.read_from(stream, 1 + seed.below(len)).err())
        })
        .expect("it is detected");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.detail().contains("damaged in transit: put"), "{error}");
    a.session.give_up(&error);
    b.session.give_up(&error);
    assert!(put.try_take().expect("the put ends").is_err());
    let mut revoking = std::pin::pin!(region.revoke());
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    match revoking.as_mut().poll(&mut cx) {
        std::task::Poll::Ready(memory) => memory.as_slice().expect("host memory").to_vec(),
        std::task::Poll::Pending => panic!("the region is in use"),
    }
}

#[test]
fn a_damaged_put_writes_no_damaged_bytes_for_any_split() {
    for number in 0..20 {
        let mut seed = Seed(number);
        for lanes in [0, 2] {
            let region = damaged_put(lanes, &mut seed, 300_000);
            let damaged = region.iter().position(|byte| !matches!(byte, 0 | 0xff));
            assert_eq!(damaged, None, "seed {number}, {lanes} further streams");
            assert!(region.contains(&0), "damaged bytes are not written");
        }
    }
}

#[test]
fn damage_in_a_large_frame_is_located_for_any_split() {
    for seed in 0..20 {
        let mut seed = Seed(seed);
        let (mut a, mut b) = (End::with(true), End::with(true));
        drop(a.send(message(0, &mut seed)));
        drop(a.send(Message::new("").with_frame(vec![1; 20]).with_frame(vec![2; 3 << 20])));
        run(&mut a, &mut b, &mut seed).expect("nothing is damaged");
        while b.take().is_some() {}
        let mut left = 0;
        let mut flipped = false;
        let error = loop {
            b.write(&mut a.wire, usize::MAX);
            a.read(usize::MAX).expect("nothing is damaged");
            let before = b.wire.len();
            a.write(&mut b.wire, 1 + seed.below(100_000));
            left += b.wire.len() - before;
            if left > 2_000_000 && !flipped {
                *b.wire.back_mut().expect("it has come") ^= 4;
                flipped = true;
            }
            match b.read(1 + seed.below(100_000)) {
                Ok(read) => assert!(read || !flipped || !b.wire.is_empty() || left < 3 << 20),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        let place = format!("message 1, frame 1, the chunk at offset {}", (1 << 20) - 20);
        assert!(error.detail().contains(&place) || error.detail().contains("records"), "{error}");
    }
}
