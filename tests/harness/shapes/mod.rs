//! Answers of a server beside those that were taken from the Go server, `tests/vectors/http`: status, headers, names and
//! types of JSON, texts of errors, first messages of sockets. It asks over TCP and knows nothing of the server's insides,
//! so that the Go server can be asked the same.

mod cases;
mod compare;
pub mod output;

pub use cases::{ALIKE, BLOCKED, FOLDER, LOST_AGENT, LOST_AGENT_PORTS, NOT_SERVED, SSH_SETTINGS};
pub use compare::compare;

use super::{
    http::{self, Answer, Opened},
    process::until,
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, fs, net::SocketAddr, path::Path};

/// A field, or a header after `header `, that may differ, and why.
pub type Slack = (&'static str, &'static str);
/// A vector's name and what may differ from it.
pub type Case = (&'static str, &'static [Slack]);

/// A server with the first user's workspaces `dev`, whose agent is connected, and `st`, whose agent never was, and with
/// another user.
pub struct World {
    address: SocketAddr,
    admin: String,
    bob: String,
    /// Of the agent of `st`: the other one would fight its own.
    agent_token: String,
    /// Ids of the vectors and of this server.
    ids: Vec<(&'static str, String)>,
}

const VECTOR_DEV_AGENT: &str = "d0e8f0cf-1a99-4a38-b8e9-c1d7fc977c15";

impl World {
    pub fn new(address: SocketAddr, admin: &str, bob: &str, agent_token: &str) -> Self {
        let get = |path: &str| http::call(address, "GET", path, &http::auth(admin), None).json();
        let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned();
        let [dev, st] = ["dev", "st"].map(|name| get(&format!("/api/v2/users/me/workspace/{name}")));
        let agent = |workspace: &Value| text(&workspace["latest_build"]["resources"][0]["agents"][0]["id"]);
        let ids = vec![
            ("257d8db7-a037-4160-949a-04f290ed2aca", text(&dev["id"])),
            ("ad94eea7-c7aa-4903-b40c-5bd619c76729", text(&st["id"])),
            (VECTOR_DEV_AGENT, agent(&dev)),
            ("0b152d97-62b3-48c8-b308-27c818b93d6e", agent(&st)),
            ("9b78826c-2014-4b5e-9aba-e9e53f462fff", text(&dev["latest_build"]["template_version_id"])),
            ("1dcf0316-4cad-48a3-92fc-f31cde996826", text(&dev["latest_build"]["id"])),
        ];
        let (admin, bob, agent_token) = (admin.to_owned(), bob.to_owned(), agent_token.to_owned());
        Self { address, admin, bob, agent_token, ids }
    }

    /// Asks all that `cases` names, in their order, and gives the differences.
    pub fn differences(&self, cases: &[Case]) -> Vec<String> {
        cases.iter().flat_map(|case| self.difference(*case)).collect()
    }

    /// As [`World::differences`], for one answer.
    pub fn difference(&self, (name, slack): Case) -> Vec<String> {
        if name.starts_with("build_") || name == "agent_rpc_upgrade" {
            self.settled();
        }
        let theirs = vector(name);
        let mut ours = self.replay(name, &theirs);
        let found = compare::answer(&mut ours, &theirs, self.address, slack);
        found.into_iter().map(|line| format!("{name}: {line}")).collect()
    }

    /// Waits until the agent of `dev` is connected and has told its relay latency.
    pub fn until_agent_is_there(&self) {
        let known = |agent: &Value| agent["latency"].as_object().is_some_and(|regions| !regions.is_empty());
        self.until_agent(|agent| agent["status"] == "connected" && known(agent), "is connected and knows its latency");
    }

    /// Waits until the agent of `dev` counts as gone.
    pub fn until_agent_is_gone(&self) {
        self.until_agent(|agent| agent["status"] == "disconnected", "is disconnected");
    }

    fn until_agent(&self, fits: impl Fn(&Value) -> bool, what: &str) {
        let path = self.path(&format!("/api/v2/workspaceagents/{VECTOR_DEV_AGENT}"));
        until(&format!("it never came that the agent {what}"), || fits(&self.get(&path)));
    }

    /// A build of another server takes a while: none begins before the last one ended, and no agent is there before.
    fn settled(&self) {
        for name in ["dev", "st"] {
            let path = format!("/api/v2/users/me/workspace/{name}");
            until("the build never ended", || self.get(&path)["latest_build"]["job"]["status"] == "succeeded");
        }
    }

