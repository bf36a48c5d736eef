//! User code that panics or never ends fails one attempt; its slot, its worker and its client continue.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::error::Error as StdError;
use std::fmt;
use std::panic::panic_any;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer};
use towline_runtime::{
    BoxError, Data, Error, ErrorKind, Function, Future as Task, LocalCluster, Registry, TaskResult,
};
use towline_tests::polls::in_time;

const ADD: Function<(u64, u64), u64> = Function::new("add");

/// Panics with another instance of itself when it is dropped.
#[derive(Debug)]
struct RepanickingPayload;

impl Drop for RepanickingPayload {
    fn drop(&mut self) {
        panic_any(Self);
    }
}

/// The part of an error that panics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PanicAt {
    Display,
    Source,
    DisplayAndDrop,
    Drop,
    Nowhere,
}

#[derive(Debug)]
struct PanickingError(PanicAt);

impl fmt::Display for PanickingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        assert!(!matches!(self.0, PanicAt::Display | PanicAt::DisplayAndDrop), "planned");
        f.write_str("nasty")
    }
}

impl StdError for PanickingError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        assert_ne!(self.0, PanicAt::Source, "planned");
        (self.0 == PanicAt::Nowhere).then_some(self)
    }
}

impl Drop for PanickingError {
    fn drop(&mut self) {
        assert!(!matches!(self.0, PanicAt::Drop | PanicAt::DisplayAndDrop), "planned, at the end");
    }
}

/// A value whose destructor panics on a worker's threads; with `true`, its serialization panics too.
#[derive(Debug, Deserialize)]
struct PanickingValue(bool);

impl Serialize for PanickingValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        assert!(!self.0, "planned");
        self.0.serialize(serializer)
    }
}

impl Drop for PanickingValue {
    fn drop(&mut self) {
        let on_worker = thread::current().name().is_some_and(|name| name.starts_with("towline-"));
        assert!(!on_worker, "planned, at the end");
    }
}

/// A future that is ready at once, and whose destructor panics.
struct PanickingFuture;

impl Future for PanickingFuture {
    type Output = TaskResult<u64>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Ok(1))
    }
}

impl Drop for PanickingFuture {
    fn drop(&mut self) {
        panic!("planned, at the end");
    }
}

/// Bytes whose owner panics when they are freed.
fn data() -> Data {
    struct Owner(Vec<u8>);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    impl Drop for Owner {
        fn drop(&mut self) {
            panic!("planned, at the end");
        }
    }
    Data::from(Bytes::from_owner(Owner(vec![7; 50_000])))
}

const PAYLOAD: Function<(), u64> = Function::new("payload");
const PAYLOAD_ASYNC: Function<(), u64> = Function::new("payload_async");
const FAIL: Function<(u8,), u64> = Function::new("fail");
const FAIL_ASYNC: Function<(u8,), u64> = Function::new("fail_async");
const RETURN: Function<(bool,), PanickingValue> = Function::new("return");
const RETURN_ASYNC: Function<(bool,), PanickingValue> = Function::new("return_async");
const TAKE: Function<(PanickingValue,), u64> = Function::new("take");
const FUTURE: Function<(), u64> = Function::new("future");
const DATA: Function<(), Data> = Function::new("data");
const LEN: Function<(Data,), u64> = Function::new("len");

const ERRORS: [PanicAt; 5] =
    [PanicAt::Display, PanicAt::Source, PanicAt::DisplayAndDrop, PanicAt::Drop, PanicAt::Nowhere];

fn nasty(at: u8) -> BoxError {
    Box::new(PanickingError(ERRORS[at as usize]))
}

fn registry() -> Registry {
    Registry::new()
        .with(ADD, |a, b| TaskResult::Ok(a + b))
        .with(PAYLOAD, || panic_any(RepanickingPayload))
        .with_async(PAYLOAD_ASYNC, || async { panic_any(RepanickingPayload) })
        .with(FAIL, |at| TaskResult::Err(nasty(at)))
        .with_async(FAIL_ASYNC, |at| async move { TaskResult::Err(nasty(at)) })
        .with(RETURN, |writing| TaskResult::Ok(PanickingValue(writing)))
        .with_async(RETURN_ASYNC, |writing| async move { TaskResult::Ok(PanickingValue(writing)) })
        .with(TAKE, |taken: PanickingValue| TaskResult::Ok(u64::from(taken.0)))
        .with_async(FUTURE, || PanickingFuture)
        .with(DATA, || TaskResult::Ok(data()))
        .with(LEN, |data: Data| TaskResult::Ok(data.buffer().len() as u64))
}

