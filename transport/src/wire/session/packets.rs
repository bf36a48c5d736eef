//! Packets that leave and come by themselves, beside the stream, which then carries records alone: each is one chunk of data
//! behind its own head, and they overtake each other and the records as they like. So may the peer's word on one overtake the
//! news that it has left.
//!
//! Whoever moves their bytes has the memory meanwhile, ours and that of destinations, and gives each part of it back exactly once.

use super::{Closing, Session};
use crate::error::{Error, Result};
use crate::memory::{Buffer, BufferMut};
use crate::wire::chunked_sends::{ChunkedSends, NextChunk};
use crate::wire::chunks::Chunk;
use crate::wire::integrity::{self, Check};
use crate::wire::record::{self, HEAD_LEN, Head, Transfer, corrupt};
use crate::wire::send_queue::Ending;

/// One end's packets, both ways.
#[derive(Debug)]
pub(super) struct Packets {
    packet_len: usize,
    pub(super) chunked_sends: ChunkedSends,
    /// How many were handed out, and how many of them have not left.
    pub(super) handed_out: u64,
    leaving: u64,
    /// How many came, how many of them have not landed, and how many there are, once the peer's good-bye says so.
    arrived: u64,
    receiving: u64,
    expected: u64,
}

/// What leaves by itself: a head and its data.
#[derive(Debug)]
pub(crate) struct Packet {
    /// Stays where it is when the packet is moved.
    pub(crate) head: Vec<u8>,
    pub(crate) bytes: Vec<Buffer>,
    transfer: Transfer,
    chunked_send: u64,
}

impl Packet {
    /// Bytes of its data.
    pub(crate) fn len(&self) -> usize {
        self.bytes.iter().map(Buffer::len).sum()
    }
}

/// What becomes of a packet that arrives.
#[derive(Debug)]
pub(crate) enum PacketArrival {
    /// It overtook its message's announcement: to be asked again, in the same words, after more records came.
    Early,
    Accepted(PacketDestination),
}

/// The memory that a packet's bytes go to.
#[derive(Debug)]
pub(crate) struct PacketDestination {
    chunk: Chunk,
    check: Check,
}

impl PacketDestination {
    /// Where they go, in order: buffers, and how many bytes each takes behind what it holds.
    pub(crate) fn parts(&mut self) -> &mut [(BufferMut, usize)] {
        &mut self.chunk.parts
    }
}

impl Packets {
    /// Whether every one that was handed out has left.
    pub(super) fn have_left(&self) -> bool {
        self.leaving == 0
    }

    /// Whether all of the peer's, which has said good-bye, are here.
    pub(super) fn have_landed(&self) -> bool {
        self.arrived == self.expected && self.receiving == 0
    }
}

