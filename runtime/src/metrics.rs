//! Metrics of a scheduler or a worker, in the Prometheus format. All work happens at a scrape.

use std::fmt;
use std::sync::{Arc, Weak};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

/// Metrics of a [`Scheduler`](crate::Scheduler) or a [`Worker`](crate::Worker).
/// [`Endpoint::metrics`](towline::Endpoint::metrics) has those of their connections.
///
/// Register it with a `prometheus_client` registry of your own, or read its [`text`](Self::text). Clones
/// refer to the same source. `docs/metrics.md` lists every name. The metrics are empty once their scheduler
/// or worker is gone. Needs the feature `metrics`, which is on by default.
///
/// ```
/// use towline::Endpoint;
/// use towline_runtime::Scheduler;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> towline_runtime::Result<()> {
/// let scheduler = Scheduler::start(&Endpoint::new()?, &"mem://".parse()?).await?;
/// assert!(scheduler.metrics().text().contains("towline_scheduler_workers 0\n"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Metrics(Weak<dyn MetricSource>);

/// A source of metrics.
pub(crate) trait MetricSource: fmt::Debug + Send + Sync {
    fn write(&self, page: &mut Page<'_>) -> fmt::Result;
}

impl Metrics {
    pub(crate) fn of<T: MetricSource + 'static>(counting: &Arc<T>) -> Self {
        let weak: Weak<T> = Arc::downgrade(counting);
        Self(weak)
    }

    /// Returns the current values as OpenMetrics text.
    pub fn text(&self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self.clone()));
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = text::encode(&mut text, &registry);
        text
    }
}

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.0.upgrade().map_or(Ok(()), |counting| counting.write(&mut Page(encoder)))
    }
}

/// Writes one scrape: each call writes a name and its values.
pub(crate) struct Page<'a>(DescriptorEncoder<'a>);

/// A label's name and value, as `stage="ready"`, and the value of the metric.
type Labelled<'a> = (&'static str, &'a str, u64);

impl Page<'_> {
    pub(crate) fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.describe(name, help, MetricType::Gauge)?.encode_gauge(&as_gauge(value))
    }

    pub(crate) fn gauges(&mut self, name: &str, help: &str, values: &[Labelled<'_>]) -> fmt::Result {
        let mut metric = self.describe(name, help, MetricType::Gauge)?;
        for (label, of, value) in values {
            metric.encode_family(&[(*label, *of)])?.encode_gauge(&as_gauge(*value))?;
        }
        Ok(())
    }

    pub(crate) fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let mut metric = self.describe(name, help, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, u64, u64>(&value, None)
    }

    pub(crate) fn counters(&mut self, name: &str, help: &str, values: &[Labelled<'_>]) -> fmt::Result {
        let mut metric = self.describe(name, help, MetricType::Counter)?;
        for (label, of, value) in values {
            let labels = [(*label, *of)];
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, u64>(value, None)?;
        }
        Ok(())
    }

    pub(crate) fn seconds(&mut self, name: &str, help: &str, micros: u64) -> fmt::Result {
        let mut metric = self.describe(name, help, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, f64, u64>(&(micros as f64 / 1e6), None)
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

fn as_gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
