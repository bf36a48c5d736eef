//! The options of an address: the query after its question mark.

use super::{Address, Scheme, invalid};
use crate::Result;
use crate::handshake::STREAMS_MAX;

impl Address {
    /// The settings of UCX among the options, in the order they were written: those in upper case letters,
    /// digits and underscores (`TLS`, `NET_DEVICES`), named as UCX does, without its `UCX_`. Only `ucx` takes
    /// any.
    pub fn settings(&self) -> impl Iterator<Item = (&str, &str)> {
        self.options().filter(|(key, _)| is_setting(key))
    }

    /// The same address with the options of `other` that this scheme takes, in place of its own of the same
    /// keys: for an address that was told by the peer at `other`, and shall be met in the same way. Within a
    /// process nothing travels that could be checked or spread, so `mem` takes none.
    pub fn with_options_of(&self, other: &Self) -> Result<Self> {
        other.options().try_fold(self.clone(), |address, (key, value)| {
            let with = address.clone().with_option(key, value)?;
            Ok(if with.check_options().is_ok() { with } else { address })
        })
    }

    /// Returns the number of streams that the address requests; 1 without the option.
    pub(crate) fn streams(&self) -> Result<u8> {
        let Some(streams) = self.option("streams") else { return Ok(1) };
        let count = streams.parse().ok().filter(|count| (1..=STREAMS_MAX).contains(&usize::from(*count)));
        count.ok_or_else(|| {
            invalid(format!("{streams:?} is no number of streams: write streams=N, from 1 to {STREAMS_MAX}"))
        })
    }

    /// Checks that the scheme has every option, with a valid value.
    ///
    /// # Errors
    /// `Invalid`, with the remedy.
    pub(crate) fn check_options(&self) -> Result<()> {
        let scheme = self.scheme();
        for (key, value) in self.options() {
            let why = match (key, value) {
                // What stays within a process does not travel.
                ("integrity", _) if scheme == Scheme::Mem => {
                    "mem has no option \"integrity\": nothing travels: leave ?integrity=… out".to_owned()
                }
                ("integrity", "crc32c") => continue,
                ("integrity", _) => {
                    format!("{value:?} is no integrity: write integrity=crc32c, or leave it out")
                }
                ("tls", _) => {
                    format!(
                        "{scheme} has no option \"tls\": write tls:// or towlines:// in place of {scheme}://"
                    )
                }
                ("streams", _) => match no_streams(scheme) {
                    Some(why) => format!("{scheme} has no option \"streams\": {why}: leave ?streams=… out"),
                    None => {
                        self.streams()?;
                        continue;
                    }
                },
                ("versions", "any") if scheme == Scheme::Ucx => continue,
                ("versions", _) if scheme == Scheme::Ucx => {
                    format!("{value:?} is no choice of versions: write versions=any, or leave it out")
                }
                _ if is_setting(key) && scheme == Scheme::Ucx => continue,
                _ if is_setting(key) => format!(
                    "{scheme} has no option {key:?}: settings of UCX are for ucx:// alone: write ucx://, or leave ?{key}=… out"
                ),
                _ => format!("{scheme} has no option {key:?}: leave ?{key}=… out"),
            };
            return Err(invalid(why));
        }
        Ok(())
    }
}

/// Returns why the scheme has no `streams` option, or `None` if it has.
fn no_streams(scheme: Scheme) -> Option<&'static str> {
    match scheme {
        Scheme::Mem => Some("nothing travels"),
        Scheme::Shm => Some("its memory has no sockets to spread over"),
        Scheme::Ucx => Some("UCX spreads over what it finds by itself"),
        Scheme::Towline | Scheme::Towlines | Scheme::Tcp | Scheme::Tls | Scheme::Ib => None,
    }
}

/// Returns whether `key` is a setting of UCX. None of this library's options is in upper case.
fn is_setting(key: &str) -> bool {
    let in_setting = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    key.starts_with(|first: char| first.is_ascii_uppercase()) && key.bytes().all(in_setting)
}
