//! Who may hold how many of the server's connections.
//!
//! One source gets half of all places at most: a proxy in front has plenty, and nobody alone can shut the others out. The
//! relay, which asks for no token, gets three quarters: the rest stays with the API.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections at once: each costs a file and about 10 KiB.
const MAX_CONNECTIONS: usize = 8192;
/// Files that the server keeps for other things than connections.
const OTHER_FILES: usize = 64;

/// The places of one server.
#[derive(Debug)]
pub(crate) struct Places {
    all: Arc<Semaphore>,
    relay: Arc<Semaphore>,
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
    per_source: usize,
}

impl Places {
    /// Places for so many connections.
    pub(crate) fn new(total: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(total)),
            relay: Arc::new(Semaphore::new((total - total / 4).max(1))),
            taken: Arc::default(),
            per_source: (total / 2).max(1),
        }
    }

    /// As many as this process may have files open for.
    pub(crate) fn as_many_as_files() -> Self {
        #[cfg(unix)]
        if let Some(files) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
            let files = usize::try_from(files).unwrap_or(usize::MAX);
            return Self::new(files.saturating_sub(OTHER_FILES).clamp(1, MAX_CONNECTIONS));
        }
        Self::new(MAX_CONNECTIONS)
    }

    /// Waits until a place is free.
    ///
    /// # Cancel safety
    /// Nothing is held when the future is dropped.
    pub(crate) async fn free(&self) -> Option<FreePlace> {
        let permit = Arc::clone(&self.all).acquire_owned().await.ok()?;
        Some(FreePlace { permit, taken: Arc::clone(&self.taken), per_source: self.per_source })
    }

    /// A place at the relay; `None` when all are taken.
    pub(crate) fn at_relay(&self) -> Option<RelayPlace> {
        Some(RelayPlace { _permit: Arc::clone(&self.relay).try_acquire_owned().ok()? })
    }
}

/// A place for whoever comes next.
#[derive(Debug)]
pub(crate) struct FreePlace {
    permit: OwnedSemaphorePermit,
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
    per_source: usize,
}

impl FreePlace {
    /// Gives it to a connection from `address`; `None` when that source holds as many as one may.
    pub(crate) fn give(self, address: IpAddr) -> Option<Place> {
        let source = source(address);
        {
            let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            let held = taken.entry(source).or_default();
            if *held >= self.per_source {
                return None;
            }
            *held += 1;
        }
        Some(Place { _permit: self.permit, taken: self.taken, source })
    }
}

/// A connection's place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
    source: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = taken.get_mut(&self.source) {
            *held -= 1;
            if *held == 0 {
                taken.remove(&self.source);
            }
        }
    }
}

/// A connection's place at the relay, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct RelayPlace {
    _permit: OwnedSemaphorePermit,
}

/// Who stands behind an address: an IPv6 subscriber has a whole /64.
pub(super) fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
        ip @ IpAddr::V4(_) => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn take(places: &Places, address: &str) -> Option<Place> {
        places.free().await.unwrap().give(address.parse().unwrap())
    }

    #[tokio::test]
    async fn one_source_gets_half_of_the_places_and_others_the_rest() {
        let places = Places::new(8);
        let mut held = Vec::new();
        for n in 0..4 {
            // The addresses of one IPv6 network are one source.
            held.push(take(&places, &format!("2001:db8::{n}")).await.unwrap());
        }
        assert!(take(&places, "2001:db8::99").await.is_none());
        for n in 0..4 {
            held.push(take(&places, &format!("192.0.2.{n}")).await.unwrap());
        }
        // None is free for anybody until one leaves, and that one may come again.
        assert_eq!(places.all.available_permits(), 0);
        held.remove(0);
        held.push(take(&places, "2001:db8::99").await.unwrap());
        held.clear();
        assert_eq!(places.all.available_permits(), 8);
        assert!(places.taken.lock().unwrap().is_empty(), "sources that left are forgotten");
    }

    #[tokio::test]
    async fn an_ipv4_client_of_a_dual_stack_socket_is_the_same_source() {
        let places = Places::new(2);
        let _held = take(&places, "::ffff:192.0.2.1").await.unwrap();
        assert!(take(&places, "192.0.2.1").await.is_none());
        assert!(take(&places, "::ffff:192.0.2.2").await.is_some());
    }

    #[test]
    fn the_relay_leaves_a_quarter_of_the_places_to_the_api() {
        let places = Places::new(8);
        let held: Vec<RelayPlace> = std::iter::from_fn(|| places.at_relay()).collect();
        assert_eq!(held.len(), 6);
        drop(held);
        assert!(places.at_relay().is_some());
    }
}
