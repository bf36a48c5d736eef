//! Runs `ship_file` as users do: two processes, a real file, and failures on the way.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use towline::blocking::{Connection, Endpoint};
use towline::{Buffer, Message};
use towline_tests::need;

const LOCAL: &str = "tcp://127.0.0.1:0";
/// Time limit for each step of a test.
const LONG: Duration = Duration::from_secs(120);
/// Size of a sparse file that is not sent completely before a test interferes, in bytes.
const ENDLESS: u64 = 256 << 30;
const CHUNK_LEN: usize = 2 << 20;

/// The example that cargo built along with this test.
fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("examples/ship_file");
    assert!(program.exists(), "build it first: cargo build -p towline-examples --examples");
    program
}

/// A process and its output. Killed when dropped.
struct Process {
    child: Child,
    output: TempDir,
}

impl Process {
    fn start(command: &mut Command) -> Self {
        let output = TempDir::new().unwrap();
        let file = |name| File::create(output.path().join(name)).unwrap();
        command.stdin(Stdio::null()).stdout(file("stdout")).stderr(file("stderr"));
        Self { child: command.spawn().unwrap(), output }
    }

    fn stdout(&self) -> String {
        fs::read_to_string(self.output.path().join("stdout")).unwrap()
    }

    fn stderr(&self) -> String {
        fs::read_to_string(self.output.path().join("stderr")).unwrap()
    }

    fn kill(&self) {
        kill_process(Pid::from_child(&self.child), Signal::KILL).unwrap();
    }

    /// Waits for its end, and asserts the exit status.
    fn end(&mut self, expected: i32) -> &mut Self {
        let status = until("it ends", || self.child.try_wait().unwrap());
        let (stdout, stderr) = (self.stdout(), self.stderr());
        assert_eq!(status.code(), Some(expected), "stdout:\n{stdout}\nstderr:\n{stderr}");
        self
    }

