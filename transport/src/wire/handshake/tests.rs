//! Handshake messages round-trip, and no input from an unauthenticated peer breaks the decoder.

use super::*;

fn hello() -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        features: 0x0123_4567_89ab_cdef,
        nonce: std::array::from_fn(|i| i as u8),
        identity: std::array::from_fn(|i| 255 - i as u8),
        authenticates: true,
        offers: vec![offer("tcp", 0), offer("shm", 300)],
    }
}

fn offer(backend: &str, len: usize) -> Offer {
    Offer { backend: backend.to_owned(), bytes: vec![7; len] }
}

fn every_message() -> Vec<HandshakeMessage> {
    vec![
        HandshakeMessage::Hello(hello()),
        HandshakeMessage::Hello(Hello { offers: Vec::new(), authenticates: false, ..hello() }),
        HandshakeMessage::Proof { mac: [9; MAC_LEN] },
        HandshakeMessage::Propose { backend: "ucx".to_owned() },
        HandshakeMessage::Ready,
        HandshakeMessage::NotReady { reason: "no device".to_owned() },
        HandshakeMessage::NotReady { reason: String::new() },
        HandshakeMessage::Refuse { kind: ErrorKind::Unauthenticated, reason: "wrong token".to_owned() },
        HandshakeMessage::ProposeStreams { streams: 4, backend: "tcp".to_owned() },
        HandshakeMessage::Join(JoinKey::new([5; 32], 4, false).join(3, None)),
        HandshakeMessage::ProposeInfo { streams: 1, backend: "ucx".to_owned(), info: vec![5; 40] },
        HandshakeMessage::ReadyInfo { info: vec![6; 30] },
        HandshakeMessage::Measure { len: 1 },
        HandshakeMessage::Measure { len: MEASURE_LEN_MAX },
    ]
}

fn encoded(message: &HandshakeMessage) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes).unwrap();
    bytes
}

/// Decodes a message as a reader does that has only the bytes.
fn decoded(bytes: &[u8]) -> Result<HandshakeMessage> {
    let Some((first, body)) = bytes.split_first_chunk() else {
        return Err(Error::new(ErrorKind::Corrupt, "no whole head"));
    };
    let (kind, body_len) = head(first)?;
    match body.get(..body_len) {
        Some(body) => decode(kind, body),
        None => Err(Error::new(ErrorKind::Corrupt, "no whole body")),
    }
}

#[test]
fn messages_round_trip() {
    for message in every_message() {
        assert_eq!(decoded(&encoded(&message)).unwrap(), message);
    }
}

#[test]
fn layout_matches_the_documentation() {
    let bytes = encoded(&HandshakeMessage::Hello(Hello { offers: vec![offer("tcp", 2)], ..hello() }));
    assert_eq!(bytes[..8], *b"TOWLINE\x1a");
    assert_eq!(bytes[8..12], [1, 0, 0, 0]);
    assert_eq!(bytes[12..16], 110u32.to_le_bytes());
    assert_eq!(bytes[16..20], [1, 0, 1, 0]);
    assert_eq!(bytes[20..28], 0x0123_4567_89ab_cdef_u64.to_le_bytes());
    assert_eq!(bytes[28..60], hello().nonce);
    assert_eq!(bytes[60..116], hello().identity);
    assert_eq!(bytes[116..], *b"\x01\x01\x03tcp\x02\x00\x07\x07");
    let refuse = HandshakeMessage::Refuse { kind: ErrorKind::Unauthenticated, reason: "no".to_owned() };
    assert_eq!(encoded(&refuse), *b"TOWLINE\x1a\x06\0\0\0\x03\0\0\0\x02no");
}

