//! One ucp worker with its one endpoint and all requests in flight on it. All calls to UCX on a connection
//! are made here.
//!
//! The invariant (M3): memory that UCX may read or write is held here from the call that posts it until its
//! callback was processed. Nothing cancels that, not even dropping this.

#![expect(unsafe_code, reason = "calls into C")]

use std::ffi::c_void;
use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use ucx_sys::*;

use super::context::{Context, open_error, process_exiting};
use super::events::{
    EventBatch, EventQueue, HELLO, Header, IncomingPacket, NOTHING, PACKET, RECORDS, Received, RequestToken,
    on_hello, on_lost, on_nothing, on_packet, on_received, on_records, on_sent,
};
use super::exit_gate::{CallGuard, ExitGate};
use super::status;
use crate::error::{Error, ErrorKind, Result};
use crate::wire::session::{Packet, PacketDestination};

/// The number of completed requests kept for reuse.
const SPARE_MAX: usize = 32;
/// The time that UCX has to complete the requests of a closed endpoint. It takes a few milliseconds, but over
/// shared memory UCX waits for completions from a peer that is gone.
pub(super) const CLOSE_TIME: Duration = Duration::from_millis(50);

/// How often an engine without a user is polled.
pub(super) const SWEEP_EVERY: Duration = Duration::from_millis(1);

/// The longest packet sent eagerly over sockets. A rendezvous there costs three system calls and a poll of
/// the peer, and saves no copy.
const SOCKET_EAGER_LEN_MAX: usize = 64 << 10;

/// The most progress steps per poll. A step mostly moves a piece of a long packet.
const STEPS_MAX: usize = 16;

/// A worker, and its endpoint to one peer.
pub(super) struct Engine {
    context: Arc<Context>,
    ucx: &'static Library,
    /// `None` once it is destroyed.
    worker: Option<ucp_worker_h>,
    /// The endpoint, until it is closed.
    endpoint: Option<ucp_ep_h>,
    /// Shared with UCX, whose callbacks write to it.
    events: NonNull<EventQueue>,
    requests: Vec<Option<Box<UcxRequest>>>,
    free: Vec<usize>,
    /// Completed requests, kept for reuse.
    #[expect(clippy::vec_box, reason = "a request stays where it is while UCX has it")]
    spare: Vec<Box<UcxRequest>>,
    /// The tokens of `requests`, which live as long as this.
    tokens: Vec<NonNull<RequestToken>>,
    /// Packets up to this length are sent eagerly, without a rendezvous.
    eager_len_max: usize,
    /// Entered by every call into UCX.
    gate: Arc<ExitGate>,
}

// SAFETY: L5: the worker is SERIALIZED: one thread at a time calls it, but any thread may. The requests in
// flight are `Send`.
unsafe impl Send for Engine {}

/// The memory of a request, owned by it while in flight.
#[derive(Debug)]
pub(super) enum Operand {
    Hello,
    Records(Vec<u8>),
    Packet(Packet),
    PacketDestination(PacketDestination),
    /// Closes the endpoint.
    Close,
}

/// One UCX request.
struct UcxRequest {
    header: Header,
    parts: Vec<ucp_dt_iov_t>,
    operand: Operand,
    handle: Option<NonNull<c_void>>,
}

/// The result of posting a request.
#[derive(Debug)]
pub(super) enum PostResult {
    /// Completed at once: its operand is free.
    Done(Operand),
    /// In flight.
    Pending,
    /// Not posted.
    Failed(Operand, Error),
}

