//! Two services, one for each direction, with a publisher and a subscriber of this end.

use std::fmt::Debug;

use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::*;

use crate::Outcome;
use crate::workspace::Workspace;

/// The role of this end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The server.
    Serves,
    /// The client.
    Pings,
}

/// Ports for samples of one length in both directions.
#[derive(Debug)]
pub(crate) struct Pair {
    out: Publisher<ipc::Service, [u8], ()>,
    back: Subscriber<ipc::Service, [u8], ()>,
    /// The owner of the ports.
    _node: Node<ipc::Service>,
}

impl Pair {
    /// Opens the ports. Only one sample is in flight at a time, so that few are allocated.
    pub(crate) fn open(workspace: &Workspace, side: Side, size_bytes: usize) -> Outcome<Self> {
        let node = NodeBuilder::new().config(&workspace.config()?).create::<ipc::Service>()?;
        let service = |name: &str| -> Outcome<_> {
            let builder = node.service_builder(&name.try_into()?).publish_subscribe::<[u8]>();
            let builder = builder.max_publishers(1).max_subscribers(1).history_size(0);
            let builder = builder.subscriber_max_buffer_size(1).subscriber_max_borrowed_samples(1);
            Ok(builder.enable_safe_overflow(false).open_or_create()?)
        };
        let (to_server, to_client) = (service("there")?, service("back")?);
        let (out, back) = if side == Side::Pings { (to_server, to_client) } else { (to_client, to_server) };
        let out = out.publisher_builder().initial_max_slice_len(size_bytes).max_loaned_samples(1).create()?;
        let back = back.subscriber_builder().create()?;
        Ok(Self { out, back, _node: node })
    }

    /// Loans a sample and sends it with the present content of its memory.
    #[expect(
        unsafe_code,
        reason = "what a sample's memory holds is sent as it is: rewriting it would be measured"
    )]
    pub(crate) fn send(&self, size_bytes: usize) -> Outcome {
        let sample = self.out.loan_slice_uninit(size_bytes)?;
        // SAFETY: the memory is a shared mapping, which the kernel filled with zeroes, and any byte is a
        // valid u8.
        let sample = unsafe { sample.assume_init() };
        match sample.send()? {
            1 => Ok(()),
            others => Err(format!("a sample went to {others} subscribers, not to one").into()),
        }
    }

    /// Takes and releases a received sample. Returns true if there was one.
    pub(crate) fn take(&self) -> Outcome<bool> {
        Ok(self.back.receive()?.is_some())
    }
}
