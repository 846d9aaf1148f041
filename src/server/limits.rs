//! How many requests a minute are answered (`http-api.md` §1): for each user, and each source without a login, route by
//! route. A minute begins with the first request.

use super::{answer::ApiError, config::RateLimits, places::source};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use uuid::Uuid;

use super::time::Stamp;

const MINUTE: Duration = Duration::from_secs(60);
/// Whoever is counted beyond this makes the counts of past minutes go; if that helps nothing, new sources share one count.
const MAX_COUNTS: usize = 100_000;

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
    counts: Mutex<HashMap<(Counted, &'static str), Count>>,
}

#[derive(Debug, Clone, Copy)]
struct Count {
    began: Stamp,
    requests: u32,
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
        Self { rules, counts: Mutex::default() }
    }

    /// Counts a request to the route `path`.
    pub(crate) fn count(&self, now: Stamp, who: Counted, path: &'static str, class: Class) -> Option<Told> {
        let rules = self.rules?;
        let limit = match class {
            Class::Api => rules.api,
            Class::Login => rules.login,
        }
        .get();
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = (who, path);
        if counts.len() >= MAX_COUNTS && !counts.contains_key(&key) {
            counts.retain(|_, count| now.since(count.began) < MINUTE);
            if counts.len() >= MAX_COUNTS {
                key = (Counted::Others, path);
            }
        }
        let count = counts.entry(key).or_insert(Count { began: now, requests: 0 });
        // A clock that was set back begins a minute, too.
        if now.since(count.began) >= MINUTE || now < count.began {
            *count = Count { began: now, requests: 0 };
        }
        count.requests = count.requests.saturating_add(1);
        let (requests, reset) = (count.requests, count.began + MINUTE);
        Some(Told { limit, left: limit.saturating_sub(requests), reset, over: requests > limit })
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
    fn no_number_of_sources_makes_the_table_grow_beyond_its_bound() {
        let limits = Limits::new(Some(RateLimits::default()));
        for n in 0..u32::try_from(MAX_COUNTS).unwrap() + 1000 {
            limits.count(at(0), Counted::source(std::net::Ipv4Addr::from(n).into()), "/a", Class::Api);
        }
        assert!(limits.counts.lock().unwrap().len() <= MAX_COUNTS + 1);
    }
}
