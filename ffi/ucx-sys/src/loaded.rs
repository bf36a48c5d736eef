//! Lists the libraries of UCX that this process has loaded, and decides which may be loaded in addition.

#![expect(unsafe_code, reason = "no safe crate lists what is loaded")]

use std::ffi::{CStr, OsStr, c_int, c_void};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::unavailable::Unavailable;

/// The name that the loader searches for.
pub(crate) const NAME: &str = "libucp.so.0";
/// The libraries of UCX: `libucp` and its dependencies. A process may have one copy of each.
const PARTS: [&str; 4] = ["libucp", "libucs", "libuct", "libucm"];

/// How to obtain a `libucp`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Use the loaded one, by its name to the loader.
    UseLoaded(PathBuf),
    /// Load this one.
    Load(PathBuf),
}

/// A loaded library of UCX.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Loaded {
    part: &'static str,
    /// Its name to the loader.
    path: PathBuf,
}

/// Returns those of this process, in the order in which they were loaded.
pub(crate) fn loaded() -> Vec<Loaded> {
    unsafe extern "C" fn note(object: *mut libc::dl_phdr_info, _: usize, found: *mut c_void) -> c_int {
        // SAFETY: L2: `loaded` passes its own vector, which nothing else uses meanwhile.
        let found = unsafe { &mut *found.cast::<Vec<Loaded>>() };
        // SAFETY: L2: the loader passes a description of an object.
        let name = unsafe { (*object).dlpi_name };
        if !name.is_null() {
            // SAFETY: L2: it ends in zero, and stays valid during the callback.
            let name = unsafe { CStr::from_ptr(name) };
            let path = Path::new(OsStr::from_bytes(name.to_bytes()));
            found.extend(part(path).map(|part| Loaded { part, path: path.to_owned() }));
        }
        0
    }
    let mut found = Vec::new();
    // SAFETY: L2: `note` is what the loader calls, with this vector, and does not unwind.
    unsafe { libc::dl_iterate_phdr(Some(note), (&raw mut found).cast()) };
    found
}

/// Returns the path of the loaded `libucp`.
pub(crate) fn libucp(loaded: &[Loaded]) -> Option<&Path> {
    loaded.iter().find(|library| library.part == "libucp").map(|library| library.path.as_path())
}

/// Decides how to obtain `wanted`, or any `libucp`, so that no part of UCX is loaded twice.
pub(crate) fn choose(wanted: Option<&Path>, loaded: &[Loaded]) -> Result<Choice, Unavailable> {
    no_two_copies(loaded)?;
    let Some(present) = libucp(loaded).or_else(|| loaded.first().map(|library| library.path.as_path()))
    else {
        return Ok(Choice::Load(wanted.map_or_else(|| NAME.into(), Path::to_owned)));
    };
    let folder = folder(present);
    if let Some(wanted) = wanted.filter(|wanted| self::folder(wanted) != folder) {
        return Err(Unavailable::SecondCopy { loaded: present.to_owned(), other: wanted.to_owned() });
    }
    if let Some(libucp) = libucp(loaded) {
        return Ok(Choice::UseLoaded(libucp.to_owned()));
    }
    // Part of a UCX is loaded; the loader alone could find the rest of another copy.
    Ok(Choice::Load(wanted.map_or_else(|| folder.join(NAME), Path::to_owned)))
}

/// Refuses two copies of the same library.
pub(crate) fn no_two_copies(loaded: &[Loaded]) -> Result<(), Unavailable> {
    for (index, library) in loaded.iter().enumerate() {
        if let Some(first) = loaded[..index].iter().find(|first| first.part == library.part) {
            let (loaded, other) = (first.path.clone(), library.path.clone());
            return Err(Unavailable::SecondCopy { loaded, other });
        }
    }
    Ok(())
}

/// Returns a library's folder, with links resolved. The files of one folder are one UCX: a wheel holds the
/// same library under three names, as three files.
pub(crate) fn folder(library: &Path) -> PathBuf {
    let library = fs::canonicalize(library).unwrap_or_else(|_| library.to_owned());
    library.parent().map(Path::to_owned).unwrap_or_default()
}

/// Returns which library of UCX a file is: `libucp.so.0`, or `libucp-5a8d1f0c.so.0.0.0`, as wheels rename
/// bundled libraries. Not a module such as `libuct_ib.so.0`.
fn part(path: &Path) -> Option<&'static str> {
    let name = path.file_name()?.to_str()?;
    PARTS.into_iter().find(|part| {
        name.strip_prefix(part).is_some_and(|rest| rest.starts_with(".so") || rest.starts_with('-'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(paths: &[&str]) -> Vec<Loaded> {
        paths.iter().map(|path| Loaded { part: part(Path::new(path)).unwrap(), path: path.into() }).collect()
    }

    fn refusal(loaded: &str, other: &str) -> Result<Choice, Unavailable> {
        Err(Unavailable::SecondCopy { loaded: loaded.into(), other: other.into() })
    }

    #[test]
    fn parts_are_recognised_by_file_name() {
        let parts = [
            ("/usr/lib/libucp.so.0", Some("libucp")),
            ("libucs.so", Some("libucs")),
            ("/x/nixl.libs/libuct-5a8d1f0c.so.0.0.0", Some("libuct")),
            ("/usr/lib/ucx/libuct_ib.so.0", None),
            ("/usr/lib/libucs_signal.so.0", None),
            ("/usr/lib/libucp/other.so", None),
            ("", None),
        ];
        for (path, expected) in parts {
            assert_eq!(part(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn any_copy_may_be_loaded_first() {
        assert_eq!(choose(None, &[]), Ok(Choice::Load(NAME.into())));
        assert_eq!(choose(Some(Path::new("/a/x.so")), &[]), Ok(Choice::Load("/a/x.so".into())));
    }

    #[test]
    fn the_loaded_copy_is_used_by_its_name() {
        let loaded = of(&["/a/libucs.so", "/a/libucp.so"]);
        let taken = Ok(Choice::UseLoaded("/a/libucp.so".into()));
        assert_eq!(choose(None, &loaded), taken);
        // Another name for the same copy.
        assert_eq!(choose(Some(Path::new("/a/libucp.so.0")), &loaded), taken);
        assert_eq!(
            choose(Some(Path::new("/b/libucp.so.0")), &loaded),
            refusal("/a/libucp.so", "/b/libucp.so.0")
        );
    }

    #[test]
    fn a_partly_loaded_copy_is_completed_from_its_folder() {
        let loaded = of(&["/a/libucs.so.0", "/a/libuct.so.0"]);
        let completed = Ok(Choice::Load("/a/libucp.so.0".into()));
        assert_eq!(choose(None, &loaded), completed);
        assert_eq!(choose(Some(Path::new("/a/libucp.so.0")), &loaded), completed);
        assert_eq!(
            choose(Some(Path::new("/b/libucp.so")), &loaded),
            refusal("/a/libucs.so.0", "/b/libucp.so")
        );
    }

    #[test]
    fn two_copies_are_refused() {
        let loaded = of(&["/a/libucs.so.0", "/a/libucp.so.0", "/b/libucs-1.so.0"]);
        for wanted in [None, Some(Path::new("/a/libucp.so.0"))] {
            assert_eq!(choose(wanted, &loaded), refusal("/a/libucs.so.0", "/b/libucs-1.so.0"));
        }
    }
}
