//! The runs of a tool beside the repeats of a case, and the row that results from them.

use super::{ToolCommands, ToolFigures};
use crate::results::number::{median, round};
use crate::results::row::{CpuCost, Row};
use crate::results::tool_row::ToolRow;

/// One run of a tool, after one repeat of ours.
#[derive(Clone, Debug)]
pub(crate) struct ToolRun {
    pub(super) tool: &'static str,
    pub(super) version: Option<String>,
    /// The commands and their figures, or why the tool does not apply.
    pub(super) outcome: Result<(ToolCommands, ToolFigures), String>,
}

/// Returns a row for every tool, in the order of the first repeat: medians over its runs, and our ratio.
pub(crate) fn tool_rows(row: &Row, repeats: &[Vec<ToolRun>]) -> Vec<ToolRow> {
    let tools = repeats.first().into_iter().flatten().map(|turn| turn.tool);
    let turns_of = |tool| repeats.iter().flatten().filter(move |turn| turn.tool == tool);
    tools.filter_map(|tool| of(row, &turns_of(tool).collect::<Vec<_>>())).collect()
}

fn of(row: &Row, turns: &[&ToolRun]) -> Option<ToolRow> {
    let last = turns.last()?;
    let (completion, command, note) = match &last.outcome {
        Ok((commands, _)) => (Some(commands.completion), Some(commands.line()), commands.note.clone()),
        Err(why) => (None, None, why.clone()),
    };
    let ran: Vec<ToolFigures> = turns.iter().filter_map(|turn| Some(turn.outcome.as_ref().ok()?.1)).collect();
    let of =
        |value: fn(&ToolFigures) -> Option<f64>| median(&ran.iter().filter_map(value).collect::<Vec<_>>());
    let (gb_per_s, p50_us) = (of(|figures| figures.gb_per_s), of(|figures| figures.p50_us));
    let send = of(|figures| figures.cpu_s_per_gb.map(|cost| cost.send));
    let recv = of(|figures| figures.cpu_s_per_gb.map(|cost| cost.recv));
    let ratio = match (row.gb_per_s.zip(gb_per_s), row.p50_us.zip(p50_us)) {
        (Some((ours, theirs)), _) | (None, Some((ours, theirs))) => Some(ours / theirs),
        (None, None) => None,
    };
    Some(ToolRow {
        version: last.version.clone(),
        command,
        gb_per_s: gb_per_s.map(round),
        p50_us: p50_us.map(round),
        cpu_s_per_gb: send.zip(recv).map(|(send, recv)| CpuCost { send: round(send), recv: round(recv) }),
        ratio: ratio.filter(|ratio| ratio.is_finite()).map(round),
        ..ToolRow::planned(last.tool, completion, Some(note))
    })
}

impl ToolCommands {
    /// Returns both commands as a shell reads them.
    fn line(&self) -> String {
        let of = |words: &[String]| {
            let environment = self.environment.iter().map(|(name, value)| format!("{name}={value}"));
            environment.chain(words.iter().cloned()).collect::<Vec<_>>().join(" ")
        };
        format!("{} & {}", of(&self.server), of(&self.client))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::job;
    use super::super::{Tool, fi_pingpong, iperf3, ucx_perftest};
    use super::*;
    use crate::case::Pattern;
    use crate::results::row::tests::bandwidth_row;

    fn turn(tool: &dyn Tool, figures: ToolFigures) -> ToolRun {
        let job = job(Pattern::Bandwidth, 1 << 20);
        let outcome = tool.commands(&job).map(|commands| (commands, figures));
        ToolRun { tool: tool.name(), version: Some("1.0".into()), outcome }
    }

    fn repeat(gb_per_s: f64) -> Vec<ToolRun> {
        let figures = ToolFigures {
            gb_per_s: Some(gb_per_s),
            p50_us: None,
            cpu_s_per_gb: Some(CpuCost { send: gb_per_s / 10.0, recv: 0.5 }),
        };
        let without_cpu = ToolFigures { cpu_s_per_gb: None, ..figures };
        let none = ToolFigures::default();
        vec![
            turn(&iperf3::Iperf3, figures),
            turn(&ucx_perftest::UcxPerftest, without_cpu),
            turn(&fi_pingpong::FiPingpong, none),
        ]
    }

    #[test]
    fn repeats_give_medians_and_the_ratio_to_ours() {
        let row = bandwidth_row();
        let entries = tool_rows(&row, &[8.0, 2.0, 1.0].map(repeat));
        let [iperf3, ucx, fi] = &entries[..] else { panic!("{entries:?}") };
        assert_eq!((iperf3.gb_per_s, iperf3.ratio), (Some(2.0), Some(row.gb_per_s.unwrap() / 2.0)));
        assert_eq!(iperf3.cpu_s_per_gb.map(|cost| (cost.send, cost.recv)), Some((0.2, 0.5)));
        assert_eq!((iperf3.completion, ucx.completion), (Some("receiver"), Some("sender")));
        assert_eq!((ucx.ratio, ucx.short().as_str()), (Some(2.0), "ucx_perftest 2.00"));
        let command = ucx.command.as_ref().unwrap();
        let begin =
            "UCX_TLS=tcp UCX_NET_DEVICES=lo ucx_perftest -p 7000 & UCX_TLS=tcp UCX_NET_DEVICES=lo ucx_p";
        assert!(command.starts_with(begin), "{command}");
        assert!(ucx.applies() && !fi.applies() && fi.command.is_none() && fi.ratio.is_none());
        assert_eq!(fi.short(), "fi_pingpong -");
        assert!(fi.note.as_ref().unwrap().contains("ping pong"));
    }

    #[test]
    fn a_latency_is_ours_over_theirs_too() {
        let mut row = bandwidth_row();
        (row.gb_per_s, row.p50_us) = (None, Some(6.0));
        let figures = ToolFigures { p50_us: Some(4.0), ..ToolFigures::default() };
        let entries = tool_rows(&row, &[vec![turn(&iperf3::Iperf3, figures)]]);
        assert_eq!(entries[0].ratio, Some(1.5));
    }
}
