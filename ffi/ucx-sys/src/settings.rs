//! Which settings there are: 1.13 to 1.20.0 accept one that does not exist without a word, and it has no effect.

#![expect(unsafe_code, reason = "what is called is C")]

use std::collections::BTreeSet;
use std::ffi::{CStr, c_char, c_uint, c_void};
use std::ptr;

use libc::{FILE, RTLD_NOLOAD};
use libloading::os::unix::Library as Handle;

use crate::library::{Library, function, handle};
use crate::text::text_of;
use crate::version::Version;
use crate::{
    UCS_CONFIG_PRINT_CONFIG, UCS_CONFIG_PRINT_DOC, UCS_CONFIG_PRINT_HEADER, UCS_OK, ucs_config_print_flags_t,
    ucs_status_t,
};

/// What settings begin with in the environment, and not where they are set by name.
const PREFIX: &str = "UCX_";
/// The descriptions tell under which other names a setting goes, and the headings of which table it is.
const FLAGS: ucs_config_print_flags_t =
    UCS_CONFIG_PRINT_CONFIG | UCS_CONFIG_PRINT_HEADER | UCS_CONFIG_PRINT_DOC;
/// Words in the headings of tables that are read once, when the library is loaded.
const READ_ONLY: [&str; 2] = ["read-only", "UCM configuration"];

impl Library {
    /// Whether `ucp_config_modify` knows a setting of this name, which is without `UCX_`: one of `ucp`'s own, or of a transport
    /// that this UCX has. Not one that is read only when UCX is loaded (`LOG_FILE`, `MEM_EVENTS`), nor one that is deprecated. Of a
    /// version newer than those tried it says that it knows all: there `ucp_config_modify` itself refuses what is none.
    ///
    /// A value of a transport's setting (`TCP_TX_SEG_SIZE`) that does not parse is accepted by `ucp_config_modify`, and has no effect.
    #[must_use]
    pub fn knows_setting(&self, name: &str) -> bool {
        let settings = self.settings.get_or_init(|| {
            let handle = handle(self.path(), RTLD_NOLOAD).ok()?;
            Some(names(&listing(&handle, self.version())?))
        });
        settings.as_ref().is_none_or(|settings| settings.contains(name))
    }
}

type Query = unsafe extern "C" fn(*mut *mut c_void, *mut c_uint) -> ucs_status_t;
type Release = unsafe extern "C" fn(*mut c_void);
type Print = unsafe extern "C" fn(*mut FILE, *const c_char, ucs_config_print_flags_t, *mut c_void);
type PrintSome =
    unsafe extern "C" fn(*mut FILE, *const c_char, ucs_config_print_flags_t, *mut c_void, *const c_char);

/// All settings of UCX and of its transports with their descriptions, as `ucx_info -cf` prints them; nothing of a version that may
/// have another way.
fn listing(handle: &Handle, version: Version) -> Option<String> {
    const PRINT: &CStr = c"ucs_config_parser_print_all_opts";
    const PREFIX: &CStr = c"UCX_";
    if !version.is_proven() {
        return None;
    }
    let query = function::<Query>(handle, c"uct_query_components")?;
    let release = function::<Release>(handle, c"uct_release_component_list")?;
    let (mut components, mut count) = (ptr::null_mut(), 0);
    // SAFETY: L1: `uct.h` has it so in all these versions; L2: it writes to two locals. It loads the transports that are modules.
    if unsafe { query(&raw mut components, &raw mut count) } == UCS_OK {
        // SAFETY: L1: it came from there, and is released once.
        unsafe { release(components) };
    }
    let tables = *function::<*mut c_void>(handle, c"ucs_config_global_list")?;
    if version < Version::FILTERS_SETTINGS {
        let print = function::<Print>(handle, PRINT)?;
        // SAFETY: L1: `ucs/config/parser.h` has it so up to 1.18; L2: the stream and the constant live.
        return Some(text_of(|file| unsafe { print(file, PREFIX.as_ptr(), FLAGS, tables) }));
    }
    let print = function::<PrintSome>(handle, PRINT)?;
    // SAFETY: L1: and so from 1.19 on, where no filter is none; L2: as above.
    Some(text_of(|file| unsafe { print(file, PREFIX.as_ptr(), FLAGS, tables, ptr::null()) }))
}

/// The names in a listing: each setting's, and what it is called in the tables that it inherits from (`POSIX_ERROR_HANDLING` is
/// also `MM_ERROR_HANDLING`).
fn names(listing: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut is_read_only = false;
    for line in listing.lines() {
        if line.starts_with("# ") && line.ends_with(" configuration") {
            is_read_only = READ_ONLY.iter().any(|words| line.contains(words));
        }
        let found = match line.strip_prefix("# inherits:") {
            Some(parents) => parents,
            None => line.split_once('=').map_or("", |(name, _)| name),
        };
        if !is_read_only {
            let found = found.split(',').filter_map(|name| name.trim().strip_prefix(PREFIX));
            names.extend(found.map(str::to_owned));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_can_be_set() {
        let listing = "\
#
# UCS global (runtime read-only) configuration
#
UCX_LOG_FILE=

# UCM configuration
UCX_MEM_EVENTS=y

# posix transport configuration
#
# Whether UCX_SOMETHING=y, or UCX_OTHER
#
# syntax:    <y|n>
# inherits:  UCX_MM_ERROR_HANDLING, UCX_SM_ERROR_HANDLING
#
UCX_POSIX_ERROR_HANDLING=n
UCX_POSIX_OLD (deprecated)
UCX_NET_DEVICES=all,UCX_TLS=x
";
        let expected = ["MM_ERROR_HANDLING", "NET_DEVICES", "POSIX_ERROR_HANDLING", "SM_ERROR_HANDLING"]
            .map(str::to_owned);
        assert_eq!(names(listing), BTreeSet::from(expected));
        assert_eq!(names(""), BTreeSet::new());
    }
}
