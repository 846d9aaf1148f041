//! What an agent's owner can forbid, and the limits of a connection (agent.md §6.2, §6.8, §6.9).

use super::{LIMIT, Seen, Trusting, connect, connect_and_listen, observed, run, server, to_the_end, within};
use crate::agent::{
    Profile,
    ssh::{Rules, Server, connection::MAX_SESSIONS},
};
use russh::{ChannelMsg, ChannelOpenFailure};
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{copy, duplex, split},
    net::TcpListener,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

fn with(rules: Rules) -> Server {
    Server::with_rules(Profile { agent: "main".into(), ..Profile::default() }, rules)
}

#[tokio::test]
async fn blocked_file_transfer_ends_with_65_and_says_so_where_each_program_looks() {
    let server = with(Rules { block_file_transfer: true, ..Rules::default() });
    for command in ["scp -t /tmp", "/usr/bin/rsync --server . /tmp", "nc -l 1"] {
        let seen = run(&server, command).await;
        assert_eq!((seen.text(), seen.exit), ("\u{2}File transfer has been disabled.\n", Some(65)), "{command}");
    }
    let (client, _) = connect(&server).await;
    let mut channel = client.channel_open_session().await.unwrap();
    channel.request_subsystem(true, "sftp").await.unwrap();
    let seen = to_the_end(&mut channel).await;
    assert_eq!((seen.stdout.as_slice(), seen.exit), (&b""[..], Some(65)));
    assert_eq!(seen.stderr, b"File transfer has been disabled.\n");
    assert_eq!(run(&server, "echo scp").await.text(), "scp\n");
    assert!(server.counters().sessions.is_empty());
}

#[tokio::test]
async fn blocked_local_forwarding_refuses_ports_and_sockets_as_prohibited() {
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = u32::from(target.local_addr().unwrap().port());
    let server = with(Rules { block_local_forwarding: true, ..Rules::default() });
    let (client, _) = connect(&server).await;
    let opened = [
        client.channel_open_direct_tcpip("127.0.0.1", port, "127.0.0.1", 1).await,
        client.channel_open_direct_streamlocal("/tmp/none").await,
    ];
    for opened in opened {
        let Err(russh::Error::ChannelOpenFailure(failure)) = opened else { panic!("opened") };
        assert_eq!(failure.code(), 1);
    }
    let bound = client.tcpip_forward("127.0.0.1", 0).await;
    assert!(bound.is_ok(), "only the other direction is blocked");
    assert_eq!(server.counters().forwards, 0);
}

#[tokio::test]
async fn blocked_reverse_forwarding_listens_on_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let server = with(Rules { block_reverse_forwarding: true, ..Rules::default() });
    let (client, _, _) = connect_and_listen(&server).await;
    assert!(client.tcpip_forward("127.0.0.1", 0).await.is_err());
    assert!(client.streamlocal_forward(path.to_str().unwrap()).await.is_err());
    assert!(!path.exists());
    assert_eq!(run(&server, "echo here").await.text(), "here\n");
}

#[tokio::test(start_paused = true)]
async fn a_short_limit_is_the_whole_life_of_a_connection() {
    let server = with(Rules { max_timeout: Duration::from_secs(2), ..Rules::default() });
    let started = Instant::now();
    let (client, _) = connect(&server).await;
    // Traffic does not prolong it.
    while !client.is_closed() {
        let _ = client.send_ping().await;
        sleep(Duration::from_millis(100)).await;
    }
    let lived = started.elapsed();
    assert!(lived >= Duration::from_secs(2) && lived < Duration::from_secs(5), "{lived:?}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_answers_keepalives_lives_beyond_the_limit() {
    let server = with(Rules { max_timeout: Duration::from_secs(3), ..Rules::default() });
    let (client, _) = connect(&server).await;
    sleep(Duration::from_secs(60)).await;
    assert!(!client.is_closed());
    client.channel_open_session().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_answers_nothing_is_given_up_after_three_keepalives() {
    let server = with(Rules { max_timeout: Duration::from_secs(30), ..Rules::default() });
    let (near, outer) = duplex(256 << 10);
    let (inner, far) = duplex(256 << 10);
    let serving = tokio::spawn(async move { server.serve(far).await });
    // What the client says is lost from `silent` on; what it is told still comes.
    let silent = CancellationToken::new();
    let (lost, (mut from_client, mut to_client), (mut from_server, mut to_server)) = (silent.clone(), split(outer), split(inner));
    tokio::spawn(async move { copy(&mut from_server, &mut to_client).await });
    tokio::spawn(async move {
        tokio::select! { _ = copy(&mut from_client, &mut to_server) => {} () = lost.cancelled() => {} }
        let _ = copy(&mut from_client, &mut tokio::io::sink()).await;
        drop(to_server);
    });
    let (handler, _keys, _offers) = Trusting::new();
    let mut client = russh::client::connect_stream(Arc::default(), near, handler).await.unwrap();
    assert!(client.authenticate_none("").await.unwrap().success());
    silent.cancel();
    let started = Instant::now();
    timeout(Duration::from_secs(3600), serving).await.expect("the server waits for ever").unwrap();
    let waited = started.elapsed();
    assert!(waited >= Duration::from_secs(30) && waited <= Duration::from_secs(60), "{waited:?}");
}

#[tokio::test]
async fn requests_that_ask_whether_we_live_are_answered() {
    let server = server();
    let (client, _) = connect(&server).await;
    let expected = observed("global request keepalive@openssh.com with reply wanted");
    assert_eq!(expected["success"], false);
    // The library's ping is that request; any answer ends it.
    within(client.send_ping()).await.unwrap();
}

#[tokio::test]
async fn a_session_too_many_is_refused_and_one_that_ended_makes_room() {
    let server = server();
    let (client, _) = connect(&server).await;
    let mut open = Vec::new();
    for _ in 0..MAX_SESSIONS {
        open.push(client.channel_open_session().await.unwrap());
    }
    let Err(russh::Error::ChannelOpenFailure(failure)) = client.channel_open_session().await else { panic!("opened") };
    assert!(matches!(failure, ChannelOpenFailure::ResourceShortage), "{failure:?}");
    let mut last = open.pop().unwrap();
    last.exec(true, "true").await.unwrap();
    assert_eq!(to_the_end(&mut last).await.exit, Some(0));
    let mut again = client.channel_open_session().await.unwrap();
    again.exec(true, "echo room").await.unwrap();
    assert_eq!(to_the_end(&mut again).await.text(), "room\n");
}

#[tokio::test]
async fn a_command_has_the_agents_own_umask() {
    let ours = std::process::Command::new("sh").args(["-c", "umask"]).output().unwrap().stdout;
    assert_eq!(run(&server(), "umask").await.stdout, ours);
}

#[tokio::test]
async fn a_stopping_agent_tells_its_sessions_why() {
    let server = server();
    let (client, _) = connect(&server).await;
    let mut channel = client.channel_open_session().await.unwrap();
    channel.exec(true, "echo up; exec sleep 1000").await.unwrap();
    let mut seen = Seen::default();
    while seen.stdout.is_empty() {
        seen.take(within(channel.wait()).await.unwrap());
    }
    let told = async {
        let mut rest = Seen::default();
        while let Some(message) = channel.wait().await {
            if let ChannelMsg::Close = message {
                rest.closed = true;
                break;
            }
            rest.take(message);
        }
        rest
    };
    let (_, rest) = tokio::join!(within(server.shutdown(LIMIT)), within(told));
    assert_eq!((String::from_utf8_lossy(&rest.stderr).trim_end(), rest.exit), ("the agent is shutting down", None));
}
