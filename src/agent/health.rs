//! Whether the applications of the workspace answer (agent.md §3.2).

use super::calls::{AskError, Calls, ask};
use crate::{
    driver::http::{Http, HttpError, HttpOptions, Method, ProxyChoice},
    proto::coord::CallError,
    wire::coord::agent::{
        AppHealth, BATCH_UPDATE_APP_HEALTHS, BatchUpdateAppHealthRequest, HealthUpdate, WorkspaceApp, WorkspaceAppHealth,
    },
};
use futures::{StreamExt as _, stream::FuturesUnordered};
use std::{collections::BTreeMap, convert::Infallible, time::Duration};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// How long changes wait for each other.
const FLUSH: Duration = Duration::from_secs(1);
/// The least time between two looks at one application.
const LEAST: Duration = Duration::from_secs(1);
/// And the most, whatever its template says.
const MOST: Duration = Duration::from_secs(24 * 3600);

/// An application that is looked after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct App {
    id: Vec<u8>,
    url: String,
    interval: Duration,
    /// So many failures in a row make it unhealthy.
    threshold: u32,
}

impl App {
    /// `None` when its health is nobody's business.
    pub(crate) fn new(app: WorkspaceApp) -> Option<Self> {
        let disabled = app.health() == WorkspaceAppHealth::Disabled;
        let check = app.healthcheck.filter(|check| !disabled && !check.url.is_empty())?;
        let interval = check.interval.and_then(|i| Duration::try_from(i).ok()).unwrap_or_default();
        Some(Self {
            id: app.id,
            url: check.url,
            interval: interval.clamp(LEAST, MOST),
            threshold: u32::try_from(check.threshold).unwrap_or_default().max(1),
        })
    }
}

/// Where an application is asked.
#[derive(Debug)]
struct Place {
    http: Http,
    path: String,
}

impl Place {
    /// `None` when its address is no URL. A place learns nothing of this agent, no token and no header.
    fn new(url: &str) -> Option<Self> {
        let start = url.find("://").map_or(0, |at| at + 3);
        let end = url.get(start..).and_then(|rest| rest.find(['/', '?'])).map_or(url.len(), |at| start + at);
        let (origin, path) = url.split_at(end);
        match Http::new(origin, None, HttpOptions { proxy: ProxyChoice::Direct, ..HttpOptions::default() }) {
            Ok(http) => Some(Self { http, path: path.to_owned() }),
            Err(_) => {
                tracing::debug!("the address of an application's health is no URL");
                None
            }
        }
    }

    /// Whether something answers with a status below 500.
    async fn answers(&self) -> bool {
        match self.http.call(Method::Get, &self.path, None::<&()>).await {
            Ok(_) => true,
            Err(HttpError::Refused(refusal)) => refusal.status < 500,
            Err(_) => false,
        }
    }
}

/// How one application does.
#[derive(Debug)]
struct Condition<'a> {
    app: &'a App,
    place: Option<Place>,
    failures: u32,
    health: AppHealth,
}

impl Condition<'_> {
    /// Takes one look; the new health if it changed.
    fn note(&mut self, answers: bool) -> Option<AppHealth> {
        self.failures = if answers { 0 } else { self.failures.saturating_add(1) };
        let now = match self.failures {
            0 => AppHealth::Healthy,
            n if n >= self.app.threshold => AppHealth::Unhealthy,
            _ => self.health,
        };
        let changed = now != self.health;
        self.health = now;
        changed.then_some(now)
    }
}

/// Looks at each application as often as its template wants, and reports what changed until the connection fails.
pub(crate) async fn report(server: &impl Calls, apps: &[App]) -> Result<Infallible, AskError> {
    let mut running = FuturesUnordered::new();
    for app in apps {
        let condition = Condition { app, place: Place::new(&app.url), failures: 0, health: AppHealth::Initializing };
        running.push(look(condition, Instant::now() + app.interval));
    }
    let mut changed: BTreeMap<&[u8], AppHealth> = BTreeMap::new();
    let mut flush = Box::pin(sleep(FLUSH));
    loop {
        tokio::select! {
            Some((mut condition, begun, answers)) = running.next() => {
                if let Some(health) = condition.note(answers) {
                    if changed.is_empty() {
                        flush.as_mut().reset(Instant::now() + FLUSH);
                    }
                    changed.insert(&condition.app.id, health);
                }
                let next = begun + condition.app.interval;
                running.push(look(condition, next));
            }
            () = &mut flush, if !changed.is_empty() => {
                let updates = std::mem::take(&mut changed).into_iter();
                let updates = updates.map(|(id, health)| HealthUpdate { id: id.to_vec(), health: health.into() }).collect();
                match ask::<()>(server, BATCH_UPDATE_APP_HEALTHS, &BatchUpdateAppHealthRequest { updates }).await {
                    Ok(()) => {}
                    Err(AskError::Call { why: CallError::Rpc(error), .. }) => tracing::debug!(%error, "health is not taken"),
                    Err(error) => return Err(error),
                }
            }
            else => std::future::pending().await,
        }
    }
}

