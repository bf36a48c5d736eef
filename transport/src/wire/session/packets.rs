//! Direct transfers: data packets travel outside the stream, which then carries only records. Each packet is
//! a head and one chunk of data. Packets may overtake each other and the records. An acknowledgement may also
//! arrive before the transport reports that its packet has left.
//!
//! The transport owns the memory of a packet while it moves the bytes, at both ends. It returns each part
//! exactly once.

use super::{Closing, Session};
use crate::error::{Error, Result};
use crate::memory::{Buffer, BufferMut};
use crate::wire::chunked_sends::{ChunkedSends, NextChunk};
use crate::wire::chunks::Chunk;
use crate::wire::integrity::{self, Check};
use crate::wire::record::{self, HEAD_LEN, Head, Transfer, corrupt};
use crate::wire::send_queue::Ending;

/// The direct transfers of one end, both ways.
#[derive(Debug)]
pub(super) struct Packets {
    packet_len: usize,
    pub(super) chunked_sends: ChunkedSends,
    /// Packets handed to the transport, and how many of them have not left.
    pub(super) handed_out: u64,
    leaving: u64,
    /// Packets that arrived, packets being received, and the total announced by the peer's `Close`.
    arrived: u64,
    receiving: u64,
    expected: u64,
}

/// An outgoing packet: a head and its data.
#[derive(Debug)]
pub(crate) struct Packet {
    /// Keeps its address when the packet is moved.
    pub(crate) head: Vec<u8>,
    pub(crate) bytes: Vec<Buffer>,
    transfer: Transfer,
    chunked_send: u64,
}

impl Packet {
    /// Returns the length of the data in bytes.
    pub(crate) fn len(&self) -> usize {
        self.bytes.iter().map(Buffer::len).sum()
    }
}

/// The result of announcing an arriving packet to the session.
#[derive(Debug)]
pub(crate) enum PacketArrival {
    /// Its message is not announced yet. Retry with the same arguments after more records have been received.
    Early,
    Accepted(PacketDestination),
}

/// The buffers that a packet's bytes are written to.
#[derive(Debug)]
pub(crate) struct PacketDestination {
    chunk: Chunk,
    check: Check,
}

impl PacketDestination {
    /// Returns the buffers in order, each with the number of bytes to append to it.
    pub(crate) fn parts(&mut self) -> &mut [(BufferMut, usize)] {
        &mut self.chunk.parts
    }
}

impl Packets {
    /// Returns whether every packet handed out has left.
    pub(super) fn have_left(&self) -> bool {
        self.leaving == 0
    }

    /// Returns whether all packets announced by the peer's `Close` have arrived.
    pub(super) fn have_landed(&self) -> bool {
        self.arrived == self.expected && self.receiving == 0
    }
}

impl Session {
    /// Sends all data as direct transfers, in packets of at most `packet_len` bytes. Must be called before
    /// anything is sent, with the same value at both ends.
    pub(crate) fn in_packets(mut self, packet_len: usize) -> Self {
        debug_assert!((1..=u32::MAX as usize).contains(&packet_len), "the length field has 32 bits");
        debug_assert!(
            self.lanes.is_none() && self.fetcher.is_none(),
            "direct transfers exclude lanes and fetching"
        );
        self.receives.stripe(packet_len);
        self.one_sided.stripe(packet_len);
        self.sends.allow_early_acks();
        self.one_sided.allow_early_acks();
        let chunked_sends = ChunkedSends::new(packet_len, true);
        let packets = Packets {
            packet_len,
            chunked_sends,
            handed_out: 0,
            leaving: 0,
            arrived: 0,
            receiving: 0,
            expected: 0,
        };
        self.packets = Some(Box::new(packets));
        self
    }

    /// Returns whether there is a packet to send.
    pub(crate) fn has_packet(&self) -> bool {
        // After its `Close`, the peer acts on no packet. It acts on nothing after our `Close` either.
        let may_leave = matches!(self.closing, Closing::No | Closing::Wanted) && !self.has_peer_closed();
        let chunked_sends = self.packets.as_ref().map(|packets| &packets.chunked_sends);
        chunked_sends.is_some_and(|chunked_sends| !self.data_queue.is_empty() || !chunked_sends.is_empty())
            && may_leave
    }

    /// Returns the length of a packet's head.
    pub(crate) fn packet_head_len(&self) -> usize {
        record::head_len(self.decoder.check.is_on(), true)
    }

    /// Returns the next packet; transfers take turns. The caller returns it by
    /// [`packet_left`](Self::packet_left) or [`packet_lost`](Self::packet_lost).
    pub(crate) fn next_packet(&mut self) -> Option<Packet> {
        if !self.has_packet() {
            return None;
        }
        let packets = self.packets.as_mut()?;
        self.data_queue.drain(..).for_each(|data| packets.chunked_sends.push(data));
        let NextChunk { chunked_send, transfer, offset, mut bytes, is_last } =
            packets.chunked_sends.next_large()?;
        if is_last && matches!(transfer, Transfer::Get(_)) {
            // The peer may receive it and send another request before this end is told that the packet has
            // left.
            self.one_sided.replied(1);
        }
        packets.handed_out += 1;
        packets.leaving += 1;
        let checked = self.decoder.check.is_on();
        if checked {
            integrity::copy_foreign(&mut bytes, &self.sends.copied);
        }
        let head = head_of(transfer, offset, &bytes, checked);
        Some(Packet { head, bytes, transfer, chunked_send })
    }

