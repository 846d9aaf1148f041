//! What an agent tells of itself by HTTP within the tunnel (`agent.md` §5.3).

use super::connect::Tunnel;
use std::{net::SocketAddrV6, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

/// The agent's HTTP server.
const API_PORT: u16 = 4;
/// Largest answer: the end of a log of 1 MiB, and its head.
const MAX_ANSWER: u64 = 2 << 20;

/// The body of the agent's answer to `GET path`, within `limit`.
///
/// # Errors
/// When the agent does not answer in time or with another status than 200.
///
/// # Cancel safety
/// Dropping the future abandons the call.
pub(super) async fn get(tunnel: &Tunnel, path: &str, limit: Duration) -> anyhow::Result<Vec<u8>> {
    let whole = async {
        let to = SocketAddrV6::new(tunnel.address, API_PORT, 0, 0);
        let mut stream = tunnel.tailnet.dial_tcp_within(to, limit).await?;
        // HTTP/1.0 has no chunks and ends with its answer.
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: agent\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
        body(answer)
    };
    let answer = timeout(limit, whole).await;
    answer.unwrap_or_else(|_| anyhow::bail!("the agent did not answer to GET {path} within {} s", limit.as_secs()))
}

/// What stands behind the head of an answer that is none of an error.
fn body(mut answer: Vec<u8>) -> anyhow::Result<Vec<u8>> {
    const END: &[u8] = b"\r\n\r\n";
    let at = answer.windows(END.len()).position(|window| window == END);
    let at = at.ok_or_else(|| anyhow::anyhow!("the agent's answer is no HTTP"))?;
    let head = String::from_utf8_lossy(answer.get(..at).unwrap_or_default()).into_owned();
    let status = head.split(' ').nth(1).unwrap_or_default();
    answer.drain(..at + END.len());
    if status != "200" {
        let text = String::from_utf8_lossy(&answer);
        let line: String = text.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).take(200).collect();
        anyhow::bail!("the agent answered with status {status:?}: {line}");
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_of_a_good_answer_counts_and_any_other_is_told() {
        assert_eq!(body(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n{}\r\n\r\n".to_vec()).unwrap(), b"{}\r\n\r\n");
        assert_eq!(body(b"HTTP/1.0 200 OK\r\n\r\n".to_vec()).unwrap(), b"");
        let refused = body(b"HTTP/1.1 404 Not Found\r\n\r\nno \x1blog\nhere".to_vec()).unwrap_err().to_string();
        assert_eq!(refused, "the agent answered with status \"404\": no log");
        for broken in [&b""[..], b"HTTP/1.1 200 OK\r\nA: b\r\n", b"SSH-2.0-x\r\n\r\n"] {
            assert!(body(broken.to_vec()).is_err(), "{broken:?}");
        }
    }
}
