//! What happens to the workspace behind a connection (`cli.md` §2.4): stopped or deleted, the connection ends with that
//! reason; built anew, its owner decides.
//!
//! The server tells changes as events; as long as it does not, it is asked now and then. A server that is away, or that has
//! taken the login back, ends nothing: the tunnel needs neither.

use crate::{
    client::{Client, Transition, Workspace},
    driver::http::HttpError,
};
use std::{fmt, time::Duration};
use tokio::{sync::watch, task::JoinHandle, time::sleep};
use uuid::Uuid;

/// When the server is asked.
const PACE: Pace = Pace { begin: Duration::from_secs(2), first: Duration::from_secs(1), last: Duration::from_secs(15) };
/// How long somebody who has lost a connection waits for the server's word on why.
const ASK: Duration = Duration::from_secs(2);

/// What became of the workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// As it was, or on its way to something else.
    Same,
    /// Started by a newer build, with another agent.
    Rebuilt,
    /// Stopped.
    Stopped,
    /// Deleted, or out of the user's sight.
    Deleted,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Same => "the workspace is as it was",
            Self::Rebuilt => "the workspace was started anew",
            Self::Stopped => "the workspace was stopped",
            Self::Deleted => "the workspace was deleted",
        })
    }
}

impl Fate {
    /// What a workspace as the server shows it means for a connection to `agent`.
    fn of(workspace: &Workspace, agent: Uuid) -> Self {
        let now = &workspace.latest_build;
        match (now.transition, now.status.as_str()) {
            (_, "stopped") => Self::Stopped,
            (_, "deleted") => Self::Deleted,
            // Our own server keeps its agents: there a second start changes nothing.
            (Transition::Start, _) if workspace.agents().all(|a| a.id != agent) => Self::Rebuilt,
            // Stopping, deleting and what failed of it: the agent goes on until it is told to end.
            _ => Self::Same,
        }
    }

    /// What the server's refusal to show it means. While a deployment is rolled out something else answers in its place, with
    /// a 404 of its own: only the words of a Coder server count.
    fn of_refusal(error: &HttpError) -> Self {
        let HttpError::Refused(refusal) = error else { return Self::Same };
        match refusal.status {
            404 if refusal.message.contains("Resource not found or you do not have access") => Self::Deleted,
            410 if refusal.message.contains("was deleted") => Self::Deleted,
            _ => Self::Same,
        }
    }
}

/// A look at one workspace until it is dropped.
#[derive(Debug)]
pub(super) struct Watch {
    fate: watch::Receiver<Fate>,
    look: Look,
    task: JoinHandle<()>,
}

impl Watch {
    /// Watches a workspace for a connection to one of its agents.
    pub(super) fn start(client: Client, workspace: Uuid, agent: Uuid) -> Self {
        Self::start_at(PACE, client, workspace, agent)
    }

    fn start_at(pace: Pace, client: Client, workspace: Uuid, agent: Uuid) -> Self {
        let (sender, fate) = watch::channel(Fate::Same);
        let look = Look { client, workspace, agent, pace };
        let task = tokio::spawn(look.clone().run(sender));
        Self { fate, look, task }
    }

    /// Waits until the workspace is something else than it was.
    ///
    /// # Cancel safety
    /// Dropping the future ends the wait.
    pub(super) async fn changed(&self) -> Fate {
        match self.fate.clone().wait_for(|fate| *fate != Fate::Same).await {
            Ok(fate) => *fate,
            // Its task ends only with a word.
            Err(_) => std::future::pending().await,
        }
    }

    /// For somebody whose connection was lost: what became of the workspace as far as the server tells soon.
    pub(super) async fn fate(&self) -> Fate {
        let known = *self.fate.borrow();
        if known != Fate::Same {
            return known;
        }
        tokio::time::timeout(ASK, self.look.ask()).await.unwrap_or(Fate::Same)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Which workspace, and which agent is connected to.
#[derive(Debug, Clone)]
struct Look {
    client: Client,
    workspace: Uuid,
    agent: Uuid,
    pace: Pace,
}

/// How patiently.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// Until the first look: a connection begins with better things to do.
    begin: Duration,
    /// Between two attempts to hear of changes, at first.
    first: Duration,
    /// And at last.
    last: Duration,
}

impl Look {
    async fn run(self, told: watch::Sender<Fate>) {
        sleep(self.pace.begin).await;
        let mut pause = self.pace.first;
        loop {
            let fate = match self.events(&mut pause).await {
                Fate::Same => self.ask().await,
                fate => fate,
            };
            if fate != Fate::Same {
                told.send_replace(fate);
                return;
            }
            sleep(pause).await;
            pause = (pause * 2).min(self.pace.last);
        }
    }

    /// Follows the events until one of them decides or there are no more.
    async fn events(&self, pause: &mut Duration) -> Fate {
        let ended = async {
            let mut events = self.client.watch_workspace(self.workspace).await?;
            while let Some(workspace) = events.next().await? {
                *pause = self.pace.first;
                let fate = Fate::of(&workspace, self.agent);
                if fate != Fate::Same {
                    return Ok(fate);
                }
            }
            Ok::<_, HttpError>(Fate::Same)
        };
        ended.await.unwrap_or_else(|error| {
            tracing::debug!(%error, "the workspace is not watched");
            // Also a server without events says that there is nothing.
            Fate::Same
        })
    }

