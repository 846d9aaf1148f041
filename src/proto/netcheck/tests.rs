use super::*;
use crate::wire::derp::{HostIp, Region, RelayNode};

fn ms(n: u64) -> Instant {
    Instant::ZERO + Duration::from_millis(n)
}

fn secs(n: u64) -> Instant {
    ms(n * 1_000)
}

fn id(n: u16) -> RegionId {
    RegionId::new(n).unwrap()
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// The embedded relay 999 without STUN, and STUN servers of the given names or addresses as regions from 1,000 on.
fn map(stun: &[&str]) -> RelayMap {
    let relay = RelayNode { host: "coder.example".into(), stun_port: None, ..RelayNode::default() };
    let mut map = RelayMap::default();
    map.regions.insert(id(999), Region { embedded: true, nodes: vec![relay], ..Region::default() });
    for (n, host) in (1_000..).zip(stun) {
        let node = RelayNode { host: (*host).into(), stun_only: true, ..RelayNode::default() };
        map.regions.insert(id(n), Region { nodes: vec![node], ..Region::default() });
    }
    map
}

fn with_map(stun: &[&str]) -> Netcheck {
    let mut n = Netcheck::new(Rng::from_u64(1));
    n.set_relay_map(secs(0), &map(stun));
    n
}

fn events(n: &mut Netcheck) -> Vec<Event> {
    std::iter::from_fn(|| n.poll_event()).collect()
}

fn actions(n: &mut Netcheck) -> Vec<Action> {
    std::iter::from_fn(|| n.poll_action()).collect()
}

/// Requests that left: where to and with which id.
fn requests(n: &mut Netcheck) -> Vec<(SocketAddr, stun::TxId)> {
    std::iter::from_fn(|| n.poll_transmit())
        .map(|(lane, bytes)| match lane {
            Lane::Udp { socket, to } => {
                assert_eq!(socket, SocketIx::for_address(&to));
                (to, stun::parse_request(&bytes).unwrap())
            }
            Lane::Relay { .. } => panic!("STUN through a relay"),
        })
        .collect()
}

fn answer(n: &mut Netcheck, now: Instant, tx: stun::TxId, public: &str) {
    let elsewhere = addr("203.0.113.99:1");
    n.handle_stun(now, SocketIx::V4, elsewhere, &stun::write_response(tx, addr(public)));
}

/// Runs the engine's clock up to `until`.
fn pass(n: &mut Netcheck, until: Instant) {
    let mut steps = 0;
    while let Some(deadline) = n.poll_timeout().filter(|d| d.at <= until) {
        n.handle_timeout(deadline.at);
        steps += 1;
        assert!(steps < 100, "time stands still: {}", deadline.why);
    }
}

fn report(n: &mut Netcheck) -> Report {
    let report = events(n).into_iter().find_map(|e| if let Event::Report(report) = e { Some(report) } else { None });
    report.expect("a report")
}

#[test]
fn the_embedded_relay_is_home_at_once() {
    let mut n = with_map(&["192.0.2.1"]);
    assert_eq!(events(&mut n), [Event::Home(id(999))]);
    assert_eq!(actions(&mut n), [Action::MeasureRelay { region: id(999) }]);
}

#[test]
fn an_answer_is_published_at_once_and_a_run_with_all_answers_ends_at_once() {
    let mut n = with_map(&["192.0.2.1"]);
    events(&mut n);
    let [(to, tx)] = requests(&mut n)[..] else { panic!("one request: a literal address has one family") };
    assert_eq!(to, addr("192.0.2.1:3478"));
    answer(&mut n, ms(30), tx, "198.51.100.7:4000");
    let public = Event::Public(addr("198.51.100.7:4000"));
    assert_eq!(events(&mut n), [public, Event::Gathered]);
    n.handle_relay_latency(ms(50), id(999), Some(Duration::from_millis(20)));
    let report = report(&mut n);
    assert_eq!(report.global_v4, Some(addr("198.51.100.7:4000")));
    assert_eq!((report.udp(), report.mapping_varies, report.took), (true, None, Duration::from_millis(50)));
    assert_eq!(report.relay_latency, [(id(999), Duration::from_millis(20))].into());
    assert_eq!((report.home, report.why), (Some(id(999)), "relay map"));
}

#[test]
fn a_request_without_answer_is_repeated_twice_with_new_ids_and_given_up() {
    let mut n = with_map(&["192.0.2.1"]);
    let mut all = requests(&mut n);
    for (at, count) in [(199, 0), (200, 1), (599, 0), (600, 1), (1_599, 0)] {
        pass(&mut n, ms(at));
        let more = requests(&mut n);
        assert_eq!(more.len(), count, "at {at} ms");
        all.extend(more);
    }
    assert!(!events(&mut n).contains(&Event::Gathered));
    pass(&mut n, ms(1_600));
    assert_eq!(events(&mut n), [Event::Gathered]);
    all.sort_by_key(|(_, tx)| *tx);
    all.dedup_by_key(|(_, tx)| *tx);
    assert_eq!(all.len(), 3);
    pass(&mut n, secs(3));
    assert!(!report(&mut n).udp());
}

#[test]
fn a_late_answer_is_still_published_but_a_stale_or_foreign_one_is_not() {
    let mut n = with_map(&["192.0.2.1"]);
    let [(_, first)] = requests(&mut n)[..] else { panic!("one request") };
    pass(&mut n, secs(4));
    let retries = requests(&mut n);
    events(&mut n);
    answer(&mut n, secs(5), first, "198.51.100.7:4000");
    assert_eq!(events(&mut n), [Event::Public(addr("198.51.100.7:4000"))]);
    answer(&mut n, secs(5), first, "198.51.100.7:4000");
    answer(&mut n, secs(5), stun::TxId([0; 12]), "198.51.100.7:4000");
    answer(&mut n, secs(11), retries[0].1, "198.51.100.7:4000");
    assert!(events(&mut n).is_empty());
}

#[test]
fn hosts_are_looked_up_once_and_asked_in_both_families() {
    let mut n = with_map(&["stun.example", "stun.example"]);
    let resolve = Action::Resolve { host: "stun.example".into() };
    assert_eq!(actions(&mut n), [Action::MeasureRelay { region: id(999) }, resolve]);
    assert!(requests(&mut n).is_empty());
    assert_eq!(n.poll_timeout().unwrap().at, secs(2));
    n.handle_resolved(ms(40), "other.example", &[addr("192.0.2.9:1").ip()]);
    assert!(requests(&mut n).is_empty());
    n.handle_resolved(ms(40), "stun.example", &[addr("192.0.2.1:1").ip(), addr("[2001:db8::1]:1").ip()]);
    let to: Vec<_> = requests(&mut n).iter().map(|(to, _)| to.to_string()).collect();
    assert_eq!(to, ["192.0.2.1:3478", "[2001:db8::1]:3478", "192.0.2.1:3478", "[2001:db8::1]:3478"]);
    assert!(actions(&mut n).is_empty());
}

#[test]
fn a_host_that_does_not_resolve_ends_its_part_at_once_and_an_unanswered_look_up_at_the_limit() {
    let mut n = with_map(&["stun.example"]);
    events(&mut n);
    n.handle_resolved(ms(40), "stun.example", &[]);
    assert_eq!(events(&mut n), [Event::Gathered]);
    let mut n = with_map(&["stun.example"]);
    events(&mut n);
    pass(&mut n, ms(1_999));
    assert!(events(&mut n).is_empty());
    pass(&mut n, secs(2));
    assert_eq!(events(&mut n), [Event::Gathered]);
}

#[test]
fn a_look_up_that_failed_is_repeated_soon_and_one_that_succeeded_is_not() {
    for (addresses, again) in [(vec![], true), (vec![addr("192.0.2.1:1").ip()], false)] {
        let mut n = with_map(&["stun.example"]);
        n.handle_resolved(ms(40), "stun.example", &addresses);
        pass(&mut n, secs(5));
        actions(&mut n);
        n.start(secs(5), "again");
        let resolve = Action::Resolve { host: "stun.example".into() };
        assert_eq!(actions(&mut n).contains(&resolve), again);
    }
}

#[test]
fn the_servers_of_a_region_and_the_addresses_of_a_server_take_turns() {
    let mut map = map(&["192.0.2.1"]);
    let second = RelayNode { host: "stun.example".into(), stun_only: true, ..RelayNode::default() };
    map.regions.get_mut(&id(1_000)).unwrap().nodes.push(second);
    let mut n = Netcheck::new(Rng::from_u64(1));
    n.set_relay_map(secs(0), &map);
    n.handle_resolved(ms(1), "stun.example", &[addr("192.0.2.2:1").ip(), addr("192.0.2.3:1").ip()]);
    pass(&mut n, ms(1_599));
    n.handle_resolved(ms(1_599), "stun.example", &[addr("192.0.2.2:1").ip(), addr("192.0.2.3:1").ip()]);
    let to: Vec<_> = requests(&mut n).iter().map(|(to, _)| to.ip().to_string()).collect();
    assert_eq!(to, ["192.0.2.1", "192.0.2.2", "192.0.2.1"]);
}

#[test]
fn without_any_stun_server_endpoints_are_gathered_at_once() {
    let mut n = with_map(&[]);
    assert_eq!(events(&mut n), [Event::Home(id(999)), Event::Gathered]);
    n.handle_relay_latency(ms(9), id(999), None);
    assert_eq!(report(&mut n).relay_latency, BTreeMap::new());
}

#[test]
fn mappings_vary_when_two_servers_see_different_addresses() {
    for (second, varies) in [("198.51.100.7:4000", false), ("198.51.100.7:4001", true)] {
        let mut n = with_map(&["192.0.2.1", "192.0.2.2"]);
        let [(_, a), (_, b)] = requests(&mut n)[..] else { panic!("two requests") };
        answer(&mut n, ms(10), a, "198.51.100.7:4000");
        answer(&mut n, ms(20), b, second);
        n.handle_relay_latency(ms(30), id(999), None);
        assert_eq!(report(&mut n).mapping_varies, Some(varies));
    }
    // Two answers of one server prove nothing.
    let mut n = with_map(&["192.0.2.1"]);
    let first = requests(&mut n)[0].1;
    pass(&mut n, ms(200));
    let second = requests(&mut n)[0].1;
    answer(&mut n, ms(210), first, "198.51.100.7:4000");
    answer(&mut n, ms(220), second, "198.51.100.7:4001");
    n.handle_relay_latency(ms(230), id(999), None);
    assert_eq!(report(&mut n).mapping_varies, None);
}

#[test]
fn runs_repeat_every_20_to_26_seconds_only_while_a_tunnel_is_in_use() {
    let mut n = with_map(&["192.0.2.1"]);
    n.handle_relay_latency(ms(1), id(999), None);
    pass(&mut n, secs(10));
    assert_eq!(n.poll_timeout(), None);
    requests(&mut n);
    n.set_active(secs(10), true);
    let due = n.poll_timeout().unwrap().at;
    assert!((ms(1_600) + REPEAT.0..=ms(1_600) + REPEAT.1).contains(&due), "{due:?}");
    pass(&mut n, due);
    assert_eq!(requests(&mut n).len(), 1);
    n.set_active(due, false);
    pass(&mut n, due + Duration::from_secs(4));
    assert_eq!(n.poll_timeout(), None);
    events(&mut n);
    n.set_active(due + Duration::from_secs(600), true);
    assert_eq!(requests(&mut n).len(), 3, "two retries and the first request of the overdue run");
}

#[test]
fn a_run_asked_for_during_another_follows_it_and_a_restart_replaces_it() {
    let mut n = with_map(&["192.0.2.1"]);
    events(&mut n);
    let [(_, tx)] = requests(&mut n)[..] else { panic!("one request") };
    n.start(ms(5), "first");
    n.start(ms(6), "endpoints for a peer");
    assert!(requests(&mut n).is_empty());
    answer(&mut n, ms(10), tx, "198.51.100.7:4000");
    n.handle_relay_latency(ms(11), id(999), None);
    assert_eq!(report(&mut n).why, "relay map");
    let [(_, old)] = requests(&mut n)[..] else { panic!("one request") };
    n.restart(ms(20), "link change");
    answer(&mut n, ms(21), old, "198.51.100.7:4000");
    assert!(events(&mut n).is_empty(), "an answer of the old network counts no more");
    let [(_, tx)] = requests(&mut n)[..] else { panic!("one request") };
    answer(&mut n, ms(30), tx, "198.51.100.8:4000");
    n.handle_relay_latency(ms(31), id(999), None);
    let report = report(&mut n);
    assert_eq!((report.why, report.global_v4), ("link change", Some(addr("198.51.100.8:4000"))));
}

#[test]
fn a_later_run_asks_few_servers_in_the_families_that_work_and_those_first_that_answered_first() {
    let hosts: Vec<_> = (1..=9).map(|n| format!("s{n}.example")).collect();
    let mut n = with_map(&hosts.iter().map(String::as_str).collect::<Vec<_>>());
    for (k, host) in (1u8..).zip(&hosts) {
        n.handle_resolved(ms(1), host, &[IpAddr::from([192, 0, 2, k]), addr("[2001:db8::1]:1").ip()]);
    }
    let first = requests(&mut n);
    assert_eq!(first.len(), 2 * FULL_REGIONS);
    for (to, tx) in first.iter().rev().filter(|(to, _)| to.is_ipv4()) {
        assert_eq!(to.port(), 3_478);
        answer(&mut n, ms(10), *tx, "198.51.100.7:4000");
    }
    n.handle_relay_latency(secs(1), id(999), None);
    pass(&mut n, secs(6));
    assert!(report(&mut n).udp());
    requests(&mut n);
    actions(&mut n);
    n.start(secs(6), "periodic");
    let to: Vec<_> = requests(&mut n).iter().map(|(to, _)| to.ip().to_string()).collect();
    assert_eq!(to, ["192.0.2.8", "192.0.2.7", "192.0.2.6"]);
    assert!(actions(&mut n).is_empty(), "one relay alone is measured in full runs only");
    n.restart(secs(6), "link change");
    assert!(actions(&mut n).contains(&Action::MeasureRelay { region: id(999) }));
}

#[test]
fn the_home_moves_to_a_relay_that_answers_much_faster() {
    let mut map = map(&[]);
    let far = Region { nodes: vec![RelayNode { ipv4: HostIp::Off, ..RelayNode::default() }], ..Region::default() };
    map.regions.insert(id(5), far);
    let mut n = Netcheck::new(Rng::from_u64(1));
    n.set_relay_map(secs(0), &map);
    assert_eq!(events(&mut n), [Event::Home(id(999))], "the other region has STUN on IPv6 alone, still unresolved");
    n.handle_relay_latency(ms(300), id(999), Some(Duration::from_millis(300)));
    n.handle_relay_latency(ms(301), id(5), Some(Duration::from_millis(20)));
    pass(&mut n, secs(3));
    assert!(events(&mut n).contains(&Event::Home(id(5))));
    assert_eq!(n.home(), Some(id(5)));
}

#[test]
fn a_map_without_embedded_relay_gives_a_home_after_the_first_run_and_a_map_without_the_home_another() {
    let node = || RelayNode { stun_port: None, ..RelayNode::default() };
    let region = || Region { nodes: vec![node()], ..Region::default() };
    let mut map = RelayMap { regions: [(id(1), region()), (id(2), region())].into(), ..RelayMap::default() };
    let mut n = Netcheck::new(Rng::from_u64(1));
    n.set_relay_map(secs(0), &map);
    assert_eq!(events(&mut n), [Event::Gathered]);
    pass(&mut n, secs(3));
    let home = n.home().expect("nothing was measured, so any");
    assert!(events(&mut n).contains(&Event::Home(home)));
    map.regions.remove(&home);
    n.set_relay_map(secs(4), &map);
    pass(&mut n, secs(7));
    assert!(n.home().is_some_and(|other| other != home));
}

#[test]
fn a_slow_relay_that_answers_after_its_run_does_not_become_home() {
    let mut map = map(&[]);
    map.regions.insert(id(5), Region { nodes: vec![RelayNode::default()], ..Region::default() });
    let mut n = Netcheck::new(Rng::from_u64(1));
    n.set_relay_map(secs(0), &map);
    n.handle_relay_latency(ms(20), id(999), Some(Duration::from_millis(20)));
    pass(&mut n, secs(3));
    events(&mut n);
    n.handle_relay_latency(secs(4), id(5), Some(Duration::from_secs(4)));
    assert_eq!((n.home(), events(&mut n)), (Some(id(999)), vec![]));
    // What it has measured before counts beside it, and a fast one does become home.
    n.handle_relay_latency(secs(5), id(5), Some(Duration::from_millis(1)));
    assert_eq!(n.home(), Some(id(5)));
}

#[test]
fn latencies_of_another_network_do_not_choose_the_home() {
    let mut map = map(&[]);
    map.regions.insert(id(5), Region { nodes: vec![RelayNode::default()], ..Region::default() });
    let mut n = Netcheck::new(Rng::from_u64(1));
    n.set_relay_map(secs(0), &map);
    n.handle_relay_latency(ms(1), id(999), Some(Duration::from_millis(1)));
    n.handle_relay_latency(ms(1), id(5), Some(Duration::from_millis(300)));
    pass(&mut n, secs(3));
    assert_eq!(n.home(), Some(id(999)));
    n.restart(secs(60), "link change");
    n.handle_relay_latency(secs(60), id(999), Some(Duration::from_millis(300)));
    n.handle_relay_latency(secs(60), id(5), Some(Duration::from_millis(30)));
    pass(&mut n, secs(64));
    assert_eq!(n.home(), Some(id(5)));
}

#[test]
fn a_latency_after_its_run_still_counts() {
    let mut n = with_map(&[]);
    pass(&mut n, secs(3));
    assert!(report(&mut n).relay_latency.is_empty());
    n.handle_relay_latency(secs(4), id(999), Some(Duration::from_secs(4)));
    n.start(secs(5), "again");
    pass(&mut n, secs(9));
    assert_eq!(report(&mut n).relay_latency[&id(999)], Duration::from_secs(4));
}
