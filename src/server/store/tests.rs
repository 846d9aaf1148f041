//! The store against real files.

use super::*;
use crate::server::{
    answer::ApiError,
    token::{AgentToken, SessionToken},
};
use axum::response::IntoResponse as _;
use std::os::unix::fs::PermissionsExt as _;

const HOUR: Duration = Duration::from_secs(3600);

async fn open(folder: &Path) -> Store {
    Store::open(folder).await.unwrap()
}

async fn first_user(store: &Store) -> User {
    store.insert_user(Stamp::now(), "admin", "", "admin@localhost", true).await.unwrap()
}

fn session(user: &User) -> NewKey<'static> {
    NewKey { user: user.id, kind: KeyKind::Session, name: "", lifetime: HOUR, scopes: None, by_password: false }
}

/// Leaves the database no room to grow, on either of its connections as they are now.
async fn fill(store: &Store) {
    let (mut a, mut b) = (store.pool.acquire().await.unwrap(), store.pool.acquire().await.unwrap());
    for connection in [&mut a, &mut b] {
        sqlx::query("PRAGMA max_page_count = 1").execute(&mut **connection).await.unwrap();
    }
}

#[tokio::test]
async fn a_full_disk_is_told_to_who_asks() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let user = first_user(&store).await;
    fill(&store).await;
    let mut error = None;
    for n in 0..2000 {
        error = store.insert_workspace(Stamp::now(), user.id, &format!("w{n}")).await.err();
        if error.is_some() {
            break;
        }
    }
    let answer = ApiError::from(error.expect("there was room"));
    assert_eq!(serde_json::to_value(answer.body()).unwrap(), serde_json::json!({ "message": "The server's disk is full." }));
    assert_eq!(answer.into_response().status(), 507);
}

#[tokio::test]
async fn the_store_works_again_once_a_full_disk_has_room() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let user = first_user(&store).await;
    fill(&store).await;
    let mut refused = 0;
    for n in 0..2000 {
        match store.insert_workspace(Stamp::now(), user.id, &format!("w{n}")).await {
            Ok(_) => assert!(refused < 2, "room again"),
            Err(_) => refused += 1,
        }
        if refused == 2 {
            break;
        }
    }
    assert_eq!(refused, 2, "each of the two connections has met its limit");
    for n in 0..4 {
        store.insert_workspace(Stamp::now(), user.id, &format!("after{n}")).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_stored_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let (deployment, user) = (*store.deployment(), first_user(&store).await);
    let key = store.insert_key(Stamp::now(), session(&user)).await.unwrap();
    let (workspace, agent_token) = store.insert_workspace(Stamp::now(), user.id, "dev").await.unwrap();
    store.close().await;
    drop(store);

    let store = open(folder.path()).await;
    assert_eq!(store.deployment().id, deployment.id);
    let Presented::Valid(found, _) = store.check_key(Stamp::now(), &key).await.unwrap() else { panic!("key lost") };
    assert_eq!(found.id, user.id);
    assert_eq!(store.workspace_by_name(user.id, "DEV").await.unwrap().id, workspace.id);
    let (agent, _) = store.agent_by_token(&agent_token).await.unwrap().unwrap();
    assert_eq!(agent.workspace_id, workspace.id);
}

#[tokio::test]
async fn a_second_server_on_the_same_folder_fails_and_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let error = Store::open(folder.path()).await.unwrap_err();
    assert!(matches!(error, OpenError::Locked(_)), "{error:?}");
    drop(store);
    open(folder.path()).await;
}

#[tokio::test]
async fn a_damaged_file_is_told_apart_from_a_newer_one() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (99, '', 1, x'00', 0)",
    )
    .execute(&store.pool)
    .await
    .unwrap();
    store.close().await;
    drop(store);
    assert!(matches!(Store::open(folder.path()).await.unwrap_err(), OpenError::TooNew(_)));

    std::fs::write(folder.path().join(DATABASE), vec![b'x'; 9000]).unwrap();
    let error = Store::open(folder.path()).await.unwrap_err();
    assert!(matches!(error, OpenError::Corrupt(_)), "{error:?}");
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = Store::open(&file.join("data")).await.unwrap_err();
    assert!(matches!(error, OpenError::Folder { .. }), "{error:?}");
}

#[tokio::test]
async fn a_new_folder_and_its_database_are_for_their_owner_alone() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("data");
    let store = open(&inner).await;
    first_user(&store).await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&inner), 0o700);
    for entry in std::fs::read_dir(&inner).unwrap() {
        let path = entry.unwrap().path();
        if !path.ends_with(LOCK) {
            assert_eq!(mode(&path), 0o600, "{}", path.display());
        }
    }
}

