//! Floods of peers, on a clock of plain numbers.

use std::net::Ipv4Addr;

use super::*;

const ENEMY: Source = Source::User(1);
const FRIEND: Source = Source::User(2);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn is_evicted(admitted: &Admitted) -> bool {
    admitted.admission.state().position(admitted.number).is_none()
}

fn filled(capacity: usize, source: Source) -> (Admission, Vec<Admitted>) {
    let admission = Admission::new(capacity);
    let peers = (0..capacity).map(|_| admission.admit(source, ms(0)).unwrap()).collect();
    (admission, peers)
}

/// Waits as a new peer does, and returns when it is admitted.
fn waited(admission: &Admission, source: Source, mut now: Duration) -> (Admitted, Duration) {
    loop {
        match admission.admit(source, now) {
            Ok(admitted) => return (admitted, now),
            Err(until) => {
                assert!(until > now, "a wait ends later than it begins");
                now = until;
            }
        }
    }
}

#[test]
fn a_newcomer_waits_at_most_the_grace_time() {
    let (admission, peers) = filled(4, ENEMY);
    assert_eq!(admission.admit(FRIEND, ms(0)).unwrap_err(), GRACE_TIME);
    let (_friend, at) = waited(&admission, FRIEND, ms(0));
    assert_eq!(at, GRACE_TIME);
    assert!(is_evicted(&peers[0]), "the oldest was evicted");
    assert!(peers[1..].iter().all(|peer| !is_evicted(peer)));
    // A released place is free at once.
    drop(peers);
    assert!(admission.admit(FRIEND, GRACE_TIME).is_ok());
}

#[test]
fn five_thousand_waiting_peers_delay_a_newcomer_by_one_grace_time() {
    let admission = Admission::new(128);
    let (mut now, mut peers) = (ms(0), Vec::new());
    for _ in 0..5000 {
        let (peer, at) = waited(&admission, ENEMY, now);
        peers.push(peer);
        now = at;
    }
    assert!(now < GRACE_TIME * 2, "the last was admitted after {now:?}");
}

#[test]
fn active_peers_are_not_evicted_by_silent_ones() {
    let (admission, mut peers) = filled(16, ENEMY);
    let mut now = GRACE_TIME;
    let friend = admission.admit(ENEMY, now).unwrap();
    friend.advanced(now);
    for _ in 0..10_000 {
        now += ms(1);
        // A waiting peer tries again.
        peers.extend(admission.admit(ENEMY, now).ok());
    }
    assert!(!is_evicted(&friend));
    // Nor the other way round: half of the places are for peers that send something in time.
    let (admission, peers) = filled(16, ENEMY);
    peers.iter().for_each(|peer| peer.advanced(ms(0)));
    let mut now = GRACE_TIME * 2;
    let friends: Vec<_> = (0..8)
        .map(|_| {
            let (friend, at) = waited(&admission, ENEMY, now);
            now = at;
            friend
        })
        .collect();
    assert!(friends.iter().all(|friend| !is_evicted(friend)));
}

#[test]
fn the_source_with_most_places_makes_room() {
    let admission = Admission::new(16);
    let friends: Vec<_> = (0..4).map(|_| admission.admit(FRIEND, ms(0)).unwrap()).collect();
    let mut now = ms(0);
    let mut peers = Vec::new();
    for _ in 0..1000 {
        now += ms(50);
        peers.extend(admission.admit(ENEMY, now).ok());
    }
    assert!(friends.iter().all(|friend| !is_evicted(friend)), "although they are the oldest, and silent");
}

#[test]
fn a_peer_gets_through_that_takes_fifty_milliseconds_a_step_in_a_flood_of_two_thousand_a_second() {
    let admission = Admission::new(256);
    let (mut now, mut peers) = (ms(0), std::collections::VecDeque::new());
    let mut flood = |from: Duration, until: Duration| {
        let mut now = from;
        while now < until {
            now += Duration::from_micros(500);
            if let Ok(peer) = admission.admit(ENEMY, now) {
                // Every other peer sends something, and then nothing more.
                if peers.len() % 2 == 0 {
                    peer.advanced(now);
                }
                peers.push_back(peer);
            }
            // Their sockets are closed long before.
            if peers.len() > 1000 {
                peers.pop_front();
            }
        }
    };
    flood(now, ms(3000));
    now = ms(3000);
    let mut good = 0;
    for _ in 0..20 {
        let Ok(friend) = admission.admit(ENEMY, now) else { panic!("it waits during a steady flood") };
        friend.advanced(now + ms(1));
        for _ in 0..2 {
            flood(now, now + ms(50));
            now += ms(50);
            friend.advanced(now);
        }
        good += usize::from(!is_evicted(&friend));
    }
    assert_eq!(good, 20);
}

