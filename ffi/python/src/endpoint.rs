//! Endpoints, listeners, and what configures them.

use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use towline::{Address, BackendState, Pool, Token, Wait};

use crate::error::OrRaise;
use crate::event_loop::{EventLoop, Outcome};
use crate::unclaimed::Unclaimed;
use crate::view::View;

/// The entry point of a process.
#[pyclass(frozen, module = "towline._towline")]
#[derive(Debug)]
pub(crate) struct Endpoint(towline::Endpoint);

/// Listens at one address.
#[pyclass(frozen, module = "towline._towline")]
#[derive(Debug)]
pub(crate) struct Listener {
    listener: Arc<towline::Listener>,
    endpoint: towline::Endpoint,
    /// Connections that were accepted for a call that was cancelled at that moment.
    unclaimed: Unclaimed<towline::Connection>,
    #[pyo3(get)]
    address: String,
}

/// The certificates that an endpoint presents and trusts.
#[pyclass(frozen, module = "towline._towline")]
#[derive(Debug)]
pub(crate) struct Tls(towline::Tls);

#[pymethods]
impl Tls {
    #[new]
    #[pyo3(signature = (*, certificate=None, key=None, authority=None, server_name=None, any_name=false, anonymous_clients=false))]
    fn new(
        py: Python<'_>,
        certificate: Option<Vec<u8>>,
        key: Option<Vec<u8>>,
        authority: Option<Vec<u8>>,
        server_name: Option<String>,
        any_name: bool,
        anonymous_clients: bool,
    ) -> PyResult<Self> {
        let mut tls = towline::Tls::builder().any_name(any_name).anonymous_clients(anonymous_clients);
        if let Some(certificate) = certificate {
            // PEM may have the key in the certificate's file.
            let key = key.unwrap_or_else(|| certificate.clone());
            tls = tls.certificate(certificate, key);
        }
        if let Some(authority) = authority {
            tls = tls.authority(authority);
        }
        if let Some(name) = server_name {
            tls = tls.server_name(name);
        }
        Ok(Self(tls.build().or_raise(py)?))
    }
}

#[pymethods]
impl Endpoint {
    #[new]
    #[pyo3(signature = (*, token=None, tls=None, trust_user=false, insecure=false, wait=None, linger=None, heartbeat=None, pool_bytes=None, pool_idle_time=None))]
    #[expect(clippy::too_many_arguments, reason = "Python passes them by name")]
    fn new(
        py: Python<'_>,
        token: Option<&Bound<'_, PyAny>>,
        tls: Option<&Tls>,
        trust_user: bool,
        insecure: bool,
        wait: Option<&str>,
        linger: Option<f64>,
        heartbeat: Option<f64>,
        pool_bytes: Option<usize>,
        pool_idle_time: Option<f64>,
    ) -> PyResult<Self> {
        let mut builder = towline::Endpoint::builder().trust_user(trust_user).insecure(insecure);
        if let Some(token) = token {
            builder = builder.token(Token::from_bytes(View::of(token)?.to_vec()).or_raise(py)?);
        }
        if let Some(Tls(tls)) = tls {
            builder = builder.tls(tls.clone());
        }
        if let Some(wait) = wait {
            builder = builder.wait(parse_wait(wait)?);
        }
        if let Some(linger) = linger {
            builder = builder.linger(seconds(linger)?);
        }
        if let Some(heartbeat) = heartbeat {
            builder = builder.heartbeat(seconds(heartbeat)?);
        }
        if let Some(bytes) = pool_bytes {
            builder = builder.pool(Pool::new(bytes));
        }
        if let Some(time) = pool_idle_time {
            builder = builder.pool_idle_time(seconds(time)?);
        }
        py.detach(|| builder.build()).map(Self).or_raise(py)
    }

    fn listen<'py>(
        &self,
        py: Python<'py>,
        event_loop: &EventLoop,
        address: &str,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (endpoint, address) = (self.0.clone(), parse(py, address)?);
        event_loop.start(py, &self.0, async move {
            let listener = endpoint.listen(&address).await?;
            Ok(Outcome::Listening(endpoint, listener))
        })
    }

    fn connect<'py>(
        &self,
        py: Python<'py>,
        event_loop: &EventLoop,
        address: &str,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (endpoint, address) = (self.0.clone(), parse(py, address)?);
        // The driver connects; the call only waits for it.
        event_loop.watch(py, async move {
            let connection = endpoint.connect(&address).await?;
            Ok(Outcome::Connected(endpoint, connection))
        })
    }

    /// Closes all connections and listeners.
    fn close<'py>(&self, py: Python<'py>, event_loop: &EventLoop) -> PyResult<Bound<'py, PyAny>> {
        let endpoint = self.0.clone();
        event_loop.start(py, &self.0, async move {
            endpoint.close().await;
            Ok(Outcome::Nothing)
        })
    }

    /// The bytes of the host pool: `(in use, idle)`.
    fn pool_bytes(&self) -> (usize, usize) {
        let stats = self.0.pool().stats();
        (stats.in_use_bytes, stats.idle_bytes)
    }

    /// Sets how many bytes the host pool keeps idle.
    fn set_pool_idle_bytes_max(&self, py: Python<'_>, bytes_max: usize) {
        py.detach(|| self.0.pool().set_idle_bytes_max(bytes_max));
    }

    /// The backends: `(name, state)` of each.
    fn backends(&self) -> Vec<(String, String)> {
        let state = |state| match state {
            BackendState::Ready { version: Some(version), .. } => format!("ready, version {version}"),
            BackendState::Ready { version: None, .. } => "ready".to_owned(),
            BackendState::Unavailable { reason, remedy } => format!("unavailable: {reason}; {remedy}"),
            BackendState::Planned => "not there yet".to_owned(),
            _ => "unknown".to_owned(),
        };
        self.0.backends().into_iter().map(|report| (report.name.to_owned(), state(report.state))).collect()
    }

    /// The metrics, as Prometheus reads them.
    fn metrics(&self, py: Python<'_>) -> String {
        py.detach(|| self.0.metrics().text())
    }
}

impl Listener {
    pub(crate) fn new(endpoint: towline::Endpoint, listener: towline::Listener) -> Self {
        let address = listener.address().to_string();
        Self { listener: Arc::new(listener), endpoint, unclaimed: Unclaimed::default(), address }
    }
}

#[pymethods]
impl Listener {
    fn accept<'py>(&self, py: Python<'py>, event_loop: &EventLoop) -> PyResult<Bound<'py, PyAny>> {
        let (listener, endpoint, unclaimed) =
            (self.listener.clone(), self.endpoint.clone(), self.unclaimed.clone());
        event_loop.watch(py, async move {
            let connection = unclaimed.next(listener.accept()).await?;
            Ok(Outcome::Accepted(endpoint, connection))
        })
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.listener.close());
        while let Some(connection) = self.unclaimed.pop() {
            py.detach(|| connection.abort());
        }
    }
}

fn parse(py: Python<'_>, address: &str) -> PyResult<Address> {
    address.parse().or_raise(py)
}

fn parse_wait(wait: &str) -> PyResult<Wait> {
    match wait {
        "sleep" => Ok(Wait::Sleep),
        "spin" => Ok(Wait::Spin),
        "adaptive" => Ok(Wait::Adaptive),
        _ => Err(PyValueError::new_err(format!("wait is {wait:?}: sleep, spin and adaptive are possible"))),
    }
}

pub(crate) fn seconds(seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(seconds).map_err(|error| PyValueError::new_err(error.to_string()))
}
