//! The options that say whom to trust.

use std::ffi::OsString;
use std::path::PathBuf;

use towline::{Builder, Endpoint, Token};

use crate::bench::case::Wait;
use crate::failure::Failure;

/// Whom an endpoint accepts.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Trust {
    /// A file that holds the secret which both ends know
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Go without a secret beyond this machine
    #[arg(long)]
    insecure: bool,
}

impl Trust {
    /// An endpoint with these settings; a token that cannot be read is wrong usage.
    pub(crate) fn endpoint(&self, wait: Wait) -> Result<Endpoint, Failure> {
        Ok(self.builder(wait)?.build()?)
    }

    /// The same on the command line of another process of this program.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let token = self.token_file.iter().flat_map(|file| ["--token-file".into(), file.clone().into()]);
        token.chain(self.insecure.then(|| "--insecure".into())).collect()
    }

    fn builder(&self, wait: Wait) -> Result<Builder, Failure> {
        let builder = Endpoint::builder().wait(wait.into()).insecure(self.insecure);
        match &self.token_file {
            None => Ok(builder),
            Some(file) => {
                let token = Token::from_file(file).map_err(|error| Failure::usage(error.to_string()))?;
                Ok(builder.token(token))
            }
        }
    }
}
