//! Functions by name and type: clients call them, and workers run them.

use std::fmt;
use std::future::{Future, poll_fn};
use std::marker::PhantomData;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use rustc_hash::FxHashMap;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{BoxError, Error, ErrorKind, Failure};
use crate::guard::{discard, guarded};
use crate::protocol::{NAME_LEN_MAX, Types};
use crate::value::Value;

/// A function, identified by its name. `P` is the tuple of its parameters, `R` its result. Clients and
/// workers share it as a constant.
///
/// ```
/// use towline_runtime::Function;
///
/// const JOIN: Function<(String, String), String> = Function::new("join");
/// ```
pub struct Function<P, R> {
    name: &'static str,
    types: PhantomData<fn(P) -> R>,
}

impl<P, R> Function<P, R> {
    /// Names a function.
    ///
    /// # Panics
    /// If the name is empty or longer than 255 bytes.
    pub const fn new(name: &'static str) -> Self {
        assert!(!name.is_empty() && name.len() <= NAME_LEN_MAX, "a function's name has 1 to 255 bytes");
        Self { name, types: PhantomData }
    }

    /// The name.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// A hash of the types. It is comparable only if the same compiler built both ends from the same types.
    pub(crate) fn types(self) -> Types {
        let names = [std::any::type_name::<P>(), std::any::type_name::<R>()];
        // FNV-1a.
        names
            .iter()
            .flat_map(|name| name.bytes())
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }
}

impl<P, R> Clone for Function<P, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P, R> Copy for Function<P, R> {}

impl<P, R> fmt::Debug for Function<P, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Function").field(&self.name).finish()
    }
}

/// The functions that a worker runs.
///
/// ```
/// use towline_runtime::{Function, Registry, TaskResult};
///
/// const ADD: Function<(i64, i64), i64> = Function::new("add");
/// const WAIT: Function<(u64,), ()> = Function::new("wait");
///
/// fn add(a: i64, b: i64) -> TaskResult<i64> {
///     a.checked_add(b).ok_or_else(|| "the sum is too large".into())
/// }
///
/// async fn wait(seconds: u64) -> TaskResult<()> {
///     tokio::time::sleep(std::time::Duration::from_secs(seconds)).await;
///     Ok(())
/// }
///
/// let registry = Registry::new().with(ADD, add).with_async(WAIT, wait);
/// # let _ = registry;
/// ```
#[derive(Clone, Default)]
pub struct Registry {
    functions: FxHashMap<&'static str, (Types, FunctionBody)>,
}

/// The callable of a function. It does not panic, whatever the function does.
#[derive(Clone)]
pub(crate) enum FunctionBody {
    Sync(Arc<dyn Fn(Value) -> Outcome + Send + Sync>),
    Async(Arc<dyn Fn(Value) -> OutcomeFuture + Send + Sync>),
}

impl fmt::Debug for FunctionBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sync(_) => "Sync",
            Self::Async(_) => "Async",
        })
    }
}

/// The result of an attempt.
pub(crate) type Outcome = Result<Value, Failure>;
/// The future of an attempt.
pub(crate) type OutcomeFuture = Pin<Box<dyn Future<Output = Outcome> + Send>>;

impl Registry {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers `body` for `function`. It runs on one of the worker's threads, and may compute and block.
    #[must_use]
    pub fn with<P, R, F>(mut self, function: Function<P, R>, body: F) -> Self
    where
        P: DeserializeOwned + 'static,
        R: Serialize + 'static,
        F: Callable<P, Output = TaskResultOf<R>> + Send + Sync + 'static,
    {
        let run = move |arguments: Value| {
            into_outcome(guarded(|| Ok(body.call(arguments.read::<P>().map_err(failure)?)))?)
        };
        self.functions.insert(function.name, (function.types(), FunctionBody::Sync(Arc::new(run))));
        self
    }