async fn look(condition: Condition<'_>, at: Instant) -> (Condition<'_>, Instant, bool) {
    sleep_until(at).await;
    let begun = Instant::now();
    let answers = match &condition.place {
        Some(place) => timeout(condition.app.interval, place.answers()).await.unwrap_or_default(),
        None => false,
    };
    (condition, begun, answers)
}

#[cfg(test)]
mod tests {
    use super::{super::calls::fake::Fake, *};
    use crate::wire::coord::agent::Healthcheck;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    fn app(url: &str, threshold: i32) -> WorkspaceApp {
        let healthcheck = Some(Healthcheck { url: url.into(), interval: None, threshold });
        WorkspaceApp { id: vec![1], healthcheck, health: WorkspaceAppHealth::Initializing.into(), ..WorkspaceApp::default() }
    }

    /// A server that answers every request with the status that its path names.
    async fn web() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                assert!(!head.to_lowercase().contains("token"), "{head}");
                let status =
                    head.split(['/', '?', ' ']).find(|word| word.len() == 3 && word.starts_with(|c: char| c.is_ascii_digit()));
                let answer = format!("HTTP/1.1 {} X\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok", status.unwrap());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        url
    }

    #[tokio::test]
    async fn any_status_below_500_is_an_answer() {
        let web = web().await;
        for (path, expected) in [("/200", true), ("/404?a=b", true), ("/500", false), ("/503/x", false)] {
            let place = Place::new(&format!("{web}{path}")).unwrap();
            for look in 0..2 {
                assert_eq!(place.answers().await, expected, "{path}, look {look}");
            }
        }
        // Held, so that nobody else comes to listen on it.
        let closed = tokio::net::TcpSocket::new_v4().unwrap();
        closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        assert!(!Place::new(&format!("http://{}/", closed.local_addr().unwrap())).unwrap().answers().await);
        assert!(Place::new("nonsense").is_none());
    }

    #[test]
    fn failures_in_a_row_make_an_application_unhealthy_and_one_answer_makes_it_healthy() {
        let app = App::new(app("http://h", 2)).unwrap();
        let mut condition = Condition { app: &app, place: None, failures: 0, health: AppHealth::Initializing };
        let seen: Vec<_> = [false, true, false, true, false, false, false, true].map(|ok| condition.note(ok)).into();
        let (well, ill) = (Some(AppHealth::Healthy), Some(AppHealth::Unhealthy));
        assert_eq!(seen, [None, well, None, None, None, ill, None, well]);
    }

    #[test]
    fn only_what_has_a_check_is_looked_after() {
        assert!(App::new(app("", 1)).is_none());
        assert!(App::new(WorkspaceApp { health: WorkspaceAppHealth::Disabled.into(), ..app("http://h", 1) }).is_none());
        assert!(App::new(WorkspaceApp { healthcheck: None, ..app("http://h", 1) }).is_none());
        let least = App::new(app("http://h", -1)).unwrap();
        assert_eq!((least.threshold, least.interval), (1, LEAST));
        let mut forever = app("http://h", 1);
        let interval = prost_types::Duration { seconds: i64::MAX, nanos: 0 };
        forever.healthcheck = Some(Healthcheck { interval: Some(interval), ..forever.healthcheck.unwrap() });
        assert_eq!(App::new(forever).unwrap().interval, MOST);
    }

    #[tokio::test]
    async fn a_change_is_reported_once() {
        let web = web().await;
        let apps = [App::new(app(&format!("{web}/200"), 1)).unwrap()];
        let server = Fake::new(|_, _: &[u8]| Ok(Vec::new()));
        let _ = timeout(4 * LEAST, report(&server, &apps)).await;
        let asked = server.asked::<BatchUpdateAppHealthRequest>(BATCH_UPDATE_APP_HEALTHS);
        let update = HealthUpdate { id: vec![1], health: AppHealth::Healthy.into() };
        assert_eq!(asked, [BatchUpdateAppHealthRequest { updates: vec![update] }]);
    }
}