    fn get(&self, path: &str) -> Value {
        http::call(self.address, "GET", path, &http::auth(&self.admin), None).json()
    }

    fn post(&self, path: &str, body: &str) -> Answer {
        http::call(self.address, "POST", path, &http::auth(&self.admin), Some(body))
    }

    /// A path of the vectors with this server's ids.
    fn path(&self, path: &str) -> String {
        let key = self.admin.split('-').next().expect("a token begins with its id");
        self.ids.iter().fold(path.replace("<TOKEN_ID>", key), |path, (theirs, own)| path.replace(theirs, own))
    }

    /// A request like the vector's, with our ids and tokens.
    fn replay(&self, name: &str, vector: &Value) -> Opened {
        let request = &vector["request"];
        let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{name}: no text: {value}")).to_owned();
        let mut headers = match (text(&request["auth"]).as_str(), name) {
            ("none", _) => Vec::new(),
            ("session", _) => http::auth(&self.admin),
            ("other user", _) => http::auth(&self.bob),
            ("agent", _) => http::auth(&self.agent_token),
            ("invalid", "agent_rpc_unknown_token") => http::auth("11111111-2222-4333-8444-555555555555"),
            ("invalid", "error_401_bad_key") => http::auth("AAAAAAAAAA-BBBBBBBBBBBBBBBBBBBBBB"),
            ("invalid", "agent_rpc_malformed_token" | "error_401_malformed_token") => http::auth("abc"),
            // Ends a session of its own.
            ("invalid", "logout") => http::auth(&text(&self.post("/api/v2/users/me/keys", "").json()["key"])),
            other => panic!("{other:?}"),
        };
        headers.extend(request["headers"].as_object().into_iter().flatten().map(|(name, value)| (name.clone(), text(value))));
        let body = match &request["body"] {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            value => Some(self.path(&value.to_string())),
        };
        let mut path = self.path(&text(&request["path"]));
        if name == "key_delete" {
            let key = text(&self.post("/api/v2/users/me/keys", "").json()["key"]);
            path = format!("/api/v2/users/me/keys/{}", key.split('-').next().expect("a token begins with its id"));
        }
        if name == "tailnet_without_upgrade" {
            // A socket that not every server has refuses in the same words as this one.
            path = self.path(&format!("/api/v2/workspaceagents/{VECTOR_DEV_AGENT}/coordinate?version=2.0"));
        }
        let method = text(&request["method"]);
        if vector["status"] == 101 || name.ends_with("_sse") {
            return http::open(self.address, &method, &path, &headers, body.as_deref());
        }
        Opened::ended(http::call(self.address, &method, &path, &headers, body.as_deref()))
    }
}

/// The other user of a Go server, made and logged in: gives the token.
pub fn member_of_go_server(address: SocketAddr, admin: &str) -> String {
    let organizations = http::call(address, "GET", "/api/v2/users/me/organizations", &http::auth(admin), None).json();
    let (email, password) = ("bob@example.com", "Correct-horse-7");
    let user = json!({
        "email": email, "username": "bob", "password": password, "login_type": "password",
        "organization_ids": [organizations[0]["id"]],
    });
    let made = http::call(address, "POST", "/api/v2/users", &http::auth(admin), Some(&user.to_string()));
    assert_eq!(made.status, 201, "{}", made.text());
    let login = json!({ "email": email, "password": password }).to_string();
    let session = http::call(address, "POST", "/api/v2/users/login", &[], Some(&login)).json();
    session["session_token"].as_str().unwrap_or_else(|| panic!("no session: {session}")).to_owned()
}

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/http")
}

fn vector(name: &str) -> Value {
    let path = folder().join(format!("{name}.json"));
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Vectors that no list names, and names without a vector.
pub fn unlisted() -> Vec<String> {
    let files: BTreeSet<String> = fs::read_dir(folder())
        .expect("the vectors are here")
        .filter_map(|file| file.ok()?.file_name().to_str()?.strip_suffix(".json").map(str::to_owned))
        .collect();
    let asked = ALIKE.iter().chain(&[LOST_AGENT, LOST_AGENT_PORTS, BLOCKED, SSH_SETTINGS]).map(|(name, _)| *name);
    let names: BTreeSet<String> = asked.chain(NOT_SERVED.iter().map(|(name, _)| *name)).map(str::to_owned).collect();
    files.symmetric_difference(&names).cloned().collect()
}
