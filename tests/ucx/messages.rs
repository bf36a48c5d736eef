//! Active messages from a worker to itself.

use ucx_sys::{
    Library, UCP_AM_SEND_FLAG_EAGER, UCP_AM_SEND_FLAG_RNDV, UCS_ERR_BUSY, UCS_MEMORY_TYPE_HOST, UCS_OK,
    ucp_send_am_flags,
};

use crate::node::Node;
use towline_tests::libraries::Installed;

pub(crate) fn an_eager_message_to_oneself_arrives(installed: &Installed) {
    let node = node(installed);
    assert_ne!(node.memory_kinds() & (1 << UCS_MEMORY_TYPE_HOST), 0);
    let (descriptor, armed) = node.arm();
    assert!(descriptor >= 0);
    assert!([UCS_OK, UCS_ERR_BUSY].contains(&armed), "{armed}");
    exchange(&node, 1000, UCP_AM_SEND_FLAG_EAGER);
}

pub(crate) fn a_rendezvous_with_oneself_arrives(installed: &Installed) {
    exchange(&node(installed), 3 << 20, UCP_AM_SEND_FLAG_RNDV);
}

fn node(installed: &Installed) -> Node {
    Node::new(Library::open_at(&installed.libucp).unwrap())
}

fn exchange(node: &Node, len: usize, flag: ucp_send_am_flags) {
    for round in 0..3 {
        let body: Vec<u8> = (0..len).map(|at| (at * 7 + round) as u8).collect();
        let header = format!("round {round}").into_bytes();
        let sending = node.send(&header, &body, flag);
        let arrived = node.next();
        assert_eq!(arrived.header, header);
        assert_eq!(arrived.is_rendezvous, flag == UCP_AM_SEND_FLAG_RNDV);
        assert!(node.take(&arrived) == body, "other bytes arrived");
        node.finish(&sending);
    }
}
