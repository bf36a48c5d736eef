//! A pending receive: a message that is announced, and whose payload has arrived, is in transit, or has no
//! destination yet.
//!
//! The invariant: every message that leaves the connection is acknowledged to its sender, as delivered or
//! rejected, exactly once.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::core::Core;
use crate::backend::{Announced, Arrival, Completion, Delivery, FrameInfo, Op, Operation};
use crate::error::{Error, ErrorKind, Failed, Result};
use crate::memory::{Buffer, BufferMut, Place};
use crate::transfer::destination::Destination;
use crate::transfer::message::{Message, Table};

/// A message that is being received.
#[derive(Debug)]
pub(crate) struct PendingReceive {
    pub(crate) id: u64,
    pub(crate) header: Bytes,
    pub(crate) frames: Table,
    ack_now: bool,
    payload: PayloadState,
}

#[derive(Debug)]
enum PayloadState {
    Complete(Vec<Buffer>),
    InProgress(Completion<Result<Vec<Buffer>>>),
    AtSender,
    Accepted(Completion<ReceiveResult>),
}

type DestinationBuffers = Vec<Option<BufferMut>>;
type ReceiveResult = Result<Vec<Buffer>, Failed<DestinationBuffers>>;

impl Core {
    /// Receives the next message into pool memory. A receive that a dropped future had begun continues with
    /// the next call.
    pub(crate) async fn recv(self: &Arc<Self>) -> Result<Message> {
        if let Some(prefetched) = self.prefetched.get() {
            return self.next_prefetched(prefetched).await;
        }
        self.expect(true);
        let mut begun = self.begun().await.map_err(|error| self.placed(error, "recv"))?;
        if let Some(prefetched) = self.prefetched.get() {
            // Prefetching began meanwhile.
            drop(begun);
            return self.next_prefetched(prefetched).await;
        }
        if begun.is_none() {
            **begun = Some(PendingReceive::next(self).await?);
        }
        let Some(pending) = begun.as_mut() else { unreachable!("set above") };
        // If the pool has no memory, the message stays: `incoming` can choose another destination, or reject
        // it.
        pending.land_in_pool(self).map_err(|error| self.placed(error, "recv"))?;
        let result = pending.landed(self).await.map_err(Error::from);
        **begun = None;
        result
    }

    /// Receives the next message into `buffer`, its frames one after another.
    pub(crate) async fn recv_into(self: &Arc<Self>, buffer: BufferMut) -> Result<Message, Failed<BufferMut>> {
        let mut begun =
            match self.begun().await.and_then(|begun| self.check_not_prefetching().map(|()| begun)) {
                Ok(begun) => begun,
                Err(error) => return Err(Failed { error: self.placed(error, "recv"), returned: buffer }),
            };
        self.expect(false);
        if begun.is_none() {
            match PendingReceive::next(self).await {
                Ok(pending) => **begun = Some(pending),
                Err(error) => return Err(Failed { error, returned: buffer }),
            }
        }
        let Some(pending) = begun.as_mut() else { unreachable!("set above") };
        let payload_len = pending.payload_len();
        if payload_len > buffer.capacity() as u64 {
            let capacity = buffer.capacity();
            let why = format!("the message has {payload_len} bytes and the buffer holds {capacity}");
            let error = self.placed(Error::new(ErrorKind::TooLarge, why), "recv");
            return Err(Failed { error, returned: buffer });
        }
        let (buffers, rest) = split_by_frames(buffer, &pending.frames);
        let result = pending.land(self, buffers).await;
        **begun = None;
        result
            .map_err(|failed| Failed { error: failed.error, returned: rejoin_pieces(failed.returned, rest) })
    }
}

impl PendingReceive {
    pub(crate) async fn next(core: &Core) -> Result<Self> {
        let announced = core.waiters.until(|cx| core.inbox.poll_take(cx)).await;
        let Announced { id, header, frames, arrival, ack_now } =
            announced.map_err(|error| core.placed(error, "recv"))?;
        let payload = match arrival {
            Arrival::Complete(buffers) => PayloadState::Complete(buffers),
            Arrival::InProgress(landed) => PayloadState::InProgress(landed),
            Arrival::AtSender => PayloadState::AtSender,
        };
        Ok(Self { id, header, frames, ack_now, payload })
    }

    pub(crate) fn payload_len(&self) -> u64 {
        self.frames.iter().map(|frame| frame.len as u64).sum()
    }

    /// Starts to receive the payload into host memory, unless that has begun.
    pub(crate) fn land_in_pool(&mut self, core: &Core) -> Result<()> {
        match self.payload {
            PayloadState::AtSender => {
                let pool = core.pool(Place::Host)?;
                let buffers = pool.destinations(self.frames.iter().map(|frame| frame.len))?;
                self.land_in(core, buffers.into_iter().map(Some).collect());
            }
            PayloadState::Complete(_) | PayloadState::InProgress(_) | PayloadState::Accepted(_) => {}
        }
        Ok(())
    }

    /// Receives the whole message into `buffers`. A payload that has arrived already is copied once.
    pub(crate) async fn land(
        &mut self,
        core: &Arc<Core>,
        buffers: DestinationBuffers,
    ) -> Result<Message, Failed<DestinationBuffers>> {
        if !matches!(self.payload, PayloadState::AtSender) {
            return self.copied(core, buffers).await;
        }
        self.land_in(core, buffers);
        self.landed(core).await
    }

    fn land_in(&mut self, core: &Core, buffers: DestinationBuffers) {
        let (destinations, landed) = Operation::new(buffers);
        core.submit(Op::Accept { id: self.id, destinations });
        self.payload = PayloadState::Accepted(landed);
    }

