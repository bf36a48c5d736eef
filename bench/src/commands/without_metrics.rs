//! Stands for `metrics` in a build without the feature `metrics`: `--metrics` is refused, and no exporter exists.

use std::str::FromStr;

use towline::Endpoint;
use towline_runtime::Scheduler;

use crate::failure::Failure;

/// The value of `--metrics`. It has no values.
#[derive(Clone, Debug)]
pub(crate) enum MetricsAddress {}

impl FromStr for MetricsAddress {
    type Err = &'static str;

    fn from_str(_: &str) -> Result<Self, &'static str> {
        Err(
            "this build has no metrics: build towline-bench with its feature `metrics`, which is on by default",
        )
    }
}

#[derive(Debug)]
pub(crate) enum Exporter {}

impl Exporter {
    pub(crate) async fn bind(
        at: &MetricsAddress,
        _: &Endpoint,
        _: Option<&Scheduler>,
    ) -> Result<(Self, String), Failure> {
        match *at {}
    }

    pub(crate) async fn serve(self) {
        match self {}
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::Arguments;

    #[test]
    fn metrics_option_is_refused_and_names_the_missing_feature() {
        for command in ["serve", "scheduler"] {
            let error = Arguments::try_parse_from(["towline", command, "--metrics", ":9100"]).unwrap_err();
            assert!(error.to_string().contains("feature `metrics`"), "{error}");
        }
    }
}
