//! Lists the transports that UCX may use, and those that it uses, from its printed descriptions: 1.13 has no
//! query for either.

#![expect(unsafe_code, reason = "calls into C")]

use crate::library::Library;
use crate::text::text_of;
use crate::{ucp_context_h, ucp_ep_h};

impl Library {
    /// Returns the transports that a context may use, each with its device (`tcp/eth0`, `posix/memory`), as
    /// UCX lists them. Empty if this version's format differs.
    ///
    /// # Safety
    /// The context lives until this returns.
    #[must_use]
    pub unsafe fn transports(&self, context: ucp_context_h) -> Vec<String> {
        // SAFETY: L1: the context lives; L2: the stream is open for the call.
        of_context(&text_of(|file| unsafe { self.ucp_context_print_info(context, file) }))
    }

    /// Returns the transports that an endpoint uses, each with its device, without duplicates, as UCX lists
    /// them. The list may change until the peer has answered. Empty if this version's format differs.
    ///
    /// # Safety
    /// The endpoint was created and is not being closed, and nothing else uses its worker until this returns.
    #[must_use]
    pub unsafe fn transports_of(&self, endpoint: ucp_ep_h) -> Vec<String> {
        // SAFETY: L1: the endpoint lives, and one thread has its worker; L2: the stream is open for the call.
        of_endpoint(&text_of(|file| unsafe { self.ucp_ep_print_info(endpoint, file) }))
    }
}

/// Parses lines such as `# resource 1 : md 1 dev 1 flags -- tcp/lo`.
fn of_context(text: &str) -> Vec<String> {
    distinct(text.lines().filter_map(|line| {
        let rest = line.trim_start_matches(['#', ' ']).strip_prefix("resource ")?;
        rest.split_whitespace().next_back()
    }))
}

/// Parses lines such as `# lane[0]: 2:tcp/eth0.0 md[1] -> md[1]/tcp/sysdev[255] am`, where a path number
/// follows the device.
fn of_endpoint(text: &str) -> Vec<String> {
    distinct(text.lines().filter_map(|line| {
        let (_, rest) = line.trim_start_matches(['#', ' ']).strip_prefix("lane[")?.split_once("]:")?;
        let (_, resource) = rest.split_whitespace().next()?.split_once(':')?;
        let (transport, path) = resource.rsplit_once('.')?;
        path.bytes().all(|byte| byte.is_ascii_digit()).then_some(transport)
    }))
}

/// Returns the distinct names that have a transport and a device.
fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut found = Vec::new();
    for name in names {
        let is_named = name
            .split_once('/')
            .is_some_and(|(transport, device)| !transport.is_empty() && !device.is_empty());
        if is_named && !found.iter().any(|known| known == name) {
            found.push(name.to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXT: &str = "\
# UCP context
#     component 1  :  tcp
#            md 1  :  component 1  tcp \n\
#      resource 0  :  md 0  dev 0  flags -- self/memory0
#      resource 1  :  md 1  dev 1  flags a- tcp/eth0.100
#      resource 1  :  md 1  dev 1  flags -- rc_mlx5/mlx5_0:1
#
# memory: 1.29MB, file descriptors: 5
";
    const ENDPOINT: &str = "\
# UCP endpoint \n\
#               peer: <no debug data>
#                 lane[0]:  1:tcp/eth0.100.0 md[0]          -> md[0]/tcp/sysdev[255] seg 4294967295 rma_bw#0 am
#                 lane[1]:  1:tcp/eth0.100.1 md[0]          -> md[0]/tcp/sysdev[255] rma_bw#1 wireup
#                 lane[2]:  4:rc_mlx5/mlx5_0:1.0 md[0]      -> md[0]/ib/sysdev[0] rma_bw#1
#                 lane[3]:  cm rdmacm
# |      0..8184 | short                                           | tcp/lo                            |
";

    #[test]
    fn transports_are_listed_with_devices_once_each() {
        assert_eq!(of_context(CONTEXT), ["self/memory0", "tcp/eth0.100", "rc_mlx5/mlx5_0:1"]);
        assert_eq!(of_endpoint(ENDPOINT), ["tcp/eth0.100", "rc_mlx5/mlx5_0:1"]);
    }

    #[test]
    fn other_formats_list_none() {
        for text in [
            "",
            "#\n#\n",
            "no text of UCX",
            "# lane[0]",
            "# lane[0]: 0:tcp/lo md",
            "resource /",
            "lane[0]: :/.0",
        ] {
            assert_eq!(of_context(text), [""; 0], "{text}");
            assert_eq!(of_endpoint(text), [""; 0], "{text}");
        }
        assert_eq!(of_context(ENDPOINT), [""; 0]);
        assert_eq!(of_endpoint(CONTEXT), [""; 0]);
    }
}
