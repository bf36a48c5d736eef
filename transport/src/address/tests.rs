//! What parses comes back, what does not says why, and nothing panics.

use super::*;

fn parsed(text: &str) -> Result<Address> {
    text.parse()
}

const GOOD: [&str; 18] = [
    "towline://10.0.0.7:7000",
    "tcp://[::1]:7000?streams=4&integrity=crc32c",
    "tcp://[fe80::1%eth0]:7000",
    "tcp://localhost:0",
    "tcp://node-3.rack_2.example.:65535",
    "tcp://*:7000",
    "tcp://:7000",
    "tcp://0.0.0.0:7000",
    "tcp://[::]:7000",
    "shm://host:7000?socket=/run/towline.sock",
    "ucx://10.0.0.2:7000",
    "ucx://[::1]:7000?TLS=rc,cuda_copy&NET_DEVICES=mlx5_0:1&integrity=crc32c&versions=any",
    "ib://10.0.0.7:9000?provider=verbs",
    "mem://worker-1",
    "mem://a/b:c",
    "mem://",
    "mem://?k=",
    "tcp://a:1?k=%26%3D%25%20%C3%A9",
];

#[test]
fn good_addresses_come_back_as_written() {
    for text in GOOD {
        let address = parsed(text).unwrap();
        assert_eq!(address.to_string(), text);
        assert_eq!(parsed(&address.to_string()).unwrap(), address);
    }
}

#[test]
fn parts_are_found() {
    let address = parsed("shm://[2001:DB8:0:0::1]:7000?b=%26&a=").unwrap();
    assert_eq!((address.scheme(), address.host(), address.port()), (Scheme::Shm, "2001:db8::1", 7000));
    assert_eq!(address.name(), None);
    assert_eq!(address.options().collect::<Vec<_>>(), [("b", "&"), ("a", "")]);
    assert_eq!((address.option("a"), address.option("c")), (Some(""), None));
    let address = parsed("mem://worker").unwrap();
    assert_eq!((address.name(), address.host(), address.port()), (Some("worker"), "", 0));
    assert_eq!(parsed("tcp://HOST:007").unwrap().to_string(), "tcp://host:7");
    assert_eq!(format!("{:?}", parsed("tcp://h:1").unwrap()), "Address(tcp://h:1)");
}

#[test]
fn wildcards_are_known() {
    for text in ["tcp://:1", "tcp://*:1", "tcp://0.0.0.0:1", "tcp://[::]:1", "tcp://[0:0::0]:1"] {
        assert!(parsed(text).unwrap().is_wildcard(), "{text}");
    }
    for text in ["tcp://a:1", "tcp://[::1]:1", "mem://"] {
        assert!(!parsed(text).unwrap().is_wildcard(), "{text}");
    }
}

#[test]
fn errors_say_what_is_wrong_and_what_is_right() {
    for (text, expected) in [
        ("", "no \"://\": write tcp://host:port"),
        ("tcp//x", "\"tcp//x\": no \"://\": write tcp://host:port"),
        ("http://x:1", "unknown scheme \"http\": use one of towline, towlines, tcp, tls, shm, ucx, ib, mem"),
        ("TCP://x:1", "unknown scheme \"TCP\""),
        ("tcp://x", "no port: write tcp://host:7000"),
        ("ib://x:", "no port: write ib://host:7000"),
        ("tcp://", "no port"),
        ("tcp://[::1]", "no port"),
        ("tcp://[::1]7000", "no port"),
        ("tcp://x:65536", "port 65536 is out of range: write a number from 0 to 65535"),
        ("tcp://x:99999999999999999999", "out of range"),
        ("tcp://x:+1", "\"+1\" is no port"),
        ("tcp://x:-1", "\"-1\" is no port"),
        ("tcp://::1:7000", "needs brackets: write tcp://[::1]:7000"),
        ("tcp://[::1:7000", "no \"]\""),
        ("tcp://[10.0.0.1]:1", "is no IPv6 address"),
        ("tcp://[::1%]:1", "is no IPv6 address"),
        ("tcp://10.0.0.256:1", "\"10.0.0.256\" is no IPv4 address"),
        ("tcp://10.0.1:1", "is no IPv4 address"),
        ("tcp://a..b:1", "\"a..b\" is no host"),
        ("tcp://a b:1", "is no host"),
        ("tcp://x:1/path", "\"/path\" has no place here"),
        ("tcp://user@x:1", "\"@x:1\" has no place here"),
        ("tcp://x:1#f", "\"#f\" has no place here"),
        ("tcp://x:1?", "\"\" is no option: write ?key=value"),
        ("tcp://x:1?k", "\"k\" is no option: write ?key=value"),
        ("tcp://x:1?=v", "\"=v\" is no option"),
        ("tcp://x:1?k=1&%6b=2", "option \"k\" is given twice"),
        ("tcp://x:1?k=%4", "write %25 for a percent sign"),
        ("tcp://x:1?k=%+1", "write %25 for a percent sign"),
        ("tcp://x:1?k=%ff", "no UTF-8"),
        ("mem://a b", "\"a b\" is no mem name"),
        ("mem://\u{1b}[2J", "\\u{1b}[2J"),
    ] {
        let error = parsed(text).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.detail().contains(expected), "{text}: {error}");
    }
}

#[test]
fn length_is_bounded_however_it_is_made() {
    let longest = format!("mem://{}", "a".repeat(LEN_MAX - 6));
    assert!(parsed(&longest).is_ok());
    assert!(parsed(&(longest + "a")).is_err());
    assert!(Address::mem("a".repeat(LEN_MAX)).is_err());
    // Encoding makes it longer: 300 bytes become 900.
    assert!(parsed(&format!("tcp://a:1?k={}", "é".repeat(150))).is_ok());
    assert!(parsed(&format!("tcp://a:1?k={}", "é".repeat(200))).is_err());
    assert!(Address::mem("a").unwrap().with_option("k", " ".repeat(400)).is_err());
}

