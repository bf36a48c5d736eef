//! A UCX context, a worker, and an endpoint that leads to that worker or to another.
#![expect(unsafe_code, reason = "every call is C")]

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_int, c_void};
use std::ptr;
use std::slice;
use std::time::{Duration, Instant};

use ucx_sys::*;

use crate::config::Config;

/// The time limit of each operation.
const TIMEOUT: Duration = Duration::from_secs(20);
const MESSAGE_ID: u32 = 7;
/// Settings for loopback alone.
const LOOPBACK: [(&CStr, &CStr); 2] = [(c"TLS", c"tcp"), (c"NET_DEVICES", c"lo")];

/// A message that UCX announced.
#[derive(Debug)]
pub(crate) struct ArrivedMessage {
    pub(crate) header: Vec<u8>,
    pub(crate) len: usize,
    /// Whether the bytes are still at the sender.
    pub(crate) is_rendezvous: bool,
    descriptor: *mut c_void,
}

#[derive(Debug)]
pub(crate) struct Node {
    ucx: &'static Library,
    context: ucp_context_h,
    worker: ucp_worker_h,
    endpoint: ucp_ep_h,
    /// The limit on a message's header, in bytes.
    pub(crate) header_len_max: usize,
    /// The messages that the handler received; on the heap, since UCX has the address.
    arrived: Box<RefCell<Vec<ArrivedMessage>>>,
}

impl Node {
    pub(crate) fn new(ucx: &'static Library) -> Self {
        Self::with(ucx, &LOOPBACK)
    }

    /// Creates a node with settings of UCX.
    pub(crate) fn with(ucx: &'static Library, settings: &[(&CStr, &CStr)]) -> Self {
        Self::attach(ucx, settings, <[u8]>::to_vec)
    }

    /// Creates a node whose endpoint leads to another worker. `peer_address` gets this worker's address, and
    /// returns the other's.
    pub(crate) fn attach(
        ucx: &'static Library,
        settings: &[(&CStr, &CStr)],
        peer_address: impl FnOnce(&[u8]) -> Vec<u8>,
    ) -> Self {
        let context = context(ucx, settings).unwrap_or_else(|status| panic!("{}", ucx.describe(status)));
        let (worker, header_len_max) = worker(ucx, context);
        let arrived = Box::default();
        listen(ucx, worker, &arrived);
        let endpoint = endpoint(ucx, worker, &peer_address(&address(ucx, worker)));
        Self { ucx, context, worker, endpoint, header_len_max, arrived }
    }

    /// Returns the worker's address.
    pub(crate) fn address(&self) -> Vec<u8> {
        address(self.ucx, self.worker)
    }

    /// Returns the supported kinds of memory as a bit mask.
    pub(crate) fn memory_kinds(&self) -> u64 {
        let field_mask = UCP_ATTR_FIELD_MEMORY_TYPES.into();
        let mut about = ucp_context_attr_t { field_mask, ..Default::default() };
        // SAFETY: L1: the context lives as long as `self`; L2: the call writes to a local.
        ok(self.ucx, unsafe { self.ucx.ucp_context_query(self.context, &raw mut about) });
        about.memory_types
    }

    /// Returns the transports that the context could use.
    pub(crate) fn transports(&self) -> Vec<String> {
        // SAFETY: L1: the context lives as long as `self`.
        unsafe { self.ucx.transports(self.context) }
    }

    /// Returns the transports that the endpoint uses.
    pub(crate) fn transports_in_use(&self) -> Vec<String> {
        // SAFETY: L1: the endpoint lives as long as `self`, and one thread uses its worker.
        unsafe { self.ucx.transports_of(self.endpoint) }
    }

    /// Arms the worker. Returns the descriptor that becomes readable with work, and the status.
    pub(crate) fn arm(&self) -> (c_int, ucs_status_t) {
        let mut descriptor = -1;
        // SAFETY: L1: the worker lives as long as `self`; L2: the call writes to a local.
        ok(self.ucx, unsafe { self.ucx.ucp_worker_get_efd(self.worker, &raw mut descriptor) });
        // SAFETY: L1: as above.
        (descriptor, unsafe { self.ucx.ucp_worker_arm(self.worker) })
    }

