//! iperf3: a stream of writes over TCP, counted at the receiver.

use serde_json::Value;

use super::{Job, Tool, ToolCommands, ToolFigures, words};
use crate::case::Pattern;
use crate::results::row::CpuCost;
use crate::results::tool_row::Completion;

/// The longest write that iperf3 makes.
const WRITE_BYTES_MAX: usize = 1 << 20;

/// A shorter run would end before the receiver has read anything.
const BYTES_MIN: usize = 64 << 20;
const WRITES_MAX_OF_MIN: usize = 4096;

#[derive(Debug)]
pub(super) struct Iperf3;

impl Tool for Iperf3 {
    fn name(&self) -> &'static str {
        "iperf3"
    }

    fn remedy(&self) -> &'static str {
        "it is not on the search path: apt install iperf3"
    }

    fn version_command(&self) -> Vec<String> {
        words("iperf3 --version")
    }

    fn version(&self, output: &str) -> Option<String> {
        Some(output.strip_prefix("iperf ")?.split_whitespace().next()?.to_owned())
    }

    fn commands(&self, job: &Job<'_>) -> Result<ToolCommands, String> {
        job.over_tcp()?;
        let both_ways = match job.pattern {
            Pattern::Bandwidth => "",
            Pattern::Bidirectional => " --bidir",
            _ => return Err("it only streams: it measures bandwidth".to_owned()),
        };
        let write = job.size_bytes.min(WRITE_BYTES_MAX);
        let bytes = job.messages.saturating_mul(job.size_bytes as u64);
        let least = (BYTES_MIN / write).min(WRITES_MAX_OF_MIN) as u64;
        let writes = bytes.div_ceil(write as u64).max(least);
        let port = job.port;
        let mut note = "writes one buffer repeatedly; sleeps with any --wait".to_owned();
        if write < job.size_bytes {
            note.push_str("; its writes are at most 1 MiB");
        }
        Ok(ToolCommands {
            environment: Vec::new(),
            server: words(&format!("iperf3 -s -1 -B 127.0.0.1 -p {port}")),
            client: words(&format!(
                "iperf3 -c 127.0.0.1 -p {port} -l {write} -k {writes} -i 0 -J{both_ways}"
            )),
            completion: Completion::Receiver,
            note,
        })
    }

    fn read(&self, _: &Job<'_>, output: &str) -> Result<ToolFigures, String> {
        let document: Value = serde_json::from_str(output).map_err(|error| format!("its JSON: {error}"))?;
        if let Some(error) = document["error"].as_str() {
            return Err(error.to_owned());
        }
        let end = &document["end"];
        let number =
            |value: &Value, what: &str| value.as_f64().ok_or_else(|| format!("its JSON has no {what}"));
        let received = &end["sum_received"];
        // The other direction, with `--bidir`.
        let back = end["sum_received_bidir_reverse"]["bytes"].as_f64().unwrap_or(0.0);
        let bytes = number(&received["bytes"], "end.sum_received.bytes")? + back;
        let seconds = number(&received["seconds"], "end.sum_received.seconds")?;
        if bytes <= 0.0 || seconds <= 0.0 {
            return Err("it ended before its receiver had anything".to_owned());
        }
        let busy = |who: &str, seconds: f64| {
            Some(end["cpu_utilization_percent"][who].as_f64()? / 100.0 * seconds / (bytes / 1e9))
        };
        let sending = end["sum_sent"]["seconds"].as_f64().and_then(|seconds| busy("host_total", seconds));
        Ok(ToolFigures {
            gb_per_s: Some(bytes / 1e9 / seconds),
            p50_us: None,
            cpu_s_per_gb: sending
                .zip(busy("remote_total", seconds))
                .map(|(send, recv)| CpuCost { send, recv }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::job;
    use super::*;

    #[test]
    fn its_receiver_and_its_cpu_time_are_read() {
        let text = include_str!("recorded/iperf3.json");
        let figures = Iperf3.read(&job(Pattern::Bandwidth, 1 << 20), text).unwrap();
        let document: Value = serde_json::from_str(text).unwrap();
        let received = document["end"]["sum_received"]["bits_per_second"].as_f64().unwrap() / 8e9;
        assert!((figures.gb_per_s.unwrap() - received).abs() < 0.01, "{figures:?}");
        assert!(figures.p50_us.is_none());
        let cpu = figures.cpu_s_per_gb.unwrap();
        assert!(cpu.send > 0.01 && cpu.send < 1.0 && cpu.recv > 0.01 && cpu.recv < 1.0, "{cpu:?}");
        assert_eq!(Iperf3.version(include_str!("recorded/iperf3_version.txt")).unwrap(), "3.12");
    }

    #[test]
    fn both_ways_count() {
        let text = include_str!("recorded/iperf3_bidir.json");
        let figures = Iperf3.read(&job(Pattern::Bandwidth, 1 << 20), text).unwrap();
        let both = (2_474_639_360.0 + 1_736_441_008.0) / 1e9 / 1.161305;
        assert!((figures.gb_per_s.unwrap() - both).abs() < 1e-6, "{figures:?}");
    }

    #[test]
    fn what_it_cannot_do_it_says_itself() {
        let job = job(Pattern::Bandwidth, 8);
        let refused = Iperf3.read(&job, include_str!("recorded/iperf3_refused.json")).unwrap_err();
        assert!(refused.contains("Connection refused"), "{refused}");
        assert!(Iperf3.read(&job, "").unwrap_err().contains("its JSON"));
        assert!(Iperf3.read(&job, "{\"end\":{}}").unwrap_err().contains("sum_received"));
        let nothing = "{\"end\":{\"sum_received\":{\"bytes\":0,\"seconds\":0.1}}}";
        assert!(Iperf3.read(&job, nothing).unwrap_err().contains("before its receiver"));
    }

    #[test]
    fn as_many_bytes_as_ours_in_writes_of_the_size() {
        let line = |size| Iperf3.commands(&job(Pattern::Bandwidth, size)).unwrap().client.join(" ");
        assert_eq!(line(1 << 20), "iperf3 -c 127.0.0.1 -p 7000 -l 1048576 -k 1000 -i 0 -J");
        assert_eq!(line(64 << 20), "iperf3 -c 127.0.0.1 -p 7000 -l 1048576 -k 64000 -i 0 -J");
        assert_eq!(line(8), "iperf3 -c 127.0.0.1 -p 7000 -l 8 -k 4096 -i 0 -J");
        assert!(Iperf3.commands(&job(Pattern::Latency, 8)).unwrap_err().contains("only streams"));
    }
}