impl Engine {
    /// Creates a worker in a context.
    pub(super) fn open(context: &Arc<Context>) -> Result<Self> {
        let (ucx, gate) = (context.ucx, ExitGate::new());
        let call = gate.enter().ok_or_else(process_exiting)?;
        let params = ucp_worker_params_t {
            field_mask: UCP_WORKER_PARAM_FIELD_THREAD_MODE.into(),
            thread_mode: UCS_THREAD_MODE_SERIALIZED,
            ..Default::default()
        };
        let mut worker = ptr::null_mut();
        // SAFETY: L1: the context lives as long as this; L2: it reads a local and writes to one.
        let created = unsafe { ucx.ucp_worker_create(context.context, &raw const params, &raw mut worker) };
        if created != UCS_OK {
            return Err(open_error(ucx, created, "its worker cannot be created"));
        }
        let events = NonNull::from(Box::leak(Box::new(EventQueue::default())));
        let engine = Self {
            context: context.clone(),
            ucx,
            worker: Some(worker),
            endpoint: None,
            events,
            requests: Vec::new(),
            free: Vec::new(),
            spare: Vec::new(),
            tokens: Vec::new(),
            eager_len_max: 0,
            gate: gate.clone(),
        };
        // Handlers are registered in an even number, the last one first. UCX before 1.17 then allocates a
        // table of exactly that many entries. It leaves unregistered entries uninitialised, and calls them if
        // a peer sends their number.
        for (id, cb, flags) in [
            (NOTHING, on_nothing as unsafe extern "C" fn(_, _, _, _, _, _) -> _, UCP_AM_FLAG_WHOLE_MSG),
            (HELLO, on_hello, UCP_AM_FLAG_WHOLE_MSG),
            (PACKET, on_packet, UCP_AM_FLAG_WHOLE_MSG | UCP_AM_FLAG_PERSISTENT_DATA),
            (RECORDS, on_records, UCP_AM_FLAG_WHOLE_MSG),
        ] {
            let handler = ucp_am_handler_param_t {
                field_mask: (UCP_AM_HANDLER_PARAM_FIELD_ID
                    | UCP_AM_HANDLER_PARAM_FIELD_FLAGS
                    | UCP_AM_HANDLER_PARAM_FIELD_CB
                    | UCP_AM_HANDLER_PARAM_FIELD_ARG)
                    .into(),
                id,
                flags,
                cb: Some(cb),
                arg: events.as_ptr().cast(),
            };
            // SAFETY: L1: the worker lives, and is destroyed before the handler's argument; L2: it reads a
            // local.
            let set = unsafe { ucx.ucp_worker_set_am_recv_handler(worker, &raw const handler) };
            if set != UCS_OK {
                drop(call);
                return Err(open_error(ucx, set, "its worker takes no message handler"));
            }
        }
        drop(call);
        Ok(engine)
    }

    /// Returns the worker, which may be called while the guard lives; `None` once the process exits.
    fn enter(&self) -> Option<(CallGuard<'_>, ucp_worker_h)> {
        Some((self.gate.enter()?, self.worker?))
    }

    /// Returns the worker's address for peers.
    pub(super) fn address(&self) -> Result<Vec<u8>> {
        let (_call, worker) = self.enter().ok_or_else(process_exiting)?;
        let field_mask = UCP_WORKER_ATTR_FIELD_ADDRESS.into();
        let mut about = ucp_worker_attr_t { field_mask, ..Default::default() };
        // SAFETY: L1: the worker lives; L2: it writes to a local.
        let queried = unsafe { self.ucx.ucp_worker_query(worker, &raw mut about) };
        if queried != UCS_OK || about.address.is_null() {
            return Err(open_error(self.ucx, queried, "its worker has no address"));
        }
        // SAFETY: L1: so many bytes are valid until the address is released, below.
        let address = unsafe { slice::from_raw_parts(about.address.cast::<u8>(), about.address_length) };
        let address = address.to_vec();
        // SAFETY: L1: the query returned it, and it is released once.
        unsafe { self.ucx.ucp_worker_release_address(worker, about.address) };
        Ok(address)
    }