#[test]
fn grace_time_recovers() {
    let (admission, mut peers) = filled(2, ENEMY);
    let mut now = ms(0);
    for _ in 0..100 {
        let (peer, at) = waited(&admission, ENEMY, now);
        peers.push(peer);
        now = at;
    }
    assert!(admission.state().grace_time(now) < ms(20));
    assert_eq!(admission.state().grace_time(now + GRACE_TIME * RECOVERY), GRACE_TIME);
}

#[test]
fn a_peer_that_failed_to_authenticate_is_evicted_first() {
    let (admission, peers) = filled(4, FRIEND);
    assert_eq!(peers[2].failed(ms(1)), ms(1), "its first answer is not delayed");
    let _newcomer = admission.admit(ENEMY, ms(1)).unwrap();
    assert!(is_evicted(&peers[2]));
    assert!(admission.admit(ENEMY, ms(1)).is_err(), "it took one place");
}

#[test]
fn answers_to_a_source_that_fails_again_and_again_are_delayed() {
    let admission = Admission::new(4);
    let fail = |source, now| {
        let admitted = admission.admit(source, now).unwrap();
        admitted.failed(now) - now
    };
    let delays: Vec<_> = (0..30).map(|_| fail(ENEMY, ms(0))).collect();
    assert!(delays[..8].iter().all(Duration::is_zero));
    assert_eq!(delays[8..12], [10, 20, 40, 80].map(ms));
    assert!(delays[15..].iter().all(|delay| *delay == DELAY_MAX));
    assert_eq!(fail(FRIEND, ms(0)), ms(0), "another source's are not");
    assert_eq!(fail(ENEMY, FAILURE_TIME * 20), ms(0), "in the end it is forgotten");
    // The number of remembered sources is bounded.
    for number in 0..5000 {
        fail(Source::User(number), ms(0));
    }
    assert!(admission.state().failures.len() <= FAILED_SOURCES_MAX);
}

#[test]
fn a_lack_of_descriptors_takes_half_of_the_places_for_a_while() {
    let (admission, peers) = filled(8, ENEMY);
    assert!(admission.make_room(ms(0)));
    assert!(peers[..4].iter().all(is_evicted), "the oldest");
    assert!(peers[4..].iter().all(|peer| !is_evicted(peer)));
    assert!(admission.admit(FRIEND, ms(0)).is_err(), "though there were 8 places");
    assert!(admission.admit(FRIEND, SCARCE_TIME).is_ok());
    assert_eq!(admission.state().capacity(SCARCE_TIME * 100), 8);
    drop(peers);
    assert!(!admission.make_room(SCARCE_TIME), "no peer is left to evict");
}

#[test]
fn peers_of_this_process_are_not_evicted() {
    let (admission, peers) = filled(2, Source::Process);
    for now in 0..100 {
        assert!(admission.admit(Source::Process, GRACE_TIME * now).is_err());
    }
    assert!(!admission.make_room(ms(0)));
    assert!(peers.iter().all(|peer| !is_evicted(peer)));
}

#[test]
fn a_host_is_its_address_or_its_network_of_ipv6() {
    let of = |address: &str| Source::from(address.parse::<IpAddr>().unwrap());
    assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
    assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
    assert_eq!(of("::ffff:127.0.0.1"), Source::Host(Ipv4Addr::LOCALHOST.into()));
    assert_ne!(of("::1"), of("::2"));
}

#[tokio::test]
async fn an_eviction_drops_the_held_task() {
    let (admission, mut peers) = filled(1, ENEMY);
    let holder = peers.pop().unwrap();
    assert_eq!(holder.hold(async { 7 }).await, Some(7));
    let _newcomer = admission.admit(FRIEND, GRACE_TIME).unwrap();
    assert_eq!(holder.hold(std::future::pending::<u8>()).await, None);
}
