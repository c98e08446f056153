// SPDX-License-Identifier: Apache-2.0
//! `prevResult`: what the plugins before have done.

use std::net::IpAddr;

use serde_json::{Map, Value};

use crate::config::version_of;
use crate::error::{Code, Error};
use crate::version::Version;

/// Fields that 1.1.0 brought, by list.
const OF_1_1: [(&str, &[&str]); 2] = [
    ("interfaces", &["mtu", "socketPath", "pciID"]),
    ("routes", &["mtu", "advmss", "priority", "table", "scope"]),
];

/// The result of the plugins before.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Previous(Map<String, Value>);

impl Previous {
    /// # Errors
    /// Where there is none: a plugin that is not chained has no interface to guard.
    pub(crate) fn parse(result: Option<Value>) -> Result<Self, Error> {
        match result {
            Some(Value::Object(object)) => Ok(Self(object)),
            Some(_) => Err(invalid("prevResult: no object")),
            None => Err(invalid("prevResult: missing").with_details(
                "wardline-cni guards the interface that another plugin makes: it must not be the first of the \
                 configuration's plugins",
            )),
        }
    }

    /// As an answer of `version`. A result of the same version is answered as it stands.
    pub(crate) fn answer(mut self, version: Version) -> Result<Value, Error> {
        let from = match self.0.get("cniVersion") {
            None => version,
            Some(_) => version_of(&self.0)?,
        };
        if from < Version::V1_0_0 && version >= Version::V1_0_0 {
            each(&mut self.0, "ips", |ip| _ = ip.remove("version"));
        }
        if from >= Version::V1_0_0 && version < Version::V1_0_0 {
            each(&mut self.0, "ips", |ip| {
                if let Some(family) = address_of(ip).map(|address| if address.is_ipv4() { "4" } else { "6" }) {
                    ip.insert("version".into(), family.into());
                }
            });
        }
        if from >= Version::V1_1_0 && version < Version::V1_1_0 {
            for (list, fields) in OF_1_1 {
                each(&mut self.0, list, |item| {
                    item.retain(|field, _| !fields.contains(&field.as_str()));
                });
            }
        }
        self.0.insert("cniVersion".into(), version.as_str().into());
        Ok(Value::Object(self.0))
    }

    /// The addresses of one interface of the pod; one that names no interface is taken for its.
    pub(crate) fn addresses(&self, netns: &str, ifname: &str) -> Result<Vec<IpAddr>, Error> {
        let interfaces = self.list("interfaces");
        let is_its = |ip: &Map<String, Value>| match ip.get("interface").and_then(Value::as_u64) {
            None => true,
            Some(index) => {
                let interface = usize::try_from(index).ok().and_then(|index| interfaces.get(index));
                interface.is_some_and(|found| text(found, "sandbox") == netns && text(found, "name") == ifname)
            }
        };
        let mut found = Vec::new();
        for ip in self.list("ips").into_iter().filter(|ip| is_its(ip)) {
            let address = address_of(ip).ok_or_else(|| invalid("prevResult.ips: an address cannot be read"))?;
            found.push(address);
        }
        if found.is_empty() {
            return Err(invalid(&format!("prevResult.ips: no address of {ifname} in {netns}")));
        }
        Ok(found)
    }

    /// Names of the interfaces on the node's side.
    pub(crate) fn host_interfaces(&self) -> Vec<String> {
        let interfaces = self.list("interfaces").into_iter();
        interfaces
            .filter(|interface| text(interface, "sandbox").is_empty())
            .map(|interface| text(interface, "name").to_owned())
            .filter(|name| !name.is_empty())
            .collect()
    }

    fn list(&self, field: &str) -> Vec<&Map<String, Value>> {
        let list = self.0.get(field).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_object).collect()
    }
}

fn invalid(message: &str) -> Error {
    Error::new(Code::InvalidConfiguration, message)
}

