// SPDX-License-Identifier: Apache-2.0
//! Services: clients on both plugins, backends on both nodes, slices by Kubernetes' own controller. `make test` runs them
//! in a cluster without kube-proxy, `make beside-kube-proxy` in one with it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use wardline_e2e::namespace::{TestNamespace, with_namespace};
use wardline_e2e::progress::wait_until;
use wardline_e2e::traffic::{Attempt, Held, Protocol};

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {role: web}
  ports:
    - {name: http, port: 80, targetPort: echo}
    - {name: dns, port: 53, targetPort: 8080, protocol: UDP}
";

const ISOLATE_WEB2: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: isolate-web2}
spec:
  podSelector: {matchLabels: {app: web2}}
  policyTypes: [Ingress]
";

/// Selects the clients, and allows them to one backend.
const CLIENTS_TO_WEB1: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: clients-to-web1}
spec:
  podSelector: {matchExpressions: [{key: app, operator: In, values: [client1, client2]}]}
  policyTypes: [Egress]
  egress:
    - to: [{podSelector: {matchLabels: {app: web1}}}]
";

const CLIENTS: [&str; 2] = ["client1", "client2"];
const PATIENCE: Duration = Duration::from_mins(1);
/// Within which each of two backends must have been given. An attempt that is dropped at the client's own edge leaves
/// nothing behind, and each retransmission is given a backend anew: one in eight attempts finds no way.
const MANY: usize = 120;
const FEW: usize = 4;

struct Shop<'a> {
    namespace: &'a TestNamespace,
    /// Of the Service, one a family.
    addresses: Vec<IpAddr>,
}

impl<'a> Shop<'a> {
    /// One backend and one client on each node.
    async fn open(namespace: &'a TestNamespace) -> Result<Self> {
        for (pod, node) in [
            ("web1", "node1"),
            ("web2", "node2"),
            ("client1", "node1"),
            ("client2", "node2"),
        ] {
            namespace.server(pod, node).await?;
        }
        namespace.apply(SERVICE).await?;
        let service = namespace.lab.get("v1", "Service", &namespace.name, "web").await?;
        let addresses = service.data["spec"]["clusterIPs"].clone();
        let addresses: Vec<IpAddr> = serde_json::from_value(addresses).context("failed to read clusterIPs")?;
        ensure!(addresses.len() == 2, "the Service has the addresses {addresses:?}");
        namespace.ready().await?;
        Ok(Self { namespace, addresses })
    }

    /// Makes these pods the Service's backends, and waits until clients on both nodes are served, or refused where there
    /// are none.
    async fn serve(&self, pods: &[&str]) -> Result<()> {
        // Who serves from now on comes first, so that the Service is without a backend at no time.
        let mut all = ["web1", "web2"];
        all.sort_by_key(|pod| !pods.contains(pod));
        for pod in all {
            let role = if pods.contains(&pod) { "web" } else { "none" };
            let labels = format!("{{apiVersion: v1, kind: Pod, metadata: {{name: {pod}, labels: {{role: {role}}}}}}}");
            self.namespace.apply(&labels).await?;
        }
        for client in CLIENTS {
            for server in self
                .servers(Protocol::Tcp)
                .into_iter()
                .chain(self.servers(Protocol::Udp))
            {
                let protocol = if server.port() == 80 {
                    Protocol::Tcp
                } else {
                    Protocol::Udp
                };
                let what = format!("{client} -> {server} to have the backends {pods:?}");
                wait_until(&what, PATIENCE, async || {
                    let attempt = self.attempt(client, server, protocol).await?;
                    let is_expected = if pods.is_empty() {
                        is_refused(&attempt)
                    } else {
                        attempt.ok
                    };
                    Ok(is_expected.then_some(()))
                })
                .await?;
            }
        }
        Ok(())
    }

    fn servers(&self, protocol: Protocol) -> Vec<SocketAddr> {
        let port = if protocol == Protocol::Tcp { 80 } else { 53 };
        self.addresses.iter().map(|ip| SocketAddr::new(*ip, port)).collect()
    }

    async fn attempt(&self, from: &str, server: SocketAddr, protocol: Protocol) -> Result<Attempt> {
        Attempt::make(&self.namespace.pods(), from, server, protocol).await
    }

