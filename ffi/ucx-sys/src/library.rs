//! Finds, checks and keeps the one `libucp` of a process.

#![expect(unsafe_code, reason = "calls into C")]

use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::{CStr, c_int, c_uint};
use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use libc::RTLD_NOLOAD;
use libloading::os::unix::{Library as Handle, RTLD_LOCAL, RTLD_NOW, Symbol};

use crate::loaded::{Choice, choose, folder, libucp, loaded, no_two_copies};
use crate::log;
use crate::settings::Setting;
use crate::signals::Signals;
use crate::unavailable::Unavailable;
use crate::version::Version;
use crate::{FUNCTIONS, Functions, ucs_status_t};

static LIBRARY: OnceLock<Library> = OnceLock::new();
/// Serialises searching and loading.
static OPENING: Mutex<()> = Mutex::new(());

/// The `libucp` of this process, with all functions that the bindings declare. Never unloaded: UCX leaves
/// hooks behind.
pub struct Library {
    functions: Functions,
    path: PathBuf,
    version: Version,
    /// How each setting is set, by its name, after the first query; `None` inside if the settings cannot be
    /// listed.
    pub(crate) settings: OnceLock<Option<BTreeMap<String, Setting>>>,
}

impl Library {
    /// Opens `libucp` once per process: the one already loaded, else the one that the loader finds.
    ///
    /// Restores the signal handlers that UCX replaces when it is loaded, unless `UCX_HANDLE_ERRORS`,
    /// `UCX_ERROR_SIGNALS` or `UCX_DEBUG_SIGNO` asks for UCX's. If this call loads UCX, its log goes to the
    /// standard error, unless `UCX_LOG_FILE` names a file.
    ///
    /// # Errors
    /// There is no `libucp`, or none that can be used. A later call searches again; but a library once loaded
    /// stays, and is found then.
    pub fn open() -> Result<&'static Self, Unavailable> {
        Self::open_wanted(None)
    }

    /// Like [`Library::open`], but accepts only this file, or another file in its folder: the files of one
    /// folder are one UCX. Loading runs code from the file, so the path must come from someone allowed to run
    /// code here.
    ///
    /// # Errors
    /// As for `open`, and if another copy is already loaded or opened.
    pub fn open_at(path: &Path) -> Result<&'static Self, Unavailable> {
        // The loader would search for a name without a folder.
        match path.canonicalize() {
            Ok(path) => Self::open_wanted(Some(&path)),
            Err(error) => Err(not_loaded(path, &error)),
        }
    }

    /// Returns true if this process has a `libucp` already, whatever loaded it. Loads nothing.
    #[must_use]
    pub fn is_loaded() -> bool {
        LIBRARY.get().is_some() || libucp(&loaded()).is_some()
    }

    /// Returns the file that was loaded.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the version that the library reports.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Returns UCX's text for a status.
    #[must_use]
    pub fn describe(&self, status: ucs_status_t) -> String {
        // SAFETY: L1: accepts any number.
        let words = unsafe { self.ucs_status_string(status) };
        // SAFETY: L1: it ends in zero, and is either a constant or a buffer of UCX's that is never freed.
        unsafe { CStr::from_ptr(words) }.to_string_lossy().into_owned()
    }

    fn open_wanted(wanted: Option<&Path>) -> Result<&'static Self, Unavailable> {
        let _turn = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(library) = LIBRARY.get() {
            return match wanted {
                Some(wanted) if folder(wanted) != folder(&library.path) => {
                    Err(Unavailable::SecondCopy { loaded: library.path.clone(), other: wanted.to_owned() })
                }
                _ => Ok(library),
            };
        }
        let library = Self::load(choose(wanted, &loaded())?)?;
        Ok(LIBRARY.get_or_init(|| library))
    }

    /// Loads the library or takes the loaded one, and checks it.
    fn load(choice: Choice) -> Result<Self, Unavailable> {
        let is_first = loaded().is_empty();
        let (handle, path) = match choice {
            Choice::UseLoaded(path) => (handle(&path, RTLD_NOLOAD)?, path),
            Choice::Load(path) => {
                let signals = Signals::now();
                let handle = handle(&path, 0);
                signals.restore();
                (handle?, path)
            }
        };
        let loaded = loaded();
        no_two_copies(&loaded)?;
        let path = libucp(&loaded).map_or(path, Path::to_owned);
        let no_symbol = |version, symbol: &CStr| Unavailable::NoSymbol {
            library: path.clone(),
            version,
            symbol: symbol.to_string_lossy().into_owned(),
        };
        let version = version(&handle).map_err(|symbol| no_symbol(None, symbol))?;
        if !version.is_supported() {
            return Err(Unavailable::WrongVersion { library: path, version });
        }
        // The table's own error does not name the missing function.
        if let Some(symbol) = FUNCTIONS.into_iter().find(|symbol| function::<fn()>(&handle, symbol).is_none())
        {
            return Err(no_symbol(Some(version), symbol));
        }
        if is_first {
            log::to_standard_error(&handle, version);
        }
        // SAFETY: L1: it is a UCX of a version that the types were generated for.
        let functions = unsafe { Functions::from_library(handle) };
        let functions = functions.map_err(|error| not_loaded(&path, &error))?;
        Ok(Self { functions, path, version, settings: OnceLock::new() })
    }
}

impl Deref for Library {
    type Target = Functions;

    fn deref(&self) -> &Functions {
        &self.functions
    }
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, version, .. } = self;
        f.debug_struct("Library").field("path", path).field("version", version).finish_non_exhaustive()
    }
}

/// Opens a library that stays loaded after the handle is dropped.
pub(crate) fn handle(path: &Path, how: c_int) -> Result<Handle, Unavailable> {
    let flags = how | RTLD_NOW | RTLD_LOCAL | libc::RTLD_NODELETE;
    // SAFETY: L1: this runs constructors of a library that is UCX by its name, or that the caller named as
    // UCX.
    unsafe { Handle::open(Some(path), flags) }.map_err(|error| not_loaded(path, &error))
}

/// Returns a function of a library. `F` must be its type.
pub(crate) fn function<F>(handle: &Handle, name: &CStr) -> Option<Symbol<F>> {
    // SAFETY: L1: only looks up the symbol; the caller of the function guarantees its type.
    unsafe { handle.get(name) }.ok()
}

/// Returns the library's version, or the name of the missing function.
fn version(handle: &Handle) -> Result<Version, &'static CStr> {
    type GetVersion = unsafe extern "C" fn(*mut c_uint, *mut c_uint, *mut c_uint);
    const NAME: &CStr = c"ucp_get_version";
    let get_version = function::<GetVersion>(handle, NAME).ok_or(NAME)?;
    let [mut major, mut minor, mut release] = [0; 3];
    // SAFETY: L1: every UCX has it, of this type; L2: it writes to three locals.
    unsafe { get_version(&raw mut major, &raw mut minor, &raw mut release) };
    Ok(Version::new(major, minor, release))
}

fn not_loaded(library: &Path, error: &dyn Error) -> Unavailable {
    // The loader's message is the source.
    let reason = error.source().unwrap_or(error).to_string();
    Unavailable::NotLoaded { library: library.to_owned(), reason }
}