    /// Posts a message to the endpoint's worker. [`finish`](Self::finish) completes it.
    pub(crate) fn send<'a>(&self, header: &[u8], body: &'a [u8], flag: ucp_send_am_flags) -> Sending<'a> {
        self.send_as(MESSAGE_ID, header, body.into(), flag)
    }

    /// Posts a message with another id.
    pub(crate) fn send_as<'a>(
        &self,
        id: u32,
        header: &[u8],
        body: Cow<'a, [u8]>,
        flag: ucp_send_am_flags,
    ) -> Sending<'a> {
        let (done, header) = (Box::new(Cell::new(None)), header.to_vec());
        let call = ucp_request_param_t {
            op_attr_mask: UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS,
            flags: flag,
            cb: ucp_request_param_t__bindgen_ty_1 { send: Some(sent) },
            user_data: ptr::from_ref(&*done).cast_mut().cast(),
            ..Default::default()
        };
        // SAFETY: L1: the endpoint lives as long as `self`; M3: `Sending` holds header and body.
        let posted = unsafe {
            self.ucx.ucp_am_send_nbx(
                self.endpoint,
                id,
                header.as_ptr().cast(),
                header.len(),
                body.as_ptr().cast(),
                body.len(),
                &raw const call,
            )
        };
        Sending { posted: posted.into(), done, _header: header, _body: body }
    }

    /// Waits for a message.
    pub(crate) fn next(&self) -> ArrivedMessage {
        self.until("a message", || self.arrived.borrow_mut().pop())
    }

    /// Waits until UCX has released the sender's memory.
    pub(crate) fn finish(&self, sending: &Sending<'_>) {
        self.wait_for(sending.posted, &sending.done);
    }

    /// Returns the bytes of a message, fetched or copied, and releases its descriptor.
    pub(crate) fn take(&self, arrived: &ArrivedMessage) -> Vec<u8> {
        let mut body = vec![0; arrived.len];
        if !arrived.is_rendezvous {
            // SAFETY: L1: the descriptor is `len` bytes of the worker until it is released, below.
            body.copy_from_slice(unsafe { slice::from_raw_parts(arrived.descriptor.cast(), arrived.len) });
            // SAFETY: L1: the handler kept it, and each is released once.
            unsafe { self.ucx.ucp_am_data_release(self.worker, arrived.descriptor) };
            return body;
        }
        let done = Box::new(Cell::new(None));
        let call = ucp_request_param_t {
            op_attr_mask: UCP_OP_ATTR_FIELD_CALLBACK
                | UCP_OP_ATTR_FIELD_USER_DATA
                | UCP_OP_ATTR_FLAG_NO_IMM_CMPL,
            cb: ucp_request_param_t__bindgen_ty_1 { recv_am: Some(fetched) },
            user_data: ptr::from_ref(&*done).cast_mut().cast(),
            ..Default::default()
        };
        // SAFETY: L1: the handler kept the descriptor; M3: the body lives until `wait_for` returns, below.
        let posted = unsafe {
            self.ucx.ucp_am_recv_data_nbx(
                self.worker,
                arrived.descriptor,
                body.as_mut_ptr().cast(),
                body.len(),
                &raw const call,
            )
        };
        self.wait_for(posted.into(), &done);
        body
    }

    /// Polls the worker 100 times.
    pub(crate) fn progress(&self) {
        for _ in 0..100 {
            // SAFETY: L1: the worker lives as long as `self`, and one thread uses it.
            unsafe { self.ucx.ucp_worker_progress(self.worker) };
        }
    }

    fn wait_for(&self, posted: Posted, done: &Cell<Option<ucs_status_t>>) {
        let request = match posted {
            Posted::Done => return,
            Posted::Failed(status) => panic!("{}", self.ucx.describe(status)),
            Posted::Pending(request) => request,
        };
        ok(self.ucx, self.until("a callback", || done.get()));
        // SAFETY: L1: its callback has run, and it is freed once.
        unsafe { self.ucx.ucp_request_free(request.as_ptr()) };
    }

    fn until<T>(&self, what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(value) = ready() {
                return value;
            }
            // SAFETY: L1: the worker lives as long as `self`, and one thread uses it.
            unsafe { self.ucx.ucp_worker_progress(self.worker) };
            assert!(Instant::now() < deadline, "no {what} within {TIMEOUT:?}");
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let done = Box::new(Cell::new(None));
        let call = ucp_request_param_t {
            op_attr_mask: UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS,
            // The peer may have ended.
            flags: UCP_EP_CLOSE_FLAG_FORCE,
            cb: ucp_request_param_t__bindgen_ty_1 { send: Some(sent) },
            user_data: ptr::from_ref(&*done).cast_mut().cast(),
            ..Default::default()
        };
        // SAFETY: L1: nothing uses the endpoint after this.
        let posted = unsafe { self.ucx.ucp_ep_close_nbx(self.endpoint, &raw const call) };
        self.wait_for(posted.into(), &done);
        // SAFETY: L1: its only endpoint is closed.
        unsafe { self.ucx.ucp_worker_destroy(self.worker) };
        // SAFETY: L1: its only worker is destroyed.
        unsafe { self.ucx.ucp_cleanup(self.context) };
    }
}