#[tokio::test]
async fn a_session_lives_on_with_use_and_a_token_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let user = first_user(&store).await;
    let now = Stamp::now();
    let session = store.insert_key(now, session(&user)).await.unwrap();
    let named = NewKey { user: user.id, kind: KeyKind::Token, name: "ci", lifetime: HOUR, scopes: None, by_password: false };
    let token = store.insert_key(now, named).await.unwrap();
    assert!(matches!(store.insert_key(now, named).await, Err(StoreError::Taken)));

    let later = now + HOUR / 2;
    for key in [&session, &token] {
        assert!(matches!(store.check_key(later, key).await.unwrap(), Presented::Valid(..)));
    }
    let end = now + HOUR + Duration::from_secs(1);
    assert!(matches!(store.check_key(end, &session).await.unwrap(), Presented::Valid(..)));
    assert!(matches!(store.check_key(end, &token).await.unwrap(), Presented::Expired(_)));
    assert_eq!(store.tokens(end, user.id, false).await.unwrap().len(), 0);
    assert_eq!(store.tokens(end, user.id, true).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_key_that_is_ended_or_deleted_while_it_is_used_stays_so() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let user = first_user(&store).await;
    let now = Stamp::now();
    for kind in [KeyKind::Session, KeyKind::Token] {
        let ended = store.insert_key(now, NewKey { kind, ..session(&user) }).await.unwrap();
        let read = store.key(user.id, ended.id()).await.unwrap();
        // Revoked after the request began, so after its `now`.
        let revoked = now + Duration::from_millis(5);
        store.expire_key(revoked, user.id, ended.id()).await.unwrap();
        assert!(!store.note_use(now, &read).await.unwrap());
        assert_eq!(store.key(user.id, ended.id()).await.unwrap().expires_at, revoked);
        assert!(matches!(store.check_key(revoked, &ended).await.unwrap(), Presented::Expired(at) if at == revoked));
    }
    let deleted = store.insert_key(now, session(&user)).await.unwrap();
    let read = store.key(user.id, deleted.id()).await.unwrap();
    store.delete_key(user.id, deleted.id()).await.unwrap();
    assert!(!store.note_use(now, &read).await.unwrap());
    // Two uses at once are none of it.
    let used = store.insert_key(now, session(&user)).await.unwrap();
    let read = store.key(user.id, used.id()).await.unwrap();
    for later in [now + HOUR / 2, now + HOUR / 4] {
        assert!(store.note_use(later, &read).await.unwrap());
    }
    let key = store.key(user.id, used.id()).await.unwrap();
    assert_eq!((key.last_used, key.expires_at), (now + HOUR / 2, now + HOUR / 2 + HOUR));
}

#[tokio::test]
async fn a_wrong_secret_an_unknown_id_and_a_deleted_key_are_invalid() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let user = first_user(&store).await;
    let token = store.insert_key(Stamp::now(), session(&user)).await.unwrap();
    let wrong: SessionToken = format!("{}-AAAAAAAAAAAAAAAAAAAAAA", token.id()).parse().unwrap();
    for key in [wrong, SessionToken::generate().unwrap()] {
        assert!(matches!(store.check_key(Stamp::now(), &key).await.unwrap(), Presented::Invalid));
    }
    store.delete_key(user.id, token.id()).await.unwrap();
    assert!(matches!(store.check_key(Stamp::now(), &token).await.unwrap(), Presented::Invalid));
    assert!(matches!(store.delete_key(user.id, token.id()).await, Err(StoreError::NotFound)));
}

#[tokio::test]
async fn no_secret_is_stored_in_the_clear() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let user = first_user(&store).await;
    let token = store.insert_key(Stamp::now(), session(&user)).await.unwrap();
    let (_, agent) = store.insert_workspace(Stamp::now(), user.id, "dev").await.unwrap();
    store.close().await;
    let text = token.expose();
    let (_, secret) = text.split_once('-').unwrap();
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        for secret in [secret, &agent.expose()] {
            assert!(!bytes.windows(secret.len()).any(|w| w == secret.as_bytes()));
        }
    }
}

#[tokio::test]
async fn there_is_one_first_user() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    first_user(&store).await;
    let second = store.insert_user(Stamp::now(), "eve", "", "eve@localhost", true).await;
    assert!(matches!(second, Err(StoreError::Taken)));
}

