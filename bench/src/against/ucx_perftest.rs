//! UCX's own benchmark: tag matching over its TCP on loopback or its shared memory, active messages with our
//! settings over `ucx`, and one-sided reads and writes.

use towline::Address;
use towline::backend::Ucx;

use super::{Job, Tool, ToolCommands, ToolFigures, words};
use crate::case::{Pattern, Transport, Wait};
use crate::results::tool_row::Completion;

/// Its megabyte has 2^20 bytes.
const MEGABYTE: f64 = (1 << 20) as f64;

/// The prefix of UCX's settings in the environment.
pub(super) const UCX_PREFIX: &str = "UCX_";

/// Excludes shared memory and other interfaces.
const TCP: [(&str, &str); 2] = [("TLS", "tcp"), ("NET_DEVICES", "lo")];

/// All transports of UCX between processes of one host.
const SHARED_MEMORY: [(&str, &str); 1] = [("TLS", "shm")];

/// The setting that ours has for speed alone.
const FOR_SPEED: &str = "TCP_RX_SEG_SIZE";

#[derive(Debug)]
pub(super) struct UcxPerftest;

impl Tool for UcxPerftest {
    fn name(&self) -> &'static str {
        "ucx_perftest"
    }

    fn remedy(&self) -> &'static str {
        "it is not on the search path: apt install ucx-utils"
    }

    fn version_command(&self) -> Vec<String> {
        words("ucx_info -v")
    }

    fn version(&self, output: &str) -> Option<String> {
        // `# Version 1.13.1`, later `# Library version: 1.17.0`.
        let after = output.lines().find_map(|line| Some(line.split_once("ersion")?.1))?;
        Some(after.trim_start_matches([':', ' ']).split_whitespace().next()?.to_owned())
    }

    fn commands(&self, job: &Job<'_>) -> Result<ToolCommands, String> {
        let is_ucx = job.path == "ucx";
        let (passed, omitted) = if is_ucx { as_ours(job.transport)? } else { Default::default() };
        let environment = match job.path {
            "ucx" => environment(passed),
            "shm" => environment(SHARED_MEMORY),
            _ => job.over_tcp().map(|()| environment(TCP))?,
        };
        let (test, completion) = match job.pattern {
            Pattern::Latency if is_ucx => ("ucp_am_lat", Completion::Receiver),
            Pattern::Bandwidth | Pattern::Rate if is_ucx => ("ucp_am_bw", Completion::Sender),
            Pattern::Latency => ("tag_lat", Completion::Receiver),
            Pattern::Bandwidth | Pattern::Rate => ("tag_bw", Completion::Sender),
            Pattern::Get => ("ucp_get", Completion::Receiver),
            Pattern::Put => ("ucp_put_bw", Completion::Sender),
            other => return Err(format!("it has no test like {}", other.name())),
        };
        let mut note = "the same buffer again and again at either end".to_owned();
        if test.starts_with("ucp_am") {
            note.push_str("; what comes eagerly is not kept");
        }
        for (name, value) in omitted {
            note.push_str(&format!("; without our {name}={value}"));
        }
        // Our endpoints detect a lost peer. Its endpoints do the same with `-e`, which excludes some
        // transports.
        let peer_errors = if is_ucx { " -e" } else { "" };
        // With `-E sleep` the owner of the memory never wakes up, so a get hangs.
        let sleeps = job.wait == Wait::Sleep && job.pattern != Pattern::Get;
        let wait = if sleeps { "sleep" } else { "poll" };
        if wait != job.wait.name() && !(job.wait == Wait::Spin && wait == "poll") {
            note.push_str("; it polls");
        }
        let Job { size_bytes, window, messages, warmup, port, .. } = *job;
        let mut client = format!(
            "ucx_perftest 127.0.0.1 -p {port} -t {test} -s {size_bytes} -n {messages} -w {warmup} -E {wait} -v -f{peer_errors}"
        );
        if job.pattern != Pattern::Latency {
            client.push_str(&format!(" -O {window}"));
        }
        Ok(ToolCommands {
            environment,
            server: words(&format!("ucx_perftest -p {port}{peer_errors}")),
            client: words(&client),
            completion,
            note,
        })
    }

    fn read(&self, job: &Job<'_>, output: &str) -> Result<ToolFigures, String> {
        // UCX also writes warnings to standard output: the figures follow their headings.
        let mut lines = output.lines().skip_while(|line| !line.starts_with("iterations,"));
        let names = lines.next().ok_or("it printed no table")?;
        let names: Vec<&str> = names.split(',').map(str::trim).collect();
        let values: Vec<&str> = lines
            .map(|line| line.split(',').map(str::trim).collect::<Vec<_>>())
            .find(|values| values.len() == names.len())
            .ok_or("it printed no figures")?;
        let figure = |name: &str| {
            let at = names.iter().position(|known| *known == name);
            let found = at.and_then(|at| values[at].parse::<f64>().ok());
            found.filter(|value| *value > 0.0).ok_or_else(|| format!("it printed no {name}"))
        };
        let mut figures = ToolFigures::default();
        if job.pattern == Pattern::Latency {
            figures.p50_us = Some(figure("50.0_percentile_lat")?);
        } else {
            // Its bandwidth has two decimals and its rate none: the larger number is more exact.
            figures.gb_per_s = Some(match figure("overall_bw").map(|megabytes| megabytes * MEGABYTE / 1e9) {
                Ok(gb_per_s) if gb_per_s > 0.01 => gb_per_s,
                _ => figure("overall_mr")? * job.size_bytes as f64 / 1e9,
            });
        }
        Ok(figures)
    }
}