fn each(object: &mut Map<String, Value>, list: &str, change: impl FnMut(&mut Map<String, Value>)) {
    let items = object.get_mut(list).and_then(Value::as_array_mut);
    items
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
        .for_each(change);
}

fn text<'a>(object: &'a Map<String, Value>, field: &str) -> &'a str {
    object.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// `address` is in CIDR notation.
fn address_of(ip: &Map<String, Value>) -> Option<IpAddr> {
    let (address, _) = text(ip, "address").split_once('/')?;
    address.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIDGE: &str = r#"{"cniVersion":"1.1.0",
        "interfaces":[{"name":"cni0","mac":"a","mtu":1500},{"name":"veth1","mac":"b","mtu":1500},
                      {"name":"eth0","mac":"c","mtu":1500,"sandbox":"/run/netns/p"},
                      {"name":"net1","sandbox":"/run/netns/p"}],
        "ips":[{"address":"10.0.0.2/24","gateway":"10.0.0.1","interface":2},{"address":"fd00::2/64","interface":2},
               {"address":"10.9.0.2/24","interface":3},{"address":"10.0.0.1/24","interface":0}],
        "routes":[{"dst":"0.0.0.0/0","mtu":1400}],"dns":{}}"#;

    fn previous(text: &str) -> Previous {
        Previous::parse(Some(serde_json::from_str(text).unwrap())).unwrap()
    }

    #[test]
    fn addresses_and_interfaces_of_the_pod() {
        let found = previous(BRIDGE);
        let expected: Vec<IpAddr> = vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        assert_eq!(found.addresses("/run/netns/p", "eth0").unwrap(), expected);
        assert_eq!(found.host_interfaces(), ["cni0", "veth1"]);
        // A plugin that names no interfaces.
        let bare = previous(r#"{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/32"}]}"#);
        assert_eq!(bare.addresses("/run/netns/p", "eth0").unwrap(), expected[..1]);
        assert!(bare.host_interfaces().is_empty());
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        let no_address = previous(BRIDGE).addresses("/run/netns/p", "eth1").unwrap_err();
        assert_eq!(
            no_address.to_string(),
            "prevResult.ips: no address of eth1 in /run/netns/p"
        );
        let bad = previous(r#"{"ips":[{"address":"10.0.0.2"}]}"#)
            .addresses("/n", "eth0")
            .unwrap_err();
        assert_eq!(bad.to_string(), "prevResult.ips: an address cannot be read");
        assert!(Previous::parse(Some(Value::from(1))).is_err());
        let missing = Previous::parse(None).unwrap_err();
        assert_eq!(missing.code, Code::InvalidConfiguration);
        assert!(missing.to_string().contains("must not be the first"), "{missing}");
    }

    #[test]
    fn the_answer_has_the_shape_of_its_version() {
        for version in Version::ALL {
            let answer = previous(BRIDGE).answer(version).unwrap();
            assert_eq!(answer["cniVersion"], version.as_str());
            let family = (version < Version::V1_0_0).then_some("6");
            assert_eq!(
                answer["ips"][1].get("version").and_then(Value::as_str),
                family,
                "{version}"
            );
            let is_newest = version == Version::V1_1_0;
            assert_eq!(answer["interfaces"][2].get("mtu").is_some(), is_newest, "{version}");
            assert_eq!(answer["routes"][0].get("mtu").is_some(), is_newest, "{version}");
            // And back again: what a version does not know is all that is lost.
            let back = Previous::parse(Some(answer)).unwrap().answer(Version::V1_1_0).unwrap();
            assert_eq!(back["ips"], previous(BRIDGE).0["ips"], "{version}");
        }
        let as_it_stands = previous(BRIDGE).answer(Version::V1_1_0).unwrap();
        assert_eq!(as_it_stands, Value::Object(previous(BRIDGE).0));
        let old = previous(r#"{"cniVersion":"0.2.0"}"#)
            .answer(Version::V1_0_0)
            .unwrap_err();
        assert_eq!(old.code, Code::IncompatibleVersion);
    }
}
