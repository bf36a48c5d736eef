//! `tcp`: one socket carries everything, control included, since it takes over the handshake's stream.
//!
//! Writes are vectored, directly from the buffers; reads go directly to their destination. Payload of 16 KiB
//! and above is never copied in user space. Smaller payload is copied once, at the receiver.

#[cfg(feature = "tls")]
mod encrypted;
#[cfg(not(feature = "tls"))]
mod never_encrypted;
#[cfg(not(feature = "tls"))]
use never_encrypted as encrypted;
mod lanes;
mod link;
mod socket;

use std::sync::Arc;

use self::socket::Socket;
use super::{Backend, Caps, Identity, LinkContext, Machine, Opening, Prediction, Probe, Role};
use crate::address::Address;
use crate::error::{Error, ErrorKind, Result};
use crate::platform::environment::Environment;

/// The backend `tcp`: one socket a connection, with TLS where the address asks for it.
///
/// Payload of 16 KiB and above is never copied in user space; smaller payload is copied once, at the receiver.
///
/// ```
/// use std::sync::Arc;
/// use towline::{Endpoint, backend::Tcp};
///
/// // An endpoint that uses nothing else, also between processes of one host.
/// let endpoint = Endpoint::builder().backends(vec![Arc::new(Tcp)]).build()?;
/// assert_eq!(endpoint.backends()[0].name, "tcp");
/// # Ok::<(), towline::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Tcp;

const CAPS: Caps = Caps::ONE_SIDED
    .union(Caps::SOFT_REVOKE)
    .union(Caps::CROSS_PROCESS)
    .union(Caps::CROSS_HOST)
    .union(Caps::NAMED_DESTINATION)
    .union(Caps::FLOW_CONTROL);

impl crate::backend::sealed::Sealed for Tcp {}

impl Backend for Tcp {
    fn name(&self) -> &'static str {
        "tcp"
    }

    fn probe(&self) -> Probe {
        Probe::Ready { caps: CAPS, version: None }
    }

    fn offer(&self, _: Role, _: &Address, _: &Arc<dyn Environment>) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }

    fn reach(&self, _: &Identity, _: &Identity) -> Result<(), String> {
        Ok(())
    }

    /// Predicts only within a host: no measurement here covers the network to another host.
    fn predict(&self, machine: &Machine, local: &Identity, peer: &Identity) -> Option<Prediction> {
        let within_host = local.same_host(peer) || local.same_process(peer);
        let speed = machine.loopback.filter(|_| within_host)?;
        Some(Prediction { speed, basis: "a bare socket over loopback" })
    }

    fn takes_stream(&self) -> bool {
        true
    }

    fn is_private(&self) -> bool {
        true
    }

    fn checks(&self) -> bool {
        true
    }

    fn stripes(&self) -> bool {
        true
    }

    fn open<'a>(&'a self, context: &'a mut LinkContext) -> Opening<'a> {
        Box::pin(async {
            let nothing = || Error::new(ErrorKind::Unsupported, "there is no stream to take over").by("tcp");
            let main = context.control.take().ok_or_else(nothing)?;
            let lanes = std::mem::take(&mut context.lanes);
            let sockets = std::iter::once(main).chain(lanes).map(|control| {
                let (stream, tls) = control.into_parts()?;
                Ok(Socket::new(stream, tls))
            });
            let sockets: Result<Vec<_>> = sockets.collect();
            sockets.and_then(|sockets| link::open(sockets, context)).map_err(|error| error.by("tcp"))
        })
    }
}
