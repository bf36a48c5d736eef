//! An engine that is polled for a while after its owner drops it, unless the owner destroyed it.
//!
//! If an opening is abandoned, the handshake tells the peer, which may be connecting to this worker at that
//! moment. If the worker were gone then, UCX 1.13 might abort the peer's process.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::engine::{CLOSE_TIME, Engine, SWEEP_EVERY};
use crate::platform::environment::Environment;

#[derive(Debug)]
pub(super) struct LingeringEngine {
    /// `Some` until this is dropped.
    engine: Option<Engine>,
    environment: Arc<dyn Environment>,
}

impl LingeringEngine {
    pub(super) fn new(engine: Engine, environment: &Arc<dyn Environment>) -> Self {
        Self { engine: Some(engine), environment: environment.clone() }
    }
}

impl Deref for LingeringEngine {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        self.engine.as_ref().unwrap_or_else(|| unreachable!("taken out by drop only"))
    }
}

impl DerefMut for LingeringEngine {
    fn deref_mut(&mut self) -> &mut Engine {
        self.engine.as_mut().unwrap_or_else(|| unreachable!("taken out by drop only"))
    }
}

impl Drop for LingeringEngine {
    fn drop(&mut self) {
        let Some(mut engine) = self.engine.take().filter(Engine::is_usable) else { return };
        let environment = self.environment.clone();
        self.environment.spawn(Box::pin(async move {
            let end = environment.now() + CLOSE_TIME;
            while environment.now() < end {
                engine.progress();
                environment.sleep_until(environment.now() + SWEEP_EVERY).await;
            }
        }));
    }
}
