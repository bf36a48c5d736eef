//! A backend whose twins meet by their cards: it offers nothing to strangers.

use std::sync::Arc;

use towline::backend::{Backend, Identity, Opening, Probe, Role, Site};
use towline::environment::Environment;
use towline::{Address, Error, ErrorKind, Result};

/// What an end says that was told nothing.
pub(crate) const NO_CARD: &str = "the peer brought no card";
/// How much longer than its offer its card is, where it is in trouble.
pub(crate) const TOO_MUCH: usize = 16 * 1024;

/// Another backend, whose offers become cards.
#[derive(Debug)]
pub(crate) struct Carded {
    pub(crate) backend: Arc<dyn Backend>,
    /// Bytes that its card has too many.
    pub(crate) extra: usize,
}

/// What is made for one connection: where its other end finds it.
struct Meeting(Vec<u8>);

impl Backend for Carded {
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

    fn prepare(&self, site: &mut Site) -> Result<()> {
        if site.role == Role::Acceptor && site.peer_card.is_empty() {
            return Err(Error::new(ErrorKind::Unavailable, NO_CARD));
        }
        let meeting = self.backend.offer(site.role, &site.address, &site.environment)?;
        site.card = [&meeting[..], &vec![0; self.extra]].concat();
        site.prepared = Some(Box::new(Meeting(meeting)));
        Ok(())
    }

    fn open<'a>(&'a self, site: &'a mut Site) -> Opening<'a> {
        let prepared = site.prepared.take().and_then(|prepared| prepared.downcast().ok());
        let Some(Meeting(offer)) = prepared.map(|meeting| *meeting) else {
            panic!("it is opened unprepared");
        };
        assert_eq!(site.card, offer);
        (site.offer, site.peer_offer) = (offer, site.peer_card.clone());
        self.backend.open(site)
    }
}
