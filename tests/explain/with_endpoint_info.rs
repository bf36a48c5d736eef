//! A backend that attaches by endpoint info alone. Its offer to unauthenticated peers is empty.

use std::sync::Arc;

use towline::backend::{Backend, Identity, LinkContext, Opening, Probe, Role};
use towline::environment::Environment;
use towline::{Address, Error, ErrorKind, Result};

/// The reason of an end whose peer sent no endpoint info.
pub(crate) const NO_INFO: &str = "the peer brought no endpoint info";
/// The bytes to add to endpoint info so that it exceeds its limit.
pub(crate) const EXTRA_LEN: usize = 16 * 1024;

/// Wraps a backend, and sends its offer as endpoint info.
#[derive(Debug)]
pub(crate) struct WithEndpointInfo {
    pub(crate) backend: Arc<dyn Backend>,
    /// Bytes appended to the endpoint info.
    pub(crate) extra: usize,
}

/// The offer prepared for one connection.
struct Attach(Vec<u8>);

impl towline::backend::sealed::Sealed for WithEndpointInfo {}

impl Backend for WithEndpointInfo {
    fn name(&self) -> &'static str {
        self.backend.name()
    }

    fn probe(&self) -> Probe {
        self.backend.probe()
    }

    fn offer(&self, _: Role, _: &Address, _: &Arc<dyn Environment>) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }

    fn reach(&self, local: &Identity, peer: &Identity) -> Result<(), String> {
        self.backend.reach(local, peer)
    }

    fn prepare(&self, context: &mut LinkContext) -> Result<()> {
        if context.role == Role::Acceptor && context.peer_info.is_empty() {
            return Err(Error::new(ErrorKind::Unavailable, NO_INFO));
        }
        let attach = self.backend.offer(context.role, &context.address, &context.environment)?;
        context.info = [&attach[..], &vec![0; self.extra]].concat();
        context.prepared = Some(Box::new(Attach(attach)));
        Ok(())
    }

    fn open<'a>(&'a self, context: &'a mut LinkContext) -> Opening<'a> {
        let prepared = context.prepared.take().and_then(|prepared| prepared.downcast().ok());
        let Some(Attach(offer)) = prepared.map(|attach| *attach) else {
            panic!("the backend is opened unprepared");
        };
        assert_eq!(context.info, offer);
        (context.offer, context.peer_offer) = (offer, context.peer_info.clone());
        self.backend.open(context)
    }
}
