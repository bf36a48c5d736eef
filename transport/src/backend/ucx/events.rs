//! The events that UCX reports during a poll: its callbacks queue them, and the polling thread reads them
//! afterwards.

#![expect(unsafe_code, reason = "C callbacks")]

use std::ffi::c_void;
use std::ops::Range;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering};

use smallvec::SmallVec;
use ucx_sys::*;

use crate::platform::mutex::Mutex;

/// The active message ids of our messages, from 0 without a gap.
pub(super) const RECORDS: u32 = 0;
pub(super) const PACKET: u32 = 1;
pub(super) const HELLO: u32 = 2;
/// An id that no message of ours uses, and the last one with a handler.
pub(super) const NOTHING: u32 = 3;
/// The longest header of ours: a packet's, followed by records.
pub(super) const HEADER_LEN_MAX: usize = 256;
/// The longest header without records.
const HEADER_LEN: usize = 64;
/// The receiving end of one connection that a message is for. Only the two ends know it.
pub(super) type ReceiverKey = [u8; 16];

/// A header: the key, and more depending on the kind of message.
pub(super) type Header = SmallVec<[u8; HEADER_LEN]>;

/// The queue that callbacks write to.
#[derive(Default)]
pub(super) struct EventQueue {
    batch: Mutex<EventBatch>,
    /// Whether the batch has any event: most polls find none, and read only this.
    any: AtomicBool,
}

/// The events of a poll.
#[derive(Debug, Default)]
pub(super) struct EventBatch {
    pub(super) received: Vec<Received>,
    /// The bytes of received records.
    pub(super) bytes: Vec<u8>,
    /// Completed requests, and their status.
    pub(super) done: Vec<(usize, ucs_status_t)>,
    /// The status with which UCX reported the peer lost.
    pub(super) lost: Option<ucs_status_t>,
}

/// A received message.
#[derive(Debug)]
pub(super) enum Received {
    /// The peer has opened its end.
    Hello(ReceiverKey),
    /// Records: a range of `bytes` that starts with the key.
    Records(Range<usize>),
    /// Payload, which UCX still holds.
    Packet(IncomingPacket),
}

/// Payload that UCX holds, or has not fetched yet. It must be received or released, or UCX keeps it.
#[must_use = "UCX keeps what is neither received nor released"]
#[derive(Debug)]
pub(super) struct IncomingPacket {
    pub(super) header: Header,
    pub(super) len: usize,
    pub(super) data: NonNull<c_void>,
    pub(super) is_rendezvous: bool,
}

// SAFETY: L5: a descriptor is the worker's, whose calls any thread may make, one at a time.
unsafe impl Send for IncomingPacket {}

/// The user data of a request's callback.
pub(super) struct RequestToken {
    pub(super) events: NonNull<EventQueue>,
    pub(super) number: usize,
}

impl EventQueue {
    /// Returns true if there were events since the last [`take`](Self::take).
    pub(super) fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// Takes the events, in exchange for an empty batch.
    pub(super) fn take(&self, empty: &mut EventBatch) {
        let mut batch = self.batch.lock();
        self.any.store(false, Ordering::Relaxed);
        std::mem::swap(&mut *batch, empty);
    }

    fn push(&self, add: impl FnOnce(&mut EventBatch)) {
        let mut batch = self.batch.lock();
        add(&mut batch);
        self.any.store(true, Ordering::Release);
    }
}

/// Adds an event to the queue.
///
/// # Safety
/// `events` is the queue of an engine that lives.
unsafe fn push(events: *mut c_void, add: impl FnOnce(&mut EventBatch)) {
    // SAFETY: L2: guaranteed by the caller; it is only shared.
    let events = unsafe { &*events.cast::<EventQueue>() };
    events.push(add);
}

/// # Safety
/// If `len` is not 0, so many bytes are valid from `start` on.
unsafe fn bytes<'a>(start: *const c_void, len: usize) -> &'a [u8] {
    if len == 0 {
        return &[];
    }
    // SAFETY: L2: UCX keeps them valid during the callback.
    unsafe { slice::from_raw_parts(start.cast(), len) }
}

