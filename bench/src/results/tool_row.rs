//! The row of a peer tool beside a case.

use serde::Serialize;

use super::row::CpuCost;

/// One tool beside one case. If the tool cannot do what the case does, `note` says why and all else is
/// `null`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ToolRow {
    pub(crate) tool: &'static str,
    pub(crate) version: Option<String>,
    /// The commands of the last repeat: its server and its client.
    pub(crate) command: Option<String>,
    pub(crate) completion: Option<&'static str>,
    pub(crate) gb_per_s: Option<f64>,
    pub(crate) p50_us: Option<f64>,
    pub(crate) cpu_s_per_gb: Option<CpuCost>,
    /// Ours over theirs.
    pub(crate) ratio: Option<f64>,
    pub(crate) note: Option<String>,
}

/// The end whose completion the tool times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Completion {
    /// The sender's memory is free again: the bytes may still be in flight.
    Sender,
    /// The receiver has the bytes.
    Receiver,
}

impl Completion {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sender => "sender",
            Self::Receiver => "receiver",
        }
    }
}

impl ToolRow {
    /// Returns the row before the run.
    pub(crate) fn planned(tool: &'static str, completion: Option<Completion>, note: Option<String>) -> Self {
        Self {
            tool,
            version: None,
            command: None,
            completion: completion.map(Completion::name),
            gb_per_s: None,
            p50_us: None,
            cpu_s_per_gb: None,
            ratio: None,
            note,
        }
    }

    /// Returns true if the tool can do what the case does.
    pub(crate) fn applies(&self) -> bool {
        self.completion.is_some()
    }

    /// Returns the tool and its version: `iperf3 3.12`.
    pub(crate) fn name(&self) -> String {
        match &self.version {
            Some(version) => format!("{} {version}", self.tool),
            None => self.tool.to_owned(),
        }
    }

    /// Returns the tool and our ratio to it: `iperf3 1.05`.
    pub(crate) fn short(&self) -> String {
        match self.ratio {
            Some(ratio) => format!("{} {ratio:.2}", self.tool),
            None => format!("{} -", self.tool),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_the_keys_of_the_contract_in_order() {
        let text = serde_json::to_string(&ToolRow::planned("iperf3", None, None)).unwrap();
        let keys = "tool version command completion gb_per_s p50_us cpu_s_per_gb ratio note";
        let keys: Vec<String> = keys.split(' ').map(|key| format!("\"{key}\":")).collect();
        let positions: Vec<_> = keys.iter().map(|key| text.find(key.as_str())).collect();
        assert!(positions.iter().all(Option::is_some) && positions.is_sorted(), "{text}");
    }
}
