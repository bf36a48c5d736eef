//! A transport as the command line names it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use towline::{Address, Scheme};

/// The transport with which both ends choose.
const AUTO: &str = "auto";

/// The option for TLS.
const TLS: &str = "tls";

/// A transport as the command line names it, with the options of its addresses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Transport {
    pub(crate) name: &'static str,
    pub(crate) options: BTreeMap<String, String>,
}

impl Transport {
    /// Returns every name: `auto`, and each backend that has a scheme.
    pub(crate) fn names() -> Vec<&'static str> {
        let mut names = vec![AUTO];
        for backend in Scheme::ALL.into_iter().filter_map(Scheme::backend) {
            if !names.contains(&backend) {
                names.push(backend);
            }
        }
        names
    }

    /// Returns the backends that may carry the data: for `auto` any.
    pub(crate) fn paths(&self) -> Vec<&'static str> {
        if self.is_auto() { Self::names().split_off(1) } else { vec![self.name] }
    }

    /// Returns true if both ends choose the backend.
    pub(crate) fn is_auto(&self) -> bool {
        self.name == AUTO
    }

    /// Returns the transport with which both ends choose.
    pub(crate) fn auto() -> Self {
        Self::plain(AUTO)
    }

    pub(crate) fn plain(name: &'static str) -> Self {
        Self { name, options: BTreeMap::new() }
    }

    /// Returns the transport of `address`, with its options.
    pub(crate) fn to(address: &Address) -> Self {
        let options = address.options().map(|(key, value)| (key.to_owned(), value.to_owned()));
        let tls = address.scheme().is_encrypted().then(|| (TLS.to_owned(), "on".to_owned()));
        let name = address.scheme().backend().unwrap_or(AUTO);
        Self { name, options: options.chain(tls).collect() }
    }

    /// Returns true if its connections can have several streams.
    pub(crate) fn takes_streams(&self) -> bool {
        matches!(self.name, AUTO | "tcp")
    }

    /// Returns the streams of a connection. The library has validated the option before.
    pub(crate) fn streams(&self) -> u32 {
        self.options.get("streams").and_then(|count| count.parse().ok()).unwrap_or(1)
    }

    /// Returns the address, with options, at which a worker on this host listens: any free port.
    pub(crate) fn local_address(&self) -> String {
        let place = if self.name == "mem" { "" } else { "127.0.0.1:0" };
        format!("{}://{place}{}", self.scheme(), self.query())
    }

    /// Returns true if it uses TLS, which addresses express by their scheme.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.options.contains_key(TLS)
    }

    /// Returns the scheme of its addresses.
    pub(crate) fn scheme(&self) -> &'static str {
        match (self.name, self.is_encrypted()) {
            (AUTO, false) => "towline",
            (AUTO, true) => "towlines",
            ("tcp", true) => "tls",
            (name, _) => name,
        }
    }

    /// Returns all options as a query with its question mark, or an empty string.
    pub(crate) fn options(&self) -> String {
        joined(self.options.iter())
    }

    /// Returns the options of an address as a query; TLS is part of the scheme instead.
    pub(crate) fn query(&self) -> String {
        joined(self.options.iter().filter(|(key, _)| *key != TLS))
    }
}

fn joined<'a>(options: impl Iterator<Item = (&'a String, &'a String)>) -> String {
    let pairs: Vec<String> = options.map(|(key, value)| format!("{key}={value}")).collect();
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}

impl FromStr for Transport {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, query) = text.split_once('?').unwrap_or((text, ""));
        let names = Self::names();
        let known = names.iter().find(|known| **known == name);
        let name = *known.ok_or_else(|| {
            format!(
                "`{name}` is not a transport: choose from {}; a comma within an option is %2C",
                names.join(", ")
            )
        })?;
        let mut options = BTreeMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair
                .split_once('=')
                .filter(|(key, value)| !key.is_empty() && !value.is_empty())
                .ok_or_else(|| format!("`{pair}` in `{text}` is not `key=value`"))?;
            if options.insert(key.to_owned(), value.to_owned()).is_some() {
                return Err(format!("`{text}` gives `{key}` twice"));
            }
        }
        match options.get(TLS).map(String::as_str) {
            None => {}
            Some("on") if matches!(name, AUTO | "tcp") => {}
            Some("on") => return Err(format!("`{name}` has no TLS: tcp and auto have")),
            Some(other) => {
                return Err(format!("`{TLS}={other}` in `{text}`: write {TLS}=on, or leave it out"));
            }
        }
        Ok(Self { name, options })
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.name, self.options())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transport_takes_options_as_a_query() {
        let tcp: Transport = "tcp?streams=4&integrity=crc32c".parse().unwrap();
        assert_eq!((tcp.name, tcp.options["streams"].as_str()), ("tcp", "4"));
        assert_eq!(tcp.to_string(), "tcp?integrity=crc32c&streams=4");
        assert_eq!("auto".parse::<Transport>().unwrap().scheme(), "towline");
        let tls: Transport = "tcp?tls=on&integrity=crc32c".parse().unwrap();
        assert_eq!((tls.scheme(), tls.query().as_str()), ("tls", "?integrity=crc32c"));
        assert_eq!(tls.to_string(), "tcp?integrity=crc32c&tls=on");
        let towlines: Address = "towlines://host:1".parse().unwrap();
        assert_eq!(Transport::to(&towlines), "auto?tls=on".parse().unwrap());
        for (text, expected) in [
            ("udp", "choose from auto, tcp, shm, ucx, ib, mem"),
            ("", "is not a transport"),
            ("TCP", "is not a transport"),
            ("tcp?streams", "not `key=value`"),
            ("tcp?=4", "not `key=value`"),
            ("tcp?a=1&a=2", "`a` twice"),
            ("mem?tls=on", "has no TLS"),
            ("tcp?tls=yes", "write tls=on"),
        ] {
            let error = text.parse::<Transport>().unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
