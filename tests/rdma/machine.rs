//! The machine: Debian's kernel in an emulator, over the files of this host, which it cannot change.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use towline_tests::provided;

/// The longest that it may take, from its start to its end.
const LIFETIME: Duration = Duration::from_secs(120);
/// What the emulator ends with where the guest's script has lines 0x10: that, twice, and one more.
const PASSED: i32 = 0x10 << 1 | 1;
/// Nothing but what is needed, and a way to end with a status. Where the host is a virtual machine itself, KVM's node may open, and its
/// guests stand still.
const MACHINE: &str = "-M q35 -accel tcg,thread=multi,tb-size=512 -cpu max -smp 2 -m 2048M -nodefaults -no-user-config \
                       -display none -no-reboot -serial stdio -device isa-debug-exit,iobase=0xf4,iosize=0x04";
/// Where the emulator finds its firmware.
const FIRMWARE: [&str; 3] = ["share/qemu", "share/seabios", "lib/ipxe/qemu"];

/// What is booted.
#[derive(Debug)]
pub(crate) struct Machine {
    kit: PathBuf,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Whether the program in it ended well.
    pub(crate) passed: bool,
    /// What it printed.
    pub(crate) lines: Vec<String>,
}

impl Machine {
    /// The one that `cargo xtask install` made.
    pub(crate) fn find() -> Result<Self, String> {
        let kit = provided::folder("rdma-vm");
        let recipe = kit.join("recipe");
        if recipe.is_file() { Ok(Self { kit }) } else { Err(format!("{} was not made", kit.display())) }
    }

    /// Boots it and has it run a program of this host, whose words are printed as they come.
    pub(crate) fn run(&self, program: &Path, arguments: &[String]) -> Result<Outcome, String> {
        let begin = Instant::now();
        let mut emulator =
            Emulator(self.command(program, arguments)?.spawn().map_err(|error| format!("qemu: {error}"))?);
        let output = emulator.0.stdout.take().ok_or("qemu has no output")?;
        let reading = thread::spawn(move || {
            let lines = BufReader::new(output).split(b'\n').map_while(Result::ok);
            let lines = lines.map(|line| String::from_utf8_lossy(&line).trim_end().to_owned());
            lines.inspect(|line| println!("  | {line}")).collect()
        });
        let status = loop {
            match emulator.0.try_wait().map_err(|error| format!("qemu: {error}"))? {
                Some(status) => break status,
                None if begin.elapsed() < LIFETIME => sleep(Duration::from_millis(20)),
                None => return Err(format!("the machine did not end within {LIFETIME:?}")),
            }
        };
        println!("the machine took {:.1} s, and qemu ended with {status}", begin.elapsed().as_secs_f64());
        let lines = reading.join().map_err(|_| "what the machine lines was not read")?;
        Ok(Outcome { passed: status.code() == Some(PASSED), lines })
    }

    fn command(&self, program: &Path, arguments: &[String]) -> Result<Command, String> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("rdma/guest.sh");
        let mut words = vec![script.display().to_string(), program.display().to_string()];
        words.extend_from_slice(arguments);
        if let Some(word) = words.iter().find(|word| word.contains([' ', '"', ','])) {
            return Err(format!("a kernel takes no such argument: {word}"));
        }
        // A processor's own clock is compared with another at the start, wrongly if the host is busy then: once a minute was five.
        let boot = "console=ttyS0 panic=-1 quiet loglevel=3 mitigations=off nokaslr tsc=unstable clocksource=hpet random.trust_cpu=on rdinit=/init";
        let usr = self.kit.join("emulator/usr");
        let libraries = usr.join("lib/x86_64-linux-gnu");
        // It ends with this process, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(usr.join("bin/qemu-system-x86_64"));
        command.env("LD_LIBRARY_PATH", &libraries).env("QEMU_MODULE_DIR", libraries.join("qemu"));
        for folder in FIRMWARE {
            command.arg("-L").arg(usr.join(folder));
        }
        command.args(MACHINE.split(' '));
        for (name, folder) in [("host", Path::new("/")), ("guest", &self.kit.join("guest"))] {
            let path = folder.display();
            let share =
                format!("local,id={name},path={path},readonly=on,security_model=none,multidevs=remap");
            command.arg("-fsdev").arg(share);
            command.arg("-device").arg(format!("virtio-9p-pci,fsdev={name},mount_tag={name}"));
        }
        command.arg("-kernel").arg(self.kit.join("vmlinuz")).arg("-initrd").arg(self.kit.join("initrd"));
        command.arg("-append").arg(format!("{boot} -- {}", words.join(" ")));
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        Ok(command)
    }
}

/// A process of the emulator, which ends with this handle.
struct Emulator(Child);

impl Drop for Emulator {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
