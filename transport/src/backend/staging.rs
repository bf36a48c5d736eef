//! Copies frames in memory that a link cannot access through host memory of the pool: one copy at each end.
//!
//! Wraps any link without [`Caps::ANY_PLACE`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Caps, Link, LinkStats, Message, Op, Operation, Progress, SmallSend, WaitSource};
use crate::error::{Error, Failed, Result};
use crate::memory::{Access, Buffer, BufferMut, Pool};

#[derive(Debug)]
pub(crate) struct Staging {
    link: Arc<dyn Link>,
    pool: Pool,
    bytes_copied: Arc<AtomicU64>,
}

impl Staging {
    /// Wraps `link` so that it sends from and receives into memory of any place.
    pub(crate) fn over(link: Arc<dyn Link>, pool: Pool) -> Arc<dyn Link> {
        if link.caps().contains(Caps::ANY_PLACE) {
            return link;
        }
        Arc::new(Self { link, pool, bytes_copied: Arc::default() })
    }

    /// Returns `message` with each frame that the link cannot read copied to host memory.
    fn staged(&self, message: &Message) -> Result<Message> {
        let stage = |frame: &Buffer| {
            if is_readable(frame) {
                return Ok(frame.clone());
            }
            let mut staged = self.pool.take(frame.len())?;
            staged.fill_from(frame)?;
            self.bytes_copied.fetch_add(frame.len() as u64, Ordering::Relaxed);
            Ok(staged.freeze())
        };
        let frames = message.frames().iter().map(stage).collect::<Result<_>>()?;
        Ok(message.staged(frames))
    }

    fn send(&self, message: Operation<Message>, receipt: super::Done<super::Delivery>, ack_now: bool) {
        let more = false;
        let staged = match self.staged(message.memory()) {
            Ok(staged) => staged,
            Err(error) => return Op::Send { message, receipt, ack_now, more }.fail(error),
        };
        let message = Operation::with(staged, |sent| match sent {
            Ok(()) => message.finish(drop),
            Err(Failed { error, .. }) => message.fail(error),
        });
        self.link.submit(Op::Send { message, receipt, ack_now, more });
    }

    fn accept(&self, id: u64, mut destinations: Operation<Vec<Option<BufferMut>>, Vec<Buffer>>) {
        // Host memory replaces destinations that the link cannot write; `originals` keeps the real ones
        // meanwhile.
        let mut originals = Vec::new();
        let mut short = None;
        for (index, destination) in destinations.memory_mut().iter_mut().enumerate() {
            let Some(buffer) = destination.take_if(|buffer| !is_writable(buffer)) else {
                continue;
            };
            match self.pool.take(buffer.capacity()) {
                Ok(staged) => *destination = Some(staged),
                Err(error) => short = Some(error),
            }
            originals.push((index, buffer));
        }
        if let Some(error) = short {
            restore(destinations.memory_mut(), originals);
            return destinations.fail(error);
        }
        let bytes_copied = self.bytes_copied.clone();
        let staged = std::mem::take(destinations.memory_mut());
        let destinations =
            Operation::with(staged, move |landed: Result<Vec<Buffer>, Failed<_>>| match landed {
                Ok(mut frames) => match unstage(&mut frames, &mut originals, &bytes_copied) {
                    Ok(()) => destinations.finish(|_| frames),
                    Err(error) => {
                        restore(destinations.memory_mut(), originals);
                        destinations.fail(error);
                    }
                },
                Err(Failed { error, returned }) => {
                    *destinations.memory_mut() = returned;
                    restore(destinations.memory_mut(), originals);
                    destinations.fail(error);
                }
            });
        self.link.submit(Op::Accept { id, destinations });
    }
}

/// Returns true if a link without [`Caps::ANY_PLACE`] can read the frame itself.
fn is_readable(frame: &Buffer) -> bool {
    frame.is_readable()
}

/// Returns true if such a link can write to the buffer itself.
fn is_writable(buffer: &BufferMut) -> bool {
    buffer.capacity() == 0 || buffer.access() == Access::Owned
}

/// Copies frames received in host memory to their real destinations.
fn unstage(
    frames: &mut [Buffer],
    originals: &mut Vec<(usize, BufferMut)>,
    copied: &AtomicU64,
) -> Result<(), Error> {
    while let Some((index, mut buffer)) = originals.pop() {
        if let Err(error) = buffer.fill_from(&frames[index]) {
            originals.push((index, buffer));
            return Err(error);
        }
        copied.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        frames[index] = buffer.freeze();
    }
    Ok(())
}

fn restore(destinations: &mut Vec<Option<BufferMut>>, originals: Vec<(usize, BufferMut)>) {
    for (index, buffer) in originals {
        if destinations.len() <= index {
            destinations.resize_with(index + 1, || None);
        }
        destinations[index] = Some(buffer);
    }
}

impl Link for Staging {
    fn caps(&self) -> Caps {
        self.link.caps()
    }

    fn submit(&self, op: Op) {
        match op {
            Op::Send { message, receipt, ack_now, .. }
                if !message.memory().frames().iter().all(is_readable) =>
            {
                self.send(message, receipt, ack_now);
            }
            Op::Accept { id, destinations }
                if destinations.memory().iter().flatten().any(|buffer| !is_writable(buffer)) =>
            {
                self.accept(id, destinations);
            }
            op => self.link.submit(op),
        }
    }

    fn copy(&self, small: SmallSend) -> Option<SmallSend> {
        if small.message.frames().iter().all(is_readable) { self.link.copy(small) } else { Some(small) }
    }

    fn progress(&self) -> Progress {
        self.link.progress()
    }

    fn source(&self) -> Option<WaitSource<'_>> {
        self.link.source()
    }

    fn arm(&self) -> bool {
        self.link.arm()
    }

    fn tick(&self) {
        self.link.tick();
    }

    fn end(&self, why: Error) {
        self.link.end(why);
    }

    fn stats(&self) -> LinkStats {
        let mut stats = self.link.stats();
        stats.bytes_copied += self.bytes_copied.load(Ordering::Relaxed);
        stats
    }

    fn notes(&self) -> Vec<String> {
        self.link.notes()
    }
}
