// SPDX-License-Identifier: Apache-2.0
//! Each meaning of a `NetworkPolicy` as a table: policies, then flows and their verdicts. Every row is put to the
//! compiled tables as well.

use super::*;
use crate::compile::compile;
use crate::lookup::lookup;
use crate::testing::{NODE, cluster, flow, spell};

#[track_caller]
fn check(policies: &str, rows: &[(&str, &str)]) {
    let objects = cluster(policies);
    let tables = compile(&objects, NODE);
    for (text, expected) in rows {
        let flow = flow(&objects, text);
        assert_eq!(spell(&evaluate(&objects, &flow)), *expected, "{text}, under {policies}");
        assert_eq!(
            lookup(&tables, &flow),
            evaluate(&objects, &flow),
            "{text}, under {policies}"
        );
    }
}

/// One policy `p` on pod `db` with this list of ingress rules.
#[track_caller]
fn check_ingress(rules: &str, rows: &[(&str, &str)]) {
    check(
        &format!("p: {{podSelector: {{matchLabels: {{app: db}}}}, ingress: {rules}}}"),
        rows,
    );
}

/// One policy `p` on pod `web` with this list of egress rules.
#[track_caller]
fn check_egress(rules: &str, rows: &[(&str, &str)]) {
    let spec = format!("{{podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Egress], egress: {rules}}}");
    check(&format!("p: {spec}"), rows);
}

#[test]
fn only_selected_pods_are_isolated() {
    check(
        "{}",
        &[("db < web tcp/80", "not isolated"), ("db > web tcp/80", "not isolated")],
    );
    check(
        "p: {podSelector: {matchLabels: {app: db}}}",
        &[
            ("db < web tcp/80", "deny p"),
            ("db < 203.0.113.9 tcp/80", "deny p"),
            ("db < web icmp", "deny p"),
            ("db > web tcp/80", "not isolated"),
            ("web < db tcp/80", "not isolated"),
            ("starting < db tcp/80", "deny p"),
            ("nobody < db tcp/80", "not isolated"),
        ],
    );
    // An empty selector selects every pod of the policy's namespace, and none of another.
    check(
        "p: {podSelector: {}}",
        &[
            ("web < db tcp/80", "deny p"),
            ("bare < db tcp/80", "deny p"),
            ("ops/web < db tcp/80", "not isolated"),
        ],
    );
}

#[test]
fn policy_types_say_which_directions_are_isolated() {
    let both = ["db < web tcp/80", "db > web tcp/80"];
    for (spec, ingress, egress) in [
        ("{podSelector: {}}", "deny p", "not isolated"),
        ("{podSelector: {}, egress: []}", "deny p", "not isolated"),
        ("{podSelector: {}, egress: [{}]}", "deny p", "allow p[0]"),
        ("{podSelector: {}, policyTypes: []}", "deny p", "not isolated"),
        ("{podSelector: {}, policyTypes: [Ingress]}", "deny p", "not isolated"),
        ("{podSelector: {}, policyTypes: [Egress]}", "not isolated", "deny p"),
        ("{podSelector: {}, policyTypes: [Ingress, Egress]}", "deny p", "deny p"),
        ("{podSelector: {}, policyTypes: [Egress, Ingress]}", "deny p", "deny p"),
        // Rules of a direction that is not listed mean nothing.
        (
            "{podSelector: {}, policyTypes: [Ingress], egress: [{}]}",
            "deny p",
            "not isolated",
        ),
        (
            "{podSelector: {}, policyTypes: [Egress], ingress: [{}]}",
            "not isolated",
            "deny p",
        ),
    ] {
        check(&format!("p: {spec}"), &[(both[0], ingress), (both[1], egress)]);
    }
}

#[test]
fn absent_and_empty_lists() {
    let flows = [
        "db < web tcp/80",
        "db < 203.0.113.9 udp/1",
        "db < fd00:3::1 icmp",
        "db < web sctp/0",
    ];
    for (rules, expected) in [
        ("[]", "deny p"),
        ("[{}]", "allow p[0]"),
        ("[{from: []}]", "allow p[0]"),
        ("[{ports: []}]", "allow p[0]"),
        ("[{from: [], ports: []}, {}]", "allow p[0,1]"),
    ] {
        check_ingress(rules, &flows.map(|flow| (flow, expected)));
    }
}