    /// Returns an owned descriptor that becomes readable when there is work, once [armed](Self::arm).
    pub(super) fn descriptor(&self) -> Result<OwnedFd> {
        let (_call, worker) = self.enter().ok_or_else(process_exiting)?;
        let mut descriptor = -1;
        // SAFETY: L1: the worker lives; L2: it writes to a local.
        let status = unsafe { self.ucx.ucp_worker_get_efd(worker, &raw mut descriptor) };
        if status != UCS_OK {
            return Err(open_error(self.ucx, status, "its worker has no event descriptor"));
        }
        // SAFETY: L1: the worker keeps it open, and nothing closes it during this call.
        let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
        descriptor.try_clone_to_owned().map_err(Error::io)
    }

    /// Arms the descriptor. Returns false if there is work already.
    pub(super) fn arm(&mut self) -> bool {
        // No work is left once the process exits.
        let Some((_call, worker)) = self.enter() else { return true };
        // SAFETY: L1: the worker lives.
        unsafe { self.ucx.ucp_worker_arm(worker) == UCS_OK }
    }

    /// Creates the endpoint to the worker with that address.
    pub(super) fn connect(&mut self, address: &[u8]) -> Result<()> {
        let gate = self.gate.clone();
        let (_call, worker) = gate.enter().zip(self.worker).ok_or_else(process_exiting)?;
        let params = ucp_ep_params_t {
            field_mask: (UCP_EP_PARAM_FIELD_REMOTE_ADDRESS
                | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE
                | UCP_EP_PARAM_FIELD_ERR_HANDLER)
                .into(),
            address: address.as_ptr().cast(),
            err_mode: UCP_ERR_HANDLING_MODE_PEER,
            err_handler: ucp_err_handler_t { cb: Some(on_lost), arg: self.events.as_ptr().cast() },
            ..Default::default()
        };
        let mut endpoint = ptr::null_mut();
        // SAFETY: L1: the worker lives; L2: it reads locals and writes to one; the events outlive the
        // endpoint.
        let created = unsafe { self.ucx.ucp_ep_create(worker, &raw const params, &raw mut endpoint) };
        if created != UCS_OK {
            return Err(open_error(self.ucx, created, "no transport of both ends leads to the peer"));
        }
        self.endpoint = Some(endpoint);
        Ok(())
    }

    /// Returns the transports of the endpoint, once both ends have opened. They decide which packets are sent
    /// eagerly from now on.
    pub(super) fn transports(&mut self) -> Vec<String> {
        let Some(endpoint) = self.endpoint else { return Vec::new() };
        let Some(_call) = self.gate.enter() else { return Vec::new() };
        // SAFETY: L1: the endpoint lives, and the holder of `&mut self` makes the only call.
        let transports = unsafe { self.ucx.transports_of(endpoint) };
        let over_sockets = !transports.is_empty() && transports.iter().all(|name| name.starts_with("tcp"));
        self.eager_len_max = if over_sockets { SOCKET_EAGER_LEN_MAX } else { 0 };
        transports
    }

    /// Sends a message. The header is copied.
    pub(super) fn send(&mut self, header: &[u8], operand: Operand) -> PostResult {
        let Some(endpoint) = self.endpoint else { return PostResult::Failed(operand, closed()) };
        let (id, flags) = match &operand {
            Operand::Hello => (HELLO, UCP_AM_SEND_FLAG_EAGER),
            Operand::Records(_) => (RECORDS, UCP_AM_SEND_FLAG_EAGER),
            Operand::Packet(packet) if packet.len() <= self.eager_len_max => (PACKET, UCP_AM_SEND_FLAG_EAGER),
            Operand::Packet(_) | Operand::PacketDestination(_) | Operand::Close => (PACKET, 0),
        };
        self.post(header, operand, |engine, request, call| {
            call.op_attr_mask |= UCP_OP_ATTR_FIELD_FLAGS;
            call.flags = flags;
            call.cb = ucp_request_param_t__bindgen_ty_1 { send: Some(on_sent) };
            let (data, count) = request.data(call);
            // SAFETY: L1: the endpoint is not closed; M3: header, parts and memory are the request's, which
            // ends with the callback.
            unsafe {
                engine.ucx.ucp_am_send_nbx(
                    endpoint,
                    id,
                    request.header.as_ptr().cast(),
                    request.header.len(),
                    data,
                    count,
                    call,
                )
            }
        })
    }

