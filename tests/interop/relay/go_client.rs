//! The DERP clients of Go.

use crate::peers::{Context, Lines, Program};

/// Which Go client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoClient {
    /// That of Coder's nodes.
    Coder,
    Upstream,
}

impl GoClient {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Coder => "Go client",
            Self::Upstream => "upstream Go client",
        }
    }

    pub const fn program(self) -> Program {
        match self {
            Self::Coder => Program::DerpClient,
            Self::Upstream => Program::UpstreamDerpClient,
        }
    }

    /// Starts it and waits until it is logged in; gives its key.
    pub fn connect(self, context: &Context, port: u16, websocket: bool, secret: Option<&str>) -> (Lines, String) {
        let mut command = context.program(self.program());
        command.args(["-url", &format!("http://127.0.0.1:{port}/derp")]);
        if websocket {
            command.arg("-websocket");
        }
        if let Some(secret) = secret {
            command.args(["-key", secret]);
        }
        let mut client = Lines::start(self.name(), command);
        let up = client.event("up");
        client.ask(&serde_json::json!({ "op": "prefer" }));
        client.settle();
        (client, up["key"].as_str().unwrap().to_owned())
    }
}
