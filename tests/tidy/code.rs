//! Rust text without comments and literals: they become spaces, and every line stays in place.

/// Returns the code of a Rust file, line for line.
pub(crate) fn code(text: &str) -> String {
    let characters: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < characters.len() {
        let rest = &characters[at..];
        let fresh_word = at == 0 || !is_word(characters[at - 1]);
        let blank = match rest {
            ['/', '/', ..] => rest.iter().position(|c| *c == '\n').unwrap_or(rest.len()),
            ['/', '*', ..] => block_comment(rest),
            ['"', ..] => quoted(rest, '"'),
            ['r' | 'b' | 'c', ..] if fresh_word => prefixed_literal(rest),
            ['\'', '\\', ..] | ['\'', _, '\'', ..] => quoted(rest, '\''),
            _ => 0,
        };
        for character in &rest[..blank] {
            out.push(if *character == '\n' { '\n' } else { ' ' });
        }
        at += blank;
        if blank == 0 {
            out.push(rest[0]);
            at += 1;
        }
    }
    out
}

/// Returns true if the character can be part of an identifier.
pub(crate) fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// Returns the byte offsets at which `word` occurs in `text` as a whole word.
pub(crate) fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    text.match_indices(word).map(|(start, _)| start).filter(move |start| {
        let before = text[..*start].chars().next_back();
        let after = text[start + word.len()..].chars().next();
        let first = word.chars().next().is_some_and(is_word);
        let last = word.chars().next_back().is_some_and(is_word);
        !(first && before.is_some_and(is_word) || last && after.is_some_and(is_word))
    })
}

fn block_comment(rest: &[char]) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        match rest[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// Returns the length of a literal with escapes, including its quotes.
fn quoted(rest: &[char], quote: char) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// Returns the length of a literal such as `b"…"`, `c"…"`, `b'…'`, `r"…"` or `br#"…"#`, or 0 if there is
/// none.
fn prefixed_literal(rest: &[char]) -> usize {
    let prefix = rest.iter().take(2).take_while(|c| matches!(c, 'r' | 'b' | 'c')).count();
    let raw = rest[..prefix].contains(&'r');
    let hashes = rest[prefix..].iter().take_while(|c| **c == '#').count();
    match rest.get(prefix + hashes) {
        Some('"') if raw => {
            let body = prefix + hashes + 1;
            let end = (body..rest.len()).find(|at| {
                rest[*at] == '"'
                    && rest[at + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes
            });
            end.map_or(rest.len(), |at| at + 1 + hashes)
        }
        Some(quote @ ('"' | '\'')) if hashes == 0 && rest[0] != 'r' => {
            prefix + quoted(&rest[prefix..], *quote)
        }
        _ => 0,
    }
}

#[test]
fn comments_and_literals_vanish_and_lines_stay() {
    let cases = [
        ("a // b\nc", "a     \nc"),
        ("a /* b /* c */\nd */ e", "a             \n     e"),
        (r#"f("x // y", z)"#, "f(        , z)"),
        (r#"f("\"x", z)"#, "f(     , z)"),
        ("br#\"x\"y\"# z", "          z"),
        ("r\"x\\\" z", "      z"),
        ("b'x' c\"y\" car", "          car"),
        ("fn f<'a>(x: &'a u8) { '\\'' }", "fn f<'a>(x: &'a u8) {      }"),
        ("let c = '\"'; \"s\"", "let c =    ;    "),
        ("r#type", "r#type"),
    ];
    for (text, expected) in cases {
        assert_eq!(code(text), expected);
    }
}

#[test]
fn words_are_whole() {
    assert_eq!(words("ab abc ab_ (ab)", "ab").collect::<Vec<_>>(), [0, 12]);
}
