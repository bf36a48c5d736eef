//! Decodes handshake messages. Every length is checked before it is used for an allocation.

use super::{
    BACKEND_LEN_MAX, HEAD_LEN, HandshakeMessage, Hello, Join, Kind, MAGIC, OFFER_LEN_MAX, OFFERS_MAX, Offer,
    REASON_LEN_MAX, STREAMS_MAX, VERSION_MAX, VERSION_MIN, check_backend, check_info, check_measure, clean,
    kind_of, negotiate,
};
use crate::wire::cursor::Cursor;
use crate::{Error, ErrorKind, Result};

/// What a cursor reads here, for its errors.
const MESSAGE: &str = "a handshake message";

/// Decodes a head: the kind of the message, and the length of its body, which is within that kind's limit.
pub(crate) fn head(bytes: &[u8; HEAD_LEN]) -> Result<(Kind, usize)> {
    let mut fields = Cursor::new(bytes, MESSAGE);
    if fields.array()? != MAGIC {
        return Err(corrupt("a handshake message does not begin with the magic bytes"));
    }
    let code = fields.u8()?;
    let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.code() == code) else {
        return Err(corrupt(format!("{code} is not a kind of handshake message")));
    };
    if fields.array()? != [0; 3] {
        return Err(corrupt("reserved bytes of a handshake message are not zero"));
    }
    let body_len = fields.u32()? as usize;
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
    let mut fields = Cursor::new(body, MESSAGE);
    let message = match kind {
        Kind::Hello => HandshakeMessage::Hello(hello(&mut fields)?),
        Kind::Proof => HandshakeMessage::Proof { mac: fields.array()? },
        Kind::Propose => HandshakeMessage::Propose {
            backend: check_backend(fields.rest(), ErrorKind::Corrupt)?.to_owned(),
        },
        Kind::Ready => HandshakeMessage::Ready,
        Kind::NotReady => HandshakeMessage::NotReady { reason: clean(fields.rest(), REASON_LEN_MAX) },
        Kind::Refuse => HandshakeMessage::Refuse {
            kind: kind_of(fields.u8()?),
            reason: clean(fields.rest(), REASON_LEN_MAX),
        },
        Kind::ProposeStreams => {
            let streams = streams(&mut fields, 2)?;
            let backend = check_backend(fields.rest(), ErrorKind::Corrupt)?.to_owned();
            HandshakeMessage::ProposeStreams { streams, backend }
        }
        Kind::Join => HandshakeMessage::Join(Join {
            connection: fields.array()?,
            stream: fields.u8()?,
            mac: fields.array()?,
        }),
        Kind::ProposeInfo => {
            let streams = streams(&mut fields, 1)?;
            let name_len = usize::from(fields.u8()?);
            let backend = check_backend(fields.take(name_len)?, ErrorKind::Corrupt)?.to_owned();
            let info = check_info(fields.rest(), ErrorKind::Corrupt)?.to_vec();
            HandshakeMessage::ProposeInfo { streams, backend, info }
        }
        Kind::ReadyInfo => {
            HandshakeMessage::ReadyInfo { info: check_info(fields.rest(), ErrorKind::Corrupt)?.to_vec() }
        }
        Kind::Measure => {
            let len = fields.u32()?;
            HandshakeMessage::Measure { len: check_measure(len.into(), ErrorKind::Corrupt)? }
        }
    };
    match fields.len() {
        0 => Ok(message),
        extra => Err(corrupt(format!("{kind} has {extra} bytes too many"))),
    }
}

fn hello(fields: &mut Cursor<'_>) -> Result<Hello> {
    let version_min = fields.u16()?;
    let version_max = fields.u16()?;
    if version_min > version_max {
        return Err(corrupt(format!("the version range {version_min} to {version_max} is empty")));
    }
    negotiate(VERSION_MIN..=VERSION_MAX, version_min..=version_max)?;
    Ok(Hello {
        version_min,
        version_max,
        features: fields.u64()?,
        nonce: fields.array()?,
        identity: fields.array()?,
        authenticates: match fields.u8()? {
            0 => false,
            1 => true,
            other => return Err(corrupt(format!("{other} is not a valid token flag, which is 0 or 1"))),
        },
        offers: offers(fields)?,
    })
}

fn streams(fields: &mut Cursor<'_>, min: usize) -> Result<u8> {
    let streams = fields.u8()?;
    if !(min..=STREAMS_MAX).contains(&streams.into()) {
        return Err(corrupt(format!("{streams} streams, where {min} to {STREAMS_MAX} are allowed")));
    }
    Ok(streams)
}

fn offers(fields: &mut Cursor<'_>) -> Result<Vec<Offer>> {
    let count = usize::from(fields.u8()?);
    if count > OFFERS_MAX {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("{count} offers exceed the limit of {OFFERS_MAX}"),
        ));
    }
    let mut offers: Vec<Offer> = Vec::with_capacity(count);
    for _ in 0..count {
        let name_len = usize::from(fields.u8()?);
        if name_len > BACKEND_LEN_MAX {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("a backend name of {name_len} bytes exceeds the limit of {BACKEND_LEN_MAX}"),
            ));
        }
        let backend = check_backend(fields.take(name_len)?, ErrorKind::Corrupt)?;
        if offers.iter().any(|earlier| earlier.backend == backend) {
            return Err(corrupt(format!("two offers are named {backend}")));
        }
        let len = usize::from(fields.u16()?);
        if len > OFFER_LEN_MAX {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("the offer of {backend}, {len} bytes, exceeds the limit of {OFFER_LEN_MAX}"),
            ));
        }
        let bytes = fields.take(len)?.to_vec();
        offers.push(Offer { backend: backend.to_owned(), bytes });
    }
    Ok(offers)
}

fn corrupt(detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Corrupt, detail)
}
