//! One thread copies the messages' memory into a warm window of the same size.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::data::payload::Layout;
use crate::results::ceiling::Ceiling;

/// Warm memory to copy into; grows to the largest window.
#[derive(Debug, Default)]
pub(crate) struct Destination(Vec<u8>);

impl Destination {
    /// Copies messages of `source` for `duration`.
    pub(crate) fn measure(&mut self, layout: Layout, source: &[u8], duration: Duration) -> Ceiling {
        let footprint = layout.size_bytes * layout.window;
        if self.0.len() < footprint {
            self.0 = vec![1; footprint];
        }
        // So many copies between two readings of the clock that the readings cost nothing.
        let batch = ((256 << 10) / layout.size_bytes).clamp(1, 4096) as u64;
        let mut number = 0u64;
        // Copy one window first, so that the caches are as in a long run.
        while number < layout.window as u64 {
            number = self.copy(layout, source, number, 1);
        }
        let first = number;
        let begin = Instant::now();
        let elapsed = loop {
            number = self.copy(layout, source, number, batch);
            let elapsed = begin.elapsed();
            if elapsed >= duration {
                break elapsed;
            }
        };
        let bytes = (number - first) as f64 * layout.size_bytes as f64;
        Ceiling::rate("memcpy", bytes / 1e9 / elapsed.as_secs_f64())
    }

    fn copy(&mut self, layout: Layout, source: &[u8], first: u64, count: u64) -> u64 {
        for number in first..first + count {
            let (from, to) = (layout.offset(number), layout.slot(number) * layout.size_bytes);
            let destination = &mut self.0[to..to + layout.size_bytes];
            destination.copy_from_slice(&source[from..from + layout.size_bytes]);
            black_box(destination);
        }
        first + count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::payload::Payload;
    use crate::data::place::Place;

    #[test]
    fn copies_have_a_rate_and_stay_inside() {
        for (size_bytes, window) in [(8, 1), (100, 7), (65_536, 16)] {
            let layout = Layout::new(size_bytes, window);
            let source = Payload::default().prepare(layout, Place::Host).unwrap();
            let source = source.as_slice().unwrap();
            let ceiling = Destination::default().measure(layout, source, Duration::from_millis(2));
            assert!(ceiling.gb_per_s.is_some_and(|rate| rate > 0.0));
        }
    }
}
