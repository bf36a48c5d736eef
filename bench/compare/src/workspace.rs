//! The files that iceoryx2 creates, all under one name of this run, and removed at its end.

use std::fs;
use std::path::{Path, PathBuf};

use iceoryx2::prelude::{Config, FileName, Path as RootPath, SemanticString};

use crate::Outcome;

/// Prefix of every name; the process id follows.
const NAME: &str = "towline_iceoryx2_";

/// Folder of iceoryx2's shared memory.
const SHARED_MEMORY: &str = "/dev/shm";

/// A name for all files of a run. Its owner removes them on drop.
#[derive(Debug)]
pub(crate) struct Workspace {
    name: String,
    owned: bool,
}

impl Workspace {
    /// Creates a name that no other process has. Removes the files of owners that have ended, as after `kill
    /// -9`.
    pub(crate) fn new() -> Outcome<Self> {
        for folder in [std::env::temp_dir().as_path(), Path::new(SHARED_MEMORY)] {
            for path in entries(folder, NAME) {
                if owner(&path).is_some_and(|owner| !Path::new(&format!("/proc/{owner}")).exists()) {
                    remove(&path);
                }
            }
        }
        let workspace = Self { name: format!("{NAME}{}_", std::process::id()), owned: true };
        fs::create_dir(workspace.root())?;
        Ok(workspace)
    }

    /// Returns the name that another process owns.
    pub(crate) fn of(name: &str) -> Self {
        Self { name: name.to_owned(), owned: false }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn config(&self) -> Outcome<Config> {
        let mut config = Config::default();
        config.global.prefix = FileName::new(self.name.as_bytes()).map_err(|error| format!("{error:?}"))?;
        let root = self.root();
        let root =
            RootPath::new(root.as_os_str().as_encoded_bytes()).map_err(|error| format!("{error:?}"))?;
        config.global.set_root_path(&root);
        Ok(config)
    }

    fn root(&self) -> PathBuf {
        std::env::temp_dir().join(&self.name)
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if self.owned {
            entries(Path::new(SHARED_MEMORY), &self.name).iter().for_each(|path| remove(path));
            remove(&self.root());
        }
    }
}

/// Returns the entries of `folder` whose name begins with `prefix`.
fn entries(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    named.map(|entry| entry.path()).collect()
}

/// Returns the process id in a name.
fn owner(path: &Path) -> Option<u32> {
    let name = path.file_name()?.to_str()?.strip_prefix(NAME)?;
    name.split_once('_')?.0.parse().ok()
}

fn remove(path: &Path) {
    // Another user owns the entry, or it is gone already.
    let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}
