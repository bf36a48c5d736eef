//! A UCX context with one set of settings, shared by its workers.

#![expect(unsafe_code, reason = "calls into C")]

use std::ffi::CString;
use std::fmt;
use std::ptr;
use std::sync::Arc;

use rustix::process::{Resource, getrlimit};
use ucx_sys::*;

use super::exit_gate::ExitGate;
use super::info::check_transports;
use super::settings::name_for;
use super::status;
use crate::error::{Error, ErrorKind, Result};
use crate::platform::process::Process;

/// The state shared by the workers of one endpoint with the same settings.
pub(super) struct Context {
    pub(super) ucx: &'static Library,
    pub(super) context: ucp_context_h,
    /// The transports that it may use, with their devices.
    pub(super) transports: Vec<String>,
    gate: Arc<ExitGate>,
    pub(super) process: Process,
}

// SAFETY: L5: the context was created for workers that are created and used by several threads.
unsafe impl Send for Context {}
// SAFETY: L5: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Creates a context with these settings.
    pub(super) fn open(ucx: &'static Library, settings: &[(String, String)]) -> Result<Self> {
        let gate = ExitGate::new();
        let call = gate.enter().ok_or_else(process_exiting)?;
        let context = open_context(ucx, settings)?;
        // SAFETY: L1: the context lives.
        let transports = unsafe { ucx.transports(context) };
        drop(call);
        Ok(Self { ucx, context, transports, gate, process: Process::current() })
    }

    /// Returns the memory kinds that it supports, one bit each.
    pub(super) fn memory_kinds(&self) -> u64 {
        let Some(_call) = self.gate.enter() else { return 0 };
        let field_mask = UCP_ATTR_FIELD_MEMORY_TYPES.into();
        let mut about = ucp_context_attr_t { field_mask, ..Default::default() };
        // SAFETY: L1: the context lives; L2: it writes to a local.
        let queried = unsafe { self.ucx.ucp_context_query(self.context, &raw mut about) };
        if queried == UCS_OK { about.memory_types } else { 1 << UCS_MEMORY_TYPE_HOST }
    }

    /// Refuses what could abort this process: a version with a fault over these transports, unless
    /// `allows_any` is set, and shared-memory files that the file size limit forbids.
    pub(super) fn check(&self, within_host: bool, allows_any: bool) -> Result<()> {
        check_transports(self.ucx.version(), &self.transports, within_host, allows_any)?;
        match getrlimit(Resource::Fsize).current {
            // UCX writes all pages of a segment, and exceeding the limit raises `SIGXFSZ`. The limit may be
            // lowered at any time.
            Some(limit) if self.uses_posix() => Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "UCX over posix writes files of some MiB, and the limit on their size is {limit} bytes (RLIMIT_FSIZE): \
                     raise it (`ulimit -f`), or leave posix out of TLS"
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Returns true if it may use shared memory with names in the file system.
    pub(super) fn uses_posix(&self) -> bool {
        is_over_posix(&self.transports)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.process.is_this()
            && let Some(_call) = self.gate.enter()
        {
            // SAFETY: L1: every worker holds it, so that none is left.
            unsafe { self.ucx.ucp_cleanup(self.context) };
        }
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("ucx", self.ucx).finish_non_exhaustive()
    }
}

/// Returns true if one of these transports is shared memory with names in the file system.
pub(super) fn is_over_posix(transports: &[String]) -> bool {
    transports.iter().any(|transport| transport.starts_with("posix/"))
}

/// A note for users of the posix transport.
pub(super) const POSIX_NOTE: &str = "posix leaves segments in /dev/shm (ucx_shm_posix_…) when a process is killed while it \
    connects; TLS without posix has sysv, which leaves none";

/// Returns the error for a status while opening.
pub(super) fn open_error(ucx: &Library, status: ucs_status_t, what: &str) -> Error {
    Error::new(status::opening_kind(status), format!("{what}: {}", ucx.describe(status)))
}

/// Returns the error for calls that are no longer made.
pub(super) fn process_exiting() -> Error {
    Error::new(ErrorKind::Closed, "the process ends")
}

fn open_context(ucx: &Library, settings: &[(String, String)]) -> Result<ucp_context_h> {
    let (mut config, mut context) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: L2: it writes to a local; without a prefix or a file.
    let read = unsafe { ucx.ucp_config_read(ptr::null(), ptr::null(), &raw mut config) };
    if read != UCS_OK {
        return Err(open_error(ucx, read, "its configuration cannot be read"));
    }
    let modified = settings.iter().try_for_each(|(name, value)| {
        let invalid = |why: String| Error::new(ErrorKind::Invalid, why);
        let no_text = |_| invalid(format!("{name}={value}: it contains a zero byte"));
        let (name_c, value_c) =
            (CString::new(name_for(ucx, name)).map_err(no_text)?, CString::new(&**value).map_err(no_text)?);
        // SAFETY: L1: the configuration was read above; L2: both are read during the call.
        let status = unsafe { ucx.ucp_config_modify(config, name_c.as_ptr(), value_c.as_ptr()) };
        if status == UCS_OK {
            return Ok(());
        }
        Err(invalid(format!("UCX rejects {name}={value}: {}", ucx.describe(status))))
    });
    let params = ucp_params_t {
        field_mask: (UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED).into(),
        features: (UCP_FEATURE_AM | UCP_FEATURE_WAKEUP).into(),
        mt_workers_shared: 1,
        ..Default::default()
    };
    let status = modified.map(|()| {
        // SAFETY: L1: the version is that of the bindings; L2: it reads locals and writes to one.
        unsafe {
            ucx.ucp_init_version(UCP_API_MAJOR, UCP_API_MINOR, &raw const params, config, &raw mut context)
        }
    });
    // SAFETY: L1: it was read above, and the context has its own copy.
    unsafe { ucx.ucp_config_release(config) };
    match status? {
        UCS_OK => Ok(context),
        status => Err(open_error(ucx, status, "no context can be created")),
    }
}