#[tokio::test]
async fn a_user_is_made_with_password_and_login_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let now = Stamp::now();
    let first = store.insert_first_user(now, "ann", "", "ann@localhost", "hash").await.unwrap();
    assert!(first.is_first && first.has_password);
    assert_eq!(store.password_of(first.id).await.unwrap().as_deref(), Some("hash"));
    let (bob, token) = store.insert_user_with_key(now, "bob", "", "bob@localhost", Some("hash"), HOUR).await.unwrap();
    assert!(bob.has_password && !bob.is_first);
    assert!(matches!(store.check_key(now, &token).await.unwrap(), Presented::Valid(user, _) if user.id == bob.id));
    // Whatever goes wrong with the login leaves no user behind.
    sqlx::query("DROP TABLE keys").execute(&store.pool).await.unwrap();
    store.insert_user_with_key(now, "eve", "", "eve@localhost", None, HOUR).await.unwrap_err();
    assert!(matches!(store.user_by_name("eve").await, Err(StoreError::NotFound)));
}

#[tokio::test]
async fn an_agent_gets_in_only_while_its_workspace_is_started() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let user = first_user(&store).await;
    let (workspace, token) = store.insert_workspace(Stamp::now(), user.id, "dev").await.unwrap();
    let build = |transition| NewBuild { workspace: workspace.id, transition, reason: "cli", initiator: user.id };
    for (transition, welcome) in [(Transition::Stop, false), (Transition::Start, true), (Transition::Delete, false)] {
        store.insert_build(Stamp::now(), build(transition)).await.unwrap();
        assert_eq!(store.agent_by_token(&token).await.unwrap().is_some(), welcome, "{transition:?}");
    }
    assert_eq!(store.latest_build(workspace.id).await.unwrap().number, 4);
    assert!(store.agent_by_token(&AgentToken::generate().unwrap()).await.unwrap().is_none());
    // The name is free again.
    store.insert_workspace(Stamp::now(), user.id, "dev").await.unwrap();
}

#[tokio::test]
async fn users_do_not_reach_each_others_rows() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let ann = first_user(&store).await;
    let bob = store.insert_user(Stamp::now(), "bob", "", "bob@localhost", false).await.unwrap();
    let (workspace, _) = store.insert_workspace(Stamp::now(), ann.id, "dev").await.unwrap();
    let key = store.insert_key(Stamp::now(), session(&ann)).await.unwrap();
    let agent = store.agents(workspace.id).await.unwrap().remove(0);
    let build = store.latest_build(workspace.id).await.unwrap();
    assert!(matches!(store.workspace(bob.id, workspace.id).await, Err(StoreError::NotFound)));
    assert!(matches!(store.workspace_by_name(bob.id, "dev").await, Err(StoreError::NotFound)));
    assert!(store.workspaces(bob.id).await.unwrap().is_empty());
    assert!(matches!(store.agent(bob.id, agent.id).await, Err(StoreError::NotFound)));
    assert!(matches!(store.build(bob.id, build.id).await, Err(StoreError::NotFound)));
    assert!(matches!(store.key(bob.id, key.id()).await, Err(StoreError::NotFound)));
    assert!(matches!(store.delete_key(bob.id, key.id()).await, Err(StoreError::NotFound)));
}

#[tokio::test]
async fn the_dev_workspace_is_kept_and_its_token_renewed() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let user = first_user(&store).await;
    let first = store.ensure_dev_workspace(Stamp::now(), user.id, "dev").await.unwrap();
    let workspace = store.workspace_by_name(user.id, "dev").await.unwrap();
    let stop = NewBuild { workspace: workspace.id, transition: Transition::Stop, reason: "cli", initiator: user.id };
    store.insert_build(Stamp::now(), stop).await.unwrap();
    let second = store.ensure_dev_workspace(Stamp::now(), user.id, "dev").await.unwrap();
    assert!(store.agent_by_token(&first).await.unwrap().is_none());
    assert_eq!(store.agent_by_token(&second).await.unwrap().unwrap().1.id, workspace.id);
}

#[tokio::test]
async fn an_agent_that_was_connected_when_the_server_died_is_not_connected_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let user = first_user(&store).await;
    let (workspace, _) = store.insert_workspace(Stamp::now(), user.id, "dev").await.unwrap();
    let agent = store.agents(workspace.id).await.unwrap().remove(0);
    store.agent_connected(Stamp::now(), agent.id).await.unwrap();
    store.close().await;
    drop(store);
    let store = open(folder.path()).await;
    assert!(store.agent(user.id, agent.id).await.unwrap().disconnected_at.is_some());
}

