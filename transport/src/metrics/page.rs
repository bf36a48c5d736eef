//! The encoder of one scrape: each call writes one metric family.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::histogram::HistogramSnapshot;
use super::meters::{CountsSnapshot, Labels};

/// An endpoint's sums have no labels.
pub(super) const NO_LABELS: Labels<0> = [];

/// A scrape that is being written.
pub(super) struct Page<'a>(pub(super) DescriptorEncoder<'a>);

impl Page<'_> {
    pub(super) fn gauges<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: &[(usize, Labels<N>)],
    ) -> fmt::Result {
        let mut metric = self.describe(name, help, MetricType::Gauge)?;
        for (value, labels) in values {
            metric.encode_family(labels)?.encode_gauge(&(*value as i64))?;
        }
        Ok(())
    }

    pub(super) fn counters<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl Iterator<Item = (u64, Labels<N>)>,
    ) -> fmt::Result {
        let mut metric = self.describe(name, help, MetricType::Counter)?;
        for (value, labels) in values {
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, u64>(&value, None)?;
        }
        Ok(())
    }

    pub(super) fn histograms<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl Iterator<Item = (HistogramSnapshot, Labels<N>)>,
    ) -> fmt::Result {
        let mut metric = self.describe(name, help, MetricType::Histogram)?;
        for (snapshot, labels) in values {
            let (sum, count, buckets) = (snapshot.sum_in_unit(), snapshot.count(), snapshot.buckets());
            metric.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }

    /// Writes the counters of connections: all of the endpoint together, or each (then `of` is
    /// `connection_`).
    pub(super) fn connection_counts<const N: usize>(
        &mut self,
        of: &str,
        values: &[(CountsSnapshot, Labels<N>)],
    ) -> fmt::Result {
        let name = |what: &str| format!("towline_{of}{what}");
        for (what, help, histogram) in HISTOGRAMS {
            let values = values.iter().map(|(counted, labels)| (histogram(counted), labels.clone()));
            self.histograms(&name(what), help, values)?;
        }
        for (what, help, sum) in COUNTERS {
            let values = values.iter().map(|(counted, labels)| (sum(counted), labels.clone()));
            self.counters(&name(what), help, values)?;
        }
        Ok(())
    }

    fn describe<'s>(
        &'s mut self,
        name: &'s str,
        help: &'s str,
        of: MetricType,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name, help, None, of)
    }
}

/// A metric family: the end of its name, its help text, and its value.
type Family<T> = (&'static str, &'static str, fn(&CountsSnapshot) -> T);

const HISTOGRAMS: [Family<HistogramSnapshot>; 3] = [
    ("sent_bytes", "Payload of each message sent", |counts| counts.sent.clone()),
    ("received_bytes", "Payload of each message received", |counts| counts.received.clone()),
    ("deliver_seconds", "From deliver to the acknowledgement", |counts| counts.deliveries.clone()),
];

const COUNTERS: [Family<u64>; 4] = [
    ("copied_bytes", "Payload copied in user space", |counts| counts.bytes_copied),
    ("bounced_bytes", "Payload copied to where the peer reads it", |counts| counts.bytes_bounced),
    ("system_calls", "System calls that moved data, or tried to", |counts| counts.system_calls),
    ("credit_stalls", "Messages that waited for credit", |counts| counts.credit_stalls),
];
