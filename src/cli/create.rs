//! `coder create` and `coder users create`: what they make has a token that is shown once.

use super::{
    args::{Create, Global, UsersCommand},
    deployment::{Deployment, explain},
    life, output,
};
use crate::driver::http::HttpError;
use anyhow::{Context as _, anyhow, bail};
use std::{fs, path::Path};

/// Makes a workspace and prints the line that starts its agent on another machine.
pub(super) async fn workspace(global: &Global, args: &Create) -> anyhow::Result<u8> {
    let manifest = args.manifest.as_deref().map(read).transpose()?;
    let deployment = Deployment::open(global).await?;
    let made = deployment.client.create_workspace(&args.name, args.agent_url.as_deref(), manifest).await.map_err(refused)?;
    let text = format!(
        "Workspace {name} was made. Start its agent on the machine to reach; its token is shown only now:\n\n  \
         CODER_AGENT_URL={url} CODER_AGENT_TOKEN={token} coder agent\n\n\
         Then open a shell there with: coder ssh {name}",
        name = made.workspace.name,
        url = made.agent_url.as_deref().unwrap_or(&deployment.url),
        token = made.agent_token.expose(),
    );
    let name = &made.workspace.name;
    output::once(
        &text,
        &format!("workspace {name} was made, but its agent's token is lost: 'coder delete {name}' takes it away"),
    )?;
    // Where the deployment has a command for it, the workspace is being started.
    let build = &made.workspace.latest_build;
    if !build.job.is_done() || build.job.status != "succeeded" {
        life::finish(&deployment.client, &made.workspace, build, "started").await?;
    }
    Ok(0)
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

/// A Go server has no such calls: there a template makes workspaces.
fn refused(error: HttpError) -> anyhow::Error {
    match error.status() {
        Some(404 | 405) => anyhow!("{error}: this server makes workspaces and users in its dashboard"),
        _ => explain(error),
    }
}