#[test]
fn pod_selectors_select_in_the_policys_namespace() {
    check_ingress(
        "[{from: [{podSelector: {matchLabels: {app: web}}}]}]",
        &[
            ("db < web tcp/80", "allow p[0]"),
            ("db < fd00:1::1 tcp/80", "allow p[0]"),
            ("db < web icmp", "allow p[0]"),
            ("db < far tcp/80", "allow p[0]"),
            ("db < api tcp/80", "deny p"),
            ("db < bare tcp/80", "deny p"),
            ("db < ops/web tcp/80", "deny p"),
            ("db < unknown/web tcp/80", "deny p"),
            ("db < 203.0.113.9 tcp/80", "deny p"),
        ],
    );
    check_ingress(
        "[{from: [{podSelector: {}}]}]",
        &[
            ("db < bare tcp/80", "allow p[0]"),
            ("db < db tcp/80", "allow p[0]"),
            ("db < ops/prom tcp/80", "deny p"),
            ("db < 203.0.113.9 tcp/80", "deny p"),
        ],
    );
}

#[test]
fn namespace_selectors() {
    check_ingress(
        "[{from: [{namespaceSelector: {matchLabels: {team: ops}}}]}]",
        &[
            ("db < ops/prom tcp/80", "allow p[0]"),
            ("db < ops/web tcp/80", "allow p[0]"),
            ("db < web tcp/80", "deny p"),
            ("db < unknown/web tcp/80", "deny p"),
        ],
    );
    // Every namespace that is known; an address that is no pod's is in none.
    check_ingress(
        "[{from: [{namespaceSelector: {}}]}]",
        &[
            ("db < ops/prom tcp/80", "allow p[0]"),
            ("db < web tcp/80", "allow p[0]"),
            ("db < unknown/web tcp/80", "deny p"),
            ("db < 203.0.113.9 tcp/80", "deny p"),
        ],
    );
    // By name, through the label that the API server gives every namespace (KEP-2161).
    check_ingress(
        "[{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ops}}}]}]",
        &[
            ("db < ops/prom tcp/80", "allow p[0]"),
            ("db < fd00:3::1 tcp/80", "allow p[0]"),
            ("db < web tcp/80", "deny p"),
            ("db < unknown/web tcp/80", "deny p"),
        ],
    );
    // Both in one peer: both must hold. In two peers: either.
    check_ingress(
        "[{from: [{namespaceSelector: {matchLabels: {team: ops}}, podSelector: {matchLabels: {app: web}}}]}]",
        &[
            ("db < ops/web tcp/80", "allow p[0]"),
            ("db < ops/prom tcp/80", "deny p"),
            ("db < web tcp/80", "deny p"),
        ],
    );
    check_ingress(
        "[{from: [{namespaceSelector: {matchLabels: {team: ops}}}, {podSelector: {matchLabels: {app: web}}}]}]",
        &[
            ("db < ops/web tcp/80", "allow p[0]"),
            ("db < ops/prom tcp/80", "allow p[0]"),
            ("db < web tcp/80", "allow p[0]"),
            ("db < api tcp/80", "deny p"),
        ],
    );
}

