//! Compares the licence of every dependency with the list in `deny.toml`, from cargo's own metadata.

use std::fs;
use std::iter::Peekable;
use std::process::Stdio;
use std::time::Instant;

use serde_json::Value;

use crate::process::{Outcome, cargo, host_triple, root};
use crate::stages::PYTHON_MANIFEST;

pub(crate) fn run(_deadline: Instant) -> Outcome {
    let policy = root().join("deny.toml");
    let policy = fs::read_to_string(&policy).map_err(|error| format!("{}: {error}", policy.display()))?;
    let allowed = allow_list(&policy);
    ["Cargo.toml", PYTHON_MANIFEST].iter().try_for_each(|manifest| check(manifest, &allowed))
}

/// Checks the dependencies of one workspace.
fn check(manifest: &str, allowed: &[&str]) -> Outcome {
    let mut command = cargo(&["metadata", "--format-version", "1", "--locked", "--manifest-path", manifest]);
    command.args(["--filter-platform", &host_triple()]);
    let output =
        command.stderr(Stdio::inherit()).output().map_err(|error| format!("cargo metadata: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", output.status));
    }
    let document: Value =
        serde_json::from_slice(&output.stdout).map_err(|error| format!("cargo metadata: {error}"))?;
    let packages = document["packages"].as_array().ok_or("cargo metadata: no packages")?;
    let refused: Vec<_> = packages
        .iter()
        .filter(|package| !package["license"].as_str().is_some_and(|licence| permits(licence, allowed)))
        .map(|package| format!("{} {}: {}", package["name"], package["version"], package["license"]))
        .collect();
    println!("licences of {manifest}: {} packages, {} refused", packages.len(), refused.len());
    if refused.is_empty() { Ok(()) } else { Err(format!("not in deny.toml:\n{}", refused.join("\n"))) }
}

/// Returns the quoted words of `allow = [ … ]`.
fn allow_list(policy: &str) -> Vec<&str> {
    let list = policy.split_once("\nallow = [").map_or("", |(_, rest)| rest);
    let list = list.split_once(']').map_or("", |(list, _)| list);
    list.split('"').skip(1).step_by(2).collect()
}

/// Returns true if the list permits a choice of the SPDX expression. `/` is an older spelling of `OR`.
fn permits(expression: &str, allowed: &[&str]) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let verdict = any_of(&mut words, allowed);
    verdict && words.next().is_none()
}

fn any_of<'a>(words: &mut Peekable<impl Iterator<Item = &'a str>>, allowed: &[&str]) -> bool {
    let mut verdict = all_of(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        verdict |= all_of(words, allowed);
    }
    verdict
}

fn all_of<'a>(words: &mut Peekable<impl Iterator<Item = &'a str>>, allowed: &[&str]) -> bool {
    let mut verdict = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        verdict &= one(words, allowed);
    }
    verdict
}

fn one<'a>(words: &mut Peekable<impl Iterator<Item = &'a str>>, allowed: &[&str]) -> bool {
    let Some(word) = words.next() else { return false };
    if word == "(" {
        let verdict = any_of(words, allowed);
        return words.next() == Some(")") && verdict;
    }
    if words.next_if_eq(&"WITH").is_none() {
        return allowed.contains(&word);
    }
    let Some(exception) = words.next() else { return false };
    allowed.contains(&format!("{word} WITH {exception}").as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str =
        "[licenses]\nallow = [\n  \"MIT\",\n  \"Unicode-3.0\",\n  \"Apache-2.0 WITH LLVM-exception\",\n]\n";

    #[test]
    fn expressions_are_judged_by_the_best_choice_they_leave() {
        let allowed = allow_list(POLICY);
        assert_eq!(allowed, ["MIT", "Unicode-3.0", "Apache-2.0 WITH LLVM-exception"]);
        let verdicts = [
            ("MIT", true),
            ("GPL-3.0-only", false),
            ("Unlicense", false),
            ("Unlicense OR MIT", true),
            ("Unlicense/MIT", true),
            ("(GPL-2.0 OR MIT) AND Unicode-3.0", true),
            ("MIT AND GPL-2.0", false),
            ("GPL-2.0 AND MIT OR MIT", true),
            ("Apache-2.0 WITH LLVM-exception OR GPL-2.0", true),
            ("MIT WITH Classpath-exception-2.0", false),
            ("(MIT", false),
            ("MIT MIT", false),
            ("", false),
        ];
        for (expression, verdict) in verdicts {
            assert_eq!(permits(expression, &allowed), verdict, "{expression}");
        }
    }
}
