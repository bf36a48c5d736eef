//! Finds and checks a UCX, and refuses a second copy.
#![expect(unsafe_code, reason = "loads libraries as other code of a process may")]

use std::ffi::CStr;
use std::fs;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::process::Command;

use ucx_sys::{FUNCTIONS, Library, Unavailable};

use towline_tests::libraries::Installed;

pub(crate) fn opens_by_its_path_once(installed: &Installed) {
    let ucx = Library::open_at(&installed.libucp).unwrap();
    assert_eq!(ucx.path(), installed.libucp.canonicalize().unwrap());
    let version = ucx.version();
    assert!(version.is_proven() && installed.minor_versions.contains(&version.minor), "{version}");
    // SAFETY: L1: the call has no arguments.
    let words = unsafe { ucx.ucp_get_version_string() };
    // SAFETY: L1: the string is a constant of the library.
    let words = unsafe { CStr::from_ptr(words) }.to_str().unwrap();
    assert_eq!(words, version.to_string());
    assert_eq!(ucx.describe(ucx_sys::UCS_ERR_UNREACHABLE), "Destination is unreachable");
    for again in [Library::open(), Library::open_at(&installed.libucp), Library::open_at(&installed.alias)] {
        assert!(std::ptr::eq(again.unwrap(), ucx));
    }
}

pub(crate) fn opens_whatever_name_it_was_loaded_by(installed: &Installed) {
    load(&installed.alias);
    let ucx = Library::open().unwrap();
    assert_eq!(ucx.path(), installed.alias);
    assert_eq!(copies(), 1);
    assert!(std::ptr::eq(Library::open_at(&installed.libucp).unwrap(), ucx));
    assert_eq!(copies(), 1);
}

pub(crate) fn a_loaded_libucs_is_completed_by_its_own_libucp(installed: &Installed) {
    let libucs = installed.libucp.with_file_name("libucs.so.0");
    load(&libucs);
    assert_refused(Library::open_at(&installed.other), &libucs, &installed.other);
    let ucx = Library::open().unwrap();
    assert_eq!(ucx.path(), installed.libucp);
    assert_eq!(copies(), 1);
}

pub(crate) fn a_second_copy_is_refused(installed: &Installed) {
    // A copy that other code loaded, and then the same copy once opened.
    load(&installed.other);
    assert_refused(Library::open_at(&installed.libucp), &installed.other, &installed.libucp);
    let ucx = Library::open().unwrap();
    assert!(!installed.minor_versions.contains(&ucx.version().minor), "{}", ucx.version());
    assert_refused(Library::open_at(&installed.libucp), &installed.other, &installed.libucp);
    assert_eq!(copies(), 1);
}

pub(crate) fn two_copies_that_others_loaded_are_refused(installed: &Installed) {
    // Python wheels rename the libraries that they bundle.
    let folder = tempfile::tempdir().unwrap();
    let bundled = folder.path().join("libucp-5a8d1f0c.so.0.0.0");
    fs::copy(&installed.libucp, &bundled).unwrap();
    load(&installed.libucp);
    load(&bundled);
    for refused in [Library::open(), Library::open_at(&installed.libucp)] {
        assert_refused(refused, &installed.libucp, &bundled);
    }
}

pub(crate) fn handlers_of_signals_stay_as_they_were(installed: &Installed) {
    let caught = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let caught = status.lines().find(|line| line.starts_with("SigCgt:")).unwrap().to_owned();
        let mut stack = MaybeUninit::<libc::stack_t>::zeroed();
        // SAFETY: L2: the call reads this thread's alternate stack into a local.
        assert_eq!(unsafe { libc::sigaltstack(std::ptr::null(), stack.as_mut_ptr()) }, 0);
        // SAFETY: M4: the call wrote it.
        (caught, unsafe { stack.assume_init() }.ss_sp)
    };
    let before = caught();
    Library::open_at(&installed.libucp).unwrap();
    assert_eq!(caught(), before);
}

/// 0 is no request for UCX's handlers.
pub(crate) fn handlers_stay_without_the_debug_signal(installed: &Installed) {
    // SAFETY: L7: this process has one thread.
    unsafe { std::env::set_var("UCX_DEBUG_SIGNO", "0") };
    handlers_of_signals_stay_as_they_were(installed);
}

