//! Lists UCX's settings, and the name by which each is set. 1.13 to 1.20.0 accept a setting that does not
//! exist without an error. Up to 1.16 they also accept a transport's setting by its full name, without
//! effect.

#![expect(unsafe_code, reason = "calls into C")]

use std::collections::BTreeMap;
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

/// The prefix of settings in the environment, absent where they are set by name.
const PREFIX: &str = "UCX_";
/// Descriptions list the inherited names of a setting, and headings name the table.
const FLAGS: ucs_config_print_flags_t =
    UCS_CONFIG_PRINT_CONFIG | UCS_CONFIG_PRINT_HEADER | UCS_CONFIG_PRINT_DOC;
/// Words in the headings of tables that are read only when the library is loaded.
const READ_ONLY: [&str; 2] = ["read-only", "UCM configuration"];
/// The first words in the headings of tables that belong to no transport.
const GENERAL: [&str; 2] = ["# UCS ", "# UCP "];

/// How a setting is passed to UCX.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// `ucp_config_modify` takes it by this name.
    Named(String),
    /// Only the environment sets it, for the whole process: by name it would not apply to this transport
    /// alone. The names are the inherited settings, which can be set by name, for other transports too.
    OfProcess(Vec<String>),
    /// This UCX has no setting of that name.
    Unknown,
}

impl Library {
    /// Returns how the setting of this name, without `UCX_`, is set: one of `ucp`'s own, or of a transport
    /// that this UCX has. Settings that are read only when UCX is loaded (`LOG_FILE`, `MEM_EVENTS`) and
    /// deprecated ones are unknown. For versions newer than the tested ones every setting is `Named`: there
    /// `ucp_config_modify` itself refuses unknown ones.
    ///
    /// `ucp_config_modify` accepts an unparsable value of a transport's setting (`MM_ERROR_HANDLING`),
    /// without effect.
    #[must_use]
    pub fn setting(&self, name: &str) -> Setting {
        let settings = self.settings.get_or_init(|| {
            let handle = handle(self.path(), RTLD_NOLOAD).ok()?;
            let tables = tables(&listing(&handle, self.version())?);
            Some(settings(&tables, self.version() >= Version::TAKES_FULL_NAMES))
        });
        match settings {
            None => Setting::Named(name.to_owned()),
            Some(settings) => settings.get(name).cloned().unwrap_or(Setting::Unknown),
        }
    }
}

type Query = unsafe extern "C" fn(*mut *mut c_void, *mut c_uint) -> ucs_status_t;
type Release = unsafe extern "C" fn(*mut c_void);
type PrintSettings = unsafe extern "C" fn(*mut FILE, *const c_char, ucs_config_print_flags_t, *mut c_void);
type PrintSome =
    unsafe extern "C" fn(*mut FILE, *const c_char, ucs_config_print_flags_t, *mut c_void, *const c_char);

/// Returns all settings of UCX and its transports with their descriptions, as `ucx_info -cf` prints them;
/// `None` for untested versions, which may list them differently.
fn listing(handle: &Handle, version: Version) -> Option<String> {
    const PRINT: &CStr = c"ucs_config_parser_print_all_opts";
    const PREFIX: &CStr = c"UCX_";
    if !version.is_proven() {
        return None;
    }
    let query = function::<Query>(handle, c"uct_query_components")?;
    let release = function::<Release>(handle, c"uct_release_component_list")?;
    let (mut components, mut count) = (ptr::null_mut(), 0);
    // SAFETY: L1: `uct.h` declares it so in all these versions; L2: it writes to two locals. It loads the
    // transports that are modules.
    if unsafe { query(&raw mut components, &raw mut count) } == UCS_OK {
        // SAFETY: L1: the query returned it, and it is released once.
        unsafe { release(components) };
    }
    let tables = *function::<*mut c_void>(handle, c"ucs_config_global_list")?;
    if version < Version::FILTERS_SETTINGS {
        let print = function::<PrintSettings>(handle, PRINT)?;
        // SAFETY: L1: `ucs/config/parser.h` declares it so up to 1.18; L2: the stream and the constant live.
        return Some(text_of(|file| unsafe { print(file, PREFIX.as_ptr(), FLAGS, tables) }));
    }
    let print = function::<PrintSome>(handle, PRINT)?;
    // SAFETY: L1: and so from 1.19 on, where null means no filter; L2: as above.
    Some(text_of(|file| unsafe { print(file, PREFIX.as_ptr(), FLAGS, tables, ptr::null()) }))
}

/// One table of a listing.
#[derive(Debug, Default)]
struct Table {
    /// The table belongs to no transport: its names have no common prefix of their own.
    is_general: bool,
    /// Its settings, and their names in the tables that they inherit from (`POSIX_ERROR_HANDLING` is also
    /// `MM_ERROR_HANDLING`).
    own: Vec<(String, Vec<String>)>,
}