/// A store with one workspace and its agent.
async fn with_agent(folder: &Path) -> (Store, User, Workspace, Agent) {
    let store = open(folder).await;
    let user = first_user(&store).await;
    let (workspace, _) = store.insert_workspace(Stamp::now(), user.id, "dev").await.unwrap();
    let agent = store.agents(workspace.id).await.unwrap().remove(0);
    (store, user, workspace, agent)
}

fn line(text: &str) -> LogLine {
    LogLine { id: 0, source_id: Uuid::nil(), created_at: Stamp::now(), level: "info".into(), output: text.into() }
}

async fn outputs(store: &Store, agent: &Agent, after: i64) -> Vec<String> {
    store.logs(agent.id, after).await.unwrap().into_iter().map(|line| line.output).collect()
}

/// Fills the share of an agent.
async fn overflow(store: &Store, agent: &Agent) {
    assert!(!store.insert_logs(agent.id, &[line(&"x".repeat(1 << 20)), line("y")]).await.unwrap());
}

#[tokio::test]
async fn logs_stop_at_the_agents_share_and_a_smaller_batch_leaves_no_hole() {
    let folder = tempfile::tempdir().unwrap();
    let (store, user, _, agent) = with_agent(folder.path()).await;
    assert!(store.insert_logs(agent.id, &[line("first"), line("second")]).await.unwrap());
    overflow(&store, &agent).await;
    assert!(!store.insert_logs(agent.id, &[line("would fit")]).await.unwrap());
    let lines = store.logs(agent.id, 0).await.unwrap();
    assert_eq!(outputs(&store, &agent, 0).await, ["first", "second"]);
    assert_eq!(outputs(&store, &agent, lines[0].id).await, ["second"]);
    let agent = store.agent(user.id, agent.id).await.unwrap();
    assert!(agent.logs_overflowed);
    assert_eq!(agent.logs_bytes, 11);
}

#[tokio::test]
async fn each_process_of_an_agent_has_the_whole_share_and_followers_miss_nothing_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let (store, user, _, agent) = with_agent(folder.path()).await;
    let now = Stamp::now();
    let starts = async |at: Stamp| store.agent_lifecycle(now, agent.id, Lifecycle::Starting, at).await.unwrap();
    store.insert_logs(agent.id, &[line("the machine is made")]).await.unwrap();
    starts(now).await;
    store.insert_logs(agent.id, &[line("one")]).await.unwrap();
    // Told once more over another connection, and what follows it.
    starts(now).await;
    store.agent_lifecycle(now, agent.id, Lifecycle::Ready, now + HOUR).await.unwrap();
    assert_eq!(outputs(&store, &agent, 0).await, ["the machine is made", "one"]);
    let seen = store.logs(agent.id, 0).await.unwrap().pop().unwrap().id;
    overflow(&store, &agent).await;

    starts(now + HOUR).await;
    let fresh = store.agent(user.id, agent.id).await.unwrap();
    assert!(!fresh.logs_overflowed && fresh.logs_bytes == 0);
    assert!(store.insert_logs(agent.id, &[line("two")]).await.unwrap());
    assert_eq!(outputs(&store, &agent, 0).await, ["two"]);
    assert_eq!(outputs(&store, &agent, seen).await, ["two"], "a follower goes on from where it was");
}

#[tokio::test]
async fn what_fills_the_share_before_the_first_process_leaves_it_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _, _, agent) = with_agent(folder.path()).await;
    store.insert_logs(agent.id, &[line("the machine is made")]).await.unwrap();
    overflow(&store, &agent).await;
    store.agent_lifecycle(Stamp::now(), agent.id, Lifecycle::Starting, Stamp::now()).await.unwrap();
    assert!(store.insert_logs(agent.id, &[line("one")]).await.unwrap());
    assert_eq!(outputs(&store, &agent, 0).await, ["one"]);
}