#[test]
fn endpoint_infos_are_bounded_and_never_empty() {
    let proposal =
        |len| HandshakeMessage::ProposeInfo { streams: 16, backend: "b".repeat(16), info: vec![5; len] };
    let ready = |len| HandshakeMessage::ReadyInfo { info: vec![5; len] };
    assert_eq!(encoded(&proposal(2))[HEAD_LEN..], *b"\x10\x10bbbbbbbbbbbbbbbb\x05\x05");
    for message in [proposal(INFO_LEN_MAX), ready(INFO_LEN_MAX)] {
        assert_eq!(decoded(&encoded(&message)).unwrap(), message);
    }
    for (message, kind) in [
        (proposal(0), ErrorKind::Invalid),
        (ready(0), ErrorKind::Invalid),
        (proposal(INFO_LEN_MAX + 1), ErrorKind::TooLarge),
        (ready(INFO_LEN_MAX + 1), ErrorKind::TooLarge),
    ] {
        let mut out = b"before".to_vec();
        assert_eq!(message.encode(&mut out).unwrap_err().kind(), kind);
        assert_eq!(out, b"before");
    }
    let read = |body: &[u8]| decode(Kind::ProposeInfo, body).map_err(|error| error.kind());
    // A shorter name leaves room for an oversized endpoint info.
    let long = [b"\x01\x01b", &[5; INFO_LEN_MAX + 1][..]].concat();
    assert_eq!(read(&long), Err(ErrorKind::TooLarge));
    for body in [
        &b"\0\x03ucxc"[..],
        b"\x11\x03ucxc",
        b"\x01\x03ucx",
        b"\x01\x04ucx",
        b"\x01\0c",
        b"\x01\x03UCXc",
        b"\x01",
        b"",
    ] {
        assert_eq!(read(body), Err(ErrorKind::Corrupt), "{body:?}");
    }
    assert_eq!(decode(Kind::ReadyInfo, b"").unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn a_truncated_message_is_corrupt() {
    for message in every_message() {
        let bytes = encoded(&message);
        for len in 0..bytes.len() {
            assert_eq!(decoded(&bytes[..len]).unwrap_err().kind(), ErrorKind::Corrupt);
        }
        let body = &bytes[HEAD_LEN..];
        for len in 0..body.len() {
            // A truncated name or reason is another valid name or reason. Nothing else is complete early.
            if let Ok(shorter) = decode(message.kind(), &body[..len]) {
                assert!(
                    !matches!(shorter, HandshakeMessage::Hello(_) | HandshakeMessage::Proof { .. }),
                    "{shorter:?}"
                );
            }
        }
    }
}

#[test]
fn trailing_bytes_are_corrupt() {
    for message in [
        HandshakeMessage::Hello(hello()),
        HandshakeMessage::Proof { mac: [9; MAC_LEN] },
        HandshakeMessage::Ready,
    ] {
        let mut body = encoded(&message).split_off(HEAD_LEN);
        body.push(0);
        assert!(decode(message.kind(), &body).is_err(), "{message:?}");
    }
}

#[test]
fn any_flipped_bit_gives_an_error_or_another_message() {
    for message in every_message() {
        let bytes = encoded(&message);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Ok(other) = decoded(&flipped) {
                // An unknown code reads as Incompatible, so several codes may decode alike.
                let by_code = matches!(other, HandshakeMessage::Refuse { kind: ErrorKind::Incompatible, .. });
                assert!(other != message || by_code, "bit {bit} of {message:?} has no effect");
            }
        }
    }
}

#[test]
fn random_bytes_never_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    for round in 0..20_000 {
        let body: Vec<u8> = (0..round % 300).map(|_| noise()).collect();
        for kind in Kind::ALL {
            let _ = decode(kind, &body);
        }
        // A valid prefix makes the decoder read the random bytes up to the offers.
        let mut hello = encoded(&HandshakeMessage::Hello(hello())).split_off(HEAD_LEN);
        let at = 100 + round % (hello.len() - 100);
        hello[at] = noise();
        let _ = decode(Kind::Hello, &hello);
        let _ = head(&std::array::from_fn(|i| if i < 8 { MAGIC[i] } else { noise() }));
    }
}

#[test]
fn an_oversized_head_is_too_large_before_its_body_is_read() {
    for kind in Kind::ALL {
        for (len, fits) in
            [(kind.body_len_max() as u32, true), (kind.body_len_max() as u32 + 1, false), (u32::MAX, false)]
        {
            let mut bytes = [0; HEAD_LEN];
            bytes[..8].copy_from_slice(&MAGIC);
            bytes[8] = kind.code();
            bytes[12..].copy_from_slice(&len.to_le_bytes());
            match head(&bytes) {
                Ok(read) => assert!(fits && read == (kind, len as usize)),
                Err(error) => assert!(!fits && error.kind() == ErrorKind::TooLarge, "{kind}: {error}"),
            }
        }
        assert!(HEAD_LEN + kind.body_len_max() <= MESSAGE_LEN_MAX);
    }
}

