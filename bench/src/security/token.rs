//! How long a token is, and a warning of one that is too short.

use std::path::Path;

/// Random bytes of a token; the file holds them as hexadecimal digits.
pub(crate) const RANDOM_LEN: usize = 32;
/// A shorter token than this can be guessed.
const LEN_MIN: u64 = 16;

/// What to say of a token that is too short, if it is.
pub(crate) fn warning(file: &Path) -> Option<String> {
    let there = std::fs::metadata(file).ok().filter(|there| there.is_file())?;
    (there.len() < LEN_MIN).then(|| {
        format!(
            "--token-file {}: a token of {} bytes can be guessed by whoever answers one handshake: `towline token FILE` makes \
             one of {} random bytes",
            file.display(),
            there.len(),
            RANDOM_LEN
        )
    })
}