impl Session {
    /// The same with all data leaving by itself, in packets of at most `packet_len` bytes, before anything travelled. Both ends
    /// must be made with the same.
    pub(crate) fn in_packets(mut self, packet_len: usize) -> Self {
        debug_assert!((1..=u32::MAX as usize).contains(&packet_len), "a head has 32 bits for it");
        debug_assert!(self.lanes.is_none() && self.fetcher.is_none(), "data has one way");
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

    /// Whether there is a packet to hand out.
    pub(crate) fn has_packet(&self) -> bool {
        // A peer that has closed acts on none, nor on what follows our own good-bye.
        let may_leave = matches!(self.closing, Closing::No | Closing::Wanted) && !self.has_peer_closed();
        let chunked_sends = self.packets.as_ref().map(|packets| &packets.chunked_sends);
        chunked_sends.is_some_and(|chunked_sends| !self.data_queue.is_empty() || !chunked_sends.is_empty())
            && may_leave
    }

    /// How long the head of a packet is.
    pub(crate) fn packet_head_len(&self) -> usize {
        record::head_len(self.decoder.check.is_on(), true)
    }

    /// The next packet, transfers taking turns. It comes back by [`packet_left`](Self::packet_left) or
    /// [`packet_lost`](Self::packet_lost).
    pub(crate) fn next_packet(&mut self) -> Option<Packet> {
        if !self.has_packet() {
            return None;
        }
        let packets = self.packets.as_mut()?;
        self.data_queue.drain(..).for_each(|data| packets.chunked_sends.push(data));
        let NextChunk { chunked_send, transfer, offset, bytes, is_last } =
            packets.chunked_sends.next_large()?;
        if is_last && matches!(transfer, Transfer::Get(_)) {
            // The peer may have it, and ask for more, before this end learns that it has left.
            self.one_sided.replied(1);
        }
        packets.handed_out += 1;
        packets.leaving += 1;
        let head = head_of(transfer, offset, &bytes, self.decoder.check.is_on());
        Some(Packet { head, bytes, transfer, chunked_send })
    }

    /// A packet is on its way, and its memory is not read any more.
    pub(crate) fn packet_left(&mut self, packet: Packet) {
        let Some(packets) = &mut self.packets else { return };
        let Packet { transfer, chunked_send, bytes, .. } = packet;
        // Whoever waits for its memory finds itself the only one who has it.
        drop(bytes);
        packets.leaving -= 1;
        let Some(source) = packets.chunked_sends.left(chunked_send) else { return };
        match (transfer, source.ending()) {
            (_, Some(Ending::Sent(id, message))) => self.sends.left(id, message),
            (Transfer::Put(id), _) => self.one_sided.put_left(id),
            _ => {}
        }
    }

    /// A packet may not arrive, and its memory is not read any more. Its transfer fails with all others: what follows is
    /// [`give_up`](Self::give_up).
    pub(crate) fn packet_lost(&mut self, packet: Packet) {
        drop(packet);
        if let Some(packets) = &mut self.packets {
            packets.leaving -= 1;
        }
    }

    /// A packet arrives, with that head and so many bytes of data. A destination comes back by
    /// [`packet_landed`](Self::packet_landed) or [`packet_failed`](Self::packet_failed).
    ///
    /// # Errors
    /// `Corrupt` for whatever was not granted.
    pub(crate) fn packet_arrived(&mut self, head: &[u8], len: usize) -> Result<PacketArrival> {
        let Some(packets) = &self.packets else { return Err(corrupt("a packet where none is expected")) };
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
            return Err(corrupt("a packet more than the good-bye says"));
        }
        if self.is_early(transfer) {
            return Ok(PacketArrival::Early);
        }
        let (parts, (frame, at)) = self.claim(transfer, offset, len)?;
        // A region may be revoked while its bytes are on their way.
        let chunk = self.staged(Chunk::new(transfer, offset, len, parts))?;
        check.begin(frame, at);
        if let Some(packets) = &mut self.packets {
            packets.arrived += 1;
            packets.receiving += 1;
        }
        Ok(PacketArrival::Accepted(PacketDestination { chunk, check }))
    }

    /// All bytes of a packet are in the buffers of `destination`, whose lengths have grown.
    ///
    /// # Errors
    /// `Corrupt` if they are not what left.
    pub(crate) fn packet_landed(&mut self, destination: PacketDestination) -> Result<()> {
        let PacketDestination { chunk, mut check } = destination;
        debug_assert!(chunk.parts.iter().all(|(part, len)| part.len() == *len), "all of it is there");
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

    /// The bytes of a packet that came will not: what follows is [`give_up`](Self::give_up).
    pub(crate) fn packet_failed(&mut self, destination: PacketDestination) {
        if let Some(packets) = &mut self.packets {
            packets.receiving -= 1;
        }
        self.put_back(destination.chunk);
    }

    /// The peer's last record, which says how many packets left it before.
    pub(super) fn receive_close(&mut self, expected: u64) -> Result<()> {
        self.peer_closed = true;
        let came = self.packets.as_ref().map_or(0, |packets| packets.arrived);
        match &mut self.packets {
            Some(packets) if came <= expected => packets.expected = expected,
            None if expected == 0 => {}
            _ => return Err(corrupt(format!("a good-bye that says {expected} packets where {came} came"))),
        }
        Ok(())
    }

    /// Fails what has not left.
    pub(super) fn give_up_packets(&mut self, why: &Error) {
        let Some(packets) = &mut self.packets else { return };
        debug_assert_eq!((packets.leaving, packets.receiving), (0, 0), "memory comes back before the end");
        packets.chunked_sends.give_up().for_each(|data| data.fail(why));
    }
}

/// The head of data that leaves by itself.
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
