//! The relay map as the control plane carries it (`coordination.md` §7.1).

use super::{HostIp, MapError, Region, RelayMap, RelayNode};
use crate::{base::RegionId, wire::coord::tailnet};
use std::collections::BTreeMap;

impl From<&RelayMap> for tailnet::DerpMap {
    fn from(map: &RelayMap) -> Self {
        let score = map.home_scores.iter().map(|(id, score)| (i64::from(id.get()), *score)).collect();
        let regions = map.regions.iter().map(|(id, region)| (i64::from(id.get()), write_region(*id, region))).collect();
        Self { home_params: Some(tailnet::HomeParams { region_score: score }), regions }
    }
}

fn write_region(id: RegionId, region: &Region) -> tailnet::Region {
    tailnet::Region {
        region_id: id.get().into(),
        embedded_relay: region.embedded,
        region_code: region.code.clone(),
        region_name: region.name.clone(),
        avoid: region.avoid,
        nodes: region.nodes.iter().map(|node| write_node(id, node)).collect(),
    }
}

fn write_node(id: RegionId, node: &RelayNode) -> tailnet::RelayNode {
    tailnet::RelayNode {
        name: node.name.clone(),
        region_id: id.get().into(),
        host_name: node.host.clone(),
        cert_name: node.cert_name.clone(),
        ipv4: node.ipv4.to_text(),
        ipv6: node.ipv6.to_text(),
        stun_port: node.stun_port_number(),
        stun_only: node.stun_only,
        derp_port: node.relay_port_number(),
        insecure_for_tests: node.insecure,
        force_http: node.plain_http,
        stun_test_ip: node.stun_ip.map(|ip| ip.to_string()).unwrap_or_default(),
        can_port_80: node.can_port_80,
    }
}

impl TryFrom<&tailnet::DerpMap> for RelayMap {
    type Error = MapError;

    fn try_from(map: &tailnet::DerpMap) -> Result<Self, MapError> {
        let scores = map.home_params.iter().flat_map(|params| &params.region_score);
        // JSON has no other numbers, and they mean nothing.
        let scores = scores.filter(|(_, score)| score.is_finite());
        Ok(Self {
            regions: map
                .regions
                .iter()
                .map(|(id, region)| Ok((RegionId::try_from(*id)?, read_region(region)?)))
                .collect::<Result<_, MapError>>()?,
            home_scores: scores
                .map(|(id, score)| Ok((RegionId::try_from(*id)?, *score)))
                .collect::<Result<BTreeMap<_, _>, MapError>>()?,
        })
    }
}

fn read_region(region: &tailnet::Region) -> Result<Region, MapError> {
    Ok(Region {
        code: region.region_code.clone(),
        name: region.region_name.clone(),
        embedded: region.embedded_relay,
        avoid: region.avoid,
        nodes: region.nodes.iter().map(read_node).collect::<Result<_, _>>()?,
    })
}

fn read_node(node: &tailnet::RelayNode) -> Result<RelayNode, MapError> {
    Ok(RelayNode {
        name: node.name.clone(),
        host: node.host_name.clone(),
        cert_name: node.cert_name.clone(),
        ipv4: HostIp::parse(&node.ipv4),
        ipv6: HostIp::parse(&node.ipv6),
        stun_port: RelayNode::stun_port_from(node.stun_port.into())?,
        stun_only: node.stun_only,
        relay_port: RelayNode::relay_port_from(node.derp_port.into())?,
        insecure: node.insecure_for_tests,
        plain_http: node.force_http,
        stun_ip: node.stun_test_ip.parse().ok(),
        can_port_80: node.can_port_80,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;
    use serde_json::Value;

    #[test]
    fn messages_and_json_of_go_give_the_same_map_and_go_back() {
        let v: Value = serde_json::from_str(include_str!("../../../tests/vectors/wire/proto-conversions.json")).unwrap();
        let mut seen = 0;
        for pair in v["pairs"].as_array().unwrap() {
            if pair["message"] != "coder.tailnet.v2.DERPMap" {
                continue;
            }
            let bytes = hex::decode(pair["hex"].as_str().unwrap()).unwrap();
            let message = tailnet::DerpMap::decode(bytes.as_slice()).unwrap();
            let map = RelayMap::try_from(&message).unwrap();
            assert_eq!(RelayMap::from_json(&pair["json"]), Ok(map.clone()), "{}", pair["name"]);
            assert_eq!(RelayMap::from_json(&map.to_json()), Ok(map.clone()), "{}", pair["name"]);
            assert_eq!(RelayMap::try_from(&tailnet::DerpMap::from(&map)), Ok(map.clone()), "{}", pair["name"]);
            // Where Go has no choice of spelling, ours is the same to the byte.
            if ["DERP map: embedded relay only", "DERP map: relay and one STUN region"].contains(&pair["name"].as_str().unwrap())
            {
                assert_eq!(tailnet::DerpMap::from(&map), message);
                assert_eq!(map.to_json(), pair["json"]);
            }
            seen += 1;
        }
        assert!(seen >= 4);
    }

    #[test]
    fn a_message_with_an_impossible_region_or_port_is_refused() {
        let mut message = tailnet::DerpMap::default();
        message.regions.insert(0, tailnet::Region::default());
        assert!(RelayMap::try_from(&message).is_err());
        let node = tailnet::RelayNode { derp_port: 70_000, ..Default::default() };
        message.regions = [(1, tailnet::Region { nodes: vec![node], ..Default::default() })].into();
        assert!(RelayMap::try_from(&message).is_err());
    }
}