    /// Waits for the payload and returns the whole message.
    pub(crate) async fn landed(&mut self, core: &Arc<Core>) -> Result<Message, Failed<DestinationBuffers>> {
        let frames = match &mut self.payload {
            PayloadState::Accepted(landed) => match core.finish(landed).await {
                Ok(frames) => {
                    // The link holds the acknowledgement and may have nothing else to send.
                    core.poll_by_next_sweep();
                    frames
                }
                Err(failed) => {
                    // An accept that failed by itself leaves the message unacknowledged.
                    self.send_ack(core, Delivery::Rejected);
                    return Err(core.failed(failed, "accept"));
                }
            },
            PayloadState::Complete(buffers) => {
                let buffers = std::mem::take(buffers);
                self.send_ack(core, Delivery::Delivered);
                buffers
            }
            PayloadState::InProgress(landed) => match core.finish(landed).await {
                Ok(frames) => {
                    self.send_ack(core, Delivery::Delivered);
                    frames
                }
                Err(error) => {
                    return Err(Failed { error: core.placed(error, "accept"), returned: Vec::new() });
                }
            },
            PayloadState::AtSender => unreachable!("a destination was chosen before"),
        };
        core.counts.received.record(self.payload_len());
        Ok(Message::from_parts(std::mem::take(&mut self.header), frames))
    }

    /// Copies the whole message once, from the link's memory into `buffers`.
    async fn copied(
        &mut self,
        core: &Arc<Core>,
        buffers: DestinationBuffers,
    ) -> Result<Message, Failed<DestinationBuffers>> {
        let here = match self.land_in_pool(core) {
            Ok(()) => self.landed(core).await,
            Err(error) => Err(Failed { error, returned: Vec::new() }),
        };
        let message = match here {
            Ok(message) => message,
            Err(failed) => return Err(Failed { error: failed.error, returned: buffers }),
        };
        let (header, sources) = message.into_parts();
        let mut frames = Vec::with_capacity(buffers.len());
        for (buffer, source) in buffers.into_iter().zip(&sources) {
            let Some(mut buffer) = buffer else {
                frames.push(Buffer::new());
                continue;
            };
            if let Err(error) = buffer.fill_from(source) {
                return Err(core.failed(Failed { error, returned: vec![Some(buffer)] }, "accept"));
            }
            core.counts.bytes_copied.fetch_add(source.len() as u64, Ordering::Relaxed);
            frames.push(buffer.freeze());
        }
        Ok(Message::from_parts(header, frames))
    }

    /// Checks the destinations and returns an empty buffer for each; `None` to discard.
    ///
    /// # Errors
    /// `Invalid` for a wrong number of destinations or one that is too small, `Unsupported` for a place
    /// without a pool.
    pub(crate) fn buffers(
        &self,
        core: &Core,
        mut destinations: Vec<Destination>,
    ) -> Result<DestinationBuffers, Failed<Vec<Destination>>> {
        let invalid = |why| Error::new(ErrorKind::Invalid, why);
        if destinations.len() != self.frames.len() {
            let why =
                format!("{} destinations for a message of {} frames", destinations.len(), self.frames.len());
            return Err(Failed { error: invalid(why), returned: destinations });
        }
        for (index, (destination, frame)) in destinations.iter_mut().zip(&self.frames).enumerate() {
            let pool = match destination {
                Destination::Pool(pool) => Ok(&*pool),
                Destination::Place(place) => core.pool(*place),
                Destination::Buffer(buffer) if buffer.capacity() < frame.len => {
                    let (holds, len) = (buffer.capacity(), frame.len);
                    Err(invalid(format!("frame {index} has {len} bytes and its destination holds {holds}")))
                }
                Destination::Buffer(buffer) => {
                    buffer.clear();
                    continue;
                }
                Destination::Discard => continue,
            };
            match pool.and_then(|pool| pool.take(frame.len)) {
                Ok(buffer) => *destination = Destination::Buffer(buffer),
                Err(error) => return Err(Failed { error, returned: destinations }),
            }
        }
        let buffer = |destination| match destination {
            Destination::Buffer(buffer) => Some(buffer),
            _ => None,
        };
        Ok(destinations.into_iter().map(buffer).collect())
    }

    pub(crate) fn ack(self, core: &Arc<Core>, delivery: Delivery) {
        // An accept in progress ends by itself, and acknowledges the message itself.
        if !matches!(self.payload, PayloadState::Accepted(_)) {
            self.send_ack(core, delivery);
        }
    }

    fn send_ack(&self, core: &Arc<Core>, delivery: Delivery) {
        core.submit_deferred(Op::Ack { id: self.id, delivery, ack_now: self.ack_now });
    }
}

/// Splits `buffer` into pieces of the frames' lengths, and the rest.
fn split_by_frames(mut buffer: BufferMut, frames: &[FrameInfo]) -> (DestinationBuffers, BufferMut) {
    buffer.clear();
    let mut pieces = Vec::with_capacity(frames.len());
    for frame in frames {
        let rest = buffer.split_off(frame.len);
        pieces.push(Some(std::mem::replace(&mut buffer, rest)));
    }
    (pieces, buffer)
}

/// Rejoins the pieces into one empty buffer.
fn rejoin_pieces(pieces: DestinationBuffers, rest: BufferMut) -> BufferMut {
    let mut whole: Option<BufferMut> = None;
    for mut piece in pieces.into_iter().flatten().filter(|piece| piece.capacity() > 0).chain([rest]) {
        piece.clear();
        match &mut whole {
            // Adjacent pieces of one buffer rejoin. Any other piece was never split from it.
            Some(whole) => drop(whole.rejoin(piece)),
            None => whole = Some(piece),
        }
    }
    whole.unwrap_or_default()
}