#[test]
fn lengths_inside_a_hello_are_bounded() {
    let with = |at: usize, bytes: &[u8]| {
        let mut body = encoded(&HandshakeMessage::Hello(hello())).split_off(HEAD_LEN);
        body[at..at + bytes.len()].copy_from_slice(bytes);
        decode(Kind::Hello, &body).unwrap_err().kind()
    };
    let first_offer = 102;
    assert_eq!(with(101, &[17]), ErrorKind::TooLarge, "offers");
    assert_eq!(with(first_offer, &[17]), ErrorKind::TooLarge, "name");
    assert_eq!(with(first_offer, &[0]), ErrorKind::Corrupt, "empty name");
    assert_eq!(with(first_offer + 4, &16_385u16.to_le_bytes()), ErrorKind::TooLarge, "offer");
    assert_eq!(with(first_offer + 4, &16_384u16.to_le_bytes()), ErrorKind::Corrupt, "offer not there");
    assert_eq!(with(first_offer + 1, b"T"), ErrorKind::Corrupt, "name in capitals");
    assert_eq!(with(first_offer + 7, b"tcp"), ErrorKind::Corrupt, "one name twice");
    assert_eq!(with(100, &[2]), ErrorKind::Corrupt, "neither yes nor no");
    assert_eq!(with(0, &[2, 0, 1, 0]), ErrorKind::Corrupt, "empty range of versions");
}

#[test]
fn invalid_messages_are_not_encoded() {
    let refused = |offers: Vec<Offer>| {
        let mut out = b"before".to_vec();
        let error = HandshakeMessage::Hello(Hello { offers, ..hello() }).encode(&mut out).unwrap_err();
        assert_eq!(out, b"before");
        error.kind()
    };
    assert_eq!(refused(vec![offer("tcp", 16 * 1024 + 1)]), ErrorKind::TooLarge);
    assert_eq!(refused((0..17).map(|i| offer(&format!("b{i}"), 0)).collect()), ErrorKind::TooLarge);
    assert_eq!(refused((0..4).map(|i| offer(&format!("b{i}"), 16 * 1024)).collect()), ErrorKind::TooLarge);
    assert_eq!(refused(vec![offer("tcp", 1), offer("tcp", 1)]), ErrorKind::Invalid);
    for name in ["", "a-name-of-17-byte", "TCP", "t p", "ü"] {
        assert_eq!(refused(vec![offer(name, 1)]), ErrorKind::Invalid, "{name}");
    }
    assert!(
        HandshakeMessage::Hello(Hello { offers: vec![offer("a-name-of-16-byt", 16 * 1024)], ..hello() })
            .encode(&mut Vec::new())
            .is_ok()
    );
}

#[test]
fn a_measurement_is_one_byte_to_one_mebibyte() {
    for (len, kind) in
        [(0_u32, ErrorKind::Corrupt), (1 << 20 | 1, ErrorKind::TooLarge), (u32::MAX, ErrorKind::TooLarge)]
    {
        assert_eq!(decode(Kind::Measure, &len.to_le_bytes()).unwrap_err().kind(), kind, "{len}");
    }
    assert_eq!(decode(Kind::Measure, &[1, 0, 0]).unwrap_err().kind(), ErrorKind::Corrupt);
    for len in [0, MEASURE_LEN_MAX + 1, usize::MAX] {
        assert!(HandshakeMessage::Measure { len }.encode(&mut Vec::new()).is_err(), "{len}");
    }
}

#[test]
fn the_highest_common_version_is_chosen() {
    assert_eq!(negotiate(1..=1, 1..=1).unwrap(), 1);
    assert_eq!(negotiate(1..=4, 2..=3).unwrap(), 3);
    assert_eq!(negotiate(2..=3, 3..=9).unwrap(), 3);
    let error = negotiate(1..=2, 5..=7).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Incompatible);
    assert!(error.detail().contains("1 to 2") && error.detail().contains("5 to 7"), "{error}");
}

#[test]
fn a_hello_of_unknown_versions_is_refused_whatever_follows() {
    for versions in [[2, 0, 9, 0], [0, 0, 0, 0]] {
        let error = decode(Kind::Hello, &[&versions[..], &[0xee; 40]].concat()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Incompatible, "{error}");
    }
}