/// Runs a test with a cluster of one worker with one slot.
fn with_cluster(test: impl AsyncFnOnce(LocalCluster)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let cluster = LocalCluster::start(1, registry()).await.unwrap();
        in_time("it", test(cluster)).await;
    });
}

/// Asserts that the task fails, and that the worker's only slot is free again. Returns the error.
async fn fails<R>(cluster: &LocalCluster, task: Task<R>) -> Error {
    let error = in_time("a task that panics", task.done()).await.unwrap_err();
    let sum = cluster.client().submit(ADD, (1, 2)).unwrap();
    assert_eq!(in_time("the next task", sum.result()).await.unwrap(), 3);
    error
}

#[test]
fn slot_survives_any_panic_payload() {
    with_cluster(async |cluster| {
        let client = cluster.client();
        for function in [PAYLOAD, PAYLOAD_ASYNC] {
            for _ in 0..3 {
                let error = fails(&cluster, client.submit(function, ()).unwrap()).await;
                assert_eq!(
                    (error.kind(), error.detail()),
                    (ErrorKind::Panicked, "with a payload that is no text")
                );
            }
        }
        let error = fails(&cluster, client.submit(FUTURE, ()).unwrap()).await;
        assert_eq!((error.kind(), error.detail()), (ErrorKind::Panicked, "planned, at the end"));
    });
}

#[test]
fn panicking_and_cyclic_errors_are_reported() {
    with_cluster(async |cluster| {
        for function in [FAIL, FAIL_ASYNC] {
            for (number, at) in ERRORS.iter().enumerate() {
                let error =
                    fails(&cluster, cluster.client().submit(function, (number as u8,)).unwrap()).await;
                let expected = match at {
                    PanicAt::Display | PanicAt::Source | PanicAt::DisplayAndDrop => {
                        (ErrorKind::Panicked, "planned")
                    }
                    PanicAt::Drop => (ErrorKind::Failed, "nasty"),
                    PanicAt::Nowhere => {
                        assert_eq!(error.kind(), ErrorKind::Failed);
                        assert!(error.detail().starts_with("nasty: nasty: "), "{error}");
                        assert!(error.detail().len() < 1000, "{error}");
                        continue;
                    }
                };
                assert_eq!(error.kind(), expected.0, "{at:?}: {error}");
                assert!(error.detail().contains(expected.1), "{at:?}: {error}");
            }
        }
    });
}

#[test]
fn panicking_results_and_arguments_fail_only_their_task() {
    with_cluster(async |cluster| {
        let client = cluster.client();
        for function in [RETURN, RETURN_ASYNC] {
            for writing in [false, true] {
                let error = fails(&cluster, client.submit(function, (writing,)).unwrap()).await;
                let detail = if writing { "planned" } else { "planned, at the end" };
                assert_eq!((error.kind(), error.detail()), (ErrorKind::Panicked, detail));
            }
        }
        let error = fails(&cluster, client.submit(TAKE, (PanickingValue(false),)).unwrap()).await;
        assert_eq!((error.kind(), error.detail()), (ErrorKind::Panicked, "planned, at the end"));
    });
}

#[test]
fn memory_with_a_panicking_owner_is_freed() {
    with_cluster(async |cluster| {
        let client = cluster.client();
        for _ in 0..3 {
            let made = client.submit(DATA, ()).unwrap();
            let given = client.scatter(data()).await.unwrap();
            for held in [&made, &given] {
                let len = client.submit(LEN, (held,)).unwrap();
                assert_eq!(in_time("its length", len.result()).await.unwrap(), 50_000);
                assert_eq!(in_time("itself", held.result()).await.unwrap().buffer().len(), 50_000);
            }
            drop((made, given));
            while cluster.workers()[0].memory_bytes() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(client.submit(ADD, (1, 2)).unwrap().result().await.unwrap(), 3);
        }
    });
}
