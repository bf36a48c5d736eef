//! The metrics of an endpoint as a collector of `prometheus_client`.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::registry::Registry;

use super::meters::Meters;
use super::page::{NO_LABELS, Page};
use crate::memory::{Place, Pool};
use crate::platform::process::Process;

/// The metrics of an [`Endpoint`](crate::Endpoint): of each connection, of all connections together, and of
/// its pools. Needs the feature `metrics`, which is on by default.
///
/// Register it with a `prometheus_client` registry, or take its [`text`](Self::text). Clones report the same.
/// `docs/metrics.md` lists every name. In a forked child it reports nothing.
///
/// ```
/// use prometheus_client::registry::Registry;
/// use towline::Endpoint;
///
/// let endpoint = Endpoint::new()?;
/// let mut registry = Registry::default();
/// registry.register_collector(Box::new(endpoint.metrics()));
/// assert!(endpoint.metrics().text().ends_with("# EOF\n"));
/// # Ok::<(), towline::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(crate) meters: Arc<Meters>,
    pub(crate) pools: Arc<HashMap<Place, Pool>>,
    pub(crate) process: Process,
}

impl Metrics {
    /// Returns all metrics as OpenMetrics text, as of now.
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
        if !self.process.is_this() {
            return Ok(());
        }
        let mut page = Page(encoder);
        let (living, all) = self.meters.read();
        let Meters { opened, ended, failed, establish_times, .. } = &*self.meters;
        page.counters("towline_connections_opened", "Connections made", opened.read().into_iter())?;
        page.counters(
            "towline_connections_failed",
            "Attempts that became no connection, by why",
            failed.read().into_iter(),
        )?;
        page.counters(
            "towline_connections_ended",
            "Ended connections, by how they ended",
            ended.read().into_iter(),
        )?;
        page.gauges("towline_connections", "Connections that live", &[(living.len(), NO_LABELS)])?;
        let took = [(establish_times.read(), NO_LABELS)].into_iter();
        page.histograms("towline_establish_seconds", "What connecting and accepting took", took)?;
        page.connection_counts("", &[(all, NO_LABELS)])?;
        page.connection_counts("connection_", &living)?;
        self.pools(&mut page)
    }
}

impl Metrics {
    fn pools(&self, page: &mut Page<'_>) -> fmt::Result {
        let (mut bytes, mut takes) = (Vec::new(), Vec::new());
        for (place, pool) in &*self.pools {
            let stats = pool.stats();
            let of = |key, value: &str| [("place", place.to_string()), (key, value.to_owned())];
            bytes.push((stats.in_use_bytes, of("state", "in_use")));
            bytes.push((stats.idle_bytes, of("state", "idle")));
            takes.push((stats.hits, of("source", "pool")));
            takes.push((stats.misses, of("source", "system")));
        }
        page.gauges("towline_pool_bytes", "Memory of the pools", &bytes)?;
        page.counters("towline_pool_takes", "Blocks taken, and where they came from", takes.into_iter())
    }
}
