//! A process of a peer tool. It ends by itself, at a deadline, or when its handle is dropped.

use std::fs;
use std::io::Read;
use std::process::{Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often a process is polled: rarely enough to leave its core alone.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How long a keeper may take to end its program.
const KEEPER_ENDS_WITHIN: Duration = Duration::from_secs(2);

/// A child process. Dropping this ends and reaps it, if it has not ended before.
#[derive(Debug)]
pub(super) struct ToolProcess {
    program: String,
    process: std::process::Child,
    /// The process is a keeper, which ends the program when its input ends.
    kept: bool,
    out: Option<JoinHandle<String>>,
    err: Option<JoinHandle<String>>,
}

/// The output and status of an ended process.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    pub(super) out: String,
    pub(super) err: String,
}

impl ToolProcess {
    /// Starts the program that the first of `words` names, with the others as its arguments; in `keeper`, if
    /// that is not empty.
    pub(super) fn start(
        keeper: &[String],
        words: &[String],
        environment: &[(String, String)],
    ) -> Result<Self, String> {
        let program = words.first().ok_or("a command without words")?;
        let mut line = keeper.iter().chain(words);
        let mut command = Command::new(line.next().unwrap_or(program));
        command.args(line).envs(environment.iter().cloned());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().map_err(|error| format!("{program}: cannot start: {error}"))?;
        // Both are read all the time: a full pipe would block the process.
        let out = process.stdout.take().map(|out| std::thread::spawn(move || text(out)));
        let err = process.stderr.take().map(|err| std::thread::spawn(move || text(err)));
        Ok(Self { program: program.clone(), process, kept: !keeper.is_empty(), out, err })
    }

    /// Waits until a process listens on `port`; fails if the child ends first.
    pub(super) async fn listens(&mut self, port: u16, deadline: Instant) -> Result<(), String> {
        while !listening(port) {
            if let Some(status) = self.status()? {
                let ended = self.leave(status);
                return Err(format!("{} ended instead of listening: {}", self.program, ended.reason()));
            }
            self.wait(deadline).await?;
        }
        Ok(())
    }

    /// Waits for its end.
    pub(super) async fn finish(&mut self, deadline: Instant) -> Result<Ended, String> {
        loop {
            if let Some(status) = self.status()? {
                return Ok(self.leave(status));
            }
            self.wait(deadline).await?;
        }
    }

    fn status(&mut self) -> Result<Option<ExitStatus>, String> {
        self.process.try_wait().map_err(|error| format!("{}: {error}", self.program))
    }

    async fn wait(&self, deadline: Instant) -> Result<(), String> {
        if Instant::now() >= deadline {
            return Err(format!("{} did not end in time: killed", self.program));
        }
        tokio::time::sleep(LOOK_EVERY).await;
        Ok(())
    }

    fn leave(&mut self, status: ExitStatus) -> Ended {
        let read = |reader: &mut Option<JoinHandle<String>>| {
            reader.take().and_then(|reader| reader.join().ok()).unwrap_or_default()
        };
        Ended { status, out: read(&mut self.out), err: read(&mut self.err) }
    }
}

impl Drop for ToolProcess {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let begin = Instant::now();
        while self.kept && begin.elapsed() < KEEPER_ENDS_WITHIN && matches!(self.process.try_wait(), Ok(None))
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        // Both fail only if the child has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Ended {
    /// Returns its status, with the last line of its error output.
    pub(super) fn reason(&self) -> String {
        let line = [&self.err, &self.out].into_iter().find_map(|text| text.trim().lines().next_back());
        line.map_or_else(|| self.status.to_string(), |line| format!("{}: {}", self.status, line.trim()))
    }
}

fn text(mut from: impl Read) -> String {
    let mut bytes = Vec::new();
    // On an error, the bytes read before are all.
    let _ = from.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Returns true if a process listens on TCP `port`, according to the kernel: a test connection would count as
/// a client.
fn listening(port: u16) -> bool {
    ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().any(|table| {
        fs::read_to_string(table).is_ok_and(|table| table.lines().any(|line| is_listener(line, port)))
    })
}

/// proc_pid_net(5): `sl local_address remote_address st …`, addresses as `host:port` in hexadecimal; 0A is LISTEN.
fn is_listener(line: &str, port: u16) -> bool {
    let mut fields = line.split_whitespace().skip(1);
    let local = fields.next().and_then(|address| address.rsplit_once(':'));
    let ours = local.is_some_and(|(_, hex)| u16::from_str_radix(hex, 16) == Ok(port));
    ours && fields.nth(1) == Some("0A")
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn shell(script: &str) -> ToolProcess {
        let words = ["sh", "-c", script].map(str::to_owned);
        ToolProcess::start(&[], &words, &[("COLOUR".into(), "red".into())]).unwrap()
    }

    #[tokio::test]
    async fn output_of_a_process_is_returned() {
        let script = "echo $COLOUR; echo first >&2; echo wrong >&2; exit 3";
        let ended = shell(script).finish(Instant::now() + LONG).await.unwrap();
        assert_eq!((ended.out.as_str(), ended.status.code()), ("red\n", Some(3)));
        assert!(ended.reason().ends_with(": wrong"), "{}", ended.reason());
        let silent = shell("exit 4").finish(Instant::now() + LONG).await.unwrap();
        assert_eq!(silent.reason(), "exit status: 4");
        let missing =
            ToolProcess::start(&[], &["towline-no-such-program".to_owned()], &[]).map(drop).unwrap_err();
        assert!(missing.contains("towline-no-such-program: cannot start"), "{missing}");
    }

    #[tokio::test]
    async fn more_than_a_pipe_holds_comes_through() {
        let ended = shell("head -c 300000 /dev/zero").finish(Instant::now() + LONG).await.unwrap();
        assert_eq!(ended.out.len(), 300_000);
    }

    #[tokio::test]
    async fn a_deadline_kills_and_reaps() {
        let mut child = shell("exec sleep 1000");
        let id = child.process.id();
        let late = child.finish(Instant::now()).await.unwrap_err();
        assert!(late.contains("did not end in time"), "{late}");
        drop(child);
        assert!(!std::path::Path::new(&format!("/proc/{id}")).exists());
    }

    #[tokio::test]
    async fn a_listener_is_seen_without_being_disturbed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        shell("exec sleep 1000").listens(port, Instant::now() + LONG).await.unwrap();
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "no connection was made");
        // No process can listen on port 0.
        let ended = shell("echo taken >&2; exit 1").listens(0, Instant::now() + LONG).await.unwrap_err();
        assert!(ended.contains("instead of listening") && ended.contains("taken"), "{ended}");
    }

    #[test]
    fn the_kernels_table_is_read() {
        let line = "   1: 0100007F:9E05 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 56239";
        assert!(is_listener(line, 0x9E05));
        assert!(!is_listener(line, 0x9E06) && !is_listener(&line.replace(" 0A ", " 01 "), 0x9E05));
        assert!(!is_listener("  sl  local_address rem_address   st tx_queue", 0) && !is_listener("", 0));
    }
}
