// SPDX-License-Identifier: Apache-2.0
//! A node with real pods: network namespaces joined to it as a CNI plugin joins them, a network outside, the real index
//! and datapath, and sockets that really talk.
//!
//! ```text
//!   outside 192.0.2.2 ----- 192.0.2.1 node -+- ptp: a route and a veth a pod     pods 10.1.0.N, fd00:1::N
//!           2001:db8::2     2001:db8::1     `- bridge: br0 with all the veths    gateway 10.1.0.254, fd00:1::fe
//! ```
//!
//! All of it is in namespaces of the test's own thread, and gone when that ends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod as PodObject;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicySpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use wardline_crds::ServicesMode;
use wardline_crds::config::DaemonConfig;
use wardline_node::datapath::{Applied, Detached, InKernel};
use wardline_node::index::{Event, Index, Logged, LoggingSpec, NamespaceInfo, PodInfo, PolicyInfo, Update};
use wardline_node::interfaces;
use wardline_node::services;
use wardline_policy::convert;
use wardline_policy::model::{Direction, ObjectName, Policy};

use crate::support::{Life, Node, Program, on_a_node};

/// The port that every server listens on.
pub const PORT: u16 = 7000;
/// How long one waits for what should not come.
pub const SILENCE: Duration = Duration::from_millis(250);
/// How long one waits for what should.
const PATIENCE: Duration = Duration::from_secs(5);

const NODE: &str = "node1";
pub const NAMESPACE: &str = "shop";

/// How pods are joined to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plugin {
    Ptp,
    Bridge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub fn pod(self, host: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(10, 1, 0, host).into(),
            Self::V6 => Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, host.into()).into(),
        }
    }

    /// 1: the node's address on the network outside; 2: the machine out there.
    pub fn outside(self, host: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(192, 0, 2, host).into(),
            Self::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, host.into()).into(),
        }
    }

    pub fn nft(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }
}

/// The node's address as its pods see it.
const GATEWAY: u8 = 254;

/// The node and its cluster.
pub struct Cluster<'a> {
    node: &'a Node,
    plugin: Plugin,
    config: DaemonConfig,
    pub index: Index,
    /// None only while another life begins.
    life: Option<Life>,
    /// All that was told, in order: what another life learns.
    told: Vec<Event>,
    generation: i64,
}

/// Runs `test` on a node whose pods are joined by `plugin`.
pub fn on_a_cluster(plugin: Plugin, test: impl FnOnce(&mut Cluster) + Send) {
    with_config(plugin, DaemonConfig::default(), test);
}

