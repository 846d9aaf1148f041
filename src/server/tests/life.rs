//! Starting, ending, starting again, and every way in which a start fails.

use super::*;
use crate::server::{OpenError, StartError};
use std::{net::TcpListener, os::unix::fs::PermissionsExt as _};

async fn error(config: Config) -> StartError {
    let error = serve(config).await.unwrap_err();
    let text = error.to_string();
    assert!(!text.contains('\n') && text.len() < 300, "{text:?} is not one line");
    error
}

#[tokio::test]
async fn a_restart_on_the_same_folder_keeps_tokens_and_workspaces() {
    let world = World::new().await;
    let World { running, admin, bob, agent_token, workspace, folder, .. } = world;
    let deployment = running.app.store().deployment().id;
    running.shutdown().await;

    let running = serve(config(folder.path())).await.unwrap();
    assert_eq!(running.app.store().deployment().id, deployment);
    assert_eq!(std::fs::read_to_string(running.admin_token_path()).unwrap().trim(), admin);
    for (token, count) in [(&admin, 1), (&bob, 0)] {
        let list = call(running.address(), "GET", "/api/v2/workspaces", &auth(token), None).await.json();
        assert_eq!(list["count"], count);
    }
    let found = call(running.address(), "GET", "/api/v2/users/me/workspace/dev", &auth(&admin), None).await.json();
    assert_eq!(found["id"], workspace.id.to_string());
    let (path, headers) = ("/api/v2/workspaceagents/me/rpc?version=2.0", handshake(Some(&agent_token)));
    assert_eq!(open(running.address(), "GET", path, &headers, None).await.1.status, 101);
    running.shutdown().await;
}

#[tokio::test]
async fn the_first_users_token_lies_in_a_file_for_its_owner_alone() {
    let world = World::new().await;
    let mode = std::fs::metadata(world.running.admin_token_path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn a_taken_port_is_named_with_the_option_that_changes_it() {
    let folder = tempfile::tempdir().unwrap();
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = config(folder.path());
    config.http_address = holder.local_addr().unwrap();
    let text = error(config).await.to_string();
    assert!(text.contains(&holder.local_addr().unwrap().to_string()) && text.contains("--http-address"), "{text}");
}

#[tokio::test]
async fn a_taken_stun_port_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let holder = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut config = config(folder.path());
    config.stun = StunAddress::At(holder.local_addr().unwrap());
    let error = error(config).await;
    assert!(matches!(error, StartError::PortTaken { what: "UDP", flag: "--stun-address", .. }), "{error:?}");
}

#[tokio::test]
async fn an_address_of_another_machine_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    // TEST-NET-1 belongs to nobody.
    config.http_address = "192.0.2.1:0".parse().unwrap();
    assert!(matches!(error(config).await, StartError::Listen { .. }));
}

#[tokio::test]
async fn a_second_server_on_the_same_folder_fails() {
    let world = World::new().await;
    let error = error(config(world.folder.path())).await;
    assert!(matches!(error, StartError::Data(OpenError::Locked(_))), "{error:?}");
    assert_eq!(world.get("/api/v2/users/me").await.status, 200, "the first one goes on");
}

#[tokio::test]
async fn an_unreadable_database_is_named() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("coder.sqlite"), [0x55; 8192]).unwrap();
    let error = error(config(folder.path())).await;
    assert!(matches!(error, StartError::Data(OpenError::Corrupt(_))), "{error:?}");
    assert!(error.to_string().contains("coder.sqlite"));
}

#[tokio::test]
async fn a_database_damaged_inside_is_named_too() {
    let world = World::new().await;
    let World { running, folder, .. } = world;
    running.shutdown().await;
    let file = folder.path().join("coder.sqlite");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[100..].fill(0xff);
    std::fs::write(&file, bytes).unwrap();
    let error = error(config(folder.path())).await;
    assert!(matches!(error, StartError::Data(OpenError::Corrupt(_))), "{error:?}");
}

#[tokio::test]
async fn a_bad_access_url_fails_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&folder.path().join("data"));
    config.access_url = Some("coder.example.com".into());
    assert!(matches!(error(config).await, StartError::AccessUrl { .. }));
    assert!(!folder.path().join("data").exists());
}

#[tokio::test]
async fn a_failed_start_leaves_its_port_free() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("coder.sqlite"), [0x55; 8192]).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut config = config(folder.path());
    config.http_address = port;
    error(config.clone()).await;
    std::fs::remove_file(folder.path().join("coder.sqlite")).unwrap();
    let running = serve(config).await.unwrap();
    assert_eq!(running.address(), port);
}

#[tokio::test]
async fn after_a_shutdown_nobody_answers() {
    let world = World::new().await;
    let address = world.address();
    world.running.shutdown().await;
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn the_access_url_is_what_clients_are_told() {
    let world = World::with(|config| config.access_url = Some("https://coder.example.com/".into())).await;
    assert_eq!(world.running.access_url(), "https://coder.example.com");
    assert_eq!(world.get("/api/v2/buildinfo").await.json()["dashboard_url"], "https://coder.example.com");
    let info = world.get("/api/v2/workspaceagents/connection").await.json();
    let node = &info["derp_map"]["Regions"]["999"]["Nodes"][0];
    assert_eq!((&node["HostName"], &node["DERPPort"]), (&Value::from("coder.example.com"), &Value::from(443)));
}

#[tokio::test]
async fn dev_runs_an_agent_whose_token_counts_in_a_workspace_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let (program, log) = (folder.path().join("coder"), folder.path().join("log"));
    let script = format!(
        "#!/bin/sh\necho $CODER_AGENT_URL $CODER_AGENT_TOKEN > '{0}.new'\nmv '{0}.new' '{0}'\nexec sleep 1000\n",
        log.display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut config = config(&folder.path().join("data"));
    config.dev = Some(program);
    let running = serve(config).await.unwrap();
    let started = async {
        while !log.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        std::fs::read_to_string(&log).unwrap()
    };
    let line = timeout(LIMIT, started).await.expect("the agent was not started");
    let (url, token) = line.trim().split_once(' ').unwrap();
    assert_eq!(url, format!("http://{}", running.address()));
    let path = "/api/v2/workspaceagents/me/rpc?version=2.0";
    assert_eq!(open(running.address(), "GET", path, &handshake(Some(token)), None).await.1.status, 101);
    let admin = std::fs::read_to_string(running.admin_token_path()).unwrap();
    let found = call(running.address(), "GET", "/api/v2/users/me/workspace/dev", &auth(admin.trim()), None).await;
    assert_eq!(found.status, 200);
    running.shutdown().await;
}
