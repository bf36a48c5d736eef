//! Completion scripts and manual pages, generated from the command's own definition.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::Shell;

use crate::failure::Failure;
use crate::machine::version::VERSION;
use crate::terminal::print::print;

const COMPLETIONS: &str = "\
Examples:
  towline completions bash > ~/.local/share/bash-completion/completions/towline
  towline completions zsh > ~/.zfunc/_towline
  towline completions fish > ~/.config/fish/completions/towline.fish";

const MAN: &str = "\
Examples:
  towline man ~/.local/share/man/man1    # then: man towline, man towline-bench
  towline man | man -l -";

/// Print the completion script for a shell
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = COMPLETIONS)]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

/// Write the manual pages, one for each subcommand
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = MAN)]
pub(crate) struct Man {
    /// The folder to write them to; it is made if it is missing. Without it, the page of the command itself
    /// is printed
    folder: Option<PathBuf>,
}

pub(crate) fn completions(options: &Completions, command: &Command) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut visible(command), "towline", &mut script);
    print(|out| out.write_all(&script))
}

pub(crate) fn man(options: &Man, command: &Command) -> Result<(), Failure> {
    let command = visible(command);
    match &options.folder {
        None => print(|out| clap_mangen::Man::new(command).render(out)),
        Some(folder) => {
            write(command, folder).map_err(|error| Failure::usage(format!("{}: {error}", folder.display())))
        }
    }
}

fn write(command: Command, folder: &Path) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    clap_mangen::generate_to(command, folder)
}

/// Returns the command without its hidden subcommands.
fn visible(command: &Command) -> Command {
    let subcommands = command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()).cloned();
    let mut visible = Command::new("towline").version(VERSION).subcommands(subcommands);
    visible = visible.args(command.get_arguments().cloned());
    if let Some(about) = command.get_about() {
        visible = visible.about(about.clone());
    }
    if let Some(after) = command.get_after_help() {
        visible = visible.after_help(after.clone());
    }
    visible
}