pub fn with_config(plugin: Plugin, config: DaemonConfig, test: impl FnOnce(&mut Cluster) + Send) {
    on_a_node(0, |node| {
        std::fs::create_dir_all("/run/netns").unwrap();
        nix::mount::mount(
            Some("tmpfs"),
            "/run/netns",
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
        join_outside(plugin);
        let mut cluster = Cluster {
            node,
            plugin,
            index: index(&config),
            life: Some(node.start(&config)),
            config,
            told: Vec::new(),
            generation: 0,
        };
        cluster.label_namespace(NAMESPACE, "{}");
        cluster.tell(Event::Logging(Update::Set(LoggingSpec {
            generation: 1,
            allow: Logged::All,
            deny: Logged::All,
            deny_events: false,
        })));
        test(&mut cluster);
    });
}

fn index(config: &DaemonConfig) -> Index {
    Index::new(NODE, config.services_mode == ServicesMode::PodEdge)
}

fn join_outside(plugin: Plugin) {
    set("net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.default.accept_dad=0");
    run("ip", "link set lo up");
    run("ip", "netns add outside");
    run("ip", "link add up0 type veth peer name eth0 netns outside");
    for (at, host, device) in [("", 1, "up0"), ("-n outside", 2, "eth0")] {
        run("ip", &format!("{at} link set {device} up"));
        run(
            "ip",
            &format!("{at} addr add {}/24 dev {device}", Family::V4.outside(host)),
        );
        let v6 = Family::V6.outside(host);
        run("ip", &format!("{at} addr add {v6}/64 dev {device} nodad"));
    }
    run(
        "ip",
        &format!("-n outside route add default via {}", Family::V4.outside(1)),
    );
    run(
        "ip",
        &format!("-n outside route add default via {}", Family::V6.outside(1)),
    );
    if plugin == Plugin::Bridge {
        run("ip", "link add br0 type bridge");
        run("ip", "link set br0 up");
        run("ip", &format!("addr add {}/24 dev br0", Family::V4.pod(GATEWAY)));
        run("ip", &format!("addr add {}/64 dev br0 nodad", Family::V6.pod(GATEWAY)));
    }
}

impl Cluster<'_> {
    pub fn tell(&mut self, event: Event) {
        self.told.push(event.clone());
        self.index.apply(event);
    }

    pub fn life(&mut self) -> &mut Life {
        self.life.as_mut().unwrap()
    }

    /// What a control thread is made of, and all that it should be told.
    pub fn hand_over(&mut self) -> (Life, Vec<Event>) {
        (self.life.take().unwrap(), std::mem::take(&mut self.told))
    }

    /// Looks at the node's interfaces, as the daemon does when they change.
    pub fn look(&mut self) {
        self.index.set_interfaces(interfaces::scan().unwrap());
    }

    /// Brings the kernel to what the index was told, as the daemon does after each batch of events.
    #[track_caller]
    pub fn apply(&mut self) -> Applied {
        self.apply_as(false)
    }

    /// As [`Cluster::apply`], with all pods as those whose ADDs wait for it.
    #[track_caller]
    pub fn start(&mut self) {
        self.apply_as(true);
    }

    #[track_caller]
    fn apply_as(&mut self, is_starting: bool) -> Applied {
        for change in self.index.services().take_changes() {
            self.life().datapath.apply_services(&change).unwrap();
        }
        // Fronts of an earlier life that are none any more.
        let services = self.index.services();
        let life = self.life.as_mut().unwrap();
        life.datapath
            .retain_services(|key| services.front(key).is_some())
            .unwrap();
        self.life().departures.sweep().unwrap();
        let mut desired = self.index.desired();
        assert_eq!(desired.unmanaged.len(), 0, "{:?}", desired.unmanaged);
        for spec in desired.endpoints.values_mut() {
            spec.assigned |= is_starting;
        }
        let applied = self.life().apply(&desired);
        assert_eq!(applied.failed.len(), 0, "{:?}", applied.failed);
        applied
    }

    /// Another life of the daemon, with another mode of Services, as a Dataplane that is changed brings it about.
    pub fn restart_with(&mut self, services_mode: ServicesMode) {
        self.config.services_mode = services_mode;
        self.restart();
    }

    /// Another life of the daemon, as after a kill: it learns again all that the cluster says.
    pub fn restart(&mut self) {
        self.life = None;
        self.begin();
    }

    /// As [`Cluster::restart`], of another version: what the former life left lies under the name of another one.
    pub fn restart_as_another_version(&mut self) {
        self.life = None;
        self.node.becomes_another_version();
        self.begin();
    }

    fn begin(&mut self) {
        self.life = Some(self.node.start(&self.config));
        self.index = index(&self.config);
        for (ifindex, spec) in self.life().datapath.inherited() {
            self.index.inherit(ifindex, spec);
        }
        self.look();
        for event in &self.told {
            self.index.apply(event.clone());
        }
    }

    /// The last life ends, and the programs are taken off.
    pub fn leave(&mut self) -> Detached {
        self.life = None;
        InKernel::find(&self.node.bpffs).unwrap().detach().unwrap()
    }

    /// A pod on this node with both addresses, labelled `app: NAME`, and its interface.
    pub fn pod(&mut self, name: &str, host: u8) {
        self.wire(name, host);
        self.look();
        self.tell(pod_event(name, &format!("{{app: {name}}}"), host, NODE, "Running"));
    }

    /// The interface alone, as a CNI plugin makes it.
    pub fn wire(&self, name: &str, host: u8) {
        let veth = format!("v-{name}");
        run("ip", &format!("netns add {name}"));
        inside(name, || set("net.ipv6.conf.default.accept_dad=0"));
        run("ip", &format!("link add {veth} type veth peer name eth0 netns {name}"));
        run("ip", &format!("-n {name} link set lo up"));
        run("ip", &format!("-n {name} link set eth0 up"));
        for family in Family::BOTH {
            let (address, gateway) = (family.pod(host), family.pod(GATEWAY));
            let whole = if family == Family::V4 { 32 } else { 128 };
            let subnet = if family == Family::V4 { 24 } else { 64 };
            if self.plugin == Plugin::Ptp {
                run("ip", &format!("addr add {gateway}/{whole} dev {veth} nodad"));
                run("ip", &format!("-n {name} addr add {address}/{whole} dev eth0 nodad"));
                run("ip", &format!("-n {name} route add {gateway} dev eth0"));
            } else {
                run("ip", &format!("-n {name} addr add {address}/{subnet} dev eth0 nodad"));
            }
        }
        if self.plugin == Plugin::Bridge {
            run("ip", &format!("link set {veth} master br0"));
        }
        run("ip", &format!("link set {veth} up"));
        for family in Family::BOTH {
            let (address, gateway) = (family.pod(host), family.pod(GATEWAY));
            if self.plugin == Plugin::Ptp {
                run("ip", &format!("route add {address} dev {veth}"));
            }
            run("ip", &format!("-n {name} route add default via {gateway}"));
        }
    }

    /// Takes the interface away, as a CNI plugin does when the pod has ended.
    pub fn unwire(name: &str) {
        run("ip", &format!("link del v-{name}"));
        run("ip", &format!("netns del {name}"));
    }

    /// What judges the packets of a pod that is wired.
    pub fn program(&mut self, pod: &str, direction: Direction) -> Program {
        let ifindex = nix::net::if_::if_nametoindex(format!("v-{pod}").as_str()).unwrap();
        self.life().program(ifindex, direction)
    }

    pub fn label_namespace(&mut self, name: &str, labels: &str) {
        let info = NamespaceInfo {
            labels: serde_yaml::from_str(labels).unwrap(),
            log_denies: false,
        };
        self.tell(Event::Namespace(name.into(), Update::Set(info)));
    }

    /// Puts a policy of the namespace in place of what it was; `spec` is YAML.
    pub fn policy(&mut self, name: &str, spec: &str) {
        self.generation += 1;
        let event = policy_event(name, self.generation, spec);
        self.tell(event);
    }

    /// Puts a Service in place of what it was; the manifest is YAML without its name.
    pub fn service(&mut self, name: &str, manifest: &str) {
        let service = services::service(serde_yaml::from_str(manifest).unwrap()).unwrap();
        let event = service.map_or(Update::Gone, Update::Set);
        self.tell(Event::Service(ObjectName::new(NAMESPACE, name), event));
    }

    /// As [`Cluster::service`], for an `EndpointSlice`.
    pub fn slice(&mut self, name: &str, manifest: &str) {
        let slice = services::slice(serde_yaml::from_str(manifest).unwrap()).unwrap();
        let event = slice.map_or(Update::Gone, Update::Set);
        self.tell(Event::Slice(ObjectName::new(NAMESPACE, name), event));
    }

    /// Leaves a Service and its slice out of what another life learns: nobody saw them go.
    pub fn forget_service(&mut self, name: &str) {
        let (service, slice) = (
            ObjectName::new(NAMESPACE, name),
            ObjectName::new(NAMESPACE, format!("{name}-0")),
        );
        self.told.retain(|event| match event {
            Event::Service(told, _) => *told != service,
            Event::Slice(told, _) => *told != slice,
            _ => true,
        });
    }

    pub fn no_policy(&mut self, name: &str) {
        self.tell(Event::Policy(ObjectName::new(NAMESPACE, name), Update::Gone));
    }
}

