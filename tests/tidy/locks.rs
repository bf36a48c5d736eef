//! The fuzz targets and the Python package are workspaces of their own. Their lock files must have the versions
//! of the main one.

use std::collections::{BTreeMap, BTreeSet};

use crate::assert_clean;
use crate::tree::Tree;

const MAIN: &str = "Cargo.lock";
const OTHERS: [&str; 2] = ["fuzz/Cargo.lock", "ffi/python/Cargo.lock"];

/// The entries of a lock file for the packages of one name.
#[derive(Debug, Default)]
struct Locked<'a> {
    versions: BTreeSet<&'a str>,
    dependencies: BTreeSet<&'a str>,
}

#[test]
fn other_workspaces_use_what_is_locked() {
    assert_clean(
        drift,
        "Copy Cargo.lock beside that Cargo.toml, and run cargo update --workspace --manifest-path on it, which needs the registry.",
    );
    let problems = |version: &str, dependencies: &str| {
        let main = "[[package]]\nname = \"a\"\nversion = \"1.0.0\"\n[[package]]\nname = \"a\"\nversion = \"2.0.0\"\n";
        let fuzz = format!(
            "[[package]]\nname = \"a\"\nversion = \"{version}\"\n[[package]]\nname = \"own\"\ndependencies = [\n{dependencies}]\n"
        );
        let manifest =
            "name = \"own\"\n[dependencies]\na = \"2\"\nb.workspace = true\n[dev-dependencies]\nc = \"1\"\n";
        drift(&Tree::of(&[(MAIN, main), (OTHERS[0], &fuzz), ("own/Cargo.toml", manifest)]))
    };
    assert_eq!(problems("2.0.0", " \"a 2.0.0\",\n \"b\",\n"), [""; 0]);
    assert_eq!(problems("2.0.1", " \"a 2.0.1\",\n \"b\",\n").len(), 1);
    assert_eq!(problems("2.0.0", " \"a 2.0.0\",\n").len(), 1);
    assert_eq!(problems("2.0.0", " \"a 2.0.0\",\n \"b\",\n \"c\",\n").len(), 1);
}

/// Reports versions in the other lock files that differ from the main one, and manifests that they do not match.
fn drift(tree: &Tree) -> Vec<String> {
    OTHERS.iter().flat_map(|lock| drift_of(tree, lock)).collect()
}

fn drift_of(tree: &Tree, lock: &str) -> Vec<String> {
    let text = |path| tree.find(path).map_or("", |file| &file.text);
    let (main, other) = (locked(text(MAIN)), locked(text(lock)));
    let mut problems = Vec::new();
    for (name, Locked { versions, .. }) in &other {
        if let Some(main) = main.get(name)
            && !versions.is_subset(&main.versions)
        {
            problems.push(format!("{lock}: {name} {versions:?}, not {:?}", main.versions));
        }
    }
    for manifest in tree.files.iter().filter(|file| file.path.ends_with("/Cargo.toml")) {
        let name = manifest.text.lines().find_map(|line| line.strip_prefix("name = "));
        let Some(locked) = name.and_then(|name| other.get(name.trim_matches('"'))) else { continue };
        let wanted = wanted(&manifest.text);
        if wanted != locked.dependencies {
            problems.push(format!("{lock}: {} wants {wanted:?}", manifest.path));
        }
    }
    problems
}

/// Parses a lock file.
fn locked(text: &str) -> BTreeMap<&str, Locked<'_>> {
    let mut packages = BTreeMap::<_, Locked<'_>>::new();
    let mut name = "";
    for line in text.lines() {
        let (key, value) = line.split_once(" = ").unwrap_or((line, ""));
        let value = value.trim_matches('"');
        match key {
            "name" => {
                name = value;
                packages.entry(name).or_default();
            }
            "version" if !name.is_empty() => drop(packages.entry(name).or_default().versions.insert(value)),
            _ => {
                if let Some(dependency) = line.strip_prefix(" \"") {
                    let dependency = dependency.split([' ', '"']).next().unwrap_or_default();
                    packages.entry(name).or_default().dependencies.insert(dependency);
                }
            }
        }
    }
    packages
}

/// Returns the dependencies of a manifest, without those for tests.
fn wanted(manifest: &str) -> BTreeSet<&str> {
    let mut wanted = BTreeSet::new();
    let mut counts = false;
    for line in manifest.lines() {
        if let Some(heading) = line.strip_prefix('[') {
            counts = heading.ends_with("dependencies]") && !heading.ends_with("dev-dependencies]");
        } else if counts && line.starts_with(|first: char| first.is_ascii_alphabetic()) {
            wanted.extend(line.split(['.', ' ', '=']).next());
        }
    }
    wanted
}
