//! Where a node's packets leave: UDP batches and relay buffers, sealed in place.

use crate::{
    base::{Lane, RegionId},
    driver::{relay::Link, sockets::Sockets},
    proto::node::SendSpace,
};
use std::collections::BTreeMap;

/// The send side of one node.
pub(super) struct Lanes {
    pub(super) sockets: Sockets,
    pub(super) relays: BTreeMap<RegionId, Link>,
    /// What is written for a region that is not open leads here.
    nowhere: Vec<u8>,
}

impl Lanes {
    pub(super) const fn new(sockets: Sockets) -> Self {
        Self { sockets, relays: BTreeMap::new(), nowhere: Vec::new() }
    }

    /// Hands everything to the kernel and to the relay connections.
    pub(super) fn flush(&mut self) {
        self.sockets.flush();
        for link in self.relays.values_mut() {
            link.lane.flush();
        }
    }
}

impl SendSpace for Lanes {
    fn room(&self, lane: &Lane, len: usize) -> bool {
        match lane {
            Lane::Udp { to, .. } => self.sockets.room(to, len),
            Lane::Relay { region, .. } => self.relays.get(region).is_some_and(|link| link.lane.room(len)),
        }
    }

    fn slot(&mut self, lane: &Lane, len: usize) -> &mut [u8] {
        match lane {
            Lane::Udp { to, .. } => self.sockets.slot(*to, len),
            Lane::Relay { region, to } => match self.relays.get_mut(region) {
                Some(link) => link.lane.slot(to, len),
                None => {
                    self.nowhere.resize(len, 0);
                    &mut self.nowhere
                }
            },
        }
    }

    fn commit(&mut self, lane: &Lane, used: usize) {
        match lane {
            Lane::Udp { to, .. } => self.sockets.commit(to, used),
            Lane::Relay { region, .. } => {
                if let Some(link) = self.relays.get_mut(region) {
                    link.lane.commit(used);
                }
            }
        }
    }
}
