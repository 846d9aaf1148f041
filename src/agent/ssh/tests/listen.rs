//! Connections that come from the agent's machine to the client, and unix sockets in both directions.

use super::{
    super::{Profile, Server, listen::MAX_LISTENERS},
    Client, Offered, Seen, connect, connect_and_listen, server, to_the_end, within,
};
use russh::{Channel, ChannelMsg, ChannelOpenFailure, client};
use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::mpsc::UnboundedReceiver,
};

async fn accept(offers: &mut UnboundedReceiver<Offered>) -> (String, Channel<client::Msg>) {
    let Offered { what, channel, reply } = within(offers.recv()).await.unwrap();
    reply.accept().await;
    (what, channel)
}

async fn read_to_end(mut from: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut bytes = Vec::new();
    within(from.read_to_end(&mut bytes)).await.unwrap();
    bytes
}

/// A megabyte each way, the client's only after the other's end: neither direction ends the other.
async fn exchange(socket: impl AsyncRead + AsyncWrite + Unpin, mut channel: Channel<client::Msg>) {
    let (there, back) = (vec![1; 1 << 20], vec![2; 1 << 20]);
    let (reader, mut writer) = tokio::io::split(socket);
    let near = async {
        writer.write_all(&there).await.unwrap();
        writer.shutdown().await.unwrap();
        read_to_end(reader).await
    };
    let far = async {
        let mut seen = Seen::default();
        while !seen.eof {
            seen.take(channel.wait().await.unwrap());
        }
        channel.data(&back[..]).await.unwrap();
        channel.eof().await.unwrap();
        seen.stdout
    };
    let (got_back, got_there) = within(async { tokio::join!(near, far) }).await;
    assert!(got_there == there && got_back == back, "{} and {} bytes", got_there.len(), got_back.len());
    to_the_end(&mut channel).await;
}

async fn gone(path: &Path) {
    within(async {
        while path.exists() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn still_works(client: &Client) {
    let mut channel = client.channel_open_session().await.unwrap();
    channel.exec(true, "true").await.unwrap();
    assert_eq!(to_the_end(&mut channel).await.exit, Some(0));
}

#[tokio::test]
async fn a_port_of_the_workspace_leads_to_the_client_until_it_is_given_back() {
    let server = server();
    let (client, _keys, mut offers) = connect_and_listen(&server).await;
    let port = client.tcpip_forward("localhost", 0).await.unwrap();
    assert!(port > 0, "the chosen port comes back");
    let at = ("127.0.0.1", u16::try_from(port).unwrap());
    for _ in 0..3 {
        let socket = TcpStream::connect(at).await.unwrap();
        let (what, channel) = accept(&mut offers).await;
        assert_eq!(what, format!("localhost:{port} from 127.0.0.1"));
        exchange(socket, channel).await;
    }
    assert_eq!(server.counters().forwards, 3);
    assert!(client.cancel_tcpip_forward("elsewhere", port).await.is_err());
    client.cancel_tcpip_forward("localhost", port).await.unwrap();
    within(async { while TcpStream::connect(at).await.is_ok() {} }).await;
    assert!(client.cancel_tcpip_forward("localhost", port).await.is_err());
    still_works(&client).await;
}

#[tokio::test]
async fn what_was_sent_before_the_channel_was_closed_still_arrives() {
    let (client, _keys, mut offers) = connect_and_listen(&server()).await;
    let port = u16::try_from(client.tcpip_forward("127.0.0.1", 0).await.unwrap()).unwrap();
    let socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (_, channel) = accept(&mut offers).await;
    let sent = vec![3; 3 << 20];
    channel.data(&sent[..]).await.unwrap();
    channel.close().await.unwrap();
    // The reader begins only when the close has been dealt with.
    still_works(&client).await;
    assert!(read_to_end(socket).await == sent);
}

#[tokio::test]
async fn a_port_is_listened_on_for_both_families_where_there_are_two() {
    let (client, _keys, mut offers) = connect_and_listen(&server()).await;
    for address in ["", "localhost"] {
        let port = client.tcpip_forward(address, 0).await.unwrap();
        for host in ["127.0.0.1", "::1"] {
            if TcpListener::bind((host, 0)).await.is_err() {
                continue;
            }
            let socket = TcpStream::connect((host, u16::try_from(port).unwrap())).await.unwrap();
            let (what, channel) = accept(&mut offers).await;
            assert_eq!(what, format!("{address}:{port} from {host}"));
            exchange(socket, channel).await;
        }
    }
}

#[tokio::test]
async fn a_port_that_cannot_be_had_is_refused_and_the_connection_goes_on() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = u32::from(taken.local_addr().unwrap().port());
    let (client, _) = connect(&server()).await;
    assert!(client.tcpip_forward("127.0.0.1", port).await.is_err(), "another has it");
    assert!(client.tcpip_forward("127.0.0.1", 70_000).await.is_err());
    assert!(client.tcpip_forward("192.0.2.1", 0).await.is_err(), "not an address of this machine");
    let own = client.tcpip_forward("127.0.0.1", 0).await.unwrap();
    assert!(client.tcpip_forward("127.0.0.1", own).await.is_err(), "it has it already");
    still_works(&client).await;
}

#[tokio::test]
async fn a_client_that_refuses_closes_the_connection_and_nothing_else() {
    let (client, _keys, mut offers) = connect_and_listen(&server()).await;
    let port = u16::try_from(client.tcpip_forward("127.0.0.1", 0).await.unwrap()).unwrap();
    let refused = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    within(offers.recv()).await.unwrap().reply.reject(ChannelOpenFailure::ConnectFailed).await;
    assert_eq!(read_to_end(refused).await, b"");
    let socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    exchange(socket, accept(&mut offers).await.1).await;
}

#[tokio::test]
async fn what_a_connection_listens_on_ends_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let (client, _keys, mut offers) = connect_and_listen(&server()).await;
    let port = u16::try_from(client.tcpip_forward("127.0.0.1", 0).await.unwrap()).unwrap();
    client.streamlocal_forward(path.to_str().unwrap()).await.unwrap();
    let carried = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (_, channel) = accept(&mut offers).await;
    let waiting = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let offered = within(offers.recv()).await.unwrap();
    drop((client, channel, offered));
    assert_eq!(read_to_end(carried).await, b"");
    assert_eq!(read_to_end(waiting).await, b"");
    within(async { while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {} }).await;
    gone(&path).await;
}

#[tokio::test]
async fn a_unix_socket_of_the_workspace_leads_to_the_client() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made/socket");
    let name = path.to_str().unwrap();
    let (client, _keys, mut offers) = connect_and_listen(&server()).await;
    client.streamlocal_forward(name).await.unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(path.parent().unwrap()), mode(&path)), (0o700, 0o600), "for this user alone");
    let socket = UnixStream::connect(&path).await.unwrap();
    let (what, channel) = accept(&mut offers).await;
    assert_eq!(what, name);
    exchange(socket, channel).await;

    assert!(client.streamlocal_forward(name).await.is_err(), "it has it already");
    client.cancel_streamlocal_forward(name).await.unwrap();
    gone(&path).await;
    assert!(client.cancel_streamlocal_forward(name).await.is_err());
}