/// A posted message. UCX may read its memory until it is finished.
#[derive(Debug)]
pub(crate) struct Sending<'a> {
    posted: Posted,
    done: Box<Cell<Option<ucs_status_t>>>,
    _header: Vec<u8>,
    _body: Cow<'a, [u8]>,
}

#[track_caller]
fn ok(ucx: &Library, status: ucs_status_t) {
    assert_eq!(status, UCS_OK, "{}", ucx.describe(status));
}

/// Creates a context with settings, or returns UCX's status.
pub(crate) fn context(ucx: &Library, settings: &[(&CStr, &CStr)]) -> Result<ucp_context_h, ucs_status_t> {
    let config = Config::new(ucx);
    for (name, value) in settings {
        ok(ucx, config.set(name, value));
    }
    let params = ucp_params_t {
        field_mask: UCP_PARAM_FIELD_FEATURES.into(),
        features: (UCP_FEATURE_AM | UCP_FEATURE_WAKEUP).into(),
        ..Default::default()
    };
    let mut context = ptr::null_mut();
    // SAFETY: L1: the version is that of the bindings; L2: the call reads locals and writes to one.
    let status = unsafe {
        ucx.ucp_init_version(
            UCP_API_MAJOR,
            UCP_API_MINOR,
            &raw const params,
            config.as_ptr(),
            &raw mut context,
        )
    };
    if status == UCS_OK { Ok(context) } else { Err(status) }
}

/// Creates a worker. Returns it and its limit on headers.
fn worker(ucx: &Library, context: ucp_context_h) -> (ucp_worker_h, usize) {
    let params = ucp_worker_params_t {
        field_mask: UCP_WORKER_PARAM_FIELD_THREAD_MODE.into(),
        thread_mode: UCS_THREAD_MODE_SERIALIZED,
        ..Default::default()
    };
    let mut worker = ptr::null_mut();
    // SAFETY: L1: the context lives; L2: the call reads a local and writes to one.
    ok(ucx, unsafe { ucx.ucp_worker_create(context, &raw const params, &raw mut worker) });
    let mut about = ucp_worker_attr_t {
        field_mask: (UCP_WORKER_ATTR_FIELD_THREAD_MODE | UCP_WORKER_ATTR_FIELD_MAX_AM_HEADER).into(),
        ..Default::default()
    };
    // SAFETY: L1: the worker lives; L2: the call writes to a local.
    ok(ucx, unsafe { ucx.ucp_worker_query(worker, &raw mut about) });
    assert_eq!(about.thread_mode, UCS_THREAD_MODE_SERIALIZED);
    assert!((1024..1 << 20).contains(&about.max_am_header), "{}", about.max_am_header);
    (worker, about.max_am_header)
}

fn listen(ucx: &Library, worker: ucp_worker_h, arrived: &RefCell<Vec<ArrivedMessage>>) {
    // Set all handlers up to the id, an even number of them, the last first: the older UCX calls entries of its
    // table that were never set.
    (0..=MESSAGE_ID).rev().for_each(|id| listen_to(ucx, worker, id, arrived));
}

