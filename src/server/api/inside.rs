//! What the server asks an agent through the tunnel, for users (`http-api.md` §8).

use super::{
    super::{
        access::Me,
        answer::{Answer, ApiError, ok},
        app::App,
        store::Agent,
        time::Stamp,
        tunnels::{self, AskError},
    },
    agents,
    views::Status,
};
use axum::{
    extract::{Path, State},
    http::StatusCode,
    response::Response,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Ports below belong to the agent's own services.
const FIRST_PORT: u16 = 9;
/// Ports of services that no browser speaks to, or that every machine has (`http-api.md` §8).
const UNWANTED: [u16; 21] =
    [20, 21, 22, 23, 25, 53, 110, 143, 179, 389, 465, 587, 636, 989, 990, 993, 995, 3306, 3389, 5432, 28017];
const MORE_UNWANTED: std::ops::RangeInclusive<u16> = 27017..=27019;

#[derive(Debug, Serialize, Deserialize)]
struct Ports {
    #[serde(default)]
    ports: Vec<Port>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Port {
    #[serde(default)]
    process_name: String,
    #[serde(default)]
    network: String,
    port: u16,
}

/// An agent that can be asked: connected.
pub(crate) fn connected(agent: &Agent) -> Answer<()> {
    let status = Status::of(agent, Stamp::now());
    if status == Status::Connected {
        return Ok(());
    }
    let state = status.as_str();
    Err(ApiError::bad_request(format!("Agent state is \"{state}\", it must be in the \"connected\" state.")))
}

/// `GET /api/v2/workspaceagents/{id}/listening-ports`
pub(crate) async fn listening_ports(State(app): State<App>, me: Me, Path(id): Path<String>) -> Answer {
    let agent = agents::mine(&app, &me, &id).await?;
    connected(&agent)?;
    let body = tunnels::get(&app, agent.id, "/api/v0/listening-ports").await.map_err(failed)?;
    let mut found: Ports = serde_json::from_slice(&body).map_err(|e| {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "The agent's ports cannot be read.").with_detail(e.to_string())
    })?;
    found.ports.retain(|p| is_wanted(p.port));
    Ok(ok(&found))
}

fn is_wanted(port: u16) -> bool {
    port >= FIRST_PORT && !UNWANTED.contains(&port) && !MORE_UNWANTED.contains(&port)
}

fn failed(error: AskError) -> ApiError {
    tracing::info!(%error, "an agent was asked in vain");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "The agent does not answer.").with_detail(error.to_string())
}

/// `GET /api/v2/workspaceagents/{id}/containers`: our agents have none.
pub(crate) async fn containers(State(app): State<App>, me: Me, Path(id): Path<String>) -> Answer<Response> {
    agents::mine(&app, &me, &id).await?;
    let body = json!({ "message": "This deployment has no support for dev containers." });
    Ok(super::super::answer::json(StatusCode::FORBIDDEN, &body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_common_services_are_left_out() {
        let wanted: Vec<u16> = [8, 9, 22, 80, 3000, 5432, 8080, 27016, 27017, 27018, 27019, 27020, 28017]
            .into_iter()
            .filter(|port| is_wanted(*port))
            .collect();
        assert_eq!(wanted, [9, 80, 3000, 8080, 27016, 27020]);
    }
}