#[tokio::test]
async fn a_start_of_the_workspace_begins_its_agents_log_anew_and_a_stop_keeps_it() {
    let folder = tempfile::tempdir().unwrap();
    let (store, user, workspace, agent) = with_agent(folder.path()).await;
    let (other, _) = store.insert_workspace(Stamp::now(), user.id, "other").await.unwrap();
    let other = store.agents(other.id).await.unwrap().remove(0);
    let build = |transition| NewBuild { workspace: workspace.id, transition, reason: "cli", initiator: user.id };
    for agent in [&agent, &other] {
        store.insert_logs(agent.id, &[line("old")]).await.unwrap();
        store.agent_lifecycle(Stamp::now(), agent.id, Lifecycle::Starting, Stamp::now()).await.unwrap();
        overflow(&store, agent).await;
    }
    store.insert_build(Stamp::now(), build(Transition::Stop)).await.unwrap();
    assert_eq!(outputs(&store, &agent, 0).await, ["old"], "why it went wrong can still be read");
    let running = store.begin_build(Stamp::now(), build(Transition::Start)).await.unwrap();
    assert!(store.insert_logs(agent.id, &[line("the machine is made")]).await.unwrap());
    store.end_build(Stamp::now(), running.id, BuildStatus::Succeeded, "").await.unwrap();
    store.agent_lifecycle(Stamp::now(), agent.id, Lifecycle::Starting, Stamp::now() + HOUR).await.unwrap();
    assert!(store.insert_logs(agent.id, &[line("new")]).await.unwrap());
    assert_eq!(outputs(&store, &agent, 0).await, ["the machine is made", "new"]);
    assert_eq!(outputs(&store, &other, 0).await, ["old"], "another workspace's");
}

async fn count(store: &Store, table: &str) -> i64 {
    let sql = format!("SELECT count(*) AS n FROM {table}");
    sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_one(&store.pool).await.unwrap().try_get("n").unwrap()
}

fn build_line(text: &str) -> BuildLine {
    BuildLine { id: 0, created_at: Stamp::now(), level: "info".into(), stage: String::new(), output: text.into() }
}

#[tokio::test]
async fn the_logs_of_a_workspaces_twenty_newest_builds_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (store, user, workspace, _) = with_agent(folder.path()).await;
    let (other, _) = store.insert_workspace(Stamp::now(), user.id, "other").await.unwrap();
    let first = store.latest_build(other.id).await.unwrap();
    for n in 0..25 {
        let transition = if n % 2 == 0 { Transition::Stop } else { Transition::Start };
        let new = NewBuild { workspace: workspace.id, transition, reason: "cli", initiator: user.id };
        let build = store.begin_build(Stamp::now(), new).await.unwrap();
        assert!(store.insert_build_lines(build.id, &[build_line("said")]).await.unwrap());
        store.end_build(Stamp::now(), build.id, BuildStatus::Failed, "").await.unwrap();
    }
    let builds = store.builds(workspace.id, 100).await.unwrap();
    assert_eq!(builds.len(), 26, "that they were is remembered");
    for (n, build) in builds.iter().enumerate() {
        // Beside what it said, a build's stage is a line.
        assert_eq!(store.build_lines(build.id, 0).await.unwrap().len(), if n < 20 { 2 } else { 0 }, "build {}", build.number);
    }
    assert_eq!(store.build_lines(first.id, 0).await.unwrap().len(), 1, "another workspace's");
}

#[tokio::test]
async fn a_deleted_workspace_leaves_the_log_of_its_deletion_for_a_day_and_then_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let user = first_user(&store).await;
    let now = Stamp::now();
    // One without a command, one with.
    for with_command in [false, true] {
        let (workspace, _) = store.insert_workspace(now, user.id, "dev").await.unwrap();
        let agent = store.agents(workspace.id).await.unwrap().remove(0);
        store.insert_logs(agent.id, &[line("said")]).await.unwrap();
        let new = NewBuild { workspace: workspace.id, transition: Transition::Delete, reason: "cli", initiator: user.id };
        let build = if with_command {
            let build = store.begin_build(now, new).await.unwrap();
            assert_eq!(outputs(&store, &agent, 0).await, ["said"], "it may not go well");
            store.insert_build_lines(build.id, &[build_line("deleted")]).await.unwrap();
            store.end_build(now, build.id, BuildStatus::Succeeded, "").await.unwrap();
            build
        } else {
            store.insert_build(now, new).await.unwrap()
        };
        assert_eq!(count(&store, "agent_logs").await, 0);
        let kept = store.build_lines(build.id, 0).await.unwrap().len();
        assert_eq!(kept, if with_command { 2 } else { 1 });
        assert_eq!(store.build(user.id, build.id).await.unwrap().id, build.id);
    }
    assert_eq!((count(&store, "workspaces").await, count(&store, "build_logs").await), (2, 3));
    store.insert_workspace(now + 23 * HOUR, user.id, "soon").await.unwrap();
    assert_eq!(count(&store, "workspaces").await, 3);
    store.insert_workspace(now + 25 * HOUR, user.id, "later").await.unwrap();
    for table in ["workspaces", "builds", "build_logs", "agents"] {
        assert_eq!(count(&store, table).await, 2, "{table}");
    }
}