    async fn ask(&self) -> Fate {
        match self.client.workspace_by_id(self.workspace).await {
            Ok(workspace) => Fate::of(&workspace, self.agent),
            Err(error) => Fate::of_refusal(&error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::http::{Http, HttpOptions, ProxyChoice};
    use serde_json::{Value, json};
    use std::collections::VecDeque;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        time::timeout,
    };

    const LIMIT: Duration = Duration::from_secs(60);
    const AT_ONCE: Pace = Pace { begin: Duration::ZERO, first: Duration::ZERO, last: Duration::ZERO };

    fn view(transition: &str, status: &str, agent: &str) -> Value {
        let vector: Value =
            serde_json::from_str(include_str!("../../tests/vectors/http/workspace_by_owner_and_name.json")).unwrap();
        let mut view = vector["body"].clone();
        view["latest_build"]["transition"] = json!(transition);
        view["latest_build"]["status"] = json!(status);
        view["latest_build"]["resources"][0]["agents"][0]["id"] = json!(agent);
        view
    }

    const OLD: &str = "00000000-0000-4000-8000-000000000001";
    const NEW: &str = "00000000-0000-4000-8000-000000000002";

    #[test]
    fn only_what_has_happened_counts() {
        for (transition, status, agent, fate) in [
            ("start", "running", OLD, Fate::Same),
            ("start", "failed", OLD, Fate::Same),
            ("start", "pending", OLD, Fate::Same),
            ("stop", "pending", NEW, Fate::Same),
            ("stop", "stopping", NEW, Fate::Same),
            ("stop", "failed", NEW, Fate::Same),
            ("stop", "stopped", NEW, Fate::Stopped),
            ("start", "starting", NEW, Fate::Rebuilt),
            ("start", "running", NEW, Fate::Rebuilt),
            ("delete", "deleting", NEW, Fate::Same),
            ("delete", "deleted", NEW, Fate::Deleted),
        ] {
            let workspace = serde_json::from_value(view(transition, status, agent)).unwrap();
            assert_eq!(Fate::of(&workspace, OLD.parse().unwrap()), fate, "{transition} {status}");
        }
    }

    /// A server with one answer for each connection: a path that has to come, a head, a body.
    async fn server(answers: Vec<(&'static str, &'static str, String)>) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let mut answers = VecDeque::from(answers);
            while let Some((path, head, body)) = answers.pop_front() {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.unwrap());
                }
                let request = String::from_utf8(request).unwrap();
                assert!(request.lines().next().unwrap().contains(path), "{path} was to come: {request}");
                let text = format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n{body}");
                stream.write_all(text.as_bytes()).await.unwrap();
            }
        });
        let options = HttpOptions { proxy: ProxyChoice::Direct, ..HttpOptions::default() };
        Client::new(Http::new(&url, None, options).unwrap())
    }

    fn event(view: &Value) -> String {
        format!("event: ping\n\nevent: data\ndata: {view}\n\n")
    }

    const EVENTS: &str = "200 OK\r\nContent-Type: text/event-stream";

    #[tokio::test]
    async fn an_event_decides_and_a_stream_that_breaks_is_opened_again() {
        let same = view("start", "running", OLD);
        let client = server(vec![
            ("/watch ", EVENTS, event(&same)),
            (" /api/v2/workspaces/", "200 OK", same.to_string()),
            ("/watch ", EVENTS, event(&same) + &event(&view("stop", "stopped", NEW))),
        ])
        .await;
        let watch = Watch::start_at(AT_ONCE, client, Uuid::nil(), OLD.parse().unwrap());
        assert_eq!(timeout(LIMIT, watch.changed()).await.unwrap(), Fate::Stopped);
        assert_eq!(watch.fate().await, Fate::Stopped);
    }

    #[tokio::test]
    async fn a_server_without_events_is_asked() {
        let same = view("start", "running", OLD);
        let client = server(vec![
            ("/watch ", "404 Not Found", String::new()),
            (" /api/v2/workspaces/", "200 OK", same.to_string()),
            ("/watch ", "404 Not Found", String::new()),
            (" /api/v2/workspaces/", "503 Service Unavailable", String::new()),
            ("/watch ", "404 Not Found", String::new()),
            (" /api/v2/workspaces/", "410 Gone", json!({ "message": "Workspace \"x\" was deleted, or so." }).to_string()),
        ])
        .await;
        let watch = Watch::start_at(AT_ONCE, client, Uuid::nil(), OLD.parse().unwrap());
        assert_eq!(timeout(LIMIT, watch.changed()).await.unwrap(), Fate::Deleted);
    }

    #[tokio::test]
    async fn only_the_coder_server_itself_says_that_a_workspace_is_gone() {
        let vector = |text: &str| serde_json::from_str::<Value>(text).unwrap()["body"].to_string();
        let gone = vector(include_str!("../../tests/vectors/http/error_404_workspace_id.json"));
        let no_route = vector(include_str!("../../tests/vectors/http/error_404_route.json"));
        for (head, body, fate) in [
            ("404 Not Found", "default backend - 404".to_owned(), Fate::Same),
            ("404 Not Found", String::new(), Fate::Same),
            ("404 Not Found", "<html><body>Resource not found</body></html>".to_owned(), Fate::Same),
            ("404 Not Found", json!({ "message": "no Route matched with those values" }).to_string(), Fate::Same),
            ("404 Not Found", no_route, Fate::Same),
            ("410 Gone", String::new(), Fate::Same),
            ("404 Not Found", gone, Fate::Deleted),
        ] {
            let client = server(vec![(" /api/v2/workspaces/", head, body.clone())]).await;
            let look = Look { client, workspace: Uuid::nil(), agent: OLD.parse().unwrap(), pace: AT_ONCE };
            assert_eq!(timeout(LIMIT, look.ask()).await.unwrap(), fate, "{head} {body}");
        }
    }
}
