//! The paths that a Rust file mentions, in full: `use` trees are expanded, and `self` and `super` resolved
//! within the crate.

use crate::code::{code, is_word};

/// Returns every path with at least two segments, and the line (from 0) on which it starts.
pub(crate) fn paths(path: &str, text: &str) -> Vec<(usize, String)> {
    let code = code(text);
    let module = module(path);
    let mut found = Vec::new();
    let mut at = 0;
    while at < code.len() {
        let rest = &code[at..];
        let fresh = !code[..at].ends_with(|c: char| is_word(c) || c == ':');
        if !fresh || !rest.starts_with(is_word) {
            at += rest.chars().next().map_or(1, char::len_utf8);
            continue;
        }
        let line = code[..at].matches('\n').count();
        let (spelled, length) = tree(rest);
        let spelled = spelled.into_iter().filter(|path| path.contains("::"));
        found.extend(spelled.map(|path| (line, resolve(&path, &module))));
        at += length;
    }
    found
}

/// Returns true if `path` is `prefix` or is below it.
pub(crate) fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Returns the paths that start here, and the length of their text.
fn tree(text: &str) -> (Vec<String>, usize) {
    let name = text.find(|c: char| !is_word(c)).unwrap_or(text.len());
    let mut length = name;
    let own = text[..name].to_owned();
    let Some(below) = text[name..].strip_prefix("::") else { return (vec![own], length) };
    length += 2;
    let mut children = Vec::new();
    if let Some(mut list) = below.strip_prefix('{') {
        loop {
            list = list.trim_start();
            if let Some(renamed) = list.strip_prefix("as ") {
                list = renamed.trim_start_matches(is_word);
            } else if list.starts_with(is_word) {
                let (paths, used) = tree(list);
                children.extend(paths);
                list = &list[used..];
            } else if list.is_empty() || list.starts_with('}') {
                break;
            } else {
                list = &list[list.chars().next().map_or(1, char::len_utf8)..];
            }
        }
        let closing = list.len().min(1);
        length = text.len() - list.len() + closing;
    } else if below.starts_with(is_word) {
        let (paths, used) = tree(below);
        children = paths;
        length += used;
    }
    if children.is_empty() {
        return (vec![own], length);
    }
    (children.into_iter().map(|child| format!("{own}::{child}")).collect(), length)
}

/// Returns the module of a file, such as `crate::memory::host`.
fn module(path: &str) -> Vec<&str> {
    let inner = path.split_once("src/").map_or(path, |(_, inner)| inner);
    let inner = inner.trim_end_matches(".rs");
    let mut module = vec!["crate"];
    module.extend(inner.split('/').filter(|name| !matches!(*name, "mod" | "lib" | "main")));
    module
}

/// Resolves a path from the root of the crate. In a nested test module, `super` is one module less far up
/// than assumed here.
fn resolve(path: &str, module: &[&str]) -> String {
    let mut base = module.to_vec();
    let mut segments = path.split("::").peekable();
    if !matches!(segments.peek(), Some(&("self" | "super"))) {
        return path.to_owned();
    }
    while let Some(relative) = segments.next_if(|name| matches!(*name, "self" | "super")) {
        if relative == "super" {
            base.pop();
        }
    }
    base.extend(segments);
    base.join("::")
}

#[test]
fn use_trees_and_relative_paths_are_spelled_out() {
    let found = |text| paths("transport/src/memory/host.rs", text).into_iter().map(|(_, path)| path);
    let expanded: Vec<_> = found("use std::{net::{self, TcpStream as S}, time::Duration};").collect();
    assert_eq!(expanded, ["std::net::self", "std::net::TcpStream", "std::time::Duration"]);
    let relative: Vec<_> =
        found("use super::super::wire::x;\nfn f() -> self::A { Vec::<u8>::new() }").collect();
    assert_eq!(relative, ["crate::wire::x", "crate::memory::host::A"]);
    assert_eq!(paths("a/src/lib.rs", "// a::b\n\n use a::b;"), [(2, "a::b".to_owned())]);
}

#[test]
fn below_means_whole_segments() {
    assert!(is_below("crate::wire::x", "crate::wire") && is_below("crate::wire", "crate::wire"));
    assert!(!is_below("crate::wired", "crate::wire"));
}
