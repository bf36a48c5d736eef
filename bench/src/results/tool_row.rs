//! What the document contains about a peer tool beside a case.

use serde::Serialize;

use super::row::CpuCost;

/// One tool beside one case. Where the tool cannot do what the case does, `note` says why and all else is `null`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ToolRow {
    pub(crate) tool: &'static str,
    pub(crate) version: Option<String>,
    /// Of the last repeat: its server and its client.
    pub(crate) command: Option<String>,
    pub(crate) completion: Option<&'static str>,
    pub(crate) gb_per_s: Option<f64>,
    pub(crate) p50_us: Option<f64>,
    pub(crate) cpu_s_per_gb: Option<CpuCost>,
    /// Ours over theirs.
    pub(crate) ratio: Option<f64>,
    pub(crate) note: Option<String>,
}

/// Whose word ends a transfer in the tool's figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Completion {
    /// The sending end's memory is free again: the bytes may still be under way.
    Sender,
    /// The receiving end has the bytes.
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
    /// Before the run: whether the tool applies.
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

    /// Whether the tool does what the case does.
    pub(crate) fn applies(&self) -> bool {
        self.completion.is_some()
    }

    /// `iperf3 3.12`: the tool and its version.
    pub(crate) fn name(&self) -> String {
        match &self.version {
            Some(version) => format!("{} {version}", self.tool),
            None => self.tool.to_owned(),
        }
    }

    /// `iperf3 1.05`: the tool and our ratio to it.
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
