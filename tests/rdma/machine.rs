//! The virtual machine: Debian's kernel in an emulator, with the files of this host, mounted read-only.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use towline_tests::provided;

/// The time limit from the machine's start to its end.
const LIFETIME: Duration = Duration::from_secs(120);
/// The emulator's exit status after the guest's script wrote 0x10: twice that value, plus one.
const PASSED: i32 = 0x10 << 1 | 1;
/// The devices that are needed, one of which ends the emulator with a status. KVM is not used: where the host
/// is a virtual machine itself, KVM's device may open and its guests then hang.
const MACHINE: &str = "-M q35 -accel tcg,thread=multi,tb-size=512 -cpu max -smp 2 -m 2048M -nodefaults -no-user-config \
                       -display none -no-reboot -serial stdio -device isa-debug-exit,iobase=0xf4,iosize=0x04";
/// Where the emulator finds its firmware.
const FIRMWARE: [&str; 3] = ["share/qemu", "share/seabios", "lib/ipxe/qemu"];

/// The files to boot.
#[derive(Debug)]
pub(crate) struct Machine {
    kit: PathBuf,
}

/// The result of a run.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Whether the program in the machine succeeded.
    pub(crate) passed: bool,
    /// The lines that it printed.
    pub(crate) lines: Vec<String>,
}

impl Machine {
    /// Finds the machine that `cargo xtask install` made.
    pub(crate) fn find() -> Result<Self, String> {
        let kit = provided::folder("rdma-vm");
        let recipe = kit.join("recipe");
        if recipe.is_file() { Ok(Self { kit }) } else { Err(format!("{} was not made", kit.display())) }
    }

    /// Boots the machine, which runs a program of this host. Prints its output as it arrives.
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
        let lines = reading.join().map_err(|_| "the machine's output was not read")?;
        Ok(Outcome { passed: status.code() == Some(PASSED), lines })
    }

    fn command(&self, program: &Path, arguments: &[String]) -> Result<Command, String> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("rdma/guest.sh");
        let mut words = vec![script.display().to_string(), program.display().to_string()];
        words.extend_from_slice(arguments);
        if let Some(word) = words.iter().find(|word| word.contains([' ', '"', ','])) {
            return Err(format!("the kernel's command line cannot hold the argument {word}"));
        }
        // The kernel calibrates the TSC at its start, wrongly on a busy host (seen: factor 5). It uses the HPET.
        let boot = "console=ttyS0 panic=-1 quiet loglevel=3 mitigations=off nokaslr tsc=unstable clocksource=hpet random.trust_cpu=on rdinit=/init";
        let usr = self.kit.join("emulator/usr");
        let libraries = usr.join("lib/x86_64-linux-gnu");
        // The emulator ends with this process in every case.
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

/// The emulator's process. It ends with this handle.
struct Emulator(Child);

impl Drop for Emulator {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
