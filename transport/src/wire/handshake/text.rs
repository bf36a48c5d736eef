//! Text from unauthenticated peers, made fit for a log line: no control characters, no reordering marks, bounded.

/// Bounds [`excerpt`].
const EXCERPT_LEN_MAX: usize = 32;

/// A peer's text with everything replaced that a terminal might obey; at most `len_max` bytes.
pub(crate) fn clean(bytes: &[u8], len_max: usize) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(len_max)]);
    let text: String =
        text.trim().chars().map(|c| if obeyed(c) { char::REPLACEMENT_CHARACTER } else { c }).collect();
    shorten(&text, len_max).trim_end().to_owned()
}

/// The first bytes of whatever this is, escaped: at most 32 characters, and `…` where there was more.
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

/// The longest beginning of `text` that is whole characters and at most `len_max` bytes.
pub(crate) fn shorten(text: &str, len_max: usize) -> &str {
    &text[..text.floor_char_boundary(len_max)]
}

/// Control characters, and the marks that reorder or hide what follows them.
fn obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}
