// SPDX-License-Identifier: Apache-2.0
//! Specs that must be accepted, and specs that must be refused: one table for the CRDs in a real API server (`cel.rs`) and
//! for the same ranges in Rust (`ranges.rs`). Each rule has at least one case on either side of it.

pub(crate) struct Case {
    pub(crate) what: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) name: &'static str,
    /// YAML of the spec.
    pub(crate) spec: &'static str,
    /// A part of the API server's message, where the object is to be refused.
    pub(crate) refused: Option<&'static str>,
}

const fn dataplane(what: &'static str, spec: &'static str, refused: Option<&'static str>) -> Case {
    Case {
        what,
        kind: "Dataplane",
        name: "default",
        spec,
        refused,
    }
}

const fn logging(what: &'static str, spec: &'static str, refused: Option<&'static str>) -> Case {
    Case {
        what,
        kind: "NetworkLogging",
        name: "default",
        spec,
        refused,
    }
}

const LOW: Option<&str> = Some("should be greater than or equal to");
const HIGH: Option<&str> = Some("should be less than or equal to");
const VALUE: Option<&str> = Some("Unsupported value");
const PATTERN: Option<&str> = Some("should match");
const SIZE: Option<&str> = Some("file.maxSize must be a quantity from 64Ki to 1Gi");
const DOTS: Option<&str> = Some("file.path must not hold '.' or '..'");
const UNDER: Option<&str> = Some("file.path must not lie under");
const UNAVAILABLE: Option<&str> = Some("rollout.maxUnavailable must be 1 or more, or 1% to 100%");
const ALLOW: Option<&str> = Some("allow.delegate needs allow.log");
const DENY: Option<&str> = Some("deny.delegate needs deny.log");
const EVENTS: Option<&str> = Some("deny.events needs deny.log");

