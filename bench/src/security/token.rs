//! The length of a token, and the warning about a short one.

use std::path::Path;

/// Random bytes of a token; the file holds them as hexadecimal digits.
pub(crate) const RANDOM_LEN: usize = 32;
/// A shorter token can be guessed.
const LEN_MIN: u64 = 16;

/// Returns a warning if the token is too short.
pub(crate) fn warning(file: &Path) -> Option<String> {
    let there = std::fs::metadata(file).ok().filter(|there| there.is_file())?;
    (there.len() < LEN_MIN).then(|| {
        format!(
            "--token-file {}: a token of {} bytes can be guessed by a peer that answers one handshake: `towline token FILE` makes \
             one of {} random bytes",
            file.display(),
            there.len(),
            RANDOM_LEN
        )
    })
}
