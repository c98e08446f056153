// SPDX-License-Identifier: Apache-2.0
//! Path MTU discovery of real sockets under policies that deny all else: a router on the way takes smaller packets than
//! the ends do, and says so.
//!
//! ```text
//!   pod -- node -- outside, which routes -- 1300 bytes -- far 198.51.100.2, 2001:db8:1::2
//! ```

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::support::output;
use crate::wire::{Cluster, Family, PORT, Plugin, connection, inside, listener, on_a_cluster, run, set};

const MTU: u32 = 1300;
/// Many packets of any size.
const TRANSFER: usize = 4 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

/// Everything is denied but the pod's own connections to the far machine.
const ONLY_FAR: &str = "{podSelector: {}, policyTypes: [Ingress, Egress], egress: [{
    to: [{ipBlock: {cidr: 198.51.100.2/32}}, {ipBlock: {cidr: '2001:db8:1::2/128'}}], ports: [{port: 7000}]}]}";

/// 1: the router's address there; 2: the far machine.
fn far(family: Family, host: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(198, 51, 100, host).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, host.into()).into(),
    }
}

fn front(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 96, 0, 20).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x20).into(),
    }
}

fn join_far() {
    run("ip", "netns add far");
    run("ip", "-n outside link add far0 type veth peer name eth0 netns far");
    inside("outside", || {
        set("net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    });
    for (at, device, host) in [("outside", "far0", 1), ("far", "eth0", 2)] {
        run("ip", &format!("-n {at} link set {device} up"));
        for (family, bits) in [(Family::V4, 24), (Family::V6, 64)] {
            let address = far(family, host);
            let nodad = if family == Family::V6 { "nodad" } else { "" };
            run("ip", &format!("-n {at} addr add {address}/{bits} dev {device} {nodad}"));
        }
    }
    for family in Family::BOTH {
        let (network, next) = (far(family, 2), family.outside(2));
        run("ip", &format!("route add {network} via {next}"));
        run("ip", &format!("-n far route add default via {}", far(family, 1)));
    }
    // The router's side only: the far machine offers to take whole segments, and says nothing of the way.
    run("ip", &format!("-n outside link set far0 mtu {MTU}"));
}

/// A Service of which the far machine is the backend.
fn serve(cluster: &mut Cluster) {
    let [v4, v6] = Family::BOTH.map(front);
    cluster.service(
        "far",
        &format!("{{spec: {{clusterIPs: [{v4}, '{v6}'], ports: [{{port: 80}}]}}}}"),
    );
    for (family, address_type) in [(Family::V4, "IPv4"), (Family::V6, "IPv6")] {
        let slice = format!(
            "{{metadata: {{labels: {{kubernetes.io/service-name: far}}}}, addressType: {address_type},
              ports: [{{port: {PORT}}}], endpoints: [{{addresses: ['{}']}}]}}",
            far(family, 2)
        );
        cluster.slice(&format!("far-{address_type}"), &slice);
    }
}

/// Until the far end has read it all.
fn send(mut near: TcpStream, mut far: TcpStream) {
    far.set_read_timeout(Some(PATIENCE)).unwrap();
    near.set_write_timeout(Some(PATIENCE)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || near.write_all(&vec![0xda; TRANSFER]).unwrap());
        let mut got = Vec::new();
        far.read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), TRANSFER);
    });
}

/// What the pod has learnt of the way to an address.
fn route(pod: &str, to: IpAddr) -> String {
    output("ip", &["-n", pod, "route", "get", &to.to_string()])
}

fn is_discovered(plugin: Plugin) {
    on_a_cluster(plugin, |cluster| {
        join_far();
        cluster.pod("client", 2);
        cluster.policy("only-far", ONLY_FAR);
        serve(cluster);
        cluster.apply();
        let listener = listener("far");
        for family in Family::BOTH {
            for to in [
                SocketAddr::new(far(family, 2), PORT),
                SocketAddr::new(front(family), 80),
            ] {
                let before = route("client", to.ip());
                assert!(!before.contains("mtu"), "{to}: {before}");
                let (near, far) = connection("client", &listener, to);
                send(near, far);
                let after = route("client", to.ip());
                assert!(after.contains(&format!("mtu {MTU}")), "{to}: {after}");
            }
        }
    });
}

#[test]
fn the_mtu_of_the_path_is_discovered_under_deny_all_on_routed_links() {
    is_discovered(Plugin::Ptp);
}

#[test]
fn the_mtu_of_the_path_is_discovered_under_deny_all_on_a_bridge() {
    is_discovered(Plugin::Bridge);
}