/// Settings of UCX, by name.
type Settings = Vec<(String, String)>;

/// Returns the settings of ours that decide what carries the bytes, and those for speed alone that are not
/// passed on. Settings for speed are passed on if the address has them.
fn as_ours(transport: &Transport) -> Result<(Settings, Settings), String> {
    let text = |error: towline::Error| error.to_string();
    let address: Address = transport.local_address().parse().map_err(text)?;
    let settings = Ucx::default().settings(&address).map_err(text)?;
    let is_passed = |(name, _): &(String, String)| name != FOR_SPEED || transport.options.contains_key(name);
    Ok(settings.into_iter().partition(is_passed))
}

/// Returns settings as environment variables.
fn environment<S: Into<String>>(settings: impl IntoIterator<Item = (S, S)>) -> Vec<(String, String)> {
    let variable = |(name, value): (S, S)| (format!("{UCX_PREFIX}{}", name.into()), value.into());
    settings.into_iter().map(variable).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::job;
    use super::*;

    fn read(pattern: Pattern, size: usize, text: &str) -> Result<ToolFigures, String> {
        UcxPerftest.read(&job(pattern, size), text)
    }

    #[test]
    fn its_table_is_read() {
        let latency = read(Pattern::Latency, 8, include_str!("recorded/ucx_perftest_tag_lat.txt")).unwrap();
        assert_eq!((latency.p50_us, latency.gb_per_s), (Some(3.949), None));
        let text = include_str!("recorded/ucx_perftest_tag_bw.txt");
        let bandwidth = read(Pattern::Bandwidth, 1 << 20, text).unwrap();
        assert!((bandwidth.gb_per_s.unwrap() - 907.63 * 1.048576e-3).abs() < 1e-6, "{bandwidth:?}");
        assert!(bandwidth.p50_us.is_none() && bandwidth.cpu_s_per_gb.is_none());
        let get = read(Pattern::Get, 65536, include_str!("recorded/ucx_perftest_ucp_get.txt")).unwrap();
        assert!((get.gb_per_s.unwrap() - 618.77 * 1.048576e-3).abs() < 1e-6, "{get:?}");
        let version = UcxPerftest.version(include_str!("recorded/ucx_info.txt"));
        assert_eq!(version.unwrap(), "1.13.1");
        assert_eq!(UcxPerftest.version("# Library version: 1.17.0\n").unwrap(), "1.17.0");
    }

    #[test]
    fn a_warning_before_the_table_is_passed_over_and_nothing_is_no_figure() {
        let table = include_str!("recorded/ucx_perftest_tag_lat.txt");
        let warned = format!("[1795565312.169194] [vm:23600:0] UCX  WARN  something, it says\n{table}");
        assert_eq!(read(Pattern::Latency, 8, &warned).unwrap().p50_us, Some(3.949));
        assert!(read(Pattern::Latency, 8, "").unwrap_err().contains("no table"));
        let headline = table.lines().next().unwrap();
        assert!(read(Pattern::Latency, 8, headline).unwrap_err().contains("no figures"));
        assert!(read(Pattern::Latency, 8, "iterations,x\n1,2\n").unwrap_err().contains("percentile"));
    }

    #[test]
    fn small_messages_count_by_their_rate() {
        let text = "iterations,50.0_percentile_lat,avg_lat,overall_lat,avg_bw,overall_bw,avg_mr,overall_mr\n\
                    1000,1.649,2.153,2.153,3.54,3.54,464485,464485\n";
        let rate = read(Pattern::Rate, 8, text).unwrap();
        assert!((rate.gb_per_s.unwrap() - 464_485.0 * 8.0 / 1e9).abs() < 1e-12);
    }

    #[test]
    fn it_goes_where_ours_went() {
        let variables_for =
            |path| UcxPerftest.commands(&Job { path, ..job(Pattern::Latency, 8) }).map(|it| it.environment);
        let variables = |pairs: &[(&str, &str)]| {
            Ok(pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect::<Vec<_>>())
        };
        assert_eq!(variables_for("shm"), variables(&[("UCX_TLS", "shm")]));
        assert_eq!(variables_for("tcp"), variables(&[("UCX_TLS", "tcp"), ("UCX_NET_DEVICES", "lo")]));
        assert_eq!(variables_for("mem").unwrap_err(), "it runs over tcp here, and ours over mem");
    }

    #[test]
    fn beside_ucx_it_has_our_settings_and_sends_active_messages() {
        let transport: Transport = "ucx?TLS=self%2Ctcp&NET_DEVICES=lo".parse().unwrap();
        let asked = |pattern| {
            let job = Job { path: "ucx", transport: &transport, ..job(pattern, 8) };
            UcxPerftest.commands(&job)
        };
        let latency = match asked(Pattern::Latency) {
            Ok(commands) => commands,
            Err(why) => {
                // This machine has no UCX, and the reason names what to install.
                assert!(why.contains("libucp") && why.contains("apt install libucx0"), "{why}");
                return;
            }
        };
        for (name, value) in
            [("UCX_TLS", "self,tcp"), ("UCX_NET_DEVICES", "lo"), ("UCX_KEEPALIVE_INTERVAL", "inf")]
        {
            let variable = (name.to_owned(), value.to_owned());
            assert!(latency.environment.contains(&variable), "{name}: {:?}", latency.environment);
        }
        let line = "ucx_perftest 127.0.0.1 -p 7000 -t ucp_am_lat -s 8 -n 1000 -w 100 -E poll -v -f -e";
        assert_eq!(latency.client.join(" "), line);
        assert_eq!(latency.server.join(" "), "ucx_perftest -p 7000 -e");
        assert_eq!(latency.completion, Completion::Receiver);
        assert!(latency.note.contains("eagerly"), "{}", latency.note);
        assert!(latency.note.contains("; without our TCP_RX_SEG_SIZE=256k"), "{}", latency.note);
        assert!(!latency.environment.iter().any(|(name, _)| name == "UCX_TCP_RX_SEG_SIZE"));
        let bandwidth = asked(Pattern::Bandwidth).unwrap();
        assert!(
            bandwidth.client.join(" ").ends_with("-t ucp_am_bw -s 8 -n 1000 -w 100 -E poll -v -f -e -O 16")
        );
        assert_eq!(bandwidth.completion, Completion::Sender);
        let put = asked(Pattern::Put).unwrap();
        assert!(put.client.contains(&"ucp_put_bw".to_owned()) && !put.note.contains("eagerly"), "{put:?}");
    }

    #[test]
    fn each_pattern_has_its_test() {
        let line = |pattern| UcxPerftest.commands(&job(pattern, 8)).unwrap().client.join(" ");
        let latency = "ucx_perftest 127.0.0.1 -p 7000 -t tag_lat -s 8 -n 1000 -w 100 -E poll -v -f";
        assert_eq!(line(Pattern::Latency), latency);
        assert!(
            line(Pattern::Bandwidth).contains("-t tag_bw") && line(Pattern::Bandwidth).ends_with("-O 16")
        );
        assert!(line(Pattern::Rate).contains("tag_bw") && line(Pattern::Put).contains("ucp_put_bw"));
        let asleep = |pattern| {
            UcxPerftest.commands(&Job { wait: Wait::Sleep, ..job(pattern, 8) }).unwrap().client.join(" ")
        };
        assert!(asleep(Pattern::Put).contains("-E sleep") && asleep(Pattern::Get).contains("-E poll"));
        let connect = UcxPerftest.commands(&job(Pattern::Connect, 8)).unwrap_err();
        assert_eq!(connect, "it has no test like connect");
    }
}
