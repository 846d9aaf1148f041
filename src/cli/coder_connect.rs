//! `coder connect exists`: whether Coder Connect, the VPN of Coder's desktop program, serves a host name on this machine.
//!
//! OpenSSH asks so for every connection to a workspace (`Match … exec` of `config-ssh`): then it needs no ProxyCommand.

use super::args::ConnectCommand;
use crate::{base::CODER_PREFIX, driver::dns};
use std::{net::IpAddr, time::Duration};

/// How long the system's resolver may take. Coder Connect answers on this machine; whoever is slower is not it.
const LIMIT: Duration = Duration::from_secs(1);

pub(super) async fn run(command: &ConnectCommand) -> anyhow::Result<u8> {
    let ConnectCommand::Exists { host } = command;
    let found = dns::ask_platform(host, LIMIT).await.unwrap_or_default();
    Ok(u8::from(!found.into_iter().any(is_coder_connect)))
}

/// Whether an address is one of those that Coder Connect gives to workspaces.
fn is_coder_connect(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.octets().starts_with(&CODER_PREFIX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_workspaces_are_coder_connects() {
        assert!(is_coder_connect("fd60:627a:a42b::53".parse().unwrap()));
        for other in ["fd7a:115c:a1e0::1", "fd60:627a:a42c::53", "::1", "127.0.0.1", "::ffff:127.0.0.1"] {
            assert!(!is_coder_connect(other.parse().unwrap()), "{other}");
        }
    }
}
