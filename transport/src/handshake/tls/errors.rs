//! The error texts of TLS, each with a remedy.

use std::io;

use rustls::{AlertDescription as Alert, CertificateError, Connection, Error as TlsError, OtherError};

use crate::wire::handshake::Role;
use crate::{Error, ErrorKind};

/// Converts an error of rustls at this end of `tls` into an I/O error, to pass through a stream.
pub(super) fn io_error(tls: &Connection, error: TlsError) -> io::Error {
    io::Error::other(tls_error(tls, error))
}

/// Converts an error of rustls at this end of `tls`.
pub(crate) fn tls_error(tls: &Connection, error: TlsError) -> Error {
    let role = match tls {
        Connection::Client(_) => Role::Connector,
        Connection::Server(_) => Role::Acceptor,
    };
    let (kind, detail) = match &error {
        TlsError::InvalidCertificate(wrong) => (ErrorKind::Unauthenticated, certificate(role, wrong)),
        TlsError::NoCertificatesPresented => (
            ErrorKind::Unauthenticated,
            "the connector presented no certificate, and this listener requires one: give it one that this listener's \
             authority signed (--cert, --key)"
                .to_owned(),
        ),
        TlsError::AlertReceived(alert) => alert_received(role, *alert),
        TlsError::InvalidMessage(_) => {
            (ErrorKind::Incompatible, "the other end does not speak TLS: use TLS at both ends or at neither".to_owned())
        }
        TlsError::PeerIncompatible(_) => (
            ErrorKind::Incompatible,
            "the two ends share no TLS version or cipher: TLS 1.3 is needed".to_owned(),
        ),
        TlsError::NoApplicationProtocol => (
            ErrorKind::Incompatible,
            "the other end does not speak towline/1 over TLS".to_owned(),
        ),
        _ => (ErrorKind::Corrupt, "the data received violates TLS: it was damaged or forged in transit".to_owned()),
    };
    Error::new(kind, detail).caused_by(error)
}

/// The error for a stream that ended before TLS was set up.
pub(super) fn cut_off() -> Error {
    Error::new(ErrorKind::PeerLost, "the peer ended the connection during the TLS handshake")
}

/// What is wrong with a certificate of version 1, and the remedy.
pub(super) const VERSION_1: &str = "is of X.509 version 1, which can name no host and is not accepted: sign it again as version 3, \
                                    with openssl x509 -req -extfile and a file that has the line subjectAltName=DNS:HOST";

/// Returns whether the certificate is of another version than 3, as a bare `openssl x509 -req` makes them.
pub(super) fn is_version_1(wrong: &CertificateError) -> bool {
    matches!(webpki_error(wrong), Some(webpki::Error::UnsupportedCertVersion))
}

/// Returns whether the certificate is an authority's, as `openssl req -x509` makes a self-signed one.
fn is_authority(wrong: &CertificateError) -> bool {
    matches!(webpki_error(wrong), Some(webpki::Error::CaUsedAsEndEntity))
}

fn webpki_error(wrong: &CertificateError) -> Option<&webpki::Error> {
    let CertificateError::Other(OtherError(why)) = wrong else { return None };
    why.downcast_ref()
}

/// Returns why the peer's certificate is not trusted.
fn certificate(role: Role, wrong: &CertificateError) -> String {
    let peer = peer_of(role);
    match wrong {
        wrong if is_version_1(wrong) => format!("the {peer}'s certificate {VERSION_1}"),
        wrong if is_authority(wrong) => format!(
            "the {peer}'s certificate is an authority's own, such as a self-signed one: sign another with it for the {peer}, \
             and name this one as the authority (--ca)"
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("the {peer}'s certificate has expired: renew it, or set this machine's clock right")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            format!("the {peer}'s certificate is not valid yet: set this machine's clock right, or wait")
        }
        CertificateError::UnknownIssuer => format!(
            "the {peer}'s certificate was signed by no authority that this end trusts: name the authority that signed it \
             (--ca), or use a certificate there that your authority signed"
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => format!(
            "the {peer}'s certificate is for another name than the one connected to: connect to a name or IP address in it, \
             set the expected name, or accept any name that this authority signed (`TlsBuilder::any_name`)"
        ),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            format!("the {peer}'s certificate is not valid for a {peer}, by its extended key usage")
        }
        CertificateError::BadSignature => {
            format!("the {peer}'s certificate has a wrong signature: it was forged or damaged")
        }
        CertificateError::Revoked => format!("the {peer}'s certificate was revoked: it needs a new one"),
        _ => format!("the {peer}'s certificate cannot be trusted: use one signed by an authority"),
    }
}

/// Returns the error for an alert with which the peer ended the session.
fn alert_received(role: Role, alert: Alert) -> (ErrorKind, String) {
    let peer = peer_of(role);
    let detail = match alert {
        Alert::CertificateRequired => {
            "the listener requires a certificate: give this endpoint one that the listener's authority signed \
             (--cert, --key)"
                .to_owned()
        }
        Alert::UnknownCA => format!(
            "the {peer} trusts no authority that signed this end's certificate: use one that its authority signed, or name the \
             authority there (--ca)"
        ),
        Alert::CertificateExpired => {
            format!("the {peer} reports that this end's certificate has expired: renew it, or set that machine's clock right")
        }
        Alert::BadCertificate | Alert::UnsupportedCertificate | Alert::CertificateUnknown | Alert::CertificateRevoked
        | Alert::AccessDenied | Alert::DecryptError => format!(
            "the {peer} does not trust this end's certificate: it may be self-signed, for another name than the one connected to, \
             or for another purpose"
        ),
        Alert::NoApplicationProtocol => {
            return (ErrorKind::Incompatible, format!("the {peer} does not speak towline/1 over TLS"));
        }
        Alert::HandshakeFailure | Alert::ProtocolVersion | Alert::InsufficientSecurity => {
            return (ErrorKind::Incompatible, format!("the {peer} and this end share no TLS version or cipher: TLS 1.3 is needed"));
        }
        Alert::BadRecordMac | Alert::DecodeError | Alert::UnexpectedMessage => {
            return (ErrorKind::PeerLost, format!("the {peer} received data that violates TLS: it was damaged in transit"));
        }
        _ => return (ErrorKind::PeerLost, format!("the {peer} ended the TLS session: {alert:?}")),
    };
    (ErrorKind::Unauthenticated, detail)
}

/// Returns the name of the other end for error texts.
fn peer_of(role: Role) -> &'static str {
    match role {
        Role::Connector => "listener",
        Role::Acceptor => "connector",
    }
}
