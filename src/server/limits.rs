//! How many requests a minute are answered (`http-api.md` §1): for each user, and each source without a login, route by
//! route. A minute begins with the first request.

use super::{answer::ApiError, config::RateLimits, places::source};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use uuid::Uuid;

use super::time::Stamp;

const MINUTE: Duration = Duration::from_secs(60);
/// Whoever is counted beyond this makes the counts of past minutes go; if that helps nothing, new sources share one count.
const MAX_COUNTS: usize = 100_000;
/// A full table is gone through once in this time at most.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Whose requests are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Counted {
    /// A user, or an agent.
    Known(Uuid),
    /// A source without a login.
    Source(IpAddr),
    /// All for whom there was no room.
    Others,
}

impl Counted {
    /// A source: the addresses of an IPv6 network are one.
    pub(crate) fn source(address: IpAddr) -> Self {
        Self::Source(source(address))
    }
}

/// Which limit counts for a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Calls of the API.
    Api,
    /// What tries passwords.
    Login,
}

/// The counts of one server.
#[derive(Debug)]
pub(crate) struct Limits {
    rules: Option<RateLimits>,
    /// Users and agents, of which there are as many as the store holds: strangers can neither fill it nor share in it.
    known: Mutex<Table>,
    /// Sources, and the others.
    sources: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    counts: HashMap<(Counted, &'static str), Count>,
    swept: Option<Stamp>,
}

#[derive(Debug, Clone, Copy)]
struct Count {
    began: Stamp,
    requests: u32,
}

impl Count {
    /// Its minute goes on. A clock that was set back begins a new one, too.
    fn is_of(&self, now: Stamp) -> bool {
        self.began <= now && now.since(self.began) < MINUTE
    }
}

impl Table {
    /// Counts a request.
    fn count(&mut self, now: Stamp, who: Counted, path: &'static str) -> Count {
        let mut key = (who, path);
        if self.counts.len() >= MAX_COUNTS && !self.counts.contains_key(&key) {
            self.sweep(now);
            if self.counts.len() >= MAX_COUNTS && matches!(who, Counted::Source(_)) {
                key = (Counted::Others, path);
            }
        }
        let count = self.counts.entry(key).or_insert(Count { began: now, requests: 0 });
        if !count.is_of(now) {
            *count = Count { began: now, requests: 0 };
        }
        count.requests = count.requests.saturating_add(1);
        *count
    }

    /// Forgets the counts of past minutes.
    fn sweep(&mut self, now: Stamp) {
        if self.swept.is_some_and(|last| last <= now && now.since(last) < SWEEP_EVERY) {
            return;
        }
        self.swept = Some(now);
        self.counts.retain(|_, count| count.is_of(now));
    }
}

/// What a request is told of its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Told {
    limit: u32,
    left: u32,
    reset: Stamp,
    over: bool,
}

impl Limits {
    /// Counts under `rules`; `None` counts nothing.
    pub(crate) fn new(rules: Option<RateLimits>) -> Self {
        Self { rules, known: Mutex::default(), sources: Mutex::default() }
    }

    /// Counts a request to the route `path`.
    pub(crate) fn count(&self, now: Stamp, who: Counted, path: &'static str, class: Class) -> Option<Told> {
        let limit = self.limit(class)?;
        let Count { began, requests } = self.table(who).count(now, who, path);
        Some(Told { limit, left: limit.saturating_sub(requests), reset: began + MINUTE, over: requests > limit })
    }

    /// Whether the next request of `who` to the route `path` is one too many. Counts nothing.
    pub(crate) fn is_spent(&self, now: Stamp, who: Counted, path: &'static str, class: Class) -> bool {
        let Some(limit) = self.limit(class) else { return false };
        self.table(who).counts.get(&(who, path)).is_some_and(|count| count.is_of(now) && count.requests >= limit)
    }

    fn limit(&self, class: Class) -> Option<u32> {
        let rules = self.rules?;
        let limit = match class {
            Class::Api => rules.api,
            Class::Login => rules.login,
        };
        Some(limit.get())
    }