    /// Asserts that one line of its standard error contains all of these texts.
    fn assert_stderr(&self, about: &[&str]) {
        let stderr = self.stderr();
        let said = stderr.lines().any(|line| about.iter().all(|word| line.contains(word)));
        assert!(said, "{about:?} is not in one line of:\n{stderr}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both calls fail if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn until<T>(what: &str, mut seen: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = seen() {
            return value;
        }
        assert!(begun.elapsed() < LONG, "waited too long until {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Starts a receiver. Returns it and its address.
fn receiver(options: &[&str], directory: &Path) -> (Process, String) {
    started(Command::new(program()).arg("receive").args(options).arg(LOCAL).arg(directory))
}

fn started(command: &mut Command) -> (Process, String) {
    let mut process = Process::start(command);
    let address = until("it listens", || {
        let stdout = process.stdout();
        let address = stdout.lines().find_map(|line| line.strip_prefix("listening at "));
        let ended = process.child.try_wait().unwrap();
        assert!(address.is_some() || ended.is_none(), "{ended:?}: {}", process.stderr());
        address.filter(|_| stdout.ends_with('\n')).map(str::to_owned)
    });
    (process, address)
}

fn sender(address: &str, file: &Path) -> Process {
    Process::start(Command::new(program()).arg("send").arg(address).arg(file))
}

fn file(directory: &TempDir, name: &str, contents: &[u8]) -> PathBuf {
    let path = directory.path().join(name);
    fs::write(&path, contents).unwrap();
    path
}

/// A sparse file of that many zeroes.
fn sparse(directory: &TempDir, len: u64) -> PathBuf {
    let path = file(directory, "sparse", b"");
    File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
    path
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 251) as u8).collect()
}

fn listing(directory: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(directory.path()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Waits until some of a file has been written.
fn begun(directory: &TempDir) {
    until("the transfer begins", || {
        let entries = fs::read_dir(directory.path()).unwrap();
        let written = |entry: fs::DirEntry| entry.metadata().map_or(0, |metadata| metadata.len());
        (entries.flatten().map(written).sum::<u64>() > 0).then_some(())
    });
}

fn assert_same(left: &Path, right: &Path) {
    let mut files = [left, right].map(|path| File::open(path).unwrap());
    assert_eq!(files[0].metadata().unwrap().len(), files[1].metadata().unwrap().len());
    let mut pieces = [vec![0; 1 << 20], vec![0; 1 << 20]];
    loop {
        let n = files[0].read(&mut pieces[0]).unwrap();
        files[1].read_exact(&mut pieces[1][..n]).unwrap();
        assert!(pieces[0][..n] == pieces[1][..n], "the contents differ");
        if n == 0 {
            return;
        }
    }
}

fn sha256_in(stdout: &str) -> &str {
    stdout.lines().find_map(|line| line.split("sha256 ").nth(1)).expect("a SHA-256 was printed")
}

/// Connects this test to a sender or a receiver.
fn connect(address: &str) -> Connection {
    Endpoint::new().unwrap().connect(&address.parse().unwrap()).unwrap().with_deadline(LONG)
}

fn send(connection: &Connection, header: &str, frame: Option<Vec<u8>>) {
    let frames = frame.into_iter().map(Buffer::from).collect();
    connection.send(Message::from_parts(header.to_owned(), frames)).unwrap();
}

fn receive(connection: &Connection) -> String {
    String::from_utf8(connection.recv().unwrap().header().to_vec()).unwrap()
}

#[test]
fn files_are_sent_both_ways() {
    for len in [0, 1, 4096, CHUNK_LEN, CHUNK_LEN + 1, 5_000_000] {
        let [home, there, back] = [(); 3].map(|()| TempDir::new().unwrap());
        let original = file(&home, "original.bin", &bytes(len));
        let mut from = original.clone();
        for directory in [&there, &back] {
            let (mut receiving, address) = receiver(&["--once"], directory.path());
            let mut sending = sender(&address, &from);
            sending.end(0);
            receiving.end(0);
            assert_eq!(sha256_in(&sending.stdout()), sha256_in(&receiving.stdout()));
            from = directory.path().join("original.bin");
            assert_same(&original, &from);
            assert_eq!(listing(directory), ["original.bin"]);
        }
    }
}

#[test]
fn more_than_a_gibibyte_arrives() {
    let [home, there] = [(); 2].map(|()| TempDir::new().unwrap());
    let original = sparse(&home, (1 << 30) + (100 << 20) + 12_345);
    let mut writer = File::options().write(true).open(&original).unwrap();
    for at in [0, 123_456_789, (1 << 30) - 1000, (1 << 30) + (100 << 20)] {
        writer.seek(SeekFrom::Start(at)).unwrap();
        writer.write_all(&bytes(12_345)).unwrap();
    }
    let (mut receiving, address) = receiver(&["--once"], there.path());
    sender(&address, &original).end(0);
    receiving.end(0);
    assert_same(&original, &there.path().join("sparse"));
}

#[test]
fn a_file_truncated_while_it_is_sent_leaves_nothing_behind() {
    let [home, there] = [(); 2].map(|()| TempDir::new().unwrap());
    let original = sparse(&home, ENDLESS);
    let (mut receiving, address) = receiver(&["--once"], there.path());
    let mut sending = sender(&address, &original);
    begun(&there);
    File::options().write(true).open(&original).unwrap().set_len(1000).unwrap();
    let all = ENDLESS.to_string();
    sending.end(1).assert_stderr(&["sparse", "shrank while it was sent", &all]);
    receiving.end(1).assert_stderr(&["the sender gave up", "sparse", "shrank", &all]);
    assert!(listing(&there).is_empty());
}

#[test]
fn a_file_that_grows_is_sent_as_it_was() {
    let home = TempDir::new().unwrap();
    let original = file(&home, "log", &bytes(100_000));
    let endpoint = Endpoint::new().unwrap();
    let listener = endpoint.listen(&LOCAL.parse().unwrap()).unwrap().with_deadline(LONG);
    let mut sending = sender(&listener.address().to_string(), &original);
    let connection = listener.accept().unwrap().with_deadline(LONG);
    assert_eq!(receive(&connection), "file 100000 log");
    File::options().append(true).open(&original).unwrap().write_all(b"one more line").unwrap();
    let chunk = connection.recv().unwrap();
    assert_eq!(chunk.frames()[0].to_vec().unwrap(), bytes(100_000));
    let end = receive(&connection);
    send(&connection, &end.replace("end", "stored"), None);
    sending.end(0).assert_stderr(&["log", "grew", "100000 bytes were stored"]);
}

#[test]
fn a_receiver_with_another_checksum_is_reported() {
    let home = TempDir::new().unwrap();
    let original = file(&home, "x", b"x");
    let endpoint = Endpoint::new().unwrap();
    let listener = endpoint.listen(&LOCAL.parse().unwrap()).unwrap().with_deadline(LONG);
    let mut sending = sender(&listener.address().to_string(), &original);
    let connection = listener.accept().unwrap().with_deadline(LONG);
    while !receive(&connection).starts_with("end ") {}
    send(&connection, &format!("stored {:064}", 0), None);
    sending.end(1).assert_stderr(&["did not confirm"]);
}

#[test]
fn a_file_that_differs_from_its_announcement_is_not_stored() {
    let there = TempDir::new().unwrap();
    let wrong = format!("end {:064}", 0);
    let cases: [(&[(&str, usize)], &str); 5] = [
        (&[("file 10 x", 0), ("chunk", 10), (&wrong, 0)], "arrived damaged"),
        (&[("file 10 x", 0), ("chunk", 9), (&wrong, 0)], "9 bytes came, and 10 were announced"),
        (&[("file 10 x", 0), ("chunk", 11)], "more bytes came than were announced"),
        (&[("file many x", 0)], "another protocol"),
        (&[("hello", 0)], "another protocol"),
    ];
    for (messages, reason) in cases {
        let (mut receiving, address) = receiver(&["--once"], there.path());
        let connection = connect(&address);
        for (header, len) in messages {
            send(&connection, header, (*len > 0).then(|| bytes(*len)));
        }
        let answer = receive(&connection);
        assert!(answer.starts_with("failed ") && answer.contains(reason), "{answer}");
        connection.close().unwrap();
        receiving.end(1).assert_stderr(&[reason]);
        assert!(listing(&there).is_empty());
    }
}

#[test]
fn a_name_never_leads_out_of_the_directory() {
    let root = TempDir::new().unwrap();
    let there = TempDir::new_in(root.path()).unwrap();
    let outside = listing(&root);
    let outsider = root.path().join("outsider").into_os_string().into_string().unwrap();
    for (name, stored) in [("../escaped", "escaped"), (&outsider, "outsider"), ("a/b/c", "c")] {
        let (mut receiving, address) = receiver(&["--once"], there.path());
        let connection = connect(&address);
        send(&connection, &format!("file 0 {name}"), None);
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        send(&connection, &format!("end {empty}"), None);
        assert_eq!(receive(&connection), format!("stored {empty}"));
        connection.close().unwrap();
        receiving.end(0);
        assert!(there.path().join(stored).is_file());
    }
    let long = "x".repeat(256);
    for name in ["..", "a/..", "/", "", "a\0b", &long] {
        let (mut receiving, address) = receiver(&["--once"], there.path());
        let connection = connect(&address);
        send(&connection, &format!("file 0 {name}"), None);
        let answer = receive(&connection);
        assert!(answer.starts_with("failed ") && answer.contains("is no file name"), "{answer}");
        connection.close().unwrap();
        receiving.end(1).assert_stderr(&["is no file name"]);
    }
    assert_eq!(listing(&there), ["c", "escaped", "outsider"]);
    assert_eq!(listing(&root), outside);
}

#[test]
fn a_killed_sender_leaves_nothing_behind() {
    let [home, there] = [(); 2].map(|()| TempDir::new().unwrap());
    let (mut receiving, address) = receiver(&["--once"], there.path());
    let sending = sender(&address, &sparse(&home, ENDLESS));
    begun(&there);
    sending.kill();
    receiving.end(1).assert_stderr(&["peer lost"]);
    assert!(listing(&there).is_empty());
}

#[test]
fn a_killed_receiver_is_reported() {
    let [home, there] = [(); 2].map(|()| TempDir::new().unwrap());
    let (receiving, address) = receiver(&["--once"], there.path());
    let mut sending = sender(&address, &sparse(&home, ENDLESS));
    begun(&there);
    receiving.kill();
    sending.end(1).assert_stderr(&["peer lost"]);
}

#[test]
fn a_full_disk_at_the_far_end_is_reported() {
    let [home, there] = [(); 2].map(|()| TempDir::new().unwrap());
    let small_disk = "mount -t tmpfs -o size=8m towline \"$1\" || exit 77
        \"$0\" receive --once \"$2\" \"$1\"; status=$?
        echo \"left: $(ls -A \"$1\" | wc -l)\"
        exit $status";
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--mount", "sh", "-c", small_disk]).arg(program()).arg(there.path()).arg(LOCAL);
    let possible = Command::new("unshare")
        .args(command.get_args().take_while(|argument| *argument != "sh"))
        .args(["sh", "-c", "mount -t tmpfs towline \"$0\""])
        .arg(there.path())
        .output();
    if !possible.as_ref().is_ok_and(|output| output.status.success()) {
        let reason = "no file system can be mounted in a namespace of its own";
        need::skipped("netns", &format!("{reason}: {possible:?}"));
        return;
    }
    let (mut receiving, address) = started(&mut command);
    let mut sending = sender(&address, &sparse(&home, ENDLESS));
    sending.end(1).assert_stderr(&["the receiver failed", "No space left on device"]);
    receiving.end(1).assert_stderr(&["cannot write", "No space left on device"]);
    assert!(receiving.stdout().contains("left: 0"), "{}", receiving.stdout());
}

#[test]
fn a_receiver_continues_after_failures() {
    let [home, there] = [(); 2].map(|()| TempDir::new().unwrap());
    let (receiving, address) = receiver(&[], there.path());
    fs::create_dir(there.path().join("taken")).unwrap();
    sender(&address, &file(&home, "taken", b"x"))
        .end(1)
        .assert_stderr(&["receiver failed", "is a directory"]);
    until("it assert_stderr", || receiving.stderr().ends_with('\n').then_some(()));
    receiving.assert_stderr(&["taken", "is a directory"]);
    for contents in ["first", "second, which replaces it"] {
        sender(&address, &file(&home, "x", contents.as_bytes())).end(0);
        assert_eq!(fs::read_to_string(there.path().join("x")).unwrap(), contents);
    }
    assert_eq!(listing(&there), ["taken", "x"]);
}

#[test]
fn usage_errors_are_reported() {
    let home = TempDir::new().unwrap();
    let real = file(&home, "real", b"x");
    let (_receiving, address) = receiver(&[], home.path());
    let missing = home.path().join("missing");
    sender(&address, &missing).end(1).assert_stderr(&["missing", "No such file"]);
    sender(&address, home.path()).end(1).assert_stderr(&["is a directory"]);
    sender(&address, Path::new("/dev/null")).end(1).assert_stderr(&["not a regular file"]);
    sender("mem://absent", &real).end(1).assert_stderr(&[
        "mem://absent",
        "refused",
        "no listener of that name in this process",
    ]);
    sender("tcp://127.0.0.1:0", &real)
        .end(1)
        .assert_stderr(&["tcp://127.0.0.1:0", "names no single listener"]);
    sender("127.0.0.1", &real).end(2).assert_stderr(&["invalid value", "127.0.0.1"]);

    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let address = format!("tcp://{unused}");
    sender(&address, &real).end(1).assert_stderr(&[&address, "refused: no listener at that address"]);

    let mut nowhere = Process::start(Command::new(program()).args(["receive", LOCAL]).arg(&missing));
    nowhere.end(1).assert_stderr(&["missing", "is not a directory"]);
}

#[test]
fn a_token_is_required() {
    let [home, there] = [(); 2].map(|()| TempDir::new().unwrap());
    let original = file(&home, "x", b"x");
    let token = file(&home, "token", b"a secret of this test");
    let token = token.to_str().unwrap();
    let (mut receiving, address) = receiver(&["--once", "--token", token], there.path());
    sender(&address, &original).end(1).assert_stderr(&["unauthenticated"]);
    let mut command = Command::new(program());
    Process::start(command.args(["send", "--token", token, &address]).arg(&original)).end(0);
    receiving.end(0);
}
