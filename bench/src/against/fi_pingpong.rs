//! libfabric's ping pong, over its TCP provider on loopback.

use super::{Job, Tool, ToolCommands, ToolFigures, words};
use crate::case::{Pattern, Wait};
use crate::results::tool_row::Completion;

#[derive(Debug)]
pub(super) struct FiPingpong;

impl Tool for FiPingpong {
    fn name(&self) -> &'static str {
        "fi_pingpong"
    }

    fn remedy(&self) -> &'static str {
        "it is not on the search path: apt install libfabric-bin"
    }

    fn version_command(&self) -> Vec<String> {
        words("fi_info --version")
    }

    fn version(&self, output: &str) -> Option<String> {
        let version = output.lines().find_map(|line| line.strip_prefix("libfabric:"))?;
        Some(version.trim().to_owned())
    }

    fn commands(&self, job: &Job<'_>) -> Result<ToolCommands, String> {
        job.over_tcp()?;
        if job.pattern != Pattern::Latency {
            return Err("it only plays ping pong: it measures latency".to_owned());
        }
        let mut note = "its mean, not a median; the same buffer again and again; no warm-up".to_owned();
        if job.wait != Wait::Spin {
            note.push_str("; it polls");
        }
        let Job { size_bytes, messages, port, .. } = *job;
        let both = format!("-p tcp -d lo -e msg -I {messages} -S {size_bytes}");
        Ok(ToolCommands {
            environment: Vec::new(),
            server: words(&format!("fi_pingpong {both} -B {port}")),
            client: words(&format!("fi_pingpong {both} -P {port} 127.0.0.1")),
            completion: Completion::Receiver,
            note,
        })
    }

    fn read(&self, _: &Job<'_>, output: &str) -> Result<ToolFigures, String> {
        let mut lines = output.lines().skip_while(|line| !line.starts_with("bytes "));
        let names: Vec<&str> = lines.next().ok_or("it printed no table")?.split_whitespace().collect();
        let column =
            names.iter().position(|name| *name == "usec/xfer").ok_or("its table has no usec/xfer")?;
        let values = lines.map(|line| line.split_whitespace().collect::<Vec<_>>());
        let values = values.into_iter().find(|values| values.len() == names.len());
        let mean_us = values.and_then(|values| values[column].parse::<f64>().ok());
        let mean_us = mean_us.filter(|mean_us| *mean_us > 0.0).ok_or("it printed no figures")?;
        Ok(ToolFigures { p50_us: Some(mean_us), ..ToolFigures::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::job;
    use super::*;

    #[test]
    fn its_table_is_read() {
        let job = job(Pattern::Latency, 65536);
        let figures = FiPingpong.read(&job, include_str!("recorded/fi_pingpong.txt")).unwrap();
        assert_eq!((figures.p50_us, figures.gb_per_s), (Some(236.74), None));
        assert_eq!(FiPingpong.version(include_str!("recorded/fi_info.txt")).unwrap(), "1.17.0");
        assert!(FiPingpong.read(&job, "").unwrap_err().contains("no table"));
        let headline = include_str!("recorded/fi_pingpong.txt").lines().next().unwrap();
        assert!(FiPingpong.read(&job, headline).unwrap_err().contains("no figures"));
    }

    #[test]
    fn it_plays_ping_pong_and_nothing_else() {
        let commands = FiPingpong.commands(&job(Pattern::Latency, 64)).unwrap();
        assert_eq!(commands.server.join(" "), "fi_pingpong -p tcp -d lo -e msg -I 1000 -S 64 -B 7000");
        let client = "fi_pingpong -p tcp -d lo -e msg -I 1000 -S 64 -P 7000 127.0.0.1";
        assert_eq!(commands.client.join(" "), client);
        assert!(FiPingpong.commands(&job(Pattern::Rate, 64)).unwrap_err().contains("ping pong"));
    }
}
