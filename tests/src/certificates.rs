//! Certificates for tests. Keys come from fixed seeds, so that separate processes use the same authority.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, SigningKey, date_time_ymd,
};
use towline::{Tls, TlsBuilder};

/// A certificate authority, identified by the seed of its key.
#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The certificate.
    pub chain: String,
    /// Its private key.
    pub key: String,
}

/// A property that makes a certificate unusual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A valid certificate.
    Usual,
    /// The certificate has expired.
    Expired,
    /// The certificate is not valid yet.
    Future,
    /// The certificate is valid for listeners only.
    ServerOnly,
}

impl Authority {
    /// Creates the authority with the key of this seed.
    pub fn new(seed: u8) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("Towline tests {seed}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(params, key(seed)).expect("a certificate from valid parts");
        Self { issuer }
    }

    /// Returns the authority's certificate, as PEM.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Signs a certificate for these names and addresses, with the key of this seed.
    pub fn sign(&self, names: &[&str], seed: u8, kind: Kind) -> Certificate {
        let key = key(seed);
        let certificate = params(names, kind).signed_by(&key, &self.issuer).expect("valid parts");
        Certificate { chain: certificate.pem(), key: key.serialize_pem() }
    }

    /// As [`sign`](Self::sign), a certificate of X.509 version 1, which has no place for names.
    pub fn sign_version_1(&self, seed: u8) -> Certificate {
        let key = key(seed);
        let certificate = params(&[], Kind::Usual).signed_by(&key, &self.issuer).expect("valid parts");
        let der = as_version_1(certificate.der(), self.issuer.key());
        Certificate { chain: pem::encode(&pem::Pem::new("CERTIFICATE", der)), key: key.serialize_pem() }
    }
}

/// Returns a certificate of X.509 version 1, as a bare `openssl x509 -req` makes them: without the version and
/// the extensions of `certificate`, and signed again.
fn as_version_1(certificate: &[u8], issuer: &impl SigningKey) -> Vec<u8> {
    const VERSION: u8 = 0xa0;
    const EXTENSIONS: u8 = 0xa3;
    const ED25519: [u8; 7] = [0x30, 5, 6, 3, 0x2b, 0x65, 0x70];
    let (_, certificate, _) = element(certificate);
    let (_, mut rest, _) = element(certificate);
    let mut kept = Vec::new();
    while !rest.is_empty() {
        let before = rest;
        let (tag, _, after) = element(rest);
        if ![VERSION, EXTENSIONS].contains(&tag) {
            kept.extend_from_slice(&before[..before.len() - after.len()]);
        }
        rest = after;
    }
    let signed = sequence(&kept);
    let signature = issuer.sign(&signed).expect("a valid key");
    // A BIT STRING with no unused bits.
    let signature = [&[3, signature.len() as u8 + 1, 0], signature.as_slice()].concat();
    sequence(&[signed.as_slice(), &ED25519, &signature].concat())
}

/// Splits DER into its first element's tag and contents, and the rest.
fn element(der: &[u8]) -> (u8, &[u8], &[u8]) {
    let (head, len) = match der[1] {
        short @ ..0x80 => (2, usize::from(short)),
        long => {
            let head = 2 + usize::from(long & 0x7f);
            (head, der[2..head].iter().fold(0, |len, byte| len << 8 | usize::from(*byte)))
        }
    };
    (der[0], &der[head..head + len], &der[head + len..])
}

fn sequence(contents: &[u8]) -> Vec<u8> {
    let len = contents.len();
    let head: &[u8] = match len {
        ..0x80 => &[0x30, len as u8],
        0x80..0x100 => &[0x30, 0x81, len as u8],
        _ => &[0x30, 0x82, (len >> 8) as u8, len as u8],
    };
    [head, contents].concat()
}

/// Creates a self-signed certificate.
pub fn self_signed(names: &[&str], seed: u8) -> Certificate {
    let key = key(seed);
    let certificate = params(names, Kind::Usual).self_signed(&key).expect("valid parts");
    Certificate { chain: certificate.pem(), key: key.serialize_pem() }
}

/// Returns the settings of an endpoint at these names and addresses. Both ends trust one authority.
pub fn mutual_tls(names: &[&str]) -> Tls {
    let authority = Authority::new(1);
    let certificate = authority.sign(names, 2, Kind::Usual);
    certificate.shown_by(Tls::builder()).authority(authority.pem()).build().expect("valid parts")
}

impl Certificate {
    /// Returns the settings of an endpoint that presents this certificate.
    pub fn shown_by(&self, tls: TlsBuilder) -> TlsBuilder {
        tls.certificate(self.chain.clone(), self.key.clone())
    }
}

fn params(names: &[&str], kind: Kind) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names that a certificate can have");
    match kind {
        Kind::Usual => {}
        Kind::Expired => params.not_after = date_time_ymd(2020, 1, 1),
        Kind::Future => params.not_before = date_time_ymd(3000, 1, 1),
        Kind::ServerOnly => params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
    }
    params
}

/// Returns an Ed25519 key of 32 equal bytes, from PKCS #8 (RFC 8410, section 7).
fn key(seed: u8) -> KeyPair {
    const HEAD: [u8; 16] = [0x30, 46, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 34, 4, 32];
    let der = [HEAD.as_slice(), &[seed; 32]].concat();
    KeyPair::from_pkcs8_der_and_sign_algo(&der.as_slice().into(), &PKCS_ED25519).expect("a valid key")
}