pub(crate) fn a_missing_file() {
    let why = Library::open_at(Path::new("/no/libucp.so.0")).unwrap_err();
    assert!(matches!(why, Unavailable::NotLoaded { .. }), "{why:?}");
    let sentence = why.to_string();
    assert!(sentence.starts_with("/no/libucp.so.0 cannot be loaded: No such file"), "{sentence}");
    assert!(sentence.contains("apt install libucx0"), "{sentence}");
    assert!(sentence.contains("pip install libucx-cu12"), "{sentence}");
}

pub(crate) fn no_library() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("libucp.so.0");
    fs::write(&path, "no library").unwrap();
    let Err(Unavailable::NotLoaded { library, reason }) = Library::open_at(&path) else { panic!() };
    assert_eq!(library, path.canonicalize().unwrap());
    assert!(reason.contains("file too short") || reason.contains("invalid ELF header"), "{reason}");
}

pub(crate) fn a_missing_function() {
    let folder = tempfile::tempdir().unwrap();
    let names = || FUNCTIONS.into_iter().map(|name| name.to_str().unwrap());
    let without = |missing: &str| names().filter(|name| *name != missing).collect::<Vec<_>>();
    let no_version = compile(folder.path(), "no_version.so", (1, 13), &without("ucp_get_version"));
    let Err(Unavailable::NoSymbol { version: None, symbol, .. }) = Library::open_at(&no_version) else {
        panic!()
    };
    assert_eq!(symbol, "ucp_get_version");

    let no_put = compile(folder.path(), "no_put.so", (1, 17), &without("ucp_put_nbx"));
    let why = Library::open_at(&no_put).unwrap_err();
    let sentence = why.to_string();
    assert!(
        sentence.starts_with(&format!("{} (UCX 1.17.5) has no ucp_put_nbx;", no_put.display())),
        "{sentence}"
    );

    // A library with all functions opens, so the two above are refused for the missing one.
    let whole = compile(folder.path(), "whole.so", (1, 17), &without(""));
    assert_eq!(Library::open_at(&whole).unwrap().path(), whole);
}

pub(crate) fn an_old_version() {
    let folder = tempfile::tempdir().unwrap();
    let old = compile(folder.path(), "libucp.so.0", (1, 12), &["ucp_get_version"]);
    let sentence = Library::open_at(&old).unwrap_err().to_string();
    let expected = format!("{} is UCX 1.12.5, and 1.13.0 or newer is needed;", old.display());
    assert!(sentence.starts_with(&expected), "{sentence}");
    // The loaded library stays, and a search finds it.
    assert_eq!(Library::open().unwrap_err().to_string(), sentence);
}

/// Loads a library for good, as other code of a process may.
pub(crate) fn load(path: &Path) {
    // SAFETY: L1: the path is one of the two UCX.
    let library = unsafe { libloading::Library::new(path) };
    std::mem::forget(library.unwrap());
}

/// Returns how many files of `libucp` this process has mapped.
fn copies() -> usize {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut files: Vec<_> = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).collect();
    files.retain(|file| file.contains("/libucp.so"));
    files.sort_unstable();
    files.dedup();
    files.len()
}

fn assert_refused(outcome: Result<&Library, Unavailable>, loaded: &Path, other: &Path) {
    let (loaded, other) = (loaded.to_owned(), other.canonicalize().unwrap());
    assert_eq!(outcome.unwrap_err(), Unavailable::SecondCopy { loaded, other });
}

/// Compiles a library of empty functions; `ucp_get_version` returns `version`.
fn compile(folder: &Path, name: &str, version: (u32, u32), functions: &[&str]) -> PathBuf {
    let (source, library) = (folder.join("source.c"), folder.join(name));
    let mut text = String::new();
    for function in functions {
        text += &match *function {
            "ucp_get_version" => format!(
                "void {function}(unsigned *a, unsigned *b, unsigned *c) {{ *a = {}; *b = {}; *c = 5; }}\n",
                version.0, version.1
            ),
            _ => format!("void {function}(void) {{}}\n"),
        };
    }
    fs::write(&source, text).unwrap();
    let mut command = Command::new("cc");
    command.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source);
    assert!(command.status().unwrap().success());
    library.canonicalize().unwrap()
}
