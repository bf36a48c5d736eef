//! Parses text to an [`Address`]. Every error says what is wrong and what to write.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::{Address, Authority, LEN_MAX, Scheme, invalid};
use crate::{Error, Result};

/// The most bytes of a wrong address that an error quotes.
const QUOTE_LEN_MAX: usize = 80;
/// The limits of a host name and of each of its labels: RFC 1035, section 2.3.4.
const HOST_LEN_MAX: usize = 253;
const LABEL_LEN_MAX: usize = 63;

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |error: Error| invalid(format!("\"{}\": {}", quote(text), error.detail()));
        address(text).map_err(wrong)
    }
}

fn address(text: &str) -> Result<Address> {
    if text.len() > LEN_MAX {
        return Err(invalid(format!("an address of {} bytes passes the limit of {LEN_MAX}", text.len())));
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(invalid("no \"://\": write tcp://host:port"));
    };
    let scheme = parse_scheme(scheme)?;
    let (authority, query) = match rest.split_once('?') {
        Some((authority, query)) => (authority, Some(query)),
        None => (rest, None),
    };
    let mut address = match scheme {
        Scheme::Mem => Address::mem(authority)?,
        _ => Address { scheme, authority: host_and_port(scheme, authority)?, options: Vec::new() },
    };
    if let Some(query) = query {
        address.options = options(query)?;
    }
    address.bounded()
}

fn parse_scheme(text: &str) -> Result<Scheme> {
    Scheme::ALL.into_iter().find(|scheme| scheme.as_str() == text).ok_or_else(|| {
        invalid(format!(
            "unknown scheme \"{}\": use one of towline, towlines, tcp, tls, shm, ucx, ib, mem",
            quote(text)
        ))
    })
}

fn host_and_port(scheme: Scheme, text: &str) -> Result<Authority> {
    if let Some(extra) = text.find(['/', '#', '@']) {
        return Err(invalid(format!(
            "\"{}\" has no place here: write {scheme}://host:port, and options as ?key=value",
            quote(&text[extra..])
        )));
    }
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let Some((inside, port)) = rest.split_once(']') else {
            return Err(invalid(format!("no \"]\" after the IPv6 address: write {scheme}://[::1]:7000")));
        };
        (ipv6(inside)?, port.strip_prefix(':'))
    } else if text.matches(':').count() > 1 {
        return Err(invalid(format!("an IPv6 address needs brackets: write {scheme}://[::1]:7000")));
    } else {
        match text.split_once(':') {
            Some((before, port)) => (host(before)?, Some(port)),
            None => (host(text)?, None),
        }
    };
    let port = port.filter(|port| !port.is_empty()).ok_or_else(|| {
        invalid(format!("no port: write {scheme}://host:7000, or :0 to listen at any free port"))
    })?;
    Ok(Authority::Port { host, port: parse_port(port)? })
}

fn parse_port(text: &str) -> Result<u16> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(invalid(format!("\"{}\" is no port: write a number from 0 to 65535", quote(text))));
    }
    text.parse()
        .map_err(|_| invalid(format!("port {} is out of range: write a number from 0 to 65535", quote(text))))
}

/// Parses an IPv6 address without brackets to its shortest form. Keeps the zone of a link-local one
/// (`%eth0`).
pub(super) fn ipv6(text: &str) -> Result<String> {
    let (address, zone) = match text.split_once('%') {
        Some((address, zone)) => (address, Some(zone)),
        None => (text, None),
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let zone_fits = zone.is_none_or(|zone| !zone.is_empty() && zone.len() <= 15 && zone.bytes().all(plain));
    match address.parse::<Ipv6Addr>() {
        Ok(address) if zone_fits => Ok(match zone {
            Some(zone) => format!("{address}%{zone}"),
            None => address.to_string(),
        }),
        _ => Err(invalid(format!("\"{}\" is no IPv6 address: brackets hold one, as in [::1]", quote(text)))),
    }
}

/// Parses an IPv4 address, a name, or a wildcard (empty or `*`).
pub(super) fn host(text: &str) -> Result<String> {
    if matches!(text, "" | "*") {
        return Ok(text.to_owned());
    }
    let last = text.rsplit('.').next().unwrap_or_default();
    if !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()) {
        return match text.parse::<Ipv4Addr>() {
            Ok(address) => Ok(address.to_string()),
            Err(_) => Err(invalid(format!(
                "\"{}\" is no IPv4 address: write four numbers from 0 to 255, as in 10.0.0.7",
                quote(text)
            ))),
        };
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let label_fits = |label: &str| (1..=LABEL_LEN_MAX).contains(&label.len()) && label.bytes().all(plain);
    let labels = text.strip_suffix('.').unwrap_or(text);
    if labels.len() > HOST_LEN_MAX || !labels.split('.').all(label_fits) {
        return Err(invalid(format!(
            "\"{}\" is no host: write an IPv4 address, an IPv6 address in brackets, a name, or *",
            quote(text)
        )));
    }
    Ok(text.to_ascii_lowercase())
}

pub(super) fn check_name(name: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'%' | b'&' | b'=');
    if name.bytes().all(plain) {
        return Ok(());
    }
    Err(invalid(format!(
        "\"{}\" is no mem name: write visible ASCII characters without ? # % & =, as in mem://worker-1",
        quote(name)
    )))
}

fn options(query: &str) -> Result<Vec<(String, String)>> {
    let mut options: Vec<(String, String)> = Vec::new();
    for option in query.split('&') {
        let (key, value) = match option.split_once('=') {
            Some((key, value)) if !key.is_empty() => (decoded(key)?, decoded(value)?),
            _ => return Err(invalid(format!("\"{}\" is no option: write ?key=value", quote(option)))),
        };
        if options.iter().any(|(known, _)| *known == key) {
            return Err(invalid(format!("option \"{}\" is given twice: keep one", quote(&key))));
        }
        options.push((key, value));
    }
    Ok(options)
}

fn decoded(text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |at: usize| after.get(at).and_then(|&byte| char::from(byte).to_digit(16));
        let (Some(high), Some(low)) = (digit(0), digit(1)) else {
            return Err(invalid(format!(
                "\"{}\" has a % without two hexadecimal digits: write %25 for a percent sign",
                quote(text)
            )));
        };
        bytes.push((high * 16 + low) as u8);
        rest = &after[2..];
    }
    String::from_utf8(bytes)
        .map_err(|_| invalid(format!("\"{}\" decodes to something that is no UTF-8 text", quote(text))))
}

fn quote(text: &str) -> String {
    let beginning = &text[..text.floor_char_boundary(QUOTE_LEN_MAX)];
    let more = if beginning.len() < text.len() { "…" } else { "" };
    format!("{}{more}", beginning.escape_debug())
}