#[test]
fn label_operators() {
    let allowed = |requirements: &str| -> Vec<&str> {
        let rules = format!("[{{from: [{{podSelector: {{matchExpressions: [{requirements}]}}}}]}}]");
        let pods = ["web", "api", "db", "bare"];
        let verdict = |objects: &Objects, pod: &str| {
            let flow = flow(objects, &format!("db < {pod} tcp/80"));
            assert_eq!(lookup(&compile(objects, NODE), &flow), evaluate(objects, &flow));
            spell(&evaluate(objects, &flow))
        };
        let objects = cluster(&format!("p: {{podSelector: {{}}, ingress: {rules}}}"));
        pods.into_iter()
            .filter(|pod| verdict(&objects, pod) == "allow p[0]")
            .collect()
    };
    for (requirements, expected) in [
        ("{key: app, operator: In, values: [web]}", vec!["web"]),
        ("{key: app, operator: In, values: [web, db]}", vec!["web", "db"]),
        ("{key: app, operator: NotIn, values: [web, db]}", vec!["api", "bare"]),
        ("{key: app, operator: Exists}", vec!["web", "api", "db"]),
        ("{key: app, operator: DoesNotExist}", vec!["bare"]),
        (
            "{key: app, operator: Exists}, {key: tier, operator: NotIn, values: [front]}",
            vec!["api", "db"],
        ),
        (
            "{key: app, operator: In, values: [web]}, {key: app, operator: NotIn, values: [web]}",
            vec![],
        ),
        ("{key: other, operator: In, values: [web]}", vec![]),
    ] {
        assert_eq!(allowed(requirements), expected, "{requirements}");
    }
}

#[test]
fn blocks_and_their_excepts() {
    check_ingress(
        "[{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.64/26, 192.0.2.9/32]}}]}]",
        &[
            ("db < 192.0.2.0 tcp/80", "allow p[0]"),
            ("db < 192.0.2.63 tcp/80", "allow p[0]"),
            ("db < 192.0.2.64 tcp/80", "deny p"),
            ("db < 192.0.2.127 tcp/80", "deny p"),
            ("db < 192.0.2.128 icmp", "allow p[0]"),
            ("db < 192.0.2.9 tcp/80", "deny p"),
            ("db < 192.0.3.0 tcp/80", "deny p"),
            ("db < 2001:db8::1 tcp/80", "deny p"),
        ],
    );
    check_ingress(
        "[{from: [{ipBlock: {cidr: '2001:db8::/32', except: ['2001:db8:1::/48']}}]}]",
        &[
            ("db < 2001:db8::1 tcp/80", "allow p[0]"),
            ("db < 2001:db8:1::1 tcp/80", "deny p"),
            ("db < 2001:db8:2::1 tcp/80", "allow p[0]"),
            ("db < 2001:db9::1 tcp/80", "deny p"),
            ("db < 192.0.2.1 tcp/80", "deny p"),
        ],
    );
    // An except of one rule is no deny for another.
    check_ingress(
        "[{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.64/26]}}]}, {from: [{ipBlock: {cidr: 192.0.2.64/27}}]}]",
        &[
            ("db < 192.0.2.1 tcp/80", "allow p[0]"),
            ("db < 192.0.2.65 tcp/80", "allow p[1]"),
            ("db < 192.0.2.100 tcp/80", "deny p"),
        ],
    );
    // All of one family is nothing of the other.
    check_ingress(
        "[{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]",
        &[
            ("db < 203.0.113.9 tcp/80", "allow p[0]"),
            ("db < 2001:db8::1 tcp/80", "deny p"),
        ],
    );
    check_ingress(
        "[{from: [{ipBlock: {cidr: '::/0'}}]}]",
        &[
            ("db < 203.0.113.9 tcp/80", "deny p"),
            ("db < 2001:db8::1 tcp/80", "allow p[0]"),
        ],
    );
}

