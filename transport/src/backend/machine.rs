//! Measures this machine in a few milliseconds, once per process. Predictions are derived from these figures.
//!
//! The measurement waits as connections do by default: it spins for 50 µs, then sleeps.

use std::hint::{black_box, spin_loop};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Builder, Thread};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::oneshot;

/// The duration of each of the four measurements. With start and end, all of them take less than 50 ms.
const MEASURE_TIME: Duration = Duration::from_millis(8);
/// A measurement that receives nothing for this long ends. A thread of a busy machine may wait for a core for
/// tens of milliseconds.
const WAIT_MAX: Duration = Duration::from_millis(200);
const SPIN_MAX: Duration = Duration::from_micros(50);
const DATA_LEN: usize = 1 << 20;

/// The measured speed of this machine, for [`Backend::predict`](super::Backend::predict).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Machine {
    /// One thread's copy rate from warm memory to warm memory, 1 MiB at a time, in 10^9 bytes per second.
    pub copy_gb_per_s: f64,
    /// The time until a waiting thread sees a value stored by another thread, in microseconds. `None` where
    /// no thread could be started.
    pub hand_off_us: Option<f64>,
    /// A plain TCP socket over loopback; `None` where none could be opened.
    pub loopback: Option<Speed>,
}

/// A bandwidth and a latency.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// Bandwidth at 1 MiB, in 10^9 bytes per second.
    pub gb_per_s: f64,
    /// Half a round trip of 8 bytes, in microseconds: the median.
    pub p50_us: f64,
}

impl Machine {
    /// Returns the measurements. The process's first call takes them, in at most 50 ms on an idle machine.
    /// Concurrent calls wait for it; later calls return at once.
    ///
    /// Uses the real clock and real threads, under simulation too: the result belongs to the process.
    pub fn measured() -> &'static Self {
        MACHINE.get_or_init(Self::measure)
    }

    /// Like [`measured`](Self::measured), without blocking the caller's executor.
    pub(crate) async fn measured_async() -> &'static Self {
        if let Some(machine) = MACHINE.get() {
            return machine;
        }
        let (sender, receiver) = oneshot::channel();
        let probing = Builder::new().name("towline-probe".into()).spawn(move || {
            // The caller may have given up.
            let _ = sender.send(Self::measured());
        });
        match probing {
            Ok(_) => receiver.await.unwrap_or_else(|_| Self::measured()),
            Err(_) => Self::measured(),
        }
    }

    fn measure() -> Self {
        let loopback = || Some(Speed { gb_per_s: stream().ok()?, p50_us: round_trip().ok()? / 2.0 });
        Self { copy_gb_per_s: copy(), hand_off_us: hand_off().ok(), loopback: loopback() }
    }
}

static MACHINE: OnceLock<Machine> = OnceLock::new();

fn copy() -> f64 {
    let (from, mut to) = (vec![1u8; DATA_LEN], vec![2u8; DATA_LEN]);
    let took_us = median_us(|| {
        to.copy_from_slice(black_box(&from));
        black_box(&mut to);
        Ok(())
    });
    took_us.map_or(0.0, |us| gb_per_s(DATA_LEN, us))
}

