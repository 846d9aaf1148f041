//! `coder create` and `coder users create`: what they make has a token that is shown once.

use super::{
    args::{Create, Global, UsersCommand},
    deployment::{Deployment, explain},
    life, output,
};
use crate::driver::http::HttpError;
use anyhow::{Context as _, anyhow, bail};
use std::{fs, path::Path};

/// How servers call the rule for names, that of Go servers and ours, of workspaces and users.
const NAME_TAGS: [&str; 2] = ["tag \"workspace_name\"", "tag \"username\""];
/// The rule itself.
const NAME_RULE: &str =
    "a name is letters and digits, with single hyphens between them, 32 characters at most; neither a UUID nor, of a user, 'me'";

/// Makes a workspace and prints the line that starts its agent on another machine.
pub(super) async fn workspace(global: &Global, args: &Create) -> anyhow::Result<u8> {
    let manifest = args.manifest.as_deref().map(read).transpose()?;
    let deployment = Deployment::open(global).await?;
    let made = deployment.client.create_workspace(&args.name, args.agent_url.as_deref(), manifest).await.map_err(refused)?;
    // Where the deployment has a command for it, the workspace is being started.
    let build = &made.workspace.latest_build;
    let is_started = !build.job.is_done() || build.job.status != "succeeded";
    let url = made.agent_url.as_deref().unwrap_or(&deployment.url);
    let name = &made.workspace.name;
    output::once(
        &told(name, url, made.agent_token.expose(), is_started),
        &format!("workspace {name} was made, but its agent's token is lost: 'coder delete {name}' takes it away"),
    )?;
    if is_started {
        life::finish(&deployment.client, &made.workspace, build, "started").await?;
    }
    Ok(0)
}

/// What whoever made a workspace does next. An agent that the deployment starts needs no other one beside it.
fn told(name: &str, url: &str, token: &str, is_started: bool) -> String {
    let variables = format!("CODER_AGENT_URL={url} CODER_AGENT_TOKEN={token}");
    if is_started {
        return format!(
            "Workspace {name} was made, and the server starts it now, its agent too. The agent's token is shown only now:\n\n  \
             {variables}\n\n\
             When it has started, open a shell there with: coder ssh {name}"
        );
    }
    format!(
        "Workspace {name} was made. Start its agent on the machine to reach; its token is shown only now:\n\n  \
         {variables} coder agent\n\n\
         Then open a shell there with: coder ssh {name}"
    )
}

/// Reads a manifest. What it may hold is the server's to say.
fn read(path: &Path) -> anyhow::Result<serde_json::Value> {
    let text = fs::read(path).with_context(|| format!("cannot read the manifest {}", path.display()))?;
    let manifest: serde_json::Value =
        serde_json::from_slice(&text).with_context(|| format!("the manifest {} is no JSON", path.display()))?;
    if !manifest.is_object() {
        bail!("the manifest {} has to be an object, such as {{ \"directory\": \"~/project\" }}", path.display());
    }
    Ok(manifest)
}

/// Makes a user and prints a token.
pub(super) async fn user(global: &Global, command: &UsersCommand) -> anyhow::Result<u8> {
    let UsersCommand::Create { name } = command;
    let deployment = Deployment::open(global).await?;
    let made = deployment.client.create_user(name).await.map_err(refused)?;
    let text = format!(
        "User {} was made. The token is shown only now:\n\n  {}\n\nLog in with 'coder login {url}' and paste it.",
        made.user.username,
        made.session_token.expose(),
        url = deployment.url,
    );
    let name = &made.user.username;
    let another = format!("'coder tokens create --user {name}' makes another one");
    output::once(&text, &format!("user {name} was made, but the token is lost: {another}"))?;
    Ok(0)
}

/// A Go server has no such calls: there a template makes workspaces. What a name has to be servers do not say.
fn refused(error: HttpError) -> anyhow::Error {
    match &error {
        HttpError::Refused(refusal) if matches!(refusal.status, 404 | 405) => {
            anyhow!("{error}: this server makes workspaces and users in its dashboard")
        }
        HttpError::Refused(refusal) if refusal.validations.iter().any(|v| NAME_TAGS.iter().any(|tag| v.detail.contains(tag))) => {
            anyhow!("{error}; {NAME_RULE}")
        }
        _ => explain(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::http::{Refusal, Validation};

    #[test]
    fn nobody_is_told_to_start_an_agent_that_the_server_starts() {
        let (by_hand, by_server) = (told("w", "http://h", "t", false), told("w", "http://h", "t", true));
        assert!(by_hand.contains("  CODER_AGENT_URL=http://h CODER_AGENT_TOKEN=t coder agent\n"), "{by_hand}");
        assert!(by_server.contains("  CODER_AGENT_URL=http://h CODER_AGENT_TOKEN=t\n"), "{by_server}");
        assert!(!by_server.contains("coder agent"), "{by_server}");
    }

    #[test]
    fn a_name_that_cannot_be_had_is_refused_with_the_rule() {
        let said = |detail: &str| {
            let validations = vec![Validation { field: "name".into(), detail: detail.into() }];
            let (host, request) = ("h".to_owned(), "POST /".to_owned());
            let (message, detail) = ("Validation failed.".to_owned(), String::new());
            let refusal = Refusal { host, request, status: 400, message, detail, validations, ahead: None };
            format!("{:#}", refused(HttpError::Refused(Box::new(refusal))))
        };
        for tag in ["workspace_name", "username"] {
            let told = said(&format!("Validation failed for tag \"{tag}\" with value: \"a b\""));
            assert!(told.contains("value: \"a b\"; a name is ") && told.contains("32"), "{told}");
        }
        assert!(!said("Validation failed for tag \"max\" with value: \"a b\"").contains("a name is"));
    }
}
