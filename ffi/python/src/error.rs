//! Errors as Python's exceptions. `towline/errors.py` defines them.

use std::error::Error as _;
use std::io;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use towline::Error;

/// The exception of an error: of its kind's class, with the system's error number if it has one.
pub(crate) fn exception(py: Python<'_>, error: &Error) -> PyErr {
    static MAKE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let make = || {
        let make = MAKE.import(py, "towline.errors", "_exception")?;
        make.call1((error.kind().to_string(), errno(error), error.to_string()))
    };
    match make() {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}

/// A failed call, as Python's exception.
pub(crate) trait OrRaise<T> {
    fn or_raise(self, py: Python<'_>) -> PyResult<T>;
}

impl<T, E: Into<Error>> OrRaise<T> for Result<T, E> {
    fn or_raise(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|error| exception(py, &error.into()))
    }
}

fn errno(error: &Error) -> Option<i32> {
    std::iter::successors(error.source(), |cause| (*cause).source())
        .find_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error())
}
