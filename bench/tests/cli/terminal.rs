//! The terminal: help that fits its width, the version, completions, manual pages, and a table that `q` ends.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use tempfile::TempDir;

use crate::command::{LIMIT, Running, spawn, start, towline};
use crate::interruptions::TIMEOUT;

const SUBCOMMANDS: [&str; 9] =
    ["info", "serve", "bench", "explain", "scheduler", "top", "token", "completions", "man"];

#[test]
fn help_fits_the_width_and_has_groups() {
    for subcommand in SUBCOMMANDS {
        let help = |columns: &str| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_towline"));
            let help = spawn(command.args([subcommand, "--help"]).env("COLUMNS", columns)).finish();
            help.exits_with(0);
            help.out
        };
        let narrow = help("60");
        let (options, _examples) = narrow.split_once("Examples:").unwrap();
        let widest = options.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(60), "{subcommand}: {widest:?}: {narrow}");
        assert!(
            narrow.lines().count() > help("200").lines().count() || subcommand == "completions",
            "{narrow}"
        );
        assert!(narrow.contains("Logging:"), "{narrow}");
    }
    let bench = towline(&["bench", "--help"]).out;
    for group in ["What to measure", "Load", "Duration", "The other end", "Comparison", "Security", "Output"]
    {
        assert!(bench.contains(&format!("\n{group}:\n")), "{group}: {bench}");
    }
}

#[test]
fn the_version_names_the_commit_and_the_libraries_that_were_found() {
    let short = towline(&["-V"]);
    short.exits_with(0);
    assert_eq!(short.out.trim(), format!("towline {}", env!("CARGO_PKG_VERSION")));
    let long = towline(&["--version"]);
    long.exits_with(0);
    assert!(long.out.starts_with(&short.out), "{}", long.out);
    assert!(long.out.lines().any(|line| line.starts_with("commit   ")), "{}", long.out);
    let info = towline(&["info", "--json"]).document();
    let backends = info["backends"].as_array().unwrap();
    let ucx = backends.iter().find(|backend| backend["name"] == "ucx").unwrap();
    let expected = ucx["version"].as_str().unwrap_or("not found: ");
    assert!(long.out.contains(&format!("ucx      {expected}")), "{expected}: {}", long.out);
}

#[test]
fn completions_and_man_pages_list_every_visible_subcommand() {
    let folder = TempDir::new().unwrap();
    let pages = folder.path().join("man1");
    towline(&["man", pages.to_str().unwrap()]).exits_with(0);
    let bash = towline(&["completions", "bash"]);
    let main = towline(&["man"]);
    for finished in [&bash, &main] {
        finished.exits_with(0);
    }
    for subcommand in SUBCOMMANDS {
        let page = std::fs::read_to_string(pages.join(format!("towline-{subcommand}.1"))).unwrap();
        assert!(page.contains(".SH") && page.contains("Examples:"), "{page}");
        assert!(bash.out.contains(subcommand) && main.out.contains(subcommand), "{subcommand}");
    }
    assert!(std::fs::read_to_string(pages.join("towline.1")).unwrap().contains("Exit codes"));
    assert!(!pages.join("towline-task-work.1").exists());
    for text in [&bash.out, &main.out] {
        assert!(!text.contains("task-work"), "{text}");
    }
    // clap_complete lists hidden options in its scripts.
    let serve = std::fs::read_to_string(pages.join("towline-serve.1")).unwrap();
    assert!(!serve.contains("until-stdin-ends") && !serve.contains("until\\-stdin"), "{serve}");
    for shell in ["zsh", "fish"] {
        assert!(towline(&["completions", shell]).out.contains("explain"), "{shell}");
    }
    towline(&["completions", "cmd.exe"]).is_wrong_usage("<SHELL>");
    towline(&["man", "/dev/null/x"]).is_wrong_usage("/dev/null/x");
}

#[test]
fn a_page_goes_to_stdout_in_place_of_the_table() {
    let line = "bench --transport mem --pattern latency --duration 0.02 --repeat 1 --warmup 0 --html -";
    let words: Vec<&str> = line.split_whitespace().collect();
    let folder = TempDir::new().unwrap();
    let json = folder.path().join("run.json");
    let bench = towline(&[&words[..], &["--json-file", json.to_str().unwrap()]].concat());
    bench.exits_with(0);
    assert!(
        bench.out.starts_with("<!DOCTYPE html>") && bench.out.trim_end().ends_with("</html>"),
        "{}",
        bench.out
    );
    assert!(json.exists() && !std::path::Path::new("-").exists());
    towline(&[&words[..], &["--json"]].concat()).is_wrong_usage("both want stdout");
}

/// Returns a terminal of this size, and the file for a command.
fn terminal(columns: u16, rows: u16) -> (File, OwnedFd) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap();
    let theirs = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    tcsetwinsize(&theirs, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    (File::from(ours), theirs.into())
}

#[test]
fn a_live_table_fits_the_terminal_and_q_ends_it() {
    let mut scheduler = start(&["scheduler", "tcp://127.0.0.1:0"]);
    let (address, _out) = scheduler.first_line();
    let (mut ours, theirs) = terminal(40, 3);
    let end = || Stdio::from(theirs.try_clone().unwrap());
    // `setsid --ctty`: the terminal is that of a new session, as a shell's is.
    let mut command = Command::new("setsid");
    command.args(["--ctty", "--wait", env!("CARGO_BIN_EXE_towline"), "top", &address, "--interval", "0.05"]);
    command.stdin(end()).stdout(end()).stderr(Stdio::piped());
    let top = Running(command.spawn().unwrap());
    let (give, shown) = mpsc::channel();
    let mut screen = ours.try_clone().unwrap();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = screen.read(&mut bytes) {
            if give.send(String::from_utf8_lossy(&bytes[..count]).into_owned()).is_err() {
                return;
            }
        }
    });
    let (begin, mut text) = (Instant::now(), String::new());
    while text.matches("\u{1b}[H\u{1b}[J").count() < 3 {
        text += &shown.recv_timeout(TIMEOUT).unwrap();
        assert!(begin.elapsed() < LIMIT);
    }
    let modes = || tcgetattr(&theirs).unwrap().local_modes;
    assert!(!modes().contains(LocalModes::ECHO), "keys are not shown");
    let frame = text.split("\u{1b}[H\u{1b}[J").nth(1).unwrap();
    let lines: Vec<&str> = frame.split("\r\n").collect();
    assert_eq!(lines.len(), 3, "{frame:?}");
    assert!(lines.iter().all(|line| line.chars().count() <= 40), "{frame:?}");
    assert!(lines[0].ends_with('…') && lines[2] == "and 2 more lines", "{frame:?}");
    ours.write_all(b"xq").unwrap();
    top.finish().exits_with(0);
    assert!(modes().contains(LocalModes::ECHO | LocalModes::ICANON), "as it was before");
}