#[test]
fn blocks_match_pods_too() {
    check_ingress(
        "[{from: [{ipBlock: {cidr: 10.0.0.0/16, except: [10.0.1.2/32]}}]}, {from: [{podSelector: {matchLabels: {tier: back}}}]}]",
        &[
            ("db < web tcp/80", "allow p[0]"),
            ("db < api tcp/80", "allow p[1]"),
            ("db < db tcp/80", "allow p[0,1]"),
            ("db < ops/prom tcp/80", "allow p[0]"),
            ("db < 10.0.200.1 tcp/80", "allow p[0]"),
            ("db < 10.1.0.1 tcp/80", "deny p"),
        ],
    );
    check_ingress(
        "[{from: [{ipBlock: {cidr: 'fd00:1::/64', except: ['fd00:1::2/128']}}]}, {from: [{podSelector: {matchLabels: {tier: back}}}]}]",
        &[
            ("db < fd00:1::1 tcp/80", "allow p[0]"),
            ("db < fd00:1::2 tcp/80", "allow p[1]"),
            ("db < fd00:1::3 tcp/80", "allow p[0,1]"),
            ("db < fd00:1::200 tcp/80", "allow p[0]"),
            ("db < fd00:3::1 tcp/80", "deny p"),
            ("db < web tcp/80", "deny p"),
        ],
    );
    check_egress(
        "[{to: [{ipBlock: {cidr: 10.0.1.0/24, except: [10.0.1.3/32]}}, {ipBlock: {cidr: 'fd00:1::/64', except: ['fd00:1::3/128']}}]}]",
        &[
            ("web > api tcp/80", "allow p[0]"),
            ("web > fd00:1::2 udp/53", "allow p[0]"),
            ("web > db tcp/80", "deny p"),
            ("web > fd00:1::3 tcp/80", "deny p"),
        ],
    );
}

#[test]
fn ports() {
    check_ingress(
        "[{ports: [{port: 80}, {port: 53, protocol: UDP}, {protocol: SCTP}]}]",
        &[
            ("db < web tcp/80", "allow p[0]"),
            ("db < web tcp/81", "deny p"),
            ("db < web tcp/53", "deny p"),
            ("db < web udp/53", "allow p[0]"),
            ("db < web udp/80", "deny p"),
            ("db < web sctp/1", "allow p[0]"),
            ("db < web sctp/65535", "allow p[0]"),
            ("db < web icmp", "deny p"),
        ],
    );
    check_ingress(
        "[{ports: [{port: 1000, endPort: 2000}]}, {ports: [{port: 1500, endPort: 65535}, {port: 1600}]}, {ports: [{}]}]",
        &[
            ("db < web tcp/999", "allow p[2]"),
            ("db < web tcp/1000", "allow p[0,2]"),
            ("db < web tcp/1499", "allow p[0,2]"),
            ("db < web tcp/1500", "allow p[0,1,2]"),
            ("db < web tcp/1600", "allow p[0,1,2]"),
            ("db < web tcp/2000", "allow p[0,1,2]"),
            ("db < web tcp/2001", "allow p[1,2]"),
            ("db < web tcp/65535", "allow p[1,2]"),
            ("db < web udp/1500", "deny p"),
        ],
    );
    // Peers and ports of a rule belong together; those of two rules do not mix.
    check_ingress(
        "[{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 80}]}, \
          {from: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: 81}]}]",
        &[
            ("db < web tcp/80", "allow p[0]"),
            ("db < web tcp/81", "deny p"),
            ("db < api tcp/81", "allow p[1]"),
            ("db < api tcp/80", "deny p"),
        ],
    );
}

#[test]
fn named_ports_are_those_of_the_pod_that_is_connected_to() {
    // Ingress: the endpoint's own, all that carry the name and the protocol.
    check(
        "p: {podSelector: {}, ingress: [{ports: [{port: http}]}]}",
        &[
            ("db < web tcp/80", "allow p[0]"),
            ("db < web tcp/81", "allow p[0]"),
            ("db < web tcp/53", "deny p"),
            ("db < web udp/53", "deny p"),
            ("api < web tcp/8080", "allow p[0]"),
            ("api < web tcp/80", "deny p"),
            ("web < db tcp/80", "deny p"),
        ],
    );
    // A name that two protocols share means another port in each.
    check_ingress(
        "[{ports: [{port: http}, {port: http, protocol: UDP}]}]",
        &[
            ("db < web tcp/80", "allow p[0]"),
            ("db < web udp/53", "allow p[0]"),
            ("db < web tcp/53", "deny p"),
            ("db < web udp/80", "deny p"),
        ],
    );
    // Egress: the peer's. What is no pod has no names, whatever block it is in.
    check_egress(
        "[{ports: [{port: http}]}, {to: [{ipBlock: {cidr: 10.0.1.0/24}}], ports: [{port: http}]}, \
          {to: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: dns, protocol: UDP}]}]",
        &[
            ("web > db tcp/80", "allow p[0,1]"),
            ("web > db tcp/81", "allow p[0,1]"),
            ("web > db tcp/8080", "deny p"),
            ("web > db udp/53", "deny p"),
            ("web > api tcp/8080", "allow p[0,1]"),
            ("web > api udp/53", "allow p[2]"),
            ("web > ops/prom tcp/9090", "allow p[0]"),
            ("web > unknown/web tcp/8080", "allow p[0]"),
            ("web > 10.0.1.99 tcp/80", "deny p"),
            ("web > 203.0.113.9 tcp/80", "deny p"),
        ],
    );
}

