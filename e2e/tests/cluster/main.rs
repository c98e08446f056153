// SPDX-License-Identifier: Apache-2.0
//! What Wardline promises, on a real cluster. They need the lab with Wardline in it: `make test`, or `lab install` and
//! then `cargo test -p wardline-e2e --features cluster-tests --test cluster`.

mod applied_twice;
mod away;
mod bad_input;
mod chart;
mod daemon;
mod documented;
mod exact;
mod families;
mod first_packet;
mod hostile;
mod live;
mod monitoring;
mod node_port;
mod observe;
mod operator;
mod privilege;
mod removal;
mod reuse;
mod rewritten;
mod rollout;
mod services;
mod status;
mod stolen_token;
mod stopped;
mod sysdump;
mod upgrade;
mod upstream;
mod wardline;
mod workloads;

use wardline_e2e::records::Record;

/// Policies that the tests share.
const WEB_TAKES_FRIENDS: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web-takes-friends}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress:
    - from: [{podSelector: {matchExpressions: [{key: app, operator: In, values: [friend1, friend2]}]}}]
      ports: [{protocol: TCP, port: 8080}]
";

/// Of the pods `web`.
const WEB_SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
";

/// The records of one client, by its pod's name.
fn of_client<'a>(records: &'a [Record], client: &str) -> Vec<&'a Record> {
    let is_client = |record: &&Record| record.src.as_ref().and_then(|side| side.pod_name.as_deref()) == Some(client);
    records.iter().filter(is_client).collect()
}

/// The lines of records, for messages.
fn lines(records: &[Record]) -> String {
    records
        .iter()
        .map(|record| record.line.as_str())
        .collect::<Vec<_>>()
        .join("\n")
}