/// Parses the tables of a listing, except those that are read only when UCX is loaded.
fn tables(listing: &str) -> Vec<Table> {
    let mut tables = vec![Table::default()];
    let (mut is_read_only, mut inherited) = (false, Vec::new());
    let name = |text: &str| text.trim().strip_prefix(PREFIX).map(str::to_owned);
    for line in listing.lines() {
        if line.starts_with("# ") && line.ends_with(" configuration") {
            is_read_only = READ_ONLY.iter().any(|words| line.contains(words));
            let is_general = GENERAL.iter().any(|words| line.starts_with(words));
            tables.push(Table { is_general, ..Table::default() });
        }
        let Some(table) = tables.last_mut().filter(|_| !is_read_only) else { continue };
        if let Some(parents) = line.strip_prefix("# inherits:") {
            inherited = parents.split(',').filter_map(name).collect();
        } else if let Some(own) = line.split_once('=').and_then(|(left, _)| name(left)) {
            table.own.push((own, std::mem::take(&mut inherited)));
        }
    }
    tables
}

/// Returns how each setting is set. Versions that take full names use the full name. Earlier ones use the
/// name within the table, if no other table has that name.
fn settings(tables: &[Table], takes_full_names: bool) -> BTreeMap<String, Setting> {
    let shorts = tables.iter().flat_map(|table| {
        let beginning = beginning(&table.own);
        table.own.iter().map(move |(name, _)| &name[beginning..])
    });
    let inherited = || tables.iter().flat_map(|table| &table.own).flat_map(|(_, inherited)| inherited);
    let shorts: Vec<&str> = shorts.chain(inherited().map(String::as_str)).collect();
    let is_alone = |short: &str| shorts.iter().filter(|known| **known == short).count() == 1;
    let mut settings = BTreeMap::new();
    for table in tables {
        let beginning = beginning(&table.own);
        for (name, inherited) in &table.own {
            let is_own = |short: &&str| beginning > 0 && inherited.is_empty() && is_alone(short);
            let short = Some(&name[beginning..]).filter(is_own);
            let setting = match short {
                _ if takes_full_names || table.is_general => Setting::Named(name.clone()),
                Some(short) => Setting::Named(short.to_owned()),
                None => Setting::OfProcess(inherited.clone()),
            };
            settings.insert(name.clone(), setting);
        }
    }
    settings.extend(inherited().map(|name| (name.clone(), Setting::Named(name.clone()))));
    settings
}

/// Returns the length of the common prefix of a table's names (`TCP_`), or 0 for a table with a single name.
fn beginning(own: &[(String, Vec<String>)]) -> usize {
    let Some(((first, _), others @ [_, ..])) = own.split_first() else { return 0 };
    let common =
        |name: &str| first.bytes().zip(name.bytes()).take_while(|(left, right)| left == right).count();
    let common = others.iter().map(|(name, _)| common(name)).min().unwrap_or(0);
    first[..common].rfind('_').map_or(0, |end| end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_settable_names_are_listed() {
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
        let names = |listing| settings(&tables(listing), true).into_keys().collect::<Vec<_>>();
        assert_eq!(
            names(listing),
            ["MM_ERROR_HANDLING", "NET_DEVICES", "POSIX_ERROR_HANDLING", "SM_ERROR_HANDLING"]
        );
        assert_eq!(names(""), [""; 0]);
    }

    #[test]
    fn old_versions_take_unique_names_without_prefix() {
        let listing = "\
# UCP context configuration
UCX_TLS=all
UCX_TX_RATIO=1
# tcp transport configuration
# inherits:  UCX_ALLOC
UCX_TCP_ALLOC=heap
UCX_TCP_RX_SEG_SIZE=64K
UCX_TCP_TX_RATIO=2
UCX_TCP_MAX_POLL=16
# TCP memory domain configuration
UCX_TCP_AF_PRIO=inet
# ud transport configuration
UCX_UD_MAX_POLL=16
UCX_UD_TX_LEN=2
";
        let named = |name: &str| Some(Setting::Named(name.to_owned()));
        let [old, new] = [false, true].map(|takes_full_names| settings(&tables(listing), takes_full_names));
        for (name, expected) in [
            ("TLS", named("TLS")),
            ("ALLOC", named("ALLOC")),
            ("TCP_ALLOC", Some(Setting::OfProcess(vec!["ALLOC".to_owned()]))),
            ("TCP_RX_SEG_SIZE", named("RX_SEG_SIZE")),
            ("TX_RATIO", named("TX_RATIO")),
            ("TCP_TX_RATIO", Some(Setting::OfProcess(Vec::new()))),
            ("TCP_MAX_POLL", Some(Setting::OfProcess(Vec::new()))),
            ("UD_MAX_POLL", Some(Setting::OfProcess(Vec::new()))),
            ("TCP_AF_PRIO", Some(Setting::OfProcess(Vec::new()))),
            ("UD_TX_LEN", named("TX_LEN")),
            ("RX_SEG_SIZE", None),
        ] {
            assert_eq!(old.get(name), expected.as_ref(), "{name}");
            assert_eq!(new.get(name).cloned(), expected.and_then(|_| named(name)), "{name}");
        }
    }
}
