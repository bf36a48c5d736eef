//! Sends UCX's log to the standard error. By default it goes to the standard output, where a program's
//! results go.

#![expect(unsafe_code, reason = "calls into C")]

use std::ffi::c_char;

use libc::FILE;
use libloading::os::unix::Library as Handle;

use crate::library::function;
use crate::text::text_of;
use crate::version::Version;
use crate::{UCS_CONFIG_PRINT_CONFIG, UCS_OK, ucs_config_print_flags_t, ucs_status_t};

/// How the setting is printed while it is unset.
const UNSET: &str = "UCX_LOG_FILE=";

/// Redirects the log of a UCX that was just loaded, unless `UCX_LOG_FILE` is set. UCX reads that setting when
/// its log starts, which is while it is loaded; so this stops the log and starts it again. Setting the
/// environment variable during the load would be simpler, but threads of C code may read the environment.
///
/// Does nothing for untested versions, whose log may start differently.
pub(crate) fn to_standard_error(handle: &Handle, version: Version) -> Option<()> {
    type PrintGlobalOptions = unsafe extern "C" fn(*mut FILE, ucs_config_print_flags_t);
    type Set = unsafe extern "C" fn(*const c_char, *const c_char) -> ucs_status_t;
    type Act = unsafe extern "C" fn();
    if !version.is_proven() {
        return None;
    }
    // Reading the one setting would be simpler, but UCX confuses it with `LOG_FILE_FILTER`.
    let print = function::<PrintGlobalOptions>(handle, c"ucs_global_opts_print")?;
    let set = function::<Set>(handle, c"ucs_global_opts_set_value")?;
    let end = function::<Act>(handle, c"ucs_log_cleanup")?;
    let begin = function::<Act>(handle, c"ucs_log_init")?;
    // SAFETY: L1: `global_opts.h` declares it so in all these versions; L2: the stream is open for the call.
    let settings = text_of(|file| unsafe { print(file, UCS_CONFIG_PRINT_CONFIG) });
    settings.lines().find(|line| *line == UNSET)?;
    // SAFETY: L1: as above; L2: constants, which are copied; L4: nothing reads the setting.
    if unsafe { set(c"LOG_FILE".as_ptr(), c"stderr".as_ptr()) } != UCS_OK {
        return None;
    }
    // SAFETY: L4: nothing logs.
    unsafe { end() };
    // SAFETY: L4: likewise, and the log has ended.
    unsafe { begin() };
    Some(())
}