    /// Receives a packet's bytes into a destination of the same length.
    pub(super) fn receive(
        &mut self,
        incoming: IncomingPacket,
        mut destination: PacketDestination,
    ) -> PostResult {
        if !incoming.is_rendezvous {
            // SAFETY: L1: the descriptor is so many bytes of the worker's until it is released, below.
            let bytes = unsafe { slice::from_raw_parts(incoming.data.as_ptr().cast(), incoming.len) };
            let filled = fill(&mut destination, bytes);
            self.release(incoming);
            return match filled {
                Ok(()) => PostResult::Done(Operand::PacketDestination(destination)),
                Err(error) => PostResult::Failed(Operand::PacketDestination(destination), error),
            };
        }
        let Some(worker) = self.worker else {
            return PostResult::Failed(Operand::PacketDestination(destination), closed());
        };
        self.post(&[], Operand::PacketDestination(destination), |engine, request, call| {
            call.cb = ucp_request_param_t__bindgen_ty_1 { recv_am: Some(on_received) };
            let (data, count) = request.data(call);
            // SAFETY: L1: the descriptor was kept, and is given back by this call; M3: the memory is the
            // request's.
            unsafe {
                engine.ucx.ucp_am_recv_data_nbx(worker, incoming.data.as_ptr(), data.cast_mut(), count, call)
            }
        })
    }

    /// Discards a received packet.
    pub(super) fn release(&mut self, incoming: IncomingPacket) {
        let Some((_call, worker)) = self.enter() else { return };
        // SAFETY: L1: the handler kept it, and each incoming packet is released or received once.
        unsafe { self.ucx.ucp_am_data_release(worker, incoming.data.as_ptr()) };
    }

    /// Closes the endpoint: everything in flight on it completes soon.
    pub(super) fn close(&mut self) {
        let Some(endpoint) = self.endpoint.take() else { return };
        // The requests in flight report the outcome.
        let _ = self.post(&[], Operand::Close, |engine, _, call| {
            call.op_attr_mask |= UCP_OP_ATTR_FIELD_FLAGS;
            call.flags = UCP_EP_CLOSE_FLAG_FORCE;
            call.cb = ucp_request_param_t__bindgen_ty_1 { send: Some(on_sent) };
            // SAFETY: L1: nothing uses the endpoint after this.
            unsafe { engine.ucx.ucp_ep_close_nbx(endpoint, call) }
        });
    }