    /// Every attempt over TCP and UDP in both families is served.
    async fn all_served(&self, from: &str) -> Result<()> {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for server in self.servers(protocol) {
                for _ in 0..FEW {
                    let attempt = self.attempt(from, server, protocol).await?;
                    ensure!(attempt.ok, "{from} -> {server}: {attempt:?}");
                }
            }
        }
        Ok(())
    }

    /// Of many attempts some are served and some are dropped: policy judges the backend.
    async fn some_served(&self, from: &str) -> Result<()> {
        for server in self.servers(Protocol::Tcp) {
            let (mut served, mut dropped) = (0, 0);
            for _ in 0..MANY {
                let attempt = self.attempt(from, server, Protocol::Tcp).await?;
                ensure!(attempt.ok || attempt.timed_out(), "{from} -> {server}: {attempt:?}");
                served += usize::from(attempt.ok);
                dropped += usize::from(!attempt.ok);
                if served > 0 && dropped > 0 {
                    break;
                }
            }
            ensure!(
                served > 0 && dropped > 0,
                "{from} -> {server}: {served} served, {dropped} dropped"
            );
        }
        Ok(())
    }
}

fn is_refused(attempt: &Attempt) -> bool {
    let error = attempt.error.as_deref().unwrap_or_default();
    !attempt.ok && error.contains("refused")
}

#[tokio::test]
async fn policy_judges_the_backends_of_a_service() -> Result<()> {
    with_namespace("services", async |namespace: &TestNamespace| {
        let shop = Shop::open(namespace).await?;
        shop.serve(&["web1", "web2"]).await?;
        for client in CLIENTS {
            shop.all_served(client).await?;
        }
        for (policy, name) in [(ISOLATE_WEB2, "isolate-web2"), (CLIENTS_TO_WEB1, "clients-to-web1")] {
            namespace.apply(policy).await?;
            for client in CLIENTS {
                namespace.until_reach(client, "web2", false).await?;
                shop.some_served(client).await?;
            }
            namespace
                .lab
                .delete("networking.k8s.io/v1", "NetworkPolicy", &namespace.name, name)
                .await?;
            for client in CLIENTS {
                namespace.until_reach(client, "web2", true).await?;
            }
        }
        namespace.apply(ISOLATE_WEB2).await?;
        namespace.until_reach("client1", "web2", false).await?;
        let sticky = SERVICE.replace("spec:\n", "spec:\n  sessionAffinity: ClientIP\n");
        namespace.apply(&sticky).await?;
        for client in CLIENTS {
            let server = shop.servers(Protocol::Tcp)[0];
            let what = format!("{client} to stay with its backend");
            wait_until(&what, PATIENCE, async || {
                let mut served = 0;
                for _ in 0..2 * FEW {
                    served += usize::from(shop.attempt(client, server, Protocol::Tcp).await?.ok);
                }
                Ok((served == 0 || served == 2 * FEW).then_some(()))
            })
            .await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn flows_to_a_service_follow_its_backends() -> Result<()> {
    with_namespace("backends", async |namespace: &TestNamespace| {
        let shop = Shop::open(namespace).await?;
        shop.serve(&["web1"]).await?;
        shop.all_served("client2").await?;
        // Itself, through the Service.
        shop.all_served("web1").await?;

        let server = shop.servers(Protocol::Udp)[0];
        let interval = Duration::from_millis(100);
        let held = Held::open(&namespace.pods(), "client1", server, Protocol::Udp, interval).await?;
        shop.serve(&["web2"]).await?;
        // Isolated, the former backend could not answer any more: what comes is the other's.
        namespace.apply(&ISOLATE_WEB2.replace("web2", "web1")).await?;
        namespace.until_reach("client1", "web1", false).await?;
        held.until_echoes(10).await?;
        held.finish().await?;

        shop.serve(&[]).await?;
        let unlisted = SocketAddr::new(shop.addresses[0], 81);
        let attempt = shop.attempt("client1", unlisted, Protocol::Tcp).await?;
        ensure!(is_refused(&attempt), "a port that is not listed: {attempt:?}");
        Ok(())
    })
    .await
}
