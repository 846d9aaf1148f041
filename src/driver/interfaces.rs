//! The network interfaces of this host, for people who look for a fault.

use std::{collections::BTreeMap, io};

/// An interface that is up and has an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    /// What the system calls it.
    pub(crate) name: String,
    /// Largest packet, where the system tells it.
    pub(crate) mtu: Option<u32>,
    /// Its addresses with the lengths of their prefixes: `192.0.2.7/24`.
    pub(crate) addresses: Vec<String>,
}

/// All of them, in the system's order.
///
/// # Errors
/// When the system does not list them.
pub(crate) fn list() -> io::Result<Vec<Interface>> {
    let mut found: Vec<Interface> = Vec::new();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for entry in if_addrs::get_if_addrs()? {
        if !entry.is_oper_up() && !entry.is_loopback() {
            continue;
        }
        let at = *places.entry(entry.name.clone()).or_insert_with(|| {
            found.push(Interface { name: entry.name.clone(), mtu: mtu(&entry.name), addresses: Vec::new() });
            found.len() - 1
        });
        let length = match &entry.addr {
            if_addrs::IfAddr::V4(v4) => v4.prefixlen,
            if_addrs::IfAddr::V6(v6) => v6.prefixlen,
        };
        if let Some(interface) = found.get_mut(at) {
            interface.addresses.push(format!("{}/{length}", entry.ip()));
        }
    }
    Ok(found)
}

/// Linux tells it in a file; elsewhere it would take a system call without a safe wrapper.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn mtu(name: &str) -> Option<u32> {
    std::fs::read_to_string(format!("/sys/class/net/{name}/mtu")).ok()?.trim().parse().ok()
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
const fn mtu(_: &str) -> Option<u32> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn loopback_is_listed_with_its_mtu_and_prefix() {
        let all = list().unwrap();
        let loopback = all.iter().find(|i| i.name == "lo").unwrap();
        assert!(loopback.mtu.unwrap() >= 1_280 && loopback.addresses.contains(&"127.0.0.1/8".to_owned()), "{loopback:?}");
    }
}
