//! A UCX configuration that is read and released.
#![expect(unsafe_code, reason = "every call is C")]

use std::ffi::CStr;
use std::ptr;

use ucx_sys::{Library, UCS_OK, ucp_config_t, ucs_status_t};

#[derive(Debug)]
pub(crate) struct Config<'a> {
    ucx: &'a Library,
    config: *mut ucp_config_t,
}

impl<'a> Config<'a> {
    /// Reads the configuration of the environment, without a prefix or a file.
    pub(crate) fn new(ucx: &'a Library) -> Self {
        let mut config = ptr::null_mut();
        // SAFETY: L2: the call writes to a local.
        let status = unsafe { ucx.ucp_config_read(ptr::null(), ptr::null(), &raw mut config) };
        assert_eq!(status, UCS_OK, "{}", ucx.describe(status));
        Self { ucx, config }
    }

    pub(crate) fn set(&self, name: &CStr, value: &CStr) -> ucs_status_t {
        // SAFETY: L1: the configuration lives as long as `self`; L2: the strings end in zero and are copied.
        unsafe { self.ucx.ucp_config_modify(self.config, name.as_ptr(), value.as_ptr()) }
    }

    pub(crate) fn as_ptr(&self) -> *const ucp_config_t {
        self.config
    }
}

impl Drop for Config<'_> {
    fn drop(&mut self) {
        // SAFETY: L1: it was read once and is released once, and contexts have their own copies.
        unsafe { self.ucx.ucp_config_release(self.config) };
    }
}
