//! Sanitizes text from unauthenticated peers for log lines: bounded, without control characters and
//! reordering marks.

/// The most characters of [`excerpt`].
const EXCERPT_LEN_MAX: usize = 32;

/// Returns a peer's text with control characters and invisible marks replaced, at most `len_max` bytes.
pub(crate) fn clean(bytes: &[u8], len_max: usize) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(len_max)]);
    let text: String =
        text.trim().chars().map(|c| if obeyed(c) { char::REPLACEMENT_CHARACTER } else { c }).collect();
    shorten(&text, len_max).trim_end().to_owned()
}

/// Returns the first line of arbitrary bytes, escaped: at most 32 characters, then `…` if there are more.
pub(crate) fn excerpt(bytes: &[u8]) -> String {
    let line = bytes.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let mut text = String::new();
    for &byte in line {
        let escaped = byte.escape_ascii();
        if text.len() + escaped.len() > EXCERPT_LEN_MAX {
            return text + "…";
        }
        text.extend(escaped.map(char::from));
    }
    text
}

/// Returns the longest prefix of `text` that ends at a character boundary and has at most `len_max` bytes.
pub(crate) fn shorten(text: &str, len_max: usize) -> &str {
    &text[..text.floor_char_boundary(len_max)]
}

/// Returns whether a character is a control character, or a mark that reorders or hides the characters after
/// it.
fn obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}