pub fn pod_event(name: &str, labels: &str, host: u8, node: &str, phase: &str) -> Event {
    let object: PodObject = serde_yaml::from_str(&format!(
        "{{metadata: {{namespace: {NAMESPACE}, name: {name}, labels: {labels}}}, \
           spec: {{nodeName: {node}, containers: []}}, \
           status: {{phase: {phase}, podIPs: [{{ip: '{}'}}, {{ip: '{}'}}]}}}}",
        Family::V4.pod(host),
        Family::V6.pod(host),
    ))
    .unwrap();
    let info = PodInfo {
        uid: format!("uid-of-{name}").into(),
        static_uid: None,
        node: node.into(),
        policy: convert::pod(&object).map(|(_, pod)| Arc::new(pod)),
        host_ports: Vec::new(),
        is_written: true,
        created: 0,
        workload: None,
    };
    Event::Pod(ObjectName::new(NAMESPACE, name), Update::Set(info))
}

pub fn pod_gone(name: &str) -> Event {
    Event::Pod(ObjectName::new(NAMESPACE, name), Update::Gone)
}

pub fn policy_event(name: &str, generation: i64, spec: &str) -> Event {
    let spec: NetworkPolicySpec = serde_yaml::from_str(spec).unwrap();
    let object = NetworkPolicy {
        metadata: ObjectMeta {
            namespace: Some(NAMESPACE.to_owned()),
            name: Some(name.to_owned()),
            generation: Some(generation),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
    };
    let policy = Policy::try_from(&object).unwrap();
    let uid = format!("uid-of-{name}").into();
    Event::Policy(policy.name.clone(), Update::Set(PolicyInfo { uid, policy }))
}

#[track_caller]
pub fn run(program: &str, arguments: &str) {
    let output = Command::new(program)
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Sets sysctls, `name=value`, of the thread's network namespace.
pub fn set(settings: &str) {
    for setting in settings.split_whitespace() {
        let (name, value) = setting.split_once('=').unwrap();
        std::fs::write(format!("/proc/sys/{}", name.replace('.', "/")), value).unwrap();
    }
}

/// Runs `work` on a thread in a network namespace; sockets that it makes stay there.
pub fn inside<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let file = std::fs::File::open(format!("/run/netns/{namespace}")).unwrap();
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

pub fn listener(namespace: &str) -> TcpListener {
    inside(namespace, || TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).unwrap())
}

/// A UDP socket that answers to whoever asks, on [`PORT`].
pub fn udp_server(namespace: &str) -> UdpSocket {
    inside(namespace, || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT)).unwrap())
}