fn listen_to(ucx: &Library, worker: ucp_worker_h, id: u32, arrived: &RefCell<Vec<ArrivedMessage>>) {
    let handler = ucp_am_handler_param_t {
        field_mask: (UCP_AM_HANDLER_PARAM_FIELD_ID
            | UCP_AM_HANDLER_PARAM_FIELD_FLAGS
            | UCP_AM_HANDLER_PARAM_FIELD_CB
            | UCP_AM_HANDLER_PARAM_FIELD_ARG)
            .into(),
        id,
        flags: UCP_AM_FLAG_WHOLE_MSG | UCP_AM_FLAG_PERSISTENT_DATA,
        cb: Some(on_message),
        arg: ptr::from_ref(arrived).cast_mut().cast(),
    };
    // SAFETY: L1: the worker lives, and is destroyed before the handler's argument; L2: the call reads a local.
    ok(ucx, unsafe { ucx.ucp_worker_set_am_recv_handler(worker, &raw const handler) });
}

/// Returns the worker's address.
fn address(ucx: &Library, worker: ucp_worker_h) -> Vec<u8> {
    let mut about =
        ucp_worker_attr_t { field_mask: UCP_WORKER_ATTR_FIELD_ADDRESS.into(), ..Default::default() };
    // SAFETY: L1: the worker lives; L2: the call writes to a local.
    ok(ucx, unsafe { ucx.ucp_worker_query(worker, &raw mut about) });
    assert!(!about.address.is_null() && about.address_length > 0);
    // SAFETY: L1: the address has this length until it is released, below.
    let address = unsafe { slice::from_raw_parts(about.address.cast::<u8>(), about.address_length) }.to_vec();
    // SAFETY: L1: the query returned it, and it is released once.
    unsafe { ucx.ucp_worker_release_address(worker, about.address) };
    address
}

fn endpoint(ucx: &Library, worker: ucp_worker_h, address: &[u8]) -> ucp_ep_h {
    let params = ucp_ep_params_t {
        field_mask: (UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE).into(),
        address: address.as_ptr().cast(),
        err_mode: UCP_ERR_HANDLING_MODE_PEER,
        ..Default::default()
    };
    let mut endpoint = ptr::null_mut();
    // SAFETY: L1: worker and address live; L2: the call reads a local and writes to one.
    ok(ucx, unsafe { ucx.ucp_ep_create(worker, &raw const params, &raw mut endpoint) });
    endpoint
}

unsafe extern "C" fn sent(_: *mut c_void, status: ucs_status_t, done: *mut c_void) {
    // SAFETY: L2: the poster of the operation holds the cell until this callback runs.
    unsafe { &*done.cast::<Cell<Option<ucs_status_t>>>() }.set(Some(status));
}

unsafe extern "C" fn fetched(request: *mut c_void, status: ucs_status_t, _: usize, done: *mut c_void) {
    // SAFETY: L2: as in `sent`.
    unsafe { sent(request, status, done) };
}

/// Stores an incoming message with its descriptor.
unsafe extern "C" fn on_message(
    arrived: *mut c_void,
    header: *const c_void,
    header_len: usize,
    descriptor: *mut c_void,
    len: usize,
    about: *const ucp_am_recv_param_t,
) -> ucs_status_t {
    // SAFETY: L2: the queue belongs to the node, which outlives its worker.
    let arrived = unsafe { &*arrived.cast::<RefCell<Vec<ArrivedMessage>>>() };
    // SAFETY: L2: UCX's description of the message is valid during the call.
    let about = unsafe { (*about).recv_attr };
    let is = |flag: ucp_am_recv_attr_t| about & u64::from(flag) != 0;
    // SAFETY: L2: the header is valid during the call.
    let header = unsafe { slice::from_raw_parts(header.cast::<u8>(), header_len) }.to_vec();
    let is_rendezvous = is(UCP_AM_RECV_ATTR_FLAG_RNDV);
    assert!(is_rendezvous || is(UCP_AM_RECV_ATTR_FLAG_DATA), "the handler requires persistent data");
    arrived.borrow_mut().push(ArrivedMessage { header, len, is_rendezvous, descriptor });
    UCS_INPROGRESS
}
