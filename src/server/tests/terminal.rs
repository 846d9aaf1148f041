//! What the server does through its own node: web terminals and questions to agents. The agent is a node of few lines.

use super::{
    tunnel::{agent, http},
    *,
};
use crate::{
    driver::websocket::Message,
    net::{Incoming, Tailnet},
    wire::pty::{Opening, Request, Requests, Size},
};
use serde_json::json;

const ID: &str = "11111111-2222-4333-8444-555555555555";

/// Serves each connection to a port.
async fn on_port<F: Future<Output = ()> + Send + 'static>(
    agent: &Tailnet,
    port: u16,
    serve: impl Fn(Incoming) -> F + Send + 'static,
) {
    let mut listener = agent.listen_tcp(port).await.unwrap();
    tokio::spawn(async move {
        while let Ok(incoming) = listener.accept().await {
            tokio::spawn(serve(incoming));
        }
    });
}

/// A terminal that says what it was asked for, then each request, and ends at `bye`.
async fn terminal(incoming: Incoming) {
    let mut stream = incoming.accept().await.unwrap();
    let mut bytes = Vec::new();
    let (opening, used) = loop {
        if let Some(opening) = Opening::parse(&bytes).unwrap() {
            break opening;
        }
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0);
    };
    stream.write_all(format!("{} {:?} {:?};", opening.id, opening.command, opening.size).as_bytes()).await.unwrap();
    let mut requests = Requests::new();
    requests.push(&bytes[used..]);
    loop {
        while let Some(request) = requests.read().unwrap() {
            if request.data == "bye" {
                return;
            }
            let size = request.size;
            stream.write_all(format!("{:?} {}x{};", request.data, size.height, size.width).as_bytes()).await.unwrap();
        }
        let mut more = [0; 1024];
        match stream.read(&mut more).await {
            Ok(n) if n > 0 => requests.push(&more[..n]),
            _ => return,
        }
    }
}

#[tokio::test]
async fn a_web_terminal_carries_both_directions_and_ends_with_the_command() {
    let world = World::new().await;
    let agent = agent(&world).await;
    on_port(&agent, 2, terminal).await;
    let path = format!("/api/v2/workspaceagents/{}/pty?reconnect={ID}&width=100&height=30&command=echo+hi", world.agent.id);
    let mut socket = http(&world, &world.admin).websocket(&path, None).await.unwrap();
    let mut shown = Vec::new();
    let size = Size { height: 24, width: 80 };
    for request in [
        Request { data: "ls\r".into(), ..Request::default() },
        Request { size, ..Request::default() },
        Request { data: "bye".into(), ..Request::default() },
    ] {
        socket.send_binary(request.write()).await.unwrap();
    }
    let code = loop {
        match timeout(LIMIT, socket.next()).await.expect("the terminal is silent").unwrap().unwrap() {
            Message::Binary(bytes) => shown.extend_from_slice(&bytes),
            Message::Close { code, .. } => break code,
            other => assert_eq!(other, Message::Ping),
        }
    };
    let shown = String::from_utf8(shown).unwrap();
    assert_eq!(shown, format!("{ID} \"echo hi\" Size {{ height: 30, width: 100 }};\"ls\\r\" 0x0;\"\" 24x80;"));
    assert_eq!(code, 1000);
    agent.close().await;
}

#[tokio::test]
async fn a_stop_or_a_deletion_ends_a_web_terminal_with_the_reason() {
    for (transition, told) in [("stop", "the workspace was stopped"), ("delete", "the workspace was deleted")] {
        let world = World::new().await;
        let agent = agent(&world).await;
        on_port(&agent, 2, terminal).await;
        let path = format!("/api/v2/workspaceagents/{}/pty?reconnect={ID}", world.agent.id);
        let mut socket = http(&world, &world.admin).websocket(&path, None).await.unwrap();
        let mut begun = false;
        let closed = loop {
            match timeout(2 * LIMIT, socket.next()).await.expect("the terminal goes on").unwrap().unwrap() {
                Message::Binary(_) if !begun => {
                    begun = true;
                    let builds = format!("/api/v2/workspaces/{}/builds", world.workspace.id);
                    assert_eq!(world.post(&builds, &json!({ "transition": transition }).to_string()).await.status, 201);
                }
                Message::Close { code, reason } => break (begun, code, reason),
                _ => {}
            }
        };
        assert_eq!(closed, (true, 1001, told.to_owned()));
        agent.close().await;
    }
}

