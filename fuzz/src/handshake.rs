//! The handshake: every message of it, and whole conversations with a peer that sends arbitrary messages.

use std::time::Duration;

use towline::backend::Role;
use towline::internals::{GreetingConfig, Peer, PeerAction, greet, greeting_message, proof};

use crate::HeapMax;
use crate::script::Script;

const HEAD_LEN: usize = 16;
const TIME: Duration = Duration::from_secs(5);
const TOKEN: &[u8] = b"a token";

/// The first byte decides whether the rest is messages or the script of a peer.
pub fn run(input: &[u8]) -> HeapMax {
    let Some((which, rest)) = input.split_first() else { return 0 };
    if which % 4 == 0 {
        messages(rest)
    } else {
        conversation(*which, rest)
    }
    // A `Hello` is at most 64 KiB. It is stored as bytes and as offers.
    256 << 10
}

fn messages(mut bytes: &[u8]) {
    while let Ok(Some((again, len))) = greeting_message(bytes) {
        let kind = bytes[8];
        // Decoding cleans texts for people; a second round trip leaves them unchanged. Other messages encode
        // to the same bytes.
        if !matches!(kind, 5 | 6) {
            assert_eq!(again, bytes[..len]);
        } else {
            let (same, _) = greeting_message(&again).expect("an encoded message decodes").expect("whole");
            assert_eq!(same, again);
        }
        bytes = &bytes[len..];
    }
}

fn conversation(which: u8, script: &[u8]) {
    let role = if which & 4 == 0 { Role::Connector } else { Role::Acceptor };
    let token = (which & 8 == 0).then_some(TOKEN);
    let mut unauthenticated_peer = UnauthenticatedPeer {
        role: if role == Role::Connector { Role::Acceptor } else { Role::Connector },
        token,
        script: Script(script),
        outgoing: Vec::new(),
        received: Vec::new(),
        hello: Vec::new(),
        proved: false,
    };
    let config = GreetingConfig { role, token, offers: &["tcp", "shm"], time: TIME };
    let greeted = greet(&config, &mut unauthenticated_peer).expect("the terms are right");
    assert!(
        token.is_none() || unauthenticated_peer.proved || !greeted.greeted,
        "it sent no valid proof of the token"
    );
    assert!(greeted.greeted || greeted.outcome.is_err());
    assert!(greeted.offers_len < 64 << 10);
    assert!(greeted.took <= TIME * 2 + Duration::from_millis(500), "{:?}", greeted.took);
    if let Ok(backend) = &greeted.outcome {
        assert!(role == Role::Connector || config.offers.contains(&backend.as_str()), "{backend}");
    }
}

struct UnauthenticatedPeer<'a> {
    /// The role that the peer plays.
    role: Role,
    token: Option<&'a [u8]>,
    script: Script<'a>,
    /// Bytes that it has still to send.
    outgoing: Vec<u8>,
    received: Vec<u8>,
    hello: Vec<u8>,
    /// True once it sent a valid proof.
    proved: bool,
}

impl Peer for UnauthenticatedPeer<'_> {
    fn receive(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
    }

    fn send(&mut self, len_max: usize) -> PeerAction {
        if self.outgoing.is_empty() {
            if self.script.is_over() {
                return PeerAction::End;
            }
            match self.script.byte() {
                0..16 => {
                    let len = 1 + usize::from(self.script.byte());
                    self.outgoing = self.script.take(len).to_vec();
                }
                16..48 => return PeerAction::Wait,
                48..50 => return PeerAction::End,
                50..52 => return PeerAction::Broken,
                choice => self.message(choice),
            }
            if self.outgoing.is_empty() {
                return PeerAction::Wait;
            }
        }
        let cut =
            [usize::MAX, usize::MAX, 1, 7][usize::from(self.script.0.first().copied().unwrap_or(0)) % 4];
        let rest = self.outgoing.split_off(len_max.min(cut).min(self.outgoing.len()));
        PeerAction::Bytes(std::mem::replace(&mut self.outgoing, rest))
    }
}

impl UnauthenticatedPeer<'_> {
    fn message(&mut self, choice: u8) {
        let script = &mut self.script;
        let valid = !choice.is_multiple_of(8);
        let (kind, body) = match choice {
            52..120 => (1, hello(script, self.token.is_some(), valid)),
            120..170 => {
                let ours = self.received.get(..HEAD_LEN).map_or(0, |head| {
                    HEAD_LEN + u32::from_le_bytes([head[12], head[13], head[14], head[15]]) as usize
                });
                let ours = self.received.get(..ours).unwrap_or_default();
                let (connector, acceptor) = if self.role == Role::Connector {
                    (&self.hello[..], ours)
                } else {
                    (ours, &self.hello[..])
                };
                self.proved |= valid;
                let mac = proof(self.token, self.role, connector, acceptor);
                (2, if valid { mac.to_vec() } else { script.take(32).to_vec() })
            }
            170..200 => (3, if valid { b"tcp".to_vec() } else { name(script) }),
            200..210 => {
                (7, [&[script.byte() % 20][..], &if valid { b"tcp".to_vec() } else { name(script) }].concat())
            }
            210..230 => (4, Vec::new()),
            230..242 => (5, name(script)),
            242..250 => (6, name(script)),
            250..252 => (8, script.take(49).to_vec()),
            252..254 => (9, [&[script.byte() % 20, 3][..], b"tcp", &name(script)].concat()),
            _ => (10, name(script)),
        };
        let mut message =
            [&b"TOWLINE\x1a"[..], &[kind, 0, 0, 0], &(body.len() as u32).to_le_bytes(), &body].concat();
        if choice % 16 == 9 {
            // Alters a byte of the header.
            let at = 8 + script.below(8);
            message[at] = script.byte();
        }
        if kind == 1 && self.hello.is_empty() {
            self.hello.clone_from(&message);
        }
        self.outgoing = message;
    }
}

fn hello(script: &mut Script<'_>, authenticates: bool, valid: bool) -> Vec<u8> {
    let mut hello = vec![1, 0, 1, 0, script.byte(), 0, 0, 0, 0, 0, 0, 0];
    hello.extend([script.byte(); 32]);
    hello.extend([9; 56]);
    hello.extend([authenticates.into(), 1]);
    hello.extend(b"\x03tcp\0\0");
    if !valid {
        let changes = 1 + script.below(4);
        for _ in 0..changes {
            let at = script.below(hello.len());
            hello[at] = script.byte();
        }
        let more = script.byte();
        hello.extend(script.take(more.into()));
    }
    hello
}

fn name(script: &mut Script<'_>) -> Vec<u8> {
    let len = script.byte();
    script.take((len % 40).into()).to_vec()
}
