//! Facts about the workspace that scripts of its template find out again and again (agent.md §3.3).

use super::{
    calls::{AskError, Calls, ask, timestamp},
    environment::Profile,
    scripts::Scripts,
};
use crate::{
    driver::clock,
    proto::coord::CallError,
    wire::coord::agent::{BATCH_UPDATE_METADATA, BatchUpdateMetadataRequest, Metadata, MetadataDescription, MetadataResult},
};
use futures::{StreamExt as _, stream::FuturesUnordered};
use std::{collections::BTreeMap, convert::Infallible, fmt, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, sleep_until};

/// How long facts wait for each other.
const FLUSH: Duration = Duration::from_secs(1);
/// What a script may take where its template names neither limit nor interval.
const LIMIT: Duration = Duration::from_secs(30);
/// The longest interval and limit, whatever the template says.
const MOST: Duration = Duration::from_secs(24 * 3600);
/// Most bytes of a fact.
const MAX_VALUE: u64 = 10 << 10;

/// One fact and how it is found out.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Fact {
    key: String,
    script: String,
    /// `None` for once.
    interval: Option<Duration>,
    limit: Duration,
}

impl fmt::Debug for Fact {
    // The script may hold a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fact").field("key", &self.key).finish_non_exhaustive()
    }
}

impl From<MetadataDescription> for Fact {
    fn from(description: MetadataDescription) -> Self {
        let interval = seconds(description.interval);
        let limit = seconds(description.timeout).or(interval).unwrap_or(LIMIT);
        Self { key: description.key, script: description.script, interval, limit }
    }
}

/// Go writes so many seconds as so many nanoseconds. A day at most.
fn seconds(duration: Option<prost_types::Duration>) -> Option<Duration> {
    let nanos = Duration::try_from(duration?).ok()?.as_nanos();
    u64::try_from(nanos).ok().filter(|n| *n > 0).map(|n| Duration::from_secs(n).min(MOST))
}

/// Finds the facts out, each as often as its template wants, and reports them until the connection fails.
pub(crate) async fn report(
    server: &impl Calls,
    facts: &[Fact],
    scripts: &Scripts,
    profile: &Arc<Profile>,
) -> Result<Infallible, AskError> {
    let mut running = FuturesUnordered::new();
    for fact in facts {
        running.push(find_out(fact, Instant::now(), scripts, profile));
    }
    let mut found: BTreeMap<&str, MetadataResult> = BTreeMap::new();
    let mut flush = Box::pin(sleep(FLUSH));
    loop {
        tokio::select! {
            // Of two values the later one counts.
            Some((fact, begun, result)) = running.next() => {
                if found.is_empty() {
                    flush.as_mut().reset(Instant::now() + FLUSH);
                }
                found.insert(&fact.key, result);
                if let Some(interval) = fact.interval {
                    running.push(find_out(fact, begun + interval, scripts, profile));
                }
            }
            () = &mut flush, if !found.is_empty() => {
                let metadata = std::mem::take(&mut found).into_iter();
                let metadata = metadata.map(|(key, result)| Metadata { key: key.to_owned(), result: Some(result) }).collect();
                match ask::<()>(server, BATCH_UPDATE_METADATA, &BatchUpdateMetadataRequest { metadata }).await {
                    Ok(()) => {}
                    Err(AskError::Call { why: CallError::Rpc(error), .. }) => tracing::debug!(%error, "metadata is not taken"),
                    Err(error) => return Err(error),
                }
            }
            else => std::future::pending().await,
        }
    }
}

async fn find_out<'a>(
    fact: &'a Fact,
    at: Instant,
    scripts: &Scripts,
    profile: &Arc<Profile>,
) -> (&'a Fact, Instant, MetadataResult) {
    sleep_until(at).await;
    let (begun, collected_at) = (Instant::now(), Some(timestamp(clock::wall())));
    let (value, error) = match scripts.output(&fact.script, fact.limit, MAX_VALUE, profile).await {
        Ok(value) => (value, String::new()),
        Err(error) => (String::new(), error),
    };
    let age = i64::try_from(begun.elapsed().as_secs()).unwrap_or_default();
    (fact, begun, MetadataResult { collected_at, age, value, error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nanoseconds_are_seconds() {
        let of = |seconds, nanos| super::seconds(Some(prost_types::Duration { seconds, nanos }));
        assert_eq!((of(0, 5), of(0, 0)), (Some(Duration::from_secs(5)), None));
        assert_eq!((of(-1, 0), of(0, 86_399)), (None, Some(Duration::from_secs(86_399))));
        assert_eq!((of(1, 0), of(i64::MAX, 0)), (Some(MOST), None), "more than a day, and more than there can be");
        let fact = Fact::from(MetadataDescription {
            key: "k".into(),
            interval: Some(prost_types::Duration { seconds: 0, nanos: 7 }),
            ..MetadataDescription::default()
        });
        assert_eq!((fact.interval, fact.limit), (Some(Duration::from_secs(7)), Duration::from_secs(7)));
    }
}
