//! A demand that cannot be met exits with 2, names the right thing, and runs nothing.

use crate::command::towline;

#[test]
fn wrong_usage_names_what_is_wrong() {
    for (line, says) in [
        ("", "Usage"),
        ("dance", "dance"),
        ("info --html x", "--html"),
        ("serve", "<ADDRESS>"),
        ("serve http://x", "unknown scheme"),
        ("serve tcp://127.0.0.1", "no port"),
        ("serve tcp://*:0", "token"),
        ("serve tcp://127.0.0.1:0 --token-file /no/such/file", "/no/such/file"),
        ("serve shm://127.0.0.1:0", "planned"),
        ("explain", "<ADDRESS>"),
        ("explain shm://127.0.0.1:1", "shm is planned, and not in this version"),
        ("explain mem://x", "mem reaches only its own process"),
        ("bench --transport udp", "`udp` is no transport: choose from auto, mem, tcp"),
        ("bench --transport shm", "shm is planned, and not in this version"),
        ("bench --transport ucx", "ucx is planned, and not in this version"),
        ("bench --transport ib", "ib is planned, and not in this version"),
        ("bench --transport mem?x=1", "no option \"x\""),
        ("bench --pattern shuffle", "does not measure `shuffle` yet"),
        ("bench --pattern dance", "`dance` is no pattern"),
        ("bench --size 8x", "`8x` is not a size"),
        ("bench --size 64..8", "8..64"),
        ("bench --size 1T", "do not fit"),
        ("bench --place arena", "does not place bytes in `arena` yet"),
        ("bench --from cuda:0", "does not place bytes in `cuda:0` yet"),
        ("bench --to moon", "`moon` is no place"),
        ("bench --place host --from host", "--from"),
        ("bench --wait often", "often"),
        ("bench --frames 0", "0"),
        ("bench --window 0", "0"),
        ("bench --duration 0", "not a time"),
        ("bench --duration forever", "not a time"),
        ("bench --repeat 0", "0"),
        ("bench --pattern latency --window 4", "--window means nothing"),
        ("bench --pattern get --frames 4", "--frames means nothing"),
        ("bench --pattern latency,connect --workers 4", "--workers means nothing"),
        ("bench --pattern incast --workers 0", "--workers"),
        ("bench --pattern incast --workers 65", "--workers"),
        (
            "bench --transport tcp --pattern incast --workers 64 --size 64M",
            "64 messages of 64M at once are more than the 256 MiB",
        ),
        ("bench --pattern alltoall --workers 1", "one worker has nobody to send to"),
        ("bench --pattern alltoall --connect tcp://127.0.0.1:1", "--connect names one only"),
        ("bench --connect mem://x", "mem reaches only its own process"),
        ("bench --connect tcp://127.0.0.1:1 --transport mem", "mem reaches only its own process"),
        ("bench --connect nowhere", "://"),
        ("bench --token-file /no/such/file", "/no/such/file"),
        ("bench --json-file /no/such/folder/x", "/no/such/folder/x"),
        (
            "bench --against netperf",
            "`netperf` is no peer tool: choose from iperf3, ucx_perftest, fi_pingpong",
        ),
        ("bench --against iceoryx2", "does not run `iceoryx2` yet"),
        ("bench --against iperf3 --connect tcp://127.0.0.1:1", "--connect"),
        ("bench --html x", "--html"),
        ("bench --assert fast", "no comparison"),
        ("bench --compare /no/such/file", "--compare /no/such/file"),
        ("bench --save-histograms /no/such/folder/x", "--save-histograms /no/such/folder/x"),
        ("bench --threshold 5", "--compare"),
        ("bench --threshold little --compare x", "not a percentage"),
        ("bench --transport mem --assert mem.latency.9.p50_us<1", "matches no row of this run"),
        ("bench --transport mem --wait spin,sleep --assert mem.latency.8.p50_us<1", "wait=sleep|spin"),
        (
            "bench --transport mem --assert mem.latency.8.against.iperf3.ratio<1",
            "--against does not name iperf3",
        ),
    ] {
        let words: Vec<&str> = line.split_whitespace().collect();
        towline(&words).is_wrong_usage(says);
    }
}