#[tokio::test]
async fn a_left_socket_is_replaced_and_another_file_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let (left, file) = (folder.path().join("left"), folder.path().join("file"));
    drop(UnixListener::bind(&left).unwrap());
    fs::write(&file, "mine").unwrap();
    let (client, _keys, mut offers) = connect_and_listen(&server()).await;
    client.streamlocal_forward(left.to_str().unwrap()).await.unwrap();
    let socket = UnixStream::connect(&left).await.unwrap();
    exchange(socket, accept(&mut offers).await.1).await;
    assert!(client.streamlocal_forward(file.to_str().unwrap()).await.is_err());
    assert!(client.streamlocal_forward("").await.is_err());
    assert!(client.streamlocal_forward(format!("/tmp/{}", "x".repeat(200))).await.is_err(), "longer than a socket's name");
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    still_works(&client).await;
}

#[tokio::test]
async fn the_client_reaches_a_unix_socket_of_the_workspace() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let server = server();
    let (client, _) = connect(&server).await;
    let channel = client.channel_open_direct_streamlocal(path.to_str().unwrap()).await.unwrap();
    let (socket, _) = listener.accept().await.unwrap();
    exchange(socket, channel).await;
    assert_eq!(server.counters().forwards, 1);
    for missing in [folder.path().join("missing"), folder.path().to_owned()] {
        let opened = client.channel_open_direct_streamlocal(missing.to_str().unwrap()).await;
        let Err(russh::Error::ChannelOpenFailure(failure)) = opened else { panic!("opened") };
        assert!(matches!(failure, ChannelOpenFailure::ConnectFailed), "{failure:?}");
    }
}

#[tokio::test]
async fn a_session_that_asks_finds_the_clients_key_agent() {
    let (client, _keys, mut offers) = connect_and_listen(&server()).await;
    let ask = async |ask: bool| {
        let mut channel = client.channel_open_session().await.unwrap();
        if ask {
            channel.agent_forward(true).await.unwrap();
        }
        channel.exec(true, "echo \"$SSH_AUTH_SOCK\"").await.unwrap();
        let seen = to_the_end(&mut channel).await;
        assert!(seen.replies.iter().all(|r| *r), "{seen:?}");
        seen.text().trim().to_owned()
    };
    let path = ask(true).await;
    let folder = Path::new(&path).parent().unwrap().to_owned();
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(ask(true).await, path, "one for the whole connection");
    assert_ne!(ask(false).await, path, "and only for those that ask");
    for _ in 0..2 {
        let socket = UnixStream::connect(&path).await.unwrap();
        let (what, channel) = accept(&mut offers).await;
        assert_eq!(what, "key agent");
        exchange(socket, channel).await;
    }
    drop(client);
    gone(&folder).await;
}

#[tokio::test]
async fn a_session_has_one_display_and_those_count_among_the_sockets_of_their_connection() {
    if std::process::Command::new("xauth").arg("-V").output().is_err() {
        return println!("skipped: no xauth on this machine");
    }
    let folder = tempfile::tempdir().unwrap();
    let variables = [("XAUTHORITY".to_owned(), folder.path().join("cookies").to_str().unwrap().to_owned())].into();
    let server = Server::new(Profile { variables, ..Profile::default() });
    let (client, _) = connect(&server).await;
    let ask = async |channel: &mut Channel<client::Msg>| {
        channel.request_x11(true, false, "MIT-MAGIC-COOKIE-1", "00112233445566778899aabbccddeeff", 0).await.unwrap();
        matches!(within(channel.wait()).await, Some(ChannelMsg::Success))
    };
    let mut one = client.channel_open_session().await.unwrap();
    assert!(ask(&mut one).await);
    assert!(!ask(&mut one).await, "a second one would be nobody's");
    for _ in 1..MAX_LISTENERS {
        client.tcpip_forward("127.0.0.1", 0).await.unwrap();
    }
    assert!(client.tcpip_forward("127.0.0.1", 0).await.is_err(), "the display is one of them");
    let mut two = client.channel_open_session().await.unwrap();
    assert!(!ask(&mut two).await);
    one.exec(true, "echo $DISPLAY").await.unwrap();
    assert!(to_the_end(&mut one).await.text().starts_with("localhost:"));
    client.tcpip_forward("127.0.0.1", 0).await.unwrap();
}