#[tokio::test]
async fn text_on_a_web_terminal_and_a_refusing_agent_are_told_by_their_close_codes() {
    let world = World::new().await;
    let agent = agent(&world).await;
    let path = format!("/api/v2/workspaceagents/{}/pty?reconnect={ID}", world.agent.id);
    let close = async |text: Option<&str>| {
        let mut socket = http(&world, &world.admin).websocket(&path, None).await.unwrap();
        if let Some(text) = text {
            socket.send_text(text.to_owned()).await.unwrap();
        }
        loop {
            let message = timeout(3 * LIMIT, socket.next()).await.expect("no close").unwrap().unwrap();
            if let Message::Close { code, reason } = message {
                return (code, reason);
            }
        }
    };
    // Nobody listens on its port 2 yet.
    let (code, reason) = close(None).await;
    assert!(code == 1011 && reason.starts_with("dial workspace agent: "), "{code} {reason}");
    on_port(&agent, 2, terminal).await;
    assert_eq!(close(Some("ls")).await.0, 1003);
    agent.close().await;
}

#[tokio::test]
async fn a_terminal_of_an_agent_that_is_not_connected_or_not_ones_own_is_refused() {
    let world = World::new().await;
    let path = format!("/api/v2/workspaceagents/{}/pty?reconnect={ID}", world.agent.id);
    let ask = async |token: &str, path: &str| call(world.address(), "GET", path, &handshake(Some(token)), None).await;
    let refused = ask(&world.admin, &path).await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.json()["message"], "Agent state is \"connecting\", it must be in the \"connected\" state.");
    assert_eq!(ask(&world.bob, &path).await.status, 404);
    let without = ask(&world.admin, path.split('?').next().unwrap()).await;
    assert_eq!((without.status, &without.json()["validations"][0]["field"]), (400, &json!("reconnect")));
    assert!(!world.running.app.tunnels().has_node().await, "nobody was dialled");
}

/// Answers each request with the same ports.
async fn ports(incoming: Incoming) {
    let mut stream = incoming.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        assert!(stream.read_buf(&mut head).await.unwrap() > 0);
    }
    assert!(head.starts_with(b"GET /api/v0/listening-ports HTTP/1.1\r\n"), "{}", String::from_utf8_lossy(&head));
    let port = |port: u16| json!({ "process_name": "x", "network": "tcp", "port": port });
    let body = json!({ "ports": [port(22), port(3000), port(5432)] }).to_string();
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    stream.write_all(answer.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
}

#[tokio::test]
async fn an_agents_ports_are_asked_for_and_a_node_that_nobody_uses_ends() {
    let world = World::new().await;
    let path = format!("/api/v2/workspaceagents/{}/listening-ports", world.agent.id);
    assert_eq!(world.get(&path).await.status, 400);
    let agent = agent(&world).await;
    on_port(&agent, 4, ports).await;
    for _ in 0..2 {
        let answer = world.get(&path).await;
        assert_eq!(answer.json(), json!({ "ports": [{ "process_name": "x", "network": "tcp", "port": 3000 }] }));
    }
    let containers = world.get(&format!("/api/v2/workspaceagents/{}/containers", world.agent.id)).await;
    assert_eq!(containers.status, 403);
    let tunnels = world.running.app.tunnels();
    assert!(tunnels.has_node().await);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(31 * 60)).await;
    tokio::time::resume();
    let ended = async {
        while tunnels.has_node().await {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, ended).await.expect("the server's node goes on");
    agent.close().await;
}