#[test]
fn egress_has_the_same_meaning() {
    check_egress(
        "[{to: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: 80}]}, {to: [{ipBlock: {cidr: 203.0.113.0/24}}]}]",
        &[
            ("web > db tcp/80", "allow p[0]"),
            ("web > db tcp/81", "deny p"),
            ("web > api tcp/80", "deny p"),
            ("web > 203.0.113.9 icmp", "allow p[1]"),
            ("web > 10.0.0.1 tcp/80", "deny p"),
            ("web < db tcp/80", "not isolated"),
        ],
    );
}

#[test]
fn policies_add_up() {
    check(
        "
a: {podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: 80}]}, {from: [{podSelector: {matchLabels: {app: web}}}]}]}
b: {podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: 1, endPort: 100}]}]}
c: {podSelector: {matchLabels: {tier: back}}}
d: {podSelector: {}, policyTypes: [Egress]}
",
        &[
            ("db < web tcp/80", "allow a[0,1] b[0]"),
            ("db < web tcp/101", "allow a[1]"),
            ("db < api tcp/80", "allow a[0] b[0]"),
            ("db < api tcp/100", "allow b[0]"),
            ("db < ops/prom tcp/80", "allow a[0]"),
            ("db < ops/prom tcp/81", "deny a b c"),
            ("api < web tcp/101", "deny b c"),
            ("bare < ops/prom tcp/80", "deny b"),
            ("bare > ops/prom tcp/80", "deny d"),
        ],
    );
}

#[test]
fn an_address_that_is_not_one_pods_matches_no_pod_selector() {
    // Two pods claim it; the node wears it for its host-network pods.
    for address in ["10.0.9.9", "10.0.0.1"] {
        let row = format!("db < {address} tcp/80");
        check_ingress("[{from: [{podSelector: {}}]}]", &[(&row, "deny p")]);
        check_ingress("[{from: [{namespaceSelector: {}}]}]", &[(&row, "deny p")]);
        check_ingress("[{from: [{ipBlock: {cidr: 10.0.0.0/16}}]}]", &[(&row, "allow p[0]")]);
        check_ingress("[{}]", &[(&row, "allow p[0]")]);
    }
    check_egress("[{ports: [{port: http}]}]", &[("web > 10.0.9.9 tcp/8080", "deny p")]);
}

#[test]
fn verdicts_carry_generation_and_log() {
    let mut objects = cluster("p: {podSelector: {}, ingress: [{ports: [{port: 80}]}]}");
    for policy in objects.policies.values_mut() {
        let policy = std::sync::Arc::make_mut(policy);
        policy.generation = 7;
        policy.log = true;
    }
    let policy = PolicyRef {
        name: ObjectName::new("shop", "p"),
        generation: 7,
    };
    let allowing = Allowing {
        policy: policy.clone(),
        rules: vec![0],
        log: true,
    };
    for (text, expected) in [
        (
            "db < web tcp/80",
            Verdict::Allow(Attribution {
                policies: vec![allowing],
            }),
        ),
        ("db < web tcp/81", Verdict::DefaultDeny(vec![policy])),
    ] {
        let flow = flow(&objects, text);
        assert_eq!(evaluate(&objects, &flow), expected);
        assert_eq!(lookup(&compile(&objects, NODE), &flow), expected);
    }
}