    /// Registers an async `body` for `function`. It runs in the [environment](towline::environment) of the
    /// worker's endpoint: on tokio, on the threads that move the worker's data. It should not compute for
    /// long, and must not block.
    #[must_use]
    pub fn with_async<P, R, F>(mut self, function: Function<P, R>, body: F) -> Self
    where
        P: DeserializeOwned + Send + 'static,
        R: Serialize + 'static,
        F: Callable<P> + Send + Sync + 'static,
        F::Output: Future<Output = TaskResultOf<R>> + Send + 'static,
    {
        let run = move |arguments: Value| {
            let begun = guarded(|| Ok(body.call(arguments.read::<P>().map_err(failure)?)));
            Box::pin(async move { into_outcome(run_to_completion(begun?).await?) }) as OutcomeFuture
        };
        self.functions.insert(function.name, (function.types(), FunctionBody::Async(Arc::new(run))));
        self
    }

    pub(crate) fn find(&self, name: &str, types: Types) -> Result<FunctionBody, Failure> {
        match self.functions.get(name) {
            Some((known, body)) if *known == types => Ok(body.clone()),
            Some(_) => {
                let why = "the worker has a function of that name with other types";
                Err(Failure::new(ErrorKind::Invalid, why))
            }
            None => Err(Failure::new(ErrorKind::UnknownFunction, "the worker has no function of that name")),
        }
    }
}

type TaskResultOf<R> = Result<R, BoxError>;

fn failure(error: Error) -> Failure {
    error.failure().clone()
}

/// Polls a future until it returns or panics.
async fn run_to_completion<F: Future>(begun: F) -> Result<F::Output, Failure> {
    let mut running = pin!(Some(begun));
    let ended = poll_fn(|cx| match running.as_mut().as_pin_mut() {
        Some(future) => match guarded(|| Ok(future.poll(cx))) {
            // A future that has panicked is not polled again.
            Err(panicked) => Poll::Ready(Err(panicked)),
            Ok(polled) => polled.map(Ok),
        },
        None => Poll::Pending,
    });
    let ended = ended.await;
    let dropped = guarded(|| {
        running.set(None);
        Ok(())
    });
    match (ended, dropped) {
        (Ok(returned), Err(panicked)) => {
            // Report the first panic.
            let _ = discard(returned);
            Err(panicked)
        }
        (ended, _) => ended,
    }
}

fn into_outcome<R: Serialize>(result: TaskResultOf<R>) -> Outcome {
    match result {
        Ok(result) => {
            let written = guarded(|| Value::of(&result).map_err(failure));
            let dropped = discard(result);
            written.and_then(|value| dropped.map(|()| value))
        }
        Err(error) => {
            let described = guarded(|| Ok(Failure::from_error(&error)));
            // The returned error is more useful than a panic of its destructor.
            let _ = discard(error);
            Err(described.unwrap_or_else(|panicked| panicked))
        }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names: Vec<_> = self.functions.keys().collect();
        names.sort();
        f.debug_tuple("Registry").field(&names).finish()
    }
}

/// A callable that takes the tuple `P`: every function and closure of up to seven parameters.
pub trait Callable<P> {
    /// The return type.
    type Output;

    /// Calls it.
    fn call(&self, parameters: P) -> Self::Output;
}

macro_rules! callable {
    ($($name:ident $parameter:ident),*) => {
        impl<F, R, $($parameter),*> Callable<($($parameter,)*)> for F
        where
            F: Fn($($parameter),*) -> R,
        {
            type Output = R;

            fn call(&self, ($($name,)*): ($($parameter,)*)) -> R {
                self($($name),*)
            }
        }
    };
}

callable!();
callable!(a A);
callable!(a A, b B);
callable!(a A, b B, c C);
callable!(a A, b B, c C, d D);
callable!(a A, b B, c C, d D, e E);
callable!(a A, b B, c C, d D, e E, g G);
callable!(a A, b B, c C, d D, e E, g G, h H);