pub fn udp_client(namespace: &str, server: SocketAddr) -> UdpSocket {
    inside(namespace, || {
        let any: IpAddr = if server.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.connect(server).unwrap();
        socket
    })
}

/// Whether a TCP connection to an address is admitted, which is waited for as long as `expected` says; `namespace` None
/// is the node itself. One that is refused in words, not in silence, fails the test: policy never says anything.
#[track_caller]
pub fn connects(namespace: Option<&str>, server: SocketAddr, expected: bool) -> bool {
    let limit = if expected { PATIENCE } else { SILENCE };
    let connect = || TcpStream::connect_timeout(&server, limit);
    let outcome = namespace.map_or_else(connect, |namespace| inside(namespace, connect));
    match outcome {
        Ok(_) => true,
        Err(error) if error.kind() == std::io::ErrorKind::TimedOut => false,
        Err(error) => panic!("failed to connect from {namespace:?} to {server}: {error}"),
    }
}

/// An open TCP connection between two pods: the client's end and the server's.
pub fn connection(client: &str, listener: &TcpListener, server: SocketAddr) -> (TcpStream, TcpStream) {
    let near = inside(client, || TcpStream::connect_timeout(&server, PATIENCE).unwrap());
    let (far, _) = listener.accept().unwrap();
    for stream in [&near, &far] {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(SILENCE)).unwrap();
    }
    (near, far)
}

/// Segments that a namespace's TCP had to send again: none where nothing was dropped.
pub fn retransmissions(namespace: &str) -> u64 {
    inside(namespace, || {
        let text = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
        let lines: Vec<Vec<&str>> = text
            .lines()
            .filter_map(|line| line.strip_prefix("Tcp: "))
            .map(|line| line.split_whitespace().collect())
            .collect();
        let column = lines[0].iter().position(|name| *name == "RetransSegs").unwrap();
        lines[1][column].parse().unwrap()
    })
}

/// The addresses of a pod, as a server's.
pub fn servers(host: u8) -> [SocketAddr; 2] {
    Family::BOTH.map(|family| SocketAddr::new(family.pod(host), PORT))
}
