//! The Python package `towline`: handles for the library's types. The package's Python code makes them
//! awaitable.
//!
//! The invariant: no thread of ours attaches to the interpreter. The driver queues results, and the thread of
//! the event loop takes them and releases Python's objects.

mod connection;
mod dlpack;
mod endpoint;
mod error;
mod event_loop;
mod frame;
mod freeing;
mod incoming;
mod log;
mod message;
mod numpy;
mod region;
mod unclaimed;
mod view;

use std::ffi::OsString;

use pyo3::prelude::*;

#[pymodule(gil_used = false)]
fn _towline(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<event_loop::EventLoop>()?;
    module.add_class::<event_loop::Pending>()?;
    module.add_class::<endpoint::Endpoint>()?;
    module.add_class::<endpoint::Listener>()?;
    module.add_class::<endpoint::Tls>()?;
    module.add_class::<connection::Connection>()?;
    module.add_class::<incoming::Incoming>()?;
    module.add_class::<region::Region>()?;
    module.add_class::<region::RemoteRegion>()?;
    module.add_class::<frame::Frame>()?;
    module.add_function(wrap_pyfunction!(log::start_log, module)?)?;
    module.add_function(wrap_pyfunction!(log::take_log, module)?)?;
    module.add_function(wrap_pyfunction!(numpy::make_numpy_arena, module)?)?;
    module.add_function(wrap_pyfunction!(numpy::numpy_arena_stats, module)?)?;
    module.add_function(wrap_pyfunction!(numpy::numpy_handler, module)?)?;
    module.add_function(wrap_pyfunction!(numpy::set_numpy_handler, module)?)?;
    module.add_function(wrap_pyfunction!(run_command, module)?)?;
    Ok(())
}

/// Runs the `towline` command in this process, which is for it alone. `program` has the words that start it again.
/// Returns its exit code.
#[pyfunction]
fn run_command(py: Python<'_>, program: Vec<OsString>, arguments: Vec<OsString>) -> u8 {
    py.detach(|| towline_bench::run_with(program, arguments))
}