#[test]
fn addresses_are_made_from_parts() {
    for host in ["::1", "[::1]"] {
        assert_eq!(Address::new(Scheme::Tcp, host, 7).unwrap().to_string(), "tcp://[::1]:7");
    }
    assert_eq!(Address::new(Scheme::Ib, "*", 0).unwrap().to_string(), "ib://*:0");
    for (scheme, host) in
        [(Scheme::Mem, "a"), (Scheme::Tcp, "a:1"), (Scheme::Tcp, "[a]"), (Scheme::Tcp, "a?")]
    {
        assert_eq!(Address::new(scheme, host, 1).unwrap_err().kind(), ErrorKind::Invalid, "{host}");
    }
    let address = Address::mem("x").unwrap().with_option("a b", "1&2").unwrap();
    assert_eq!(address.to_string(), "mem://x?a%20b=1%262");
    assert_eq!(parsed(&address.to_string()).unwrap(), address);
    assert_eq!(address.with_option("a b", "").unwrap().to_string(), "mem://x?a%20b=");
    assert!(Address::mem("x").unwrap().with_option("", "v").is_err());
    assert!(Address::mem("x?y").is_err());
}

#[test]
fn settings_of_ucx_are_kept_as_they_are_and_are_no_others() {
    let address = parsed("ucx://a:1?TLS=^ib&integrity=crc32c&RNDV_THRESH=64k&_X=1&Tls=1&A1=%20").unwrap();
    let settings: Vec<_> = address.settings().collect();
    assert_eq!(settings, [("TLS", "^ib"), ("RNDV_THRESH", "64k"), ("A1", " ")]);
    assert_eq!(parsed("tcp://a:1?streams=4").unwrap().settings().count(), 0);
}

#[test]
fn options_are_taken_where_they_mean_something() {
    for text in [
        "ucx://a:1?TLS=tcp,self&NET_DEVICES=eth0&TCP_CM_REUSEADDR=",
        "ucx://a:1?integrity=crc32c&versions=any&MAX_RNDV_RAILS=2",
        "tcp://a:1?streams=16&integrity=crc32c",
        "towlines://a:1?streams=1",
        "shm://a:1?integrity=crc32c",
        "mem://a",
    ] {
        parsed(text).unwrap().check_options().unwrap_or_else(|error| panic!("{text}: {error}"));
    }
}

#[test]
fn options_are_refused_where_they_mean_nothing() {
    let elsewhere = "settings of UCX are for ucx:// alone: write ucx://, or leave ?TLS=… out";
    let mut cases = Vec::from([
        ("ucx://a:1?streams=2".to_owned(), "UCX spreads over what it finds by itself"),
        ("ucx://a:1?integrity=sha256".to_owned(), "is no integrity"),
        ("ucx://a:1?versions=1.13".to_owned(), "\"1.13\" is no choice of versions: write versions=any"),
        ("ucx://a:1?tls=on".to_owned(), "write tls:// or towlines://"),
        ("ucx://a:1?_TLS=tcp".to_owned(), "ucx has no option \"_TLS\""),
        ("ucx://a:1?1TLS=tcp".to_owned(), "ucx has no option \"1TLS\""),
        ("ucx://a:1?TLSx=tcp".to_owned(), "ucx has no option \"TLSx\""),
        ("ucx://a:1?TLS=tcp&frobnicate=7".to_owned(), "ucx has no option \"frobnicate\""),
        ("tcp://a:1?versions=any".to_owned(), "tcp has no option \"versions\""),
        ("tcp://a:1?streams=17".to_owned(), "from 1 to 16"),
        ("shm://a:1?streams=2".to_owned(), "no sockets to spread over"),
        ("mem://a?streams=2".to_owned(), "nothing travels"),
        ("mem://a?integrity=crc32c".to_owned(), "nothing travels"),
    ]);
    for scheme in Scheme::ALL.into_iter().filter(|scheme| *scheme != Scheme::Ucx) {
        cases.push((
            format!("{scheme}://{}?TLS=tcp", if scheme == Scheme::Mem { "a" } else { "a:1" }),
            elsewhere,
        ));
    }
    for (text, expected) in cases {
        let error = parsed(&text).unwrap().check_options().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{text}");
        assert!(error.detail().contains(expected), "{text}: {error}");
    }
}

#[test]
fn mutated_addresses_parse_and_come_back_or_fail_but_never_panic() {
    const SPICE: &[u8] = b":/?#[]@%&=*.-+0159afxyz \0\"\xc3\xa9\xff";
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |bound: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % bound as u64) as usize
    };
    let mut good = 0;
    for round in 0..60_000 {
        let mut bytes = GOOD[round % GOOD.len()].as_bytes().to_vec();
        for _ in 0..=random(3) {
            let (at, spice) = (random(bytes.len() + 1), SPICE[random(SPICE.len())]);
            match random(3) {
                0 => bytes.insert(at, spice),
                1 if at < bytes.len() => bytes[at] = spice,
                _ if at < bytes.len() => drop(bytes.remove(at)),
                _ => {}
            }
        }
        if let Ok(address) = parsed(&String::from_utf8_lossy(&bytes)) {
            assert_eq!(parsed(&address.to_string()).unwrap(), address);
            good += 1;
        }
    }
    assert!(good > 1000, "the mutations are too wild to show anything: {good}");
}