#[rustfmt::skip]
pub(crate) const CASES: &[Case] = &[
    dataplane("nothing", "{}", None),
    dataplane("empty groups", "{cni: {}, policy: {}, services: {}, logging: {file: {}}, limits: {}, apiServer: {}, daemon: {rollout: {canary: {}}}}", None),
    Case { what: "another name", kind: "Dataplane", name: "second", spec: "{}", refused: Some("a Dataplane must be named 'default'") },

    dataplane("chained", "{cni: {mode: Chained}}", None),
    dataplane("a mode that is not built", "{cni: {mode: Primary}}", VALUE),
    dataplane("failure policy", "{cni: {failurePolicy: Ignore}}", None),
    dataplane("unknown failure policy", "{cni: {failurePolicy: Maybe}}", VALUE),
    dataplane("directories", "{cni: {confDir: /etc/k3s/cni, binDir: /var/lib/cni/bin}}", None),
    dataplane("relative confDir", "{cni: {confDir: etc/cni}}", PATTERN),
    dataplane("relative binDir", "{cni: {binDir: bin}}", PATTERN),

    dataplane("audit", "{policy: {enforcement: Audit, sourceAddressCheck: Enforce}}", None),
    dataplane("unknown enforcement", "{policy: {enforcement: Off}}", VALUE),
    dataplane("unknown source address check", "{policy: {sourceAddressCheck: Off}}", VALUE),
    dataplane("services off", "{services: {mode: Disabled}}", None),
    dataplane("unknown services mode", "{services: {mode: Socket}}", VALUE),

    dataplane("cluster name", "{logging: {clusterName: prod_eu-1.example}}", None),
    dataplane("cluster name with a space", "{logging: {clusterName: prod eu}}", PATTERN),
    dataplane("cluster name that ends in a dash", "{logging: {clusterName: prod-}}", PATTERN),
    dataplane("longest aggregation", "{logging: {denyAggregationSeconds: 300}}", None),
    dataplane("no aggregation", "{logging: {denyAggregationSeconds: 0}}", None),
    dataplane("aggregation too short", "{logging: {denyAggregationSeconds: -1}}", LOW),
    dataplane("aggregation too long", "{logging: {denyAggregationSeconds: 301}}", HIGH),

    dataplane("another file", "{logging: {file: {path: /var/log/wardline/policy.log}}}", None),
    dataplane("a dot in a name", "{logging: {file: {path: /var/log/.hidden/..policy.log}}}", None),
    dataplane("relative path", "{logging: {file: {path: policy.log}}}", PATTERN),
    dataplane("path without a directory", "{logging: {file: {path: /policy.log}}}", PATTERN),
    dataplane("path with ..", "{logging: {file: {path: /var/log/../../etc/passwd}}}", DOTS),
    dataplane("path that ends in .", "{logging: {file: {path: /var/log/.}}}", DOTS),
    dataplane("path under /sys", "{logging: {file: {path: /sys/fs/policy.log}}}", UNDER),
    dataplane("path under /run/wardline", "{logging: {file: {path: /run/wardline/policy.log}}}", UNDER),
    dataplane("path beside /run/wardline", "{logging: {file: {path: /run/wardline-logs/policy.log}}}", None),
    dataplane("smallest file", "{logging: {file: {maxSize: 64Ki}}}", None),
    dataplane("largest file", "{logging: {file: {maxSize: 1Gi}}}", None),
    dataplane("size in bytes", "{logging: {file: {maxSize: '65536'}}}", None),
    dataplane("size with a fraction", "{logging: {file: {maxSize: 1.5M}}}", None),
    dataplane("file too small", "{logging: {file: {maxSize: 65535}}}", Some("expected string")),
    dataplane("file a byte too small", "{logging: {file: {maxSize: '65535'}}}", SIZE),
    dataplane("file too large", "{logging: {file: {maxSize: 1.1Gi}}}", SIZE),
    dataplane("size beyond 64 bits", "{logging: {file: {maxSize: '999999999999999G'}}}", SIZE),
    dataplane("size with a unit of its own", "{logging: {file: {maxSize: 10MB}}}", PATTERN),
    dataplane("negative size", "{logging: {file: {maxSize: '-10Mi'}}}", PATTERN),
    dataplane("one file", "{logging: {file: {maxFiles: 1}}}", None),
    dataplane("no file", "{logging: {file: {maxFiles: 0}}}", LOW),
    dataplane("too many files", "{logging: {file: {maxFiles: 101}}}", HIGH),
    dataplane("youngest file", "{logging: {file: {maxAgeSeconds: 60}}}", None),
    dataplane("oldest file", "{logging: {file: {maxAgeSeconds: 31536000}}}", None),
    dataplane("file too young", "{logging: {file: {maxAgeSeconds: 59}}}", LOW),
    dataplane("file too old", "{logging: {file: {maxAgeSeconds: 31536001}}}", HIGH),
    dataplane("no floor of free space", "{logging: {file: {minFreePercent: 0}}}", None),
    dataplane("highest floor of free space", "{logging: {file: {minFreePercent: 50}}}", None),
    dataplane("negative floor of free space", "{logging: {file: {minFreePercent: -1}}}", LOW),
    dataplane("floor of free space too high", "{logging: {file: {minFreePercent: 51}}}", HIGH),
    dataplane("lines to standard output", "{logging: {stdout: true}}", None),
    dataplane("policies in metrics", "{metrics: {policies: 10000}}", None),
    dataplane("no policies in metrics", "{metrics: {policies: 0}}", None),
    dataplane("too many policies in metrics", "{metrics: {policies: 10001}}", HIGH),

    dataplane("smallest limits", "{limits: {connections: 1024, peers: 1024, rules: 1024, denyAggregates: 1024}}", None),
    dataplane("largest limits", "{limits: {connections: 16777216, peers: 4194304, rules: 4194304, denyAggregates: 1048576}}", None),
    dataplane("too few connections", "{limits: {connections: 1023}}", LOW),
    dataplane("too many connections", "{limits: {connections: 16777217}}", HIGH),
    dataplane("too few peers", "{limits: {peers: 1023}}", LOW),
    dataplane("too many peers", "{limits: {peers: 4194305}}", HIGH),
    dataplane("too few rules", "{limits: {rules: 1023}}", LOW),
    dataplane("too many rules", "{limits: {rules: 4194305}}", HIGH),
    dataplane("too few deny aggregates", "{limits: {denyAggregates: 1023}}", LOW),
    dataplane("too many deny aggregates", "{limits: {denyAggregates: 1048577}}", HIGH),

    dataplane("API server by IPv6", "{apiServer: {host: 'fd00::1', port: 443}}", None),
    dataplane("API server as a URL", "{apiServer: {host: 'https://10.0.0.1'}}", PATTERN),
    dataplane("port 0", "{apiServer: {port: 0}}", LOW),
    dataplane("port 65536", "{apiServer: {port: 65536}}", HIGH),

    dataplane("image by digest", "{daemon: {image: {repository: r.example/w, digest: 'sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef', pullPolicy: Always}}}", None),
    dataplane("image by tag", "{daemon: {image: {tag: v1.2.3}}}", None),
    dataplane("tag with a colon", "{daemon: {image: {tag: 'a:b'}}}", PATTERN),
    dataplane("short digest", "{daemon: {image: {digest: 'sha256:00'}}}", PATTERN),
    dataplane("unknown pull policy", "{daemon: {image: {pullPolicy: Sometimes}}}", VALUE),
    dataplane("unknown log level", "{daemon: {logLevel: Loud}}", VALUE),
    dataplane("placement", "{daemon: {nodeSelector: {pool: a}, tolerations: [{key: a, operator: Exists}], imagePullSecrets: [{name: s}], priorityClassName: p}}", None),
    dataplane("a pull secret twice", "{daemon: {imagePullSecrets: [{name: s}, {name: s}]}}", Some("duplicate entries")),
    dataplane("resources", "{daemon: {resources: {requests: {cpu: 1, memory: 64Mi}, limits: {memory: 1.5Gi}}}}", None),
    dataplane("resources that are no quantity", "{daemon: {resources: {limits: {memory: lots}}}}", PATTERN),
    dataplane("a number of nodes", "{daemon: {rollout: {maxUnavailable: 3}}}", None),
    dataplane("a share of nodes", "{daemon: {rollout: {maxUnavailable: 25%}}}", None),
    dataplane("all nodes", "{daemon: {rollout: {maxUnavailable: 100%}}}", None),
    dataplane("no node", "{daemon: {rollout: {maxUnavailable: 0}}}", UNAVAILABLE),
    dataplane("no share", "{daemon: {rollout: {maxUnavailable: 0%}}}", UNAVAILABLE),
    dataplane("more than all", "{daemon: {rollout: {maxUnavailable: 101%}}}", UNAVAILABLE),
    dataplane("a number as text", "{daemon: {rollout: {maxUnavailable: '3'}}}", UNAVAILABLE),
    dataplane("canaries", "{daemon: {rollout: {canary: {nodes: 100, nodeSelector: {pool: a}}}}}", None),
    dataplane("no canary", "{daemon: {rollout: {canary: {nodes: 0}}}}", None),
    dataplane("too many canaries", "{daemon: {rollout: {canary: {nodes: 101}}}}", HIGH),
    dataplane("a rollout without pauses", "{daemon: {rollout: {minReadySeconds: 0, progressDeadlineSeconds: 30}}}", None),
    dataplane("a patient rollout", "{daemon: {rollout: {minReadySeconds: 3600, progressDeadlineSeconds: 3600}}}", None),
    dataplane("too long to be well", "{daemon: {rollout: {minReadySeconds: 3601}}}", HIGH),
    dataplane("too short a deadline", "{daemon: {rollout: {progressDeadlineSeconds: 29}}}", LOW),
    dataplane("too long a deadline", "{daemon: {rollout: {progressDeadlineSeconds: 3601}}}", HIGH),

    logging("nothing", "{}", None),
    logging("empty groups", "{cluster: {allow: {}, deny: {}}}", None),
    Case { what: "another name", kind: "NetworkLogging", name: "second", spec: "{}", refused: Some("a NetworkLogging must be named 'default'") },
    logging("all", "{cluster: {allow: {log: true}, deny: {log: true}}}", None),
    logging("delegated", "{cluster: {allow: {log: true, delegate: true}, deny: {log: true, delegate: true}}}", None),
    logging("allow.delegate alone", "{cluster: {allow: {delegate: true}}}", ALLOW),
    logging("allow.delegate without log", "{cluster: {allow: {log: false, delegate: true}, deny: {log: true}}}", ALLOW),
    logging("events", "{cluster: {deny: {log: true, events: true}}}", None),
    logging("delegated, with events", "{cluster: {deny: {log: true, delegate: true, events: true}}}", None),
    logging("deny.events alone", "{cluster: {deny: {events: true}}}", EVENTS),
    logging("deny.events without log", "{cluster: {allow: {log: true}, deny: {log: false, events: true}}}", EVENTS),
    logging("deny.delegate alone", "{cluster: {deny: {delegate: true}}}", DENY),
    logging("deny.delegate without log", "{cluster: {allow: {log: true}, deny: {log: false, delegate: true}}}", DENY),
];
