//! Decodes handshake messages. Every length is checked before it is used for an allocation.

use super::{
    BACKEND_LEN_MAX, HEAD_LEN, HandshakeMessage, Hello, Join, Kind, MAGIC, OFFER_LEN_MAX, OFFERS_MAX, Offer,
    REASON_LEN_MAX, STREAMS_MAX, VERSION_MAX, VERSION_MIN, check_backend, check_info, check_measure, clean,
    kind_of, negotiate,
};
use crate::{Error, ErrorKind, Result};

/// Decodes a head: the kind of the message, and the length of its body, which is within that kind's limit.
pub(crate) fn head(bytes: &[u8; HEAD_LEN]) -> Result<(Kind, usize)> {
    let mut reader = Reader(bytes);
    if reader.array()? != MAGIC {
        return Err(corrupt("a handshake message does not begin with the magic bytes"));
    }
    let code = reader.u8()?;
    let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.code() == code) else {
        return Err(corrupt(format!("{code} is not a kind of handshake message")));
    };
    if reader.array()? != [0; 3] {
        return Err(corrupt("reserved bytes of a handshake message are not zero"));
    }
    let body_len = u32::from_le_bytes(reader.array()?) as usize;
    let body_len_max = kind.body_len_max();
    if body_len > body_len_max {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("{kind} announces {body_len} bytes and the limit is {body_len_max}"),
        ));
    }
    Ok((kind, body_len))
}

/// Decodes the body of a message of `kind`. A `Hello` whose versions are all unknown is `Refused`, and not
/// decoded further.
pub(crate) fn decode(kind: Kind, body: &[u8]) -> Result<HandshakeMessage> {
    if body.len() > kind.body_len_max() {
        return Err(Error::new(ErrorKind::TooLarge, format!("{kind} of {} bytes", body.len())));
    }
    let mut reader = Reader(body);
    let message = match kind {
        Kind::Hello => HandshakeMessage::Hello(hello(&mut reader)?),
        Kind::Proof => HandshakeMessage::Proof { mac: reader.array()? },
        Kind::Propose => HandshakeMessage::Propose {
            backend: check_backend(reader.rest(), ErrorKind::Corrupt)?.to_owned(),
        },
        Kind::Ready => HandshakeMessage::Ready,
        Kind::NotReady => HandshakeMessage::NotReady { reason: clean(reader.rest(), REASON_LEN_MAX) },
        Kind::Refuse => HandshakeMessage::Refuse {
            kind: kind_of(reader.u8()?),
            reason: clean(reader.rest(), REASON_LEN_MAX),
        },
        Kind::ProposeStreams => {
            let streams = streams(&mut reader, 2)?;
            let backend = check_backend(reader.rest(), ErrorKind::Corrupt)?.to_owned();
            HandshakeMessage::ProposeStreams { streams, backend }
        }
        Kind::Join => HandshakeMessage::Join(Join {
            connection: reader.array()?,
            stream: reader.u8()?,
            mac: reader.array()?,
        }),
        Kind::ProposeInfo => {
            let streams = streams(&mut reader, 1)?;
            let name_len = usize::from(reader.u8()?);
            let backend = check_backend(reader.take(name_len)?, ErrorKind::Corrupt)?.to_owned();
            let info = check_info(reader.rest(), ErrorKind::Corrupt)?.to_vec();
            HandshakeMessage::ProposeInfo { streams, backend, info }
        }
        Kind::ReadyInfo => {
            HandshakeMessage::ReadyInfo { info: check_info(reader.rest(), ErrorKind::Corrupt)?.to_vec() }
        }
        Kind::Measure => {
            let len = u32::from_le_bytes(reader.array()?);
            HandshakeMessage::Measure { len: check_measure(len.into(), ErrorKind::Corrupt)? }
        }
    };
    match reader.0.len() {
        0 => Ok(message),
        extra => Err(corrupt(format!("{kind} has {extra} bytes too many"))),
    }
}

fn hello(reader: &mut Reader<'_>) -> Result<Hello> {
    let version_min = reader.u16()?;
    let version_max = reader.u16()?;
    if version_min > version_max {
        return Err(corrupt(format!("the version range {version_min} to {version_max} is empty")));
    }
    negotiate(VERSION_MIN..=VERSION_MAX, version_min..=version_max)?;
    Ok(Hello {
        version_min,
        version_max,
        features: u64::from_le_bytes(reader.array()?),
        nonce: reader.array()?,
        identity: reader.array()?,
        authenticates: match reader.u8()? {
            0 => false,
            1 => true,
            other => return Err(corrupt(format!("{other} is not a valid token flag, which is 0 or 1"))),
        },
        offers: offers(reader)?,
    })
}

fn streams(reader: &mut Reader<'_>, min: usize) -> Result<u8> {
    let streams = reader.u8()?;
    if !(min..=STREAMS_MAX).contains(&streams.into()) {
        return Err(corrupt(format!("{streams} streams, where {min} to {STREAMS_MAX} are allowed")));
    }
    Ok(streams)
}

fn offers(reader: &mut Reader<'_>) -> Result<Vec<Offer>> {
    let count = usize::from(reader.u8()?);
    if count > OFFERS_MAX {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("{count} offers exceed the limit of {OFFERS_MAX}"),
        ));
    }
    let mut offers: Vec<Offer> = Vec::with_capacity(count);
    for _ in 0..count {
        let name_len = usize::from(reader.u8()?);
        if name_len > BACKEND_LEN_MAX {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("a backend name of {name_len} bytes exceeds the limit of {BACKEND_LEN_MAX}"),
            ));
        }
        let backend = check_backend(reader.take(name_len)?, ErrorKind::Corrupt)?;
        if offers.iter().any(|earlier| earlier.backend == backend) {
            return Err(corrupt(format!("two offers are named {backend}")));
        }
        let len = usize::from(reader.u16()?);
        if len > OFFER_LEN_MAX {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("the offer of {backend}, {len} bytes, exceeds the limit of {OFFER_LEN_MAX}"),
            ));
        }
        let bytes = reader.take(len)?.to_vec();
        offers.push(Offer { backend: backend.to_owned(), bytes });
    }
    Ok(offers)
}

/// Reads fields from the front. A missing field is `Corrupt`.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let Some((taken, rest)) = self.0.split_at_checked(len) else {
            return Err(cut_short());
        };
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let Some((taken, rest)) = self.0.split_first_chunk() else {
            return Err(cut_short());
        };
        self.0 = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8> {
        self.array().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

fn cut_short() -> Error {
    corrupt("a handshake message is truncated")
}

fn corrupt(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Corrupt, detail)
}