#[test]
fn reflection_and_one_sided_tokens_are_refused() {
    let connector = hello();
    let acceptor = Hello { nonce: [1; NONCE_LEN], ..hello() };
    assert_eq!(agree(&connector, &acceptor).unwrap(), 1);
    assert_eq!(agree(&connector, &connector).unwrap_err().kind(), ErrorKind::Incompatible);
    let without = Hello { authenticates: false, ..connector.clone() };
    let error = agree(&without, &acceptor).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated);
    assert!(error.detail().contains("the connector has none"), "{error}");
    let error = agree(&connector, &Hello { authenticates: false, ..acceptor }).unwrap_err();
    assert!(error.detail().contains("the acceptor has none"), "{error}");
}

#[test]
fn proofs_and_secrets_differ_by_role_token_and_transcript() {
    let transcript = Transcript { connector: b"one", acceptor: b"two", binding: None };
    let swapped = Transcript { connector: b"two", acceptor: b"one", binding: None };
    let token = Some(&b"token"[..]);
    let proof = transcript.proof(token, Role::Connector);
    transcript.verify(token, Role::Connector, &proof).unwrap();
    for error in [
        transcript.verify(token, Role::Acceptor, &proof),
        transcript.verify(Some(b"other"), Role::Connector, &proof),
        swapped.verify(token, Role::Connector, &proof),
        transcript.verify(token, Role::Connector, &[0; MAC_LEN]),
    ] {
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Unauthenticated);
    }
    assert_eq!(transcript.proof(None, Role::Connector), [0; MAC_LEN]);
    transcript.verify(None, Role::Connector, &[0; MAC_LEN]).unwrap();
    assert_eq!(transcript.verify(None, Role::Connector, &proof).unwrap_err().kind(), ErrorKind::Corrupt);
    let secrets = [transcript.secret(token), transcript.secret(None), swapped.secret(token), proof];
    for (at, secret) in secrets.iter().enumerate() {
        assert!(!secrets[..at].contains(secret));
    }
}

#[test]
fn proof_matches_the_documentation() {
    // Computed by Python: hmac.new(b"Jefe", b"towline acceptor", hashlib.sha256).hexdigest()
    let transcript = Transcript { connector: b"", acceptor: b"", binding: None };
    let proof = transcript.proof(Some(b"Jefe"), Role::Acceptor);
    let hex: String = proof.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, "fc32abaf655d06fd742e35c886ed61d8bacd7b9df96634e0effc2a73f5f06809");
}

#[test]
fn text_from_unauthenticated_peers_is_cleaned_and_bounded() {
    let reason = decode(Kind::Refuse, b"\x01 no\x1b[2Jway\xff\n").unwrap();
    assert_eq!(
        reason,
        HandshakeMessage::Refuse {
            kind: ErrorKind::Incompatible,
            reason: "no\u{fffd}[2Jway\u{fffd}".to_owned()
        }
    );
    assert_eq!(clean("a\u{202e}b\u{200b}c".as_bytes(), 64), "a\u{fffd}b\u{fffd}c");
    assert!(clean(&[0xff; 2000], REASON_LEN_MAX).len() <= REASON_LEN_MAX, "replacement makes it longer");
    assert_eq!(clean(b"a\xff b", 5), "a\u{fffd}", "truncation leaves no trailing space");
    assert_eq!(shorten("aé", 2), "a");
    assert_eq!(excerpt(b"SSH-2.0-OpenSSH_9.6\r\nmore"), "SSH-2.0-OpenSSH_9.6");
    assert_eq!(excerpt(b"\x16\x03\"x"), "\\x16\\x03\\\"x");
    let long = excerpt(&[b'a'; 33]);
    assert_eq!(long, format!("{}…", "a".repeat(32)));
    assert!(excerpt(&[0; 500]).chars().count() <= 33);
}

#[test]
fn a_long_reason_is_cut_between_characters() {
    let reason = "é".repeat(1000);
    let HandshakeMessage::NotReady { reason: read } =
        decoded(&encoded(&HandshakeMessage::NotReady { reason })).unwrap()
    else {
        panic!("another message was decoded");
    };
    assert_eq!(read, "é".repeat(REASON_LEN_MAX / 2));
}

#[test]
fn codes_round_trip_and_unknown_codes_mean_incompatible() {
    for (code, kind) in CODES {
        assert_eq!((code_of(kind), kind_of(code)), (code, kind));
    }
    assert_eq!(code_of(ErrorKind::Io), 5);
    assert_eq!([0, 10, 255].map(kind_of), [ErrorKind::Incompatible; 3]);
}