    /// Returns true if no request is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.free.len() == self.requests.len()
    }

    /// Returns true if the worker is not destroyed and belongs to this process.
    pub(super) fn is_usable(&self) -> bool {
        self.worker.is_some() && self.context.process.is_this()
    }

    /// Makes progress until [`has_events`](Self::has_events), or up to a limit. Returns true if anything
    /// moved.
    pub(super) fn progress(&mut self) -> bool {
        let Some((_call, worker)) = self.enter() else { return false };
        for steps in 0..STEPS_MAX {
            // SAFETY: L1: the worker lives, and the holder of `&mut self` makes the only call.
            if unsafe { self.ucx.ucp_worker_progress(worker) } == 0 {
                return steps > 0;
            }
            if self.has_events() {
                break;
            }
        }
        true
    }

    /// Returns true if there were events since the last [`take_events`](Self::take_events).
    pub(super) fn has_events(&self) -> bool {
        self.events().any()
    }

    /// Takes the events since the last call, in exchange for an empty batch.
    pub(super) fn take_events(&mut self, empty: &mut EventBatch) {
        self.events().take(empty);
    }

    /// Passes each completed request's operand and result to `completed`.
    pub(super) fn take_completed(
        &mut self,
        batch: &mut EventBatch,
        mut completed: impl FnMut(Operand, Result<()>),
    ) {
        let mut done = std::mem::take(&mut batch.done);
        for (number, status) in done.drain(..) {
            let Some(request) = self.requests.get_mut(number).and_then(Option::take) else { continue };
            if let Some(handle) = request.handle
                && let Some(_call) = self.gate.enter()
            {
                // SAFETY: L1: it has been called back, and is freed once.
                unsafe { self.ucx.ucp_request_free(handle.as_ptr()) };
            }
            self.free.push(number);
            let (operand, result) = self.complete(request, status);
            completed(operand, result);
        }
        batch.done = done;
    }

    /// Returns the error that UCX reported for the peer, if any.
    pub(super) fn lost(&self, batch: &mut EventBatch) -> Result<()> {
        let Some(status) = batch.lost.take() else { return Ok(()) };
        Err(Error::new(
            ErrorKind::PeerLost,
            format!("UCX reports the peer lost: {}", self.ucx.describe(status)),
        ))
    }

    /// Posts one request.
    fn post(
        &mut self,
        header: &[u8],
        operand: Operand,
        post: impl FnOnce(&Self, &UcxRequest, &mut ucp_request_param_t) -> ucs_status_ptr_t,
    ) -> PostResult {
        let gate = self.gate.clone();
        let Some(_call) = gate.enter() else { return PostResult::Failed(operand, process_exiting()) };
        let number = self.free.pop().unwrap_or_else(|| {
            let number = self.tokens.len();
            let token = RequestToken { events: self.events, number };
            self.tokens.push(NonNull::from(Box::leak(Box::new(token))));
            self.requests.push(None);
            number
        });
        let mut request = self.spare.pop().unwrap_or_default();
        request.load(header, operand);
        let mut call = ucp_request_param_t {
            op_attr_mask: UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
            user_data: self.tokens[number].as_ptr().cast(),
            ..Default::default()
        };
        match Posted::from(post(self, &request, &mut call)) {
            Posted::Pending(handle) => {
                request.handle = Some(handle);
                self.requests[number] = Some(request);
                PostResult::Pending
            }
            Posted::Done => {
                self.free.push(number);
                PostResult::Done(self.complete(request, UCS_OK).0)
            }
            Posted::Failed(status) => {
                self.free.push(number);
                let (operand, _) = self.complete(request, status);
                PostResult::Failed(operand, self.failure(status))
            }
        }
    }

    /// Turns the completion of a request into its operand and result.
    fn complete(&mut self, mut request: Box<UcxRequest>, status: ucs_status_t) -> (Operand, Result<()>) {
        let mut operand = std::mem::replace(&mut request.operand, Operand::Close);
        if self.spare.len() < SPARE_MAX {
            self.spare.push(request);
        }
        let result = if status == UCS_OK { Ok(()) } else { Err(self.failure(status)) };
        if let (Operand::PacketDestination(destination), Ok(())) = (&mut operand, &result) {
            for (buffer, len) in destination.parts() {
                let filled = buffer.len() + *len;
                // SAFETY: M4: UCX reported that all of the parts were written, each with so many bytes.
                unsafe { buffer.set_len(filled) };
            }
        }
        (operand, result)
    }

    /// Returns the error for a status on an open connection.
    pub(super) fn failure(&self, status: ucs_status_t) -> Error {
        Error::new(status::kind(status), format!("UCX reports: {}", self.ucx.describe(status)))
    }

    fn events(&self) -> &EventQueue {
        // SAFETY: L2: it is freed with this, and nothing has it exclusively.
        unsafe { self.events.as_ref() }
    }
}

