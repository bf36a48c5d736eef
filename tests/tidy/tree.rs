//! The text files of the repository, read once.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

#[derive(Debug)]
pub(crate) struct File {
    /// Path from the root of the repository, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl File {
    pub(crate) fn is(&self, extension: &str) -> bool {
        self.path.rsplit_once('.').is_some_and(|(_, own)| own == extension)
    }

    /// Returns true for generated bindings.
    pub(crate) fn is_generated(&self) -> bool {
        self.path
            .strip_prefix("ffi/")
            .and_then(|path| path.split_once('/'))
            .is_some_and(|(package, path)| package.ends_with("-sys") && path == "src/bindings.rs")
    }

    /// Returns the folder of the file, `""` for the root.
    pub(crate) fn folder(&self) -> &str {
        self.path.rsplit_once('/').map_or("", |(folder, _)| folder)
    }

    /// Returns `path:line` for a line counted from 0.
    pub(crate) fn at(&self, line: usize) -> String {
        format!("{}:{}", self.path, line + 1)
    }
}

#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) files: Vec<File>,
}

impl Tree {
    pub(crate) fn of_repository() -> &'static Self {
        static TREE: OnceLock<Tree> = OnceLock::new();
        TREE.get_or_init(|| {
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository");
            let ignored = fs::read_to_string(root.join(".gitignore")).unwrap_or_default();
            let ignored: Vec<_> = ignored.lines().map(|line| line.trim().trim_matches('/')).collect();
            let mut files = Vec::new();
            read_folder(root, "", &ignored, &mut files);
            files.sort_by(|left, right| left.path.cmp(&right.path));
            assert!(
                files.iter().any(|file| file.path == "Cargo.toml"),
                "{} is no repository",
                root.display()
            );
            Self { files }
        })
    }

    pub(crate) fn of(files: &[(&str, &str)]) -> Self {
        let file = |&(path, text): &(&str, &str)| File { path: path.into(), text: text.into() };
        Self { files: files.iter().map(file).collect() }
    }

    pub(crate) fn with(&self, extension: &str) -> impl Iterator<Item = &File> {
        self.files.iter().filter(move |file| file.is(extension))
    }

    pub(crate) fn find(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|file| file.path == path)
    }

    /// Returns true if a file or a folder of this path exists.
    pub(crate) fn has(&self, path: &str) -> bool {
        let folder = format!("{path}/");
        self.files.iter().any(|file| file.path == path || file.path.starts_with(&folder))
    }
}

fn read_folder(root: &Path, folder: &str, ignored: &[&str], files: &mut Vec<File>) {
    let entries = fs::read_dir(root.join(folder)).expect("a folder of the repository can be read");
    for entry in entries {
        let entry = entry.expect("a folder of the repository can be read");
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
        let kind = entry.file_type().expect("a file of the repository can be read");
        let skip = name == ".git" || (folder.is_empty() && name.starts_with("target"));
        if skip || ignored.iter().any(|pattern| matches(pattern, &name) || *pattern == path) {
            continue;
        }
        if kind.is_dir() {
            read_folder(root, &path, ignored, files);
        } else if kind.is_file() {
            // A file that is not text has an entry without content, so that links may lead to it.
            let bytes = fs::read(entry.path()).unwrap_or_default();
            let text = String::from_utf8(bytes).ok().filter(|text| !text.contains('\0')).unwrap_or_default();
            files.push(File { path, text });
        }
    }
}

/// Returns true if a line of `.gitignore` matches a file name: it is equal, or has one `*`.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        Some((start, end)) => {
            name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
        }
        None => !pattern.is_empty() && pattern == name,
    }
}

#[test]
fn ignored_names_are_recognised() {
    assert!(
        matches("target-*", "target-a") && matches("*.profraw", "x.profraw") && matches("target", "target")
    );
    assert!(!matches("target", "targets") && !matches("*.profraw", "profraw") && !matches("", "x"));
}
