//! The options of trust: tokens and certificates.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;
use towline::{Address, Builder, Endpoint, Tls, Token};

use super::token;
use crate::case::Wait;
use crate::failure::Failure;
use crate::terminal::print::say;

/// Which peers an endpoint accepts, and how it authenticates itself.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Trust {
    /// A file with the secret that both ends share
    #[arg(long, value_name = "FILE", help_heading = "Security")]
    token_file: Option<PathBuf>,
    /// This end's certificate chain for tls:// and towlines://, as PEM
    #[arg(long, value_name = "FILE", requires = "key", help_heading = "Security")]
    cert: Option<PathBuf>,
    /// The certificate's private key, as PEM
    #[arg(long, value_name = "FILE", requires = "cert", help_heading = "Security")]
    key: Option<PathBuf>,
    /// The authority that signed the other end's certificate, as PEM; a listener then accepts only peers that
    /// it signed
    #[arg(long, value_name = "FILE", help_heading = "Security")]
    ca: Option<PathBuf>,
    /// Allow connections beyond this host without a token or TLS
    #[arg(long, help_heading = "Security")]
    insecure: bool,
    /// Trust every process of this user on this host as if it had the token: shm then hands over memory in
    /// arenas to it
    #[arg(long, help_heading = "Security")]
    trust_user: bool,
    /// Holds the files of a temporary certificate.
    #[arg(skip)]
    _thrown_away: Option<Arc<TempDir>>,
}

impl Trust {
    /// Returns an endpoint with these settings; a file that cannot be used is wrong usage.
    pub(crate) fn endpoint(&self, wait: Wait) -> Result<Endpoint, Failure> {
        Ok(self.builder(wait)?.build()?)
    }

    /// Returns these options as arguments of another process of this program.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let files = [
            ("--token-file", &self.token_file),
            ("--cert", &self.cert),
            ("--key", &self.key),
            ("--ca", &self.ca),
        ];
        let named = files.into_iter().filter_map(|(name, file)| Some([name.into(), file.clone()?.into()]));
        let flags = [("--insecure", self.insecure), ("--trust-user", self.trust_user)];
        let set = flags.into_iter().filter(|(_, set)| *set).map(|(name, _)| name.into());
        named.flatten().chain(set).collect()
    }

    /// Returns the options for the serving side of a run, whose address only this process has.
    pub(crate) fn serving_arguments(&self, over_tls: bool) -> Vec<OsString> {
        let tls = if over_tls { self.clone() } else { Self::default() };
        let own = Self { token_file: None, insecure: false, trust_user: self.trust_user, ..tls };
        own.arguments()
    }

    /// Refuses TLS options if the address is not encrypted.
    pub(crate) fn check(&self, address: &Address) -> Result<(), Failure> {
        if self.settles_tls() && !address.scheme().is_encrypted() {
            return Err(Failure::usage(format!(
                "{address} is not encrypted, and --cert, --key and --ca do not apply: use tls:// or towlines://, or leave \
                 them out"
            )));
        }
        self.warn();
        Ok(())
    }

    /// Warns about weak settings.
    fn warn(&self) {
        if let Some(warning) = self.token_file.as_deref().and_then(token::warning) {
            say(warning);
        }
    }

    fn settles_tls(&self) -> bool {
        self.cert.is_some() || self.ca.is_some()
    }

    /// Returns the settings for the processes of one run on this machine, which trust each other. With
    /// `over_tls` they have a temporary certificate, which is deleted when this is dropped.
    pub(crate) fn within_one_run(&self, over_tls: bool) -> Result<Self, Failure> {
        if self.settles_tls() {
            let why = "--cert, --key and --ca go with --connect: a run of its own has a certificate of its own where it needs one";
            return Err(Failure::usage(why));
        }
        self.warn();
        let among_us = Self { trust_user: true, ..self.clone() };
        if !over_tls {
            return Ok(among_us);
        }
        let failed = |what: &str, why: &dyn std::fmt::Display| {
            Failure::run(format!("{what} a throw-away certificate: {why}"))
        };
        let certificate = throw_away_certificate(["127.0.0.1"]).map_err(|why| failed("making", &why))?;
        let directory = TempDir::new().map_err(|why| failed("a place for", &why))?;
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).map_err(|why| failed("keeping", &why)).map(|()| Some(path))
        };
        let cert = file("cert.pem", &certificate.chain)?;
        let key = file("key.pem", &certificate.key)?;
        Ok(Self { ca: cert.clone(), cert, key, _thrown_away: Some(Arc::new(directory)), ..among_us })
    }

    /// Returns a builder with these settings.
    pub(crate) fn builder(&self, wait: Wait) -> Result<Builder, Failure> {
        let mut builder =
            Endpoint::builder().wait(wait.into()).insecure(self.insecure).trust_user(self.trust_user);
        if let Some(token) = self.token()? {
            builder = builder.token(token);
        }
        if let Some(tls) = self.tls()? {
            builder = builder.tls(tls);
        }
        Ok(builder)
    }

    /// Reads the files again, for future connections of `endpoint`. If that fails, nothing changes.
    pub(crate) fn renew(&self, endpoint: &Endpoint) -> Result<(), Failure> {
        Ok(endpoint.renew(self.token()?, self.tls()?)?)
    }

    fn token(&self) -> Result<Option<Token>, Failure> {
        let token = self.token_file.as_ref().map(Token::from_file).transpose();
        token.map_err(|error| Failure::usage(format!("--token-file: {error}")))
    }

    #[cfg(not(feature = "tls"))]
    fn tls(&self) -> Result<Option<Tls>, Failure> {
        let Self { cert, key, ca, .. } = self;
        if [cert, key, ca].into_iter().any(Option::is_some) {
            return Err(Failure::usage(format!("--cert, --key and --ca: {NO_TLS}")));
        }
        Ok(None)
    }

    #[cfg(feature = "tls")]
    fn tls(&self) -> Result<Option<Tls>, Failure> {
        if !self.settles_tls() {
            return Ok(None);
        }
        let mut tls = Tls::builder();
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            tls = tls.certificate(read("--cert", cert)?, read("--key", key)?);
        }
        if let Some(ca) = &self.ca {
            tls = tls.authority(read("--ca", ca)?);
        }
        tls.build().map(Some).map_err(|error| Failure::usage(error.to_string()))
    }
}