pub(super) unsafe extern "C" fn on_nothing(
    _: *mut c_void,
    _: *const c_void,
    _: usize,
    _: *mut c_void,
    _: usize,
    _: *const ucp_am_recv_param_t,
) -> ucs_status_t {
    UCS_OK
}

pub(super) unsafe extern "C" fn on_hello(
    events: *mut c_void,
    header: *const c_void,
    header_len: usize,
    _: *mut c_void,
    _: usize,
    _: *const ucp_am_recv_param_t,
) -> ucs_status_t {
    // SAFETY: L2: UCX passes what the handler was set with, and a header of that length.
    let header = unsafe { bytes(header, header_len) };
    if let Ok(key) = header.try_into() {
        // SAFETY: L2: as above.
        unsafe { push(events, |batch| batch.received.push(Received::Hello(key))) };
    }
    UCS_OK
}

pub(super) unsafe extern "C" fn on_records(
    events: *mut c_void,
    _: *const c_void,
    header_len: usize,
    data: *mut c_void,
    len: usize,
    about: *const ucp_am_recv_param_t,
) -> ucs_status_t {
    // SAFETY: L2: UCX's description of the message is valid during the call.
    let about = unsafe { (*about).recv_attr };
    if about & u64::from(UCP_AM_RECV_ATTR_FLAG_RNDV) != 0 || header_len > 0 {
        // Only a peer that is not Towline sends such records. They are dropped; their number is then missing.
        return UCS_OK;
    }
    // SAFETY: L2: so many bytes are valid.
    let data = unsafe { bytes(data, len) };
    let take = |batch: &mut EventBatch| {
        let start = batch.bytes.len();
        batch.bytes.extend_from_slice(data);
        batch.received.push(Received::Records(start..batch.bytes.len()));
    };
    // SAFETY: L2: UCX passes what the handler was set with.
    unsafe { push(events, take) };
    UCS_OK
}

pub(super) unsafe extern "C" fn on_packet(
    events: *mut c_void,
    header: *const c_void,
    header_len: usize,
    data: *mut c_void,
    len: usize,
    about: *const ucp_am_recv_param_t,
) -> ucs_status_t {
    // SAFETY: L2: UCX's description of the message is valid during the call.
    let about = unsafe { (*about).recv_attr };
    let is = |flag: ucp_am_recv_attr_t| about & u64::from(flag) != 0;
    let is_rendezvous = is(UCP_AM_RECV_ATTR_FLAG_RNDV);
    let Some(data) = NonNull::new(data).filter(|_| is_rendezvous || is(UCP_AM_RECV_ATTR_FLAG_DATA)) else {
        // A message without payload is no packet of ours.
        return UCS_OK;
    };
    if header_len > HEADER_LEN_MAX {
        return UCS_OK;
    }
    // SAFETY: L2: so many bytes are valid.
    let header = Header::from_slice(unsafe { bytes(header, header_len) });
    let incoming = IncomingPacket { header, len, data, is_rendezvous };
    // SAFETY: L2: UCX passes what the handler was set with.
    unsafe { push(events, |batch| batch.received.push(Received::Packet(incoming))) };
    UCS_INPROGRESS
}

pub(super) unsafe extern "C" fn on_sent(_: *mut c_void, status: ucs_status_t, token: *mut c_void) {
    // SAFETY: L2: a token lives as long as its engine.
    let RequestToken { events, number } = unsafe { &*token.cast::<RequestToken>() };
    // SAFETY: L2: and so do its events.
    unsafe { push(events.as_ptr().cast(), |batch| batch.done.push((*number, status))) };
}

pub(super) unsafe extern "C" fn on_received(
    request: *mut c_void,
    status: ucs_status_t,
    _: usize,
    token: *mut c_void,
) {
    // SAFETY: L2: as for `on_sent`.
    unsafe { on_sent(request, status, token) };
}

pub(super) unsafe extern "C" fn on_lost(events: *mut c_void, _: ucp_ep_h, status: ucs_status_t) {
    // SAFETY: L2: the endpoint was created with its engine's events.
    unsafe { push(events, |batch| batch.lost = Some(status)) };
}
