//! What goes wrong over TLS, in words that say what to do.

use std::io;

use rustls::{AlertDescription as Alert, CertificateError, Connection, Error as TlsError};

use crate::wire::handshake::Role;
use crate::{Error, ErrorKind};

/// What rustls found at this end of `tls`, on its way through a stream.
pub(super) fn io_error(tls: &Connection, error: TlsError) -> io::Error {
    io::Error::other(tls_error(tls, error))
}

/// What rustls found at this end of `tls`.
pub(crate) fn tls_error(tls: &Connection, error: TlsError) -> Error {
    let role = match tls {
        Connection::Client(_) => Role::Connector,
        Connection::Server(_) => Role::Acceptor,
    };
    let (kind, detail) = match &error {
        TlsError::InvalidCertificate(wrong) => (ErrorKind::Unauthenticated, certificate(role, wrong)),
        TlsError::NoCertificatesPresented => (
            ErrorKind::Unauthenticated,
            "the connector showed no certificate, and this listener lets nobody in without one: give it one that this listener's \
             authority signed (--cert, --key)"
                .to_owned(),
        ),
        TlsError::AlertReceived(alert) => alert_received(role, *alert),
        TlsError::InvalidMessage(_) => {
            (ErrorKind::Refused, "what the other end says is no TLS: use TLS at both ends or at neither".to_owned())
        }
        TlsError::PeerIncompatible(_) => (
            ErrorKind::Refused,
            "the other end's TLS and this one's have nothing in common: TLS 1.3 is needed".to_owned(),
        ),
        TlsError::NoApplicationProtocol => (
            ErrorKind::Refused,
            "the other end speaks something else than towline/1 over TLS".to_owned(),
        ),
        _ => (ErrorKind::Corrupt, "what arrived breaks TLS: it was damaged or forged on the way".to_owned()),
    };
    Error::new(kind, detail).caused_by(error)
}

/// The stream ended before TLS was set up.
pub(super) fn cut_off() -> Error {
    Error::new(ErrorKind::PeerLost, "the peer ended the connection during the TLS handshake")
}

/// Why the peer's certificate is not believed.
fn certificate(role: Role, wrong: &CertificateError) -> String {
    let peer = peer_of(role);
    match wrong {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("the {peer}'s certificate has expired: renew it, or set this machine's clock right")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            format!("the {peer}'s certificate is not valid yet: set this machine's clock right, or wait")
        }
        CertificateError::UnknownIssuer => format!(
            "the {peer}'s certificate was signed by nobody whom this end believes: name the authority that signed it (--ca), \
             or a certificate signed by yours is needed there"
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => format!(
            "the {peer}'s certificate bears another name than the one connected to: connect to a name or IP address in it, \
             or say which name is expected"
        ),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            format!("the {peer}'s certificate is not meant for a {peer}: its extended key usage says so")
        }
        CertificateError::BadSignature => {
            format!("the {peer}'s certificate is not signed by whom it names: it was forged or damaged")
        }
        CertificateError::Revoked => format!("the {peer}'s certificate was revoked: it needs a new one"),
        _ => format!(
            "the {peer}'s certificate cannot be believed: it needs one of its own, signed by an authority"
        ),
    }
}

/// What the peer said before it ended the session.
fn alert_received(role: Role, alert: Alert) -> (ErrorKind, String) {
    let peer = peer_of(role);
    let detail = match alert {
        Alert::CertificateRequired => {
            "the listener lets nobody in without a certificate: give this endpoint one that the listener's authority signed \
             (--cert, --key)"
                .to_owned()
        }
        Alert::UnknownCA => format!(
            "the {peer} believes nobody who signed this end's certificate: use one that its authority signed, or name the \
             authority there (--ca)"
        ),
        Alert::CertificateExpired => {
            format!("the {peer} says that this end's certificate has expired: renew it, or set that machine's clock right")
        }
        Alert::BadCertificate | Alert::UnsupportedCertificate | Alert::CertificateUnknown | Alert::CertificateRevoked
        | Alert::AccessDenied | Alert::DecryptError => format!(
            "the {peer} does not believe this end's certificate: it may bear another name than the one connected to, or serve \
             another purpose"
        ),
        Alert::NoApplicationProtocol => {
            return (ErrorKind::Refused, format!("the {peer} speaks something else than towline/1 over TLS"));
        }
        Alert::HandshakeFailure | Alert::ProtocolVersion | Alert::InsufficientSecurity => {
            return (ErrorKind::Refused, format!("the {peer}'s TLS and this end's have nothing in common: TLS 1.3 is needed"));
        }
        Alert::BadRecordMac | Alert::DecodeError | Alert::UnexpectedMessage => {
            return (ErrorKind::PeerLost, format!("what the {peer} got from here breaks TLS: it was damaged on the way"));
        }
        _ => return (ErrorKind::PeerLost, format!("the {peer} ended the TLS session: {alert:?}")),
    };
    (ErrorKind::Unauthenticated, detail)
}

/// As sentences call the other end.
fn peer_of(role: Role) -> &'static str {
    match role {
        Role::Connector => "listener",
        Role::Acceptor => "connector",
    }
}