#[cfg(feature = "tls")]
fn read(option: &str, file: &std::path::Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(file).map_err(|error| Failure::usage(format!("{option} {}: {error}", file.display())))
}

/// A self-signed certificate and its key, as PEM.
#[derive(Debug)]
pub(crate) struct Certificate {
    pub(crate) chain: String,
    pub(crate) key: String,
}

/// Why a build without the feature `tls` does not encrypt.
#[cfg(not(feature = "tls"))]
pub(crate) const NO_TLS: &str =
    "this build has no TLS: build towline-bench with its feature `tls`, which is on by default";

#[cfg(not(feature = "tls"))]
pub(crate) fn throw_away_certificate(
    _: impl IntoIterator<Item = &'static str>,
) -> Result<Certificate, &'static str> {
    Err(NO_TLS)
}

/// Makes a certificate for these names and addresses, for one use.
#[cfg(feature = "tls")]
pub(crate) fn throw_away_certificate(
    names: impl IntoIterator<Item = &'static str>,
) -> Result<Certificate, rcgen::Error> {
    let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
    let made = rcgen::generate_simple_self_signed(names)?;
    Ok(Certificate { chain: made.cert.pem(), key: made.signing_key.serialize_pem() })
}

#[cfg(all(test, not(feature = "tls")))]
mod tests {
    use super::Trust;
    use crate::case::Wait;

    #[test]
    fn tls_options_fail_and_name_the_missing_feature() {
        let given = Trust { ca: Some("ca.pem".into()), ..Trust::default() };
        for error in [given.endpoint(Wait::Adaptive).err(), Trust::default().within_one_run(true).err()] {
            let error = error.expect("no TLS").to_string();
            assert!(error.contains("feature `tls`"), "{error}");
        }
    }
}
