//! The shared secret of both ends.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use crate::{Error, ErrorKind, Result};

/// The longest token, in bytes.
const LEN_MAX: usize = 4096;

/// A secret shared by all processes that may connect to each other. It is never sent: each end proves that it
/// has the token.
///
/// The proof covers the handshake, not the data after it: use TLS as well on a network where others can
/// write. A token must be hard to guess, such as 32 random bytes: an attacker who has seen one handshake can
/// test guesses offline.
///
/// Dropping the last clone overwrites its memory. This is best effort: it does not reach copies that the
/// caller or the operating system keeps.
///
/// ```
/// let token = towline::Token::from_bytes("an example: take random bytes")?;
/// assert_eq!(format!("{token:?}"), "Token(..)");
/// # Ok::<(), towline::Error>(())
/// ```
#[derive(Clone)]
pub struct Token(Arc<Secret>);

impl Token {
    /// Returns a token of 1 to 4096 bytes. Any other length is `Invalid`.
    pub fn from_bytes(bytes: impl AsRef<[u8]>) -> Result<Self> {
        Self::of(bytes.as_ref())
    }

    /// Reads a token of 1 to 4096 bytes from a file, without one newline at its end, which editors add.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::read(path).map_err(|error| error.during("read the token").on(path.display()))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0.0
    }

    fn read(path: &Path) -> Result<Self> {
        // Allocated once and filled in place, so that growing leaves no copy behind.
        let mut secret = Secret(vec![0; LEN_MAX + 3].into());
        let mut file = File::open(path)?;
        let mut len = 0;
        while len < secret.0.len() {
            match file.read(&mut secret.0[len..]) {
                Ok(0) => break,
                Ok(read) => len += read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        let text = &secret.0[..len];
        let trimmed = text.strip_suffix(b"\r\n").or_else(|| text.strip_suffix(b"\n"));
        Self::of(trimmed.unwrap_or(text))
    }

    fn of(bytes: &[u8]) -> Result<Self> {
        match bytes.len() {
            0 => Err(Error::new(ErrorKind::Invalid, "the token is empty: it needs at least one byte")),
            1..=LEN_MAX => Ok(Self(Arc::new(Secret(bytes.into())))),
            _ => {
                Err(Error::new(ErrorKind::Invalid, format!("the token exceeds the limit of {LEN_MAX} bytes")))
            }
        }
    }
}

/// Shows nothing of the secret, not even its length.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

struct Secret(Box<[u8]>);

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.fill(0);
        // Keeps the compiler from removing the zeroing.
        std::hint::black_box(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn from_file_with(bytes: &[u8]) -> Result<Token> {
        let path = std::env::temp_dir().join(format!("towline-token-{}-{}", std::process::id(), bytes.len()));
        File::create(&path).unwrap().write_all(bytes).unwrap();
        let token = Token::from_file(&path);
        std::fs::remove_file(&path).unwrap();
        token
    }

    #[test]
    fn one_newline_at_the_end_of_a_file_is_trimmed() {
        assert_eq!(from_file_with(b"secret").unwrap().as_bytes(), b"secret");
        assert_eq!(from_file_with(b"secret\n").unwrap().as_bytes(), b"secret");
        assert_eq!(from_file_with(b"secret\r\n").unwrap().as_bytes(), b"secret");
        assert_eq!(from_file_with(b" secret\n\n\n").unwrap().as_bytes(), b" secret\n\n");
    }

    #[test]
    fn length_is_bounded() {
        assert_eq!(Token::from_bytes("").unwrap_err().kind(), ErrorKind::Invalid);
        assert!(Token::from_bytes([7; LEN_MAX]).is_ok());
        assert_eq!(Token::from_bytes([7; LEN_MAX + 1]).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(from_file_with(b"\n").unwrap_err().kind(), ErrorKind::Invalid);
        assert!(from_file_with(&[vec![7; LEN_MAX], b"\r\n".to_vec()].concat()).is_ok());
        assert_eq!(from_file_with(&[7; 3 * LEN_MAX]).unwrap_err().kind(), ErrorKind::Invalid);
    }

    #[test]
    fn debug_hides_the_token() {
        assert_eq!(format!("{:?}", Token::from_bytes("hunter2").unwrap()), "Token(..)");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Token::from_file("/nonexistent/token").unwrap_err();
        assert!(error.to_string().contains("/nonexistent/token"), "{error}");
    }
}