    /// Records that a packet has left: its memory is no longer read.
    pub(crate) fn packet_left(&mut self, packet: Packet) {
        let Some(packets) = &mut self.packets else { return };
        let Packet { transfer, chunked_send, bytes, .. } = packet;
        // Dropped before the completion, so that its waiter holds the only handle.
        drop(bytes);
        packets.leaving -= 1;
        let Some(source) = packets.chunked_sends.left(chunked_send) else { return };
        match (transfer, source.ending()) {
            (_, Some(Ending::Sent(id, message))) => self.sends.left(id, message),
            (Transfer::Put(id), _) => self.one_sided.put_left(id),
            _ => {}
        }
    }

    /// Records that a packet may not arrive; its memory is no longer read. The connection fails: the caller
    /// must then call [`give_up`](Self::give_up).
    pub(crate) fn packet_lost(&mut self, packet: Packet) {
        drop(packet);
        if let Some(packets) = &mut self.packets {
            packets.leaving -= 1;
        }
    }

    /// Announces an arriving packet with its head and data length. The caller returns a destination by
    /// [`packet_landed`](Self::packet_landed) or [`packet_failed`](Self::packet_failed).
    ///
    /// # Errors
    /// `Corrupt` if the packet was not granted.
    pub(crate) fn packet_arrived(&mut self, head: &[u8], len: usize) -> Result<PacketArrival> {
        let Some(packets) = &self.packets else {
            return Err(corrupt("a packet on a connection without direct transfers"));
        };
        let head_len = self.packet_head_len();
        if head.len() != head_len {
            return Err(corrupt(format!("a packet's head of {} bytes, not {head_len}", head.len())));
        }
        let mut check = self.decoder.check.of_packet(head)?;
        let Head { records_len, data_len, transfer } = Head::decode(head, packets.packet_len)?;
        let offset = record::offset_of(head)?;
        if records_len > 0 || data_len != len {
            return Err(corrupt(format!(
                "a packet of {len} bytes that announces {records_len} of records and {data_len} of data"
            )));
        }
        if self.peer_closed && packets.arrived == packets.expected {
            return Err(corrupt("more packets than the peer's Close announced"));
        }
        if self.is_early(transfer) {
            return Ok(PacketArrival::Early);
        }
        let (parts, (frame, at)) = self.claim(transfer, offset, len)?;
        // A region may be revoked while its bytes are in flight.
        let chunk = self.staged(Chunk::new(transfer, offset, len, parts))?;
        check.begin(frame, at);
        if let Some(packets) = &mut self.packets {
            packets.arrived += 1;
            packets.receiving += 1;
        }
        Ok(PacketArrival::Accepted(PacketDestination { chunk, check }))
    }

    /// Completes a packet whose bytes are all in the buffers of `destination`.
    ///
    /// # Errors
    /// `Corrupt` if a checksum does not match.
    pub(crate) fn packet_landed(&mut self, destination: PacketDestination) -> Result<()> {
        let PacketDestination { chunk, mut check } = destination;
        debug_assert!(chunk.parts.iter().all(|(part, len)| part.len() == *len), "the packet is complete");
        let mut sum = check.sum();
        for (part, _) in &chunk.parts {
            sum.add(part.as_slice().unwrap_or_default());
        }
        if let Some(packets) = &mut self.packets {
            packets.receiving -= 1;
        }
        if let Err(error) = check.end(chunk.transfer) {
            self.put_back(chunk);
            return Err(error);
        }
        self.chunk_is_right(chunk)
    }

    /// Returns a destination whose bytes will not arrive. The caller must then call
    /// [`give_up`](Self::give_up).
    pub(crate) fn packet_failed(&mut self, destination: PacketDestination) {
        if let Some(packets) = &mut self.packets {
            packets.receiving -= 1;
        }
        self.put_back(destination.chunk);
    }

    /// Handles the peer's `Close`, which announces how many packets the peer sent.
    pub(super) fn receive_close(&mut self, expected: u64) -> Result<()> {
        self.peer_closed = true;
        let came = self.packets.as_ref().map_or(0, |packets| packets.arrived);
        match &mut self.packets {
            Some(packets) if came <= expected => packets.expected = expected,
            None if expected == 0 => {}
            _ => {
                return Err(corrupt(format!(
                    "the peer's Close announces {expected} packets, but {came} arrived"
                )));
            }
        }
        Ok(())
    }

    /// Fails all packets that have not left.
    pub(super) fn give_up_packets(&mut self, why: &Error) {
        let Some(packets) = &mut self.packets else { return };
        debug_assert_eq!((packets.leaving, packets.receiving), (0, 0), "memory comes back before the end");
        packets.chunked_sends.give_up().for_each(|data| data.fail(why));
    }
}

/// Encodes the head of a direct transfer.
fn head_of(transfer: Transfer, offset: u64, bytes: &[Buffer], checked: bool) -> Vec<u8> {
    let mut head = vec![0; record::head_len(checked, true)];
    let data_len = bytes.iter().map(Buffer::len).sum();
    head[..HEAD_LEN].copy_from_slice(&Head { records_len: 0, data_len, transfer }.encode());
    record::put_offset(&mut head, offset);
    if checked {
        integrity::seal(&mut head, 0, integrity::of_buffers(bytes));
    }
    head
}
