//! UCX's log goes to the standard error: by default it goes to the standard output, where a program's results go.

#![expect(unsafe_code, reason = "what is called is C")]

use std::ffi::c_char;

use libc::FILE;
use libloading::os::unix::Library as Handle;

use crate::library::function;
use crate::text::text_of;
use crate::version::Version;
use crate::{UCS_CONFIG_PRINT_CONFIG, UCS_OK, ucs_config_print_flags_t, ucs_status_t};

/// How the setting is printed as long as nobody has said where the log goes.
const UNSAID: &str = "UCX_LOG_FILE=";

/// Sends the log of a UCX that was loaded just now elsewhere, unless somebody has said where it goes. That setting is read when the
/// log begins, which it did while UCX was loaded; so it ends and begins again. To have it in the environment for the time of
/// the loading would be simpler, but threads of C code may be reading that.
///
/// Nothing is done to a version that may begin otherwise.
pub(crate) fn to_standard_error(handle: &Handle, version: Version) -> Option<()> {
    type Print = unsafe extern "C" fn(*mut FILE, ucs_config_print_flags_t);
    type Set = unsafe extern "C" fn(*const c_char, *const c_char) -> ucs_status_t;
    type Act = unsafe extern "C" fn();
    if !version.is_proven() {
        return None;
    }
    // To get the one would be simpler, but UCX takes `LOG_FILE_FILTER` for it.
    let print = function::<Print>(handle, c"ucs_global_opts_print")?;
    let set = function::<Set>(handle, c"ucs_global_opts_set_value")?;
    let end = function::<Act>(handle, c"ucs_log_cleanup")?;
    let begin = function::<Act>(handle, c"ucs_log_init")?;
    // SAFETY: L1: `global_opts.h` has it so in all these versions; L2: the stream is open for the call.
    let settings = text_of(|file| unsafe { print(file, UCS_CONFIG_PRINT_CONFIG) });
    settings.lines().find(|line| *line == UNSAID)?;
    // SAFETY: L1: as above; L2: constants, which are copied; L4: nobody reads the setting.
    if unsafe { set(c"LOG_FILE".as_ptr(), c"stderr".as_ptr()) } != UCS_OK {
        return None;
    }
    // SAFETY: L4: nobody logs.
    unsafe { end() };
    // SAFETY: L4: likewise, and it has ended.
    unsafe { begin() };
    Some(())
}