/// Returns half the time in which a value travels to another thread and back.
fn hand_off() -> io::Result<f64> {
    let (shared, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let local = thread::current();
    thread::scope(|scope| {
        let echo = || {
            let mut value = 1;
            while await_value(&shared, value, Some(&stop)) {
                publish(&shared, value + 1, &local);
                value += 2;
            }
        };
        let remote = Builder::new().name("towline-probe".into()).spawn_scoped(scope, echo)?;
        let mut value = 0;
        let round_trip_us = median_us(|| {
            publish(&shared, value + 1, remote.thread());
            value += 2;
            if await_value(&shared, value, None) { Ok(()) } else { Err(ErrorKind::TimedOut.into()) }
        });
        stop.store(true, Ordering::Release);
        remote.thread().unpark();
        round_trip_us.map(|us| us / 2.0)
    })
}

fn publish(shared: &AtomicU64, value: u64, to: &Thread) {
    shared.store(value, Ordering::Release);
    to.unpark();
}

/// Waits until `shared` is `awaited`. Returns false if `stop` is set first, or after [`WAIT_MAX`].
fn await_value(shared: &AtomicU64, awaited: u64, stop: Option<&AtomicBool>) -> bool {
    let begin = Instant::now();
    while shared.load(Ordering::Acquire) != awaited {
        let waited = begin.elapsed();
        if stop.is_some_and(|stop| stop.load(Ordering::Acquire)) || waited > WAIT_MAX {
            return false;
        }
        if waited < SPIN_MAX {
            spin_loop();
        } else {
            thread::park_timeout(WAIT_MAX);
        }
    }
    true
}

/// Returns the round-trip time of 8 bytes over a plain socket.
fn round_trip() -> io::Result<f64> {
    let (local, remote) = sockets()?;
    for end in [&local, &remote] {
        end.set_nodelay(true)?;
        end.set_nonblocking(true)?;
    }
    thread::scope(|scope| {
        let echo = || {
            let mut message = [0; 8];
            while let Ok(1..) = read_soon(&remote, &mut message) {
                if (&remote).write_all(&message).is_err() {
                    break;
                }
            }
        };
        Builder::new().name("towline-probe".into()).spawn_scoped(scope, echo)?;
        let mut message = [0; 8];
        let round_trip_us = median_us(|| {
            (&local).write_all(&message)?;
            read_soon(&local, &mut message).map(|_| ())
        });
        // The other thread sees the end at once; this thread need not wait for it.
        let _ = local.shutdown(Shutdown::Both);
        round_trip_us
    })
}

/// Returns the receive rate of a stream of 1 MiB writes over a plain socket.
fn stream() -> io::Result<f64> {
    let (local, mut remote) = sockets()?;
    local.set_write_timeout(Some(WAIT_MAX))?;
    remote.set_read_timeout(Some(WAIT_MAX))?;
    thread::scope(|scope| {
        let send = move || {
            let mut local = local;
            let (data, begin) = (vec![1u8; DATA_LEN], Instant::now());
            // Dropping the socket at the end of this closure ends the stream.
            while begin.elapsed() < MEASURE_TIME && local.write_all(&data).is_ok() {}
        };
        Builder::new().name("towline-probe".into()).spawn_scoped(scope, send)?;
        let mut destination = vec![0; DATA_LEN];
        // The first read warms up and does not count.
        remote.read_exact(&mut destination)?;
        let (begin, mut len) = (Instant::now(), 0);
        loop {
            match remote.read(&mut destination) {
                Ok(0) => break,
                Ok(read) => len += read,
                Err(error) if len == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(gb_per_s(len, begin.elapsed().as_secs_f64() * 1e6))
    })
}

/// Returns both ends of one loopback connection, after checking that the accepted end is the other one's.
fn sockets() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let local = TcpStream::connect(listener.local_addr()?)?;
    let (remote, from) = listener.accept()?;
    if from == local.local_addr()? { Ok((local, remote)) } else { Err(ErrorKind::ConnectionRefused.into()) }
}

fn read_soon(mut socket: &TcpStream, into: &mut [u8]) -> io::Result<usize> {
    let begin = Instant::now();
    loop {
        match socket.read(into) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            outcome => return outcome,
        }
        let waited = begin.elapsed();
        if waited > WAIT_MAX {
            return Err(ErrorKind::TimedOut.into());
        }
        if waited > SPIN_MAX {
            let limit = Timespec { tv_sec: 0, tv_nsec: WAIT_MAX.as_nanos() as _ };
            // The next read decides, whether the call was interrupted or not.
            let _ = poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&limit));
        }
    }
}

/// Returns the median time of `work`, repeated for [`MEASURE_TIME`] or until it fails.
///
/// # Errors
/// That of `work`, if it never succeeded.
fn median_us(mut work: impl FnMut() -> io::Result<()>) -> io::Result<f64> {
    let (begin, mut times_ns) = (Instant::now(), Vec::new());
    while begin.elapsed() < MEASURE_TIME {
        let begin = Instant::now();
        match work() {
            Err(error) if times_ns.is_empty() => return Err(error),
            Err(_) => break,
            Ok(()) => {}
        }
        times_ns.push(begin.elapsed().as_nanos() as u64);
    }
    Ok(median(&mut times_ns) / 1e3)
}

/// Returns the median of `times`, or zero if there are none.
pub(crate) fn median(times: &mut [u64]) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0.0, |time| *time as f64)
}

/// Returns the rate of `len` bytes in `us` microseconds.
pub(crate) fn gb_per_s(len: usize, us: f64) -> f64 {
    len as f64 / 1e3 / us.max(1e-3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_measures_every_figure_once_per_process() {
        let machine = Machine::measured();
        let loopback = machine.loopback.unwrap();
        for figure in
            [machine.copy_gb_per_s, machine.hand_off_us.unwrap(), loopback.gb_per_s, loopback.p50_us]
        {
            assert!(figure.is_finite() && figure > 0.0, "{machine:?}");
        }
        assert!(std::ptr::eq(machine, Machine::measured()));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert!(std::ptr::eq(machine, runtime.block_on(Machine::measured_async())));
    }

    #[test]
    fn a_failure_ends_a_measurement_and_keeps_its_figures() {
        let mut left = 3;
        let counted = median_us(|| {
            left -= 1;
            if left >= 0 { Ok(()) } else { Err(ErrorKind::TimedOut.into()) }
        });
        assert!(counted.is_ok() && left == -1, "{counted:?}");
        assert_eq!(median_us(|| Err(ErrorKind::TimedOut.into())).unwrap_err().kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn a_silent_socket_times_out() {
        let (local, _far) = sockets().unwrap();
        local.set_nonblocking(true).unwrap();
        assert_eq!(read_soon(&local, &mut [0; 8]).unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(!await_value(&AtomicU64::new(0), 1, None));
    }

    #[test]
    fn a_median_is_the_middle() {
        assert_eq!(median(&mut []), 0.0);
        assert_eq!(median(&mut [9, 1, 5]), 5.0);
        assert_eq!(gb_per_s(2_000_000, 1000.0), 2.0);
    }
}