    fn table(&self, who: Counted) -> MutexGuard<'_, Table> {
        let table = if matches!(who, Counted::Known(_)) { &self.known } else { &self.sources };
        table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Told {
    /// The refusal, if there were too many requests.
    pub(crate) fn refusal(&self) -> Option<ApiError> {
        let text = format!("You've been rate limited for sending more than {} requests in 1m0s.", self.limit);
        self.over.then(|| ApiError::new(StatusCode::TOO_MANY_REQUESTS, text))
    }

    /// Tells the limit in the headers of an answer.
    pub(crate) fn tell(&self, now: Stamp, headers: &mut HeaderMap) {
        let numbers = [
            ("x-ratelimit-limit", i64::from(self.limit)),
            ("x-ratelimit-remaining", i64::from(self.left)),
            ("x-ratelimit-reset", self.reset.seconds()),
        ];
        for (name, number) in numbers {
            headers.insert(HeaderName::from_static(name), HeaderValue::from(number));
        }
        if self.over {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(self.reset.since(now).as_secs() + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    fn at(seconds: i64) -> Stamp {
        Stamp::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn so_many_requests_pass_in_a_minute_for_each_source_and_route() {
        let number = |n| NonZeroU32::new(n).unwrap();
        let limits = Limits::new(Some(RateLimits { api: number(3), login: number(1) }));
        let (one, other) = (Counted::Known(Uuid::nil()), Counted::source("192.0.2.1".parse().unwrap()));
        let over = |second, who, path, class| limits.count(at(second), who, path, class).unwrap().over;
        let first: Vec<_> = (0..5).map(|n| over(n, one, "/a", Class::Api)).collect();
        assert_eq!(first, [false, false, false, true, true]);
        assert!(!over(5, other, "/a", Class::Api), "another source");
        assert!(!over(5, one, "/b", Class::Api), "another route");
        assert!(over(59, one, "/a", Class::Api) && !over(60, one, "/a", Class::Api), "the next minute");
        assert!(!over(0, one, "/login", Class::Login) && over(1, one, "/login", Class::Login));
        assert!(!over(-900, one, "/a", Class::Api), "a clock that was set back locks nobody out");
    }

    #[test]
    fn the_headers_tell_what_is_left_and_when_to_come_again() {
        let limits = Limits::new(Some(RateLimits { api: NonZeroU32::MIN, login: NonZeroU32::MIN }));
        let mut headers = HeaderMap::new();
        let told = [at(10), at(11)].map(|now| limits.count(now, Counted::Others, "/a", Class::Api).unwrap());
        assert!(told[0].refusal().is_none() && told[1].refusal().is_some());
        told[1].tell(at(11), &mut headers);
        let value = |name: &str| headers[name].to_str().unwrap().to_owned();
        assert_eq!((value("x-ratelimit-limit"), value("x-ratelimit-remaining")), ("1".into(), "0".into()));
        assert_eq!((value("x-ratelimit-reset"), value("retry-after")), ("70".into(), "60".into()));
    }

    #[test]
    fn no_number_of_sources_makes_the_table_grow_beyond_its_bound_or_counts_against_a_user() {
        let limits = Limits::new(Some(RateLimits::default()));
        let from = |n: u32| Counted::source(std::net::Ipv4Addr::from(n).into());
        let bound = u32::try_from(MAX_COUNTS).unwrap();
        for n in 0..bound + 1000 {
            limits.count(at(0), from(n), "/a", Class::Api);
        }
        let held = || limits.sources.lock().unwrap().counts.len();
        assert_eq!(held(), MAX_COUNTS + 1);
        let left = |second, who| limits.count(at(second), who, "/a", Class::Api).unwrap().left;
        assert_eq!(left(0, from(bound + 1000)), 0, "the sources without a place of their own share one count");
        assert_eq!(left(0, Counted::Known(Uuid::nil())), 511);
        // A minute later the places are free.
        assert_eq!(left(60, from(bound + 1000)), 511);
        assert_eq!(held(), 1);
    }

    #[test]
    fn a_full_table_is_gone_through_once_a_second_and_after_a_clock_that_was_set_back() {
        let mut table = Table::default();
        let old = |table: &mut Table, second| {
            table.counts.insert((Counted::Others, "/old"), Count { began: at(second - 60), requests: 1 });
            table.sweep(at(second));
            table.counts.len()
        };
        assert_eq!([100, 100, 101, 50].map(|second| old(&mut table, second)), [0, 1, 0, 0]);
    }

    #[test]
    fn a_look_at_a_count_counts_nothing() {
        let number = |n| NonZeroU32::new(n).unwrap();
        let limits = Limits::new(Some(RateLimits { api: number(2), login: number(1) }));
        let who = Counted::Known(Uuid::nil());
        let spent = |second| limits.is_spent(at(second), who, "/a", Class::Api);
        assert!(!spent(0));
        limits.count(at(0), who, "/a", Class::Api);
        assert!(!spent(0) && !spent(0));
        assert!(!limits.count(at(0), who, "/a", Class::Api).unwrap().over);
        assert!(spent(0) && spent(59) && !spent(60));
        assert!(limits.count(at(0), who, "/a", Class::Api).unwrap().over);
    }
}
