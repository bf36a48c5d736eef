//! The one `libucp` of a process: found, checked and kept.

#![expect(unsafe_code, reason = "what is called is C")]

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
/// One looks and loads at a time.
static OPENING: Mutex<()> = Mutex::new(());

/// The `libucp` of this process, with all functions that the bindings know. Never unloaded: UCX leaves hooks behind.
pub struct Library {
    functions: Functions,
    path: PathBuf,
    version: Version,
    /// How each setting is set, by its name, once somebody asked; nothing where they cannot be listed.
    pub(crate) settings: OnceLock<Option<BTreeMap<String, Setting>>>,
}

impl Library {
    /// Opens `libucp`, once for the process: the one that somebody loaded, else the one that the loader finds.
    ///
    /// Handlers of signals that UCX installs when it is loaded are taken back, unless `UCX_HANDLE_ERRORS`, `UCX_ERROR_SIGNALS`
    /// or `UCX_DEBUG_SIGNO` says that they are wanted. The log of a UCX that this call loads goes to the standard error, unless
    /// `UCX_LOG_FILE` says where it goes.
    ///
    /// # Errors
    /// There is none, or not one that can be used. A later call looks again; but what was loaded stays, and is found then.
    pub fn open() -> Result<&'static Self, Unavailable> {
        Self::open_wanted(None)
    }

    /// As [`Library::open`], but no other than the one of this file, or another file beside it: what lies in one folder is one
    /// UCX. Code in the file is run, so it is to be named by somebody who may run code here.
    ///
    /// # Errors
    /// As there, and where another copy is loaded or opened already.
    pub fn open_at(path: &Path) -> Result<&'static Self, Unavailable> {
        // A name without a folder would be searched for.
        match path.canonicalize() {
            Ok(path) => Self::open_wanted(Some(&path)),
            Err(error) => Err(not_loaded(path, &error)),
        }
    }

    /// Whether this process has one already, whoever loaded it. Loads nothing.
    #[must_use]
    pub fn is_loaded() -> bool {
        LIBRARY.get().is_some() || libucp(&loaded()).is_some()
    }

    /// The file it came from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says it is.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// UCX's words for a status.
    #[must_use]
    pub fn describe(&self, status: ucs_status_t) -> String {
        // SAFETY: L1: takes any number.
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

    /// Loads or finds it, and checks that it is what it should be.
    fn load(choice: Choice) -> Result<Self, Unavailable> {
        let is_first = loaded().is_empty();
        let (handle, path) = match choice {
            Choice::Take(path) => (handle(&path, RTLD_NOLOAD)?, path),
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
        // The table names none that is missing.
        if let Some(symbol) = FUNCTIONS.into_iter().find(|symbol| function::<fn()>(&handle, symbol).is_none())
        {
            return Err(no_symbol(Some(version), symbol));
        }
        if is_first {
            log::to_standard_error(&handle, version);
        }
        // SAFETY: L1: it is a UCX of a version that the types were made for.
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

/// A library that stays loaded whatever becomes of the handle.
pub(crate) fn handle(path: &Path, how: c_int) -> Result<Handle, Unavailable> {
    let flags = how | RTLD_NOW | RTLD_LOCAL | libc::RTLD_NODELETE;
    // SAFETY: L1: constructors run of a library that is UCX by its name, or by the word of who named it.
    unsafe { Handle::open(Some(path), flags) }.map_err(|error| not_loaded(path, &error))
}

/// A function of a library, which `F` must be the type of.
pub(crate) fn function<F>(handle: &Handle, name: &CStr) -> Option<Symbol<F>> {
    // SAFETY: L1: looks it up; whoever calls it vouches for its type.
    unsafe { handle.get(name) }.ok()
}

/// What it says it is, or what it would say it by.
fn version(handle: &Handle) -> Result<Version, &'static CStr> {
    type Tell = unsafe extern "C" fn(*mut c_uint, *mut c_uint, *mut c_uint);
    const NAME: &CStr = c"ucp_get_version";
    let tell = function::<Tell>(handle, NAME).ok_or(NAME)?;
    let [mut major, mut minor, mut release] = [0; 3];
    // SAFETY: L1: every UCX has it, of this type; L2: it writes to three locals.
    unsafe { tell(&raw mut major, &raw mut minor, &raw mut release) };
    Ok(Version::new(major, minor, release))
}

fn not_loaded(library: &Path, error: &dyn Error) -> Unavailable {
    // The loader's words are the cause.
    let reason = error.source().unwrap_or(error).to_string();
    Unavailable::NotLoaded { library: library.to_owned(), reason }
}