impl Engine {
    /// Destroys the worker and with it everything in flight, whose memory is free afterwards.
    pub(super) fn destroy(&mut self, mut freed: impl FnMut(Operand)) {
        let gate = self.gate.clone();
        let Some((call, worker)) = gate.enter().zip(self.worker) else { return };
        self.worker = None;
        let mut batch = EventBatch::default();
        self.take_events(&mut batch);
        for received in batch.received.drain(..) {
            if let Received::Packet(incoming) = received {
                // SAFETY: L1: the handler kept it, and each incoming packet is released or received once.
                unsafe { self.ucx.ucp_am_data_release(worker, incoming.data.as_ptr()) };
            }
        }
        // SAFETY: L1: nothing calls it after this; L6: it destroys its transports too, so that neither this
        // process nor a device accesses what was in flight, and its endpoint with the requests queued on it.
        unsafe { self.ucx.ucp_worker_destroy(worker) };
        drop(call);
        self.requests.drain(..).flatten().for_each(|request| freed(request.operand));
        self.free.clear();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if !self.context.process.is_this() {
            std::mem::take(&mut self.requests).into_iter().for_each(std::mem::forget);
            return;
        }
        self.destroy(drop);
        if self.worker.is_some() {
            // The process is exiting, and another thread may be inside UCX.
            std::mem::take(&mut self.requests).into_iter().for_each(std::mem::forget);
            return;
        }
        for token in self.tokens.drain(..) {
            // SAFETY: L2: the worker is gone and calls back no more.
            drop(unsafe { Box::from_raw(token.as_ptr()) });
        }
        // SAFETY: L2: as above.
        drop(unsafe { Box::from_raw(self.events.as_ptr()) });
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let in_flight = self.requests.len() - self.free.len();
        f.debug_struct("Engine").field("ucx", self.ucx).field("in_flight", &in_flight).finish_non_exhaustive()
    }
}

impl Default for UcxRequest {
    fn default() -> Self {
        Self { header: Header::new(), parts: Vec::new(), operand: Operand::Close, handle: None }
    }
}

impl UcxRequest {
    /// Loads an operand, and lists the parts of its memory to send or to fill.
    fn load(&mut self, header: &[u8], operand: Operand) {
        self.header.clear();
        self.header.extend_from_slice(header);
        self.parts.clear();
        self.handle = None;
        self.operand = operand;
        let part = |pointer: *const u8, length| ucp_dt_iov_t { buffer: pointer.cast_mut().cast(), length };
        match &mut self.operand {
            Operand::Records(bytes) => self.parts.push(part(bytes.as_ptr(), bytes.len())),
            Operand::Packet(packet) => {
                self.parts.extend(packet.bytes.iter().map(|buffer| part(buffer.as_ptr(), buffer.len())));
            }
            Operand::PacketDestination(destination) => {
                self.parts.extend(destination.parts().iter_mut().filter(|(_, length)| *length > 0).map(
                    |(buffer, length)| {
                        let filled = buffer.len();
                        part(buffer.as_mut_ptr().wrapping_add(filled), *length)
                    },
                ));
            }
            Operand::Hello | Operand::Close => {}
        }
    }

    /// Returns the data argument of the call: the memory itself, or its list of parts.
    fn data(&self, call: &mut ucp_request_param_t) -> (*const c_void, usize) {
        call.op_attr_mask |= UCP_OP_ATTR_FIELD_MEMORY_TYPE;
        call.memory_type = UCS_MEMORY_TYPE_HOST;
        match self.parts.as_slice() {
            [] => (ptr::null(), 0),
            [part] => (part.buffer.cast_const(), part.length),
            parts => {
                call.op_attr_mask |= UCP_OP_ATTR_FIELD_DATATYPE;
                call.datatype = UCP_DATATYPE_IOV.into();
                (parts.as_ptr().cast(), parts.len())
            }
        }
    }
}

fn fill(destination: &mut PacketDestination, mut bytes: &[u8]) -> Result<()> {
    for (buffer, len) in destination.parts() {
        let (part, rest) = bytes
            .split_at_checked(*len)
            .ok_or_else(|| Error::new(ErrorKind::Corrupt, "payload is shorter than its destination"))?;
        buffer.extend_from_slice(part)?;
        bytes = rest;
    }
    Ok(())
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the UCX endpoint is closed")
}
