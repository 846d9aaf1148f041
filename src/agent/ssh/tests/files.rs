//! The `sftp` subsystem over its channel; what it does to files is tested beside it.

use super::{Client, Seen, connect, server, to_the_end, within};
use crate::wire::sftp::{Answer, Attributes, Request, first_packet, flags};
use russh::{Channel, client};
use std::{fs, os::unix::ffi::OsStrExt as _, path::Path};

async fn session(client: &Client) -> Channel<client::Msg> {
    let mut channel = client.channel_open_session().await.unwrap();
    channel.request_subsystem(true, "sftp").await.unwrap();
    assert!(matches!(within(channel.wait()).await, Some(russh::ChannelMsg::Success)));
    channel
}

fn packets(requests: &[Request<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, request) in (0..).zip(requests) {
        request.write(number, &mut out);
    }
    out
}

/// Each answer of a stream, in its order.
fn answers(mut stream: &[u8]) -> Vec<(u32, Answer<'_>)> {
    let mut out = Vec::new();
    while let Some(packet) = first_packet(stream).unwrap() {
        out.push(Answer::parse(packet).unwrap());
        stream = &stream[4 + packet.len()..];
    }
    assert_eq!(stream, b"");
    out
}

const HANDLE: [u8; 4] = [0; 4];

fn create(path: &Path) -> Request<'_> {
    let how = flags::READ | flags::WRITE | flags::CREATE;
    Request::Open { path: path.as_os_str().as_bytes(), flags: how, attributes: Attributes::default() }
}

#[tokio::test]
async fn requests_sent_at_once_are_answered_in_order_and_their_end_gives_status_0() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let (client, _) = connect(&server()).await;
    let mut channel = session(&client).await;
    let block = vec![7; 100_000];
    let mut requests = vec![Request::Init, create(&path)];
    requests.extend((0..40u64).map(|i| Request::Write { handle: &HANDLE, offset: i * 100_000, data: &block }));
    requests.push(Request::Read { handle: &HANDLE, offset: 3_999_999, length: 10 });
    // Bytes that end inside packets.
    for part in packets(&requests).chunks(30_011) {
        channel.data(part).await.unwrap();
    }
    channel.eof().await.unwrap();
    let seen = to_the_end(&mut channel).await;
    assert_eq!((seen.exit, seen.eof, seen.stderr.as_slice()), (Some(0), true, &b""[..]));
    let answers = answers(&seen.stdout);
    assert!(matches!(answers[0], (3, Answer::Version(3, _))), "{:?}", answers[0]);
    assert_eq!(answers[1], (1, Answer::Handle(&HANDLE)));
    for (number, answer) in (2..42).zip(&answers[2..42]) {
        assert_eq!(*answer, (number, Answer::Status(0, b"")));
    }
    assert_eq!(answers[42..], [(42, Answer::Data(&[7]))]);
    assert_eq!(fs::read(&path).unwrap(), vec![7; 4_000_000]);
}

#[tokio::test]
async fn what_is_not_sftp_ends_the_session_with_a_reason() {
    let (client, _) = connect(&server()).await;
    let mut channel = session(&client).await;
    channel.data(&packets(&[Request::Init])[..]).await.unwrap();
    channel.data(&b"GET / HTTP/1.1\r\n"[..]).await.unwrap();
    let seen = to_the_end(&mut channel).await;
    assert_eq!(seen.exit, Some(1));
    assert_eq!(answers(&seen.stdout).len(), 1, "what came before is answered");
    assert!(String::from_utf8_lossy(&seen.stderr).contains("not SFTP"), "{seen:?}");
}

#[tokio::test]
async fn a_channel_has_one_command_or_one_file_session() {
    let (client, _) = connect(&server()).await;
    let mut channel = session(&client).await;
    channel.exec(true, "true").await.unwrap();
    channel.request_subsystem(true, "sftp").await.unwrap();
    channel.eof().await.unwrap();
    let Seen { replies, exit, .. } = to_the_end(&mut channel).await;
    assert_eq!((replies, exit), (vec![false, false], Some(0)));
}

#[tokio::test]
async fn files_are_closed_with_the_channel_and_with_the_connection() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let server = server();
    let (client, _) = connect(&server).await;
    let mut channels = Vec::new();
    for path in [&one, &two] {
        let mut channel = session(&client).await;
        channel.data(&packets(&[create(path)])[..]).await.unwrap();
        assert!(matches!(within(channel.wait()).await, Some(russh::ChannelMsg::Data { .. })));
        channels.push(channel);
    }
    assert!(is_open(&one) && is_open(&two) && server.counters().sessions.values().sum::<u64>() == 2);
    channels.remove(0).close().await.unwrap();
    closed(&one).await;
    assert!(is_open(&two));
    drop((client, channels));
    closed(&two).await;
}

#[tokio::test]
async fn what_was_written_before_the_channel_was_closed_is_still_done() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let (client, _) = connect(&server()).await;
    let channel = session(&client).await;
    let block = vec![7; 200_000];
    let mut requests = vec![create(&path)];
    // Fewer answers than the client library keeps for a reader that takes none.
    requests.extend((0..50u64).map(|i| Request::Write { handle: &HANDLE, offset: i * 200_000, data: &block }));
    channel.data(&packets(&requests)[..]).await.unwrap();
    channel.close().await.unwrap();
    within(async {
        while fs::metadata(&path).map_or(0, |m| m.len()) < 10_000_000 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Whether this process has the file open.
fn is_open(path: &Path) -> bool {
    let open = fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
    open.into_iter().any(|p| p == path)
}

async fn closed(path: &Path) {
    within(async {
        while is_open(path) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
