//! `towline token`: makes a random token in a file that only its owner can read.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::failure::Failure;
use crate::security::token::RANDOM_LEN;
use crate::terminal::output::Output;

const EXAMPLE: &str = "\
Examples:
  towline token secret
  towline serve 'towline://*:7000' --token-file secret    # and at the other end, with a copy of the file:
  towline explain towline://10.0.0.2:7000 --token-file secret";

/// Make a token for --token-file: 64 random hexadecimal digits, in a new file that only its owner can read (mode 0600)
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Options {
    /// The file to make; an existing file is refused
    file: PathBuf,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Serialize)]
struct Document {
    schema: u32,
    file: String,
}

pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    options.output.check()?;
    let file = &options.file;
    let mut random = [0; RANDOM_LEN];
    getrandom::fill(&mut random).map_err(|error| Failure::run(format!("random bytes: {error}")))?;
    write(file, &random).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => {
            Failure::usage(format!("{}: the file exists: remove it, or name another", file.display()))
        }
        _ => Failure::usage(format!("{}: {error}", file.display())),
    })?;
    let document = Document { schema: 1, file: file.display().to_string() };
    options.output.give(&document, |out: &mut dyn Write| {
        writeln!(out, "{}: {} random bytes, readable by its owner alone", document.file, RANDOM_LEN)
    })
}

fn write(file: &Path, random: &[u8]) -> io::Result<()> {
    let digits: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    made.write_all(format!("{digits}\n").as_bytes())?;
    made.sync_all()
}
