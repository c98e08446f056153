// SPDX-License-Identifier: Apache-2.0
//! Two replicas, one lease, and an API server that one of them may not reach.

use std::sync::Mutex;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::*;
use crate::context::lock;
use crate::testing::{self, FakeApi, Reply, Sent, failure};

/// An API server that keeps the Lease as the real one does.
fn server() -> FakeApi {
    let stored: Arc<Mutex<Option<Value>>> = Arc::default();
    let lease = move |sent: &Sent| {
        let mut stored = lock(&stored);
        let version = |lease: &Option<Value>| lease.as_ref().map(|lease| lease["metadata"]["resourceVersion"].clone());
        match (&*sent.method, &*stored) {
            ("GET", None) => return Reply::Json(404, failure(404, "not found")),
            ("GET", Some(lease)) => return Reply::Json(200, lease.clone()),
            ("POST", Some(_)) => return Reply::Json(409, failure(409, "already exists")),
            ("PUT", _) if version(&stored) != Some(sent.body["metadata"]["resourceVersion"].clone()) => {
                return Reply::Json(409, failure(409, "the object has been modified"));
            }
            _ => {}
        }
        let next = version(&stored)
            .and_then(|version| version.as_str()?.parse().ok())
            .unwrap_or(0)
            + 1;
        let mut lease = sent.body.clone();
        lease["metadata"]["resourceVersion"] = json!(next.to_string());
        *stored = Some(lease.clone());
        Reply::Json(200, lease)
    };
    let lease = Arc::new(lease);
    let created = Arc::clone(&lease);
    FakeApi::default()
        .reply("/leases/wardline-operator", move |sent| lease(sent))
        .reply("/leases", move |sent| created(sent))
}

/// Shorter than what an attempt at the lease may take.
const SLOW: Duration = Duration::from_secs(3);

/// How a replica is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    No,
    /// Its requests get nowhere.
    Requests,
    /// What it writes is written, but it never hears of it.
    Answers,
    /// It hears of it seconds later.
    Slow,
}

struct Replica {
    metrics: Metrics,
    cut: Arc<Mutex<Cut>>,
    stop: CancellationToken,
    ended: tokio::task::JoinHandle<Result<()>>,
}

impl Replica {
    fn start(name: &str, server: &FakeApi) -> Self {
        let cut = Arc::new(Mutex::new(Cut::No));
        let client = || {
            let (server, cut) = (server.clone(), Arc::clone(&cut));
            client::considerate(move |request| {
                let (server, cut) = (server.clone(), Arc::clone(&cut));
                async move {
                    if *lock(&cut) == Cut::Requests {
                        std::future::pending::<()>().await;
                    }
                    let is_write = request.method() != "GET";
                    let answer = server.handle(request).await;
                    if *lock(&cut) == Cut::Answers && is_write {
                        std::future::pending::<()>().await;
                    }
                    if *lock(&cut) == Cut::Slow && is_write {
                        sleep(SLOW).await;
                    }
                    answer
                }
            })
        };
        let (client, lease_client) = (client(), client());
        let metrics = Metrics::new().unwrap();
        let stop = CancellationToken::new();
        let args = Args {
            pod_name: name.into(),
            ..testing::args()
        };
        let ended = tokio::spawn({
            let (metrics, stop) = (metrics.clone(), stop.clone());
            async move {
                let operator = Operator {
                    args: &args,
                    client,
                    lease_client,
                    metrics,
                    ready: Arc::default(),
                };
                operator.lead(&stop).await
            }
        });
        Self {
            metrics,
            cut,
            stop,
            ended,
        }
    }

    fn leads(&self) -> bool {
        self.metrics.leader.get() == 1
    }

    fn set(&self, cut: Cut) {
        *lock(&self.cut) = cut;
    }
}

/// Waits until `is` holds, and sees that never two lead.
async fn until(replicas: &[&Replica], is: impl Fn() -> bool) -> Duration {
    let began = Instant::now();
    while !is() {
        sleep(Duration::from_millis(50)).await;
        let leaders = replicas.iter().filter(|replica| replica.leads()).count();
        assert!(leaders <= 1, "after {:?} {leaders} lead", began.elapsed());
        assert!(began.elapsed() < Duration::from_mins(1), "waited for a minute");
    }
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_leads_nothing_before_the_other_one_leads() {
    for cut in [Cut::Requests, Cut::Answers] {
        let server = server();
        let (a, b) = (Replica::start("a", &server), Replica::start("b", &server));
        let both = [&a, &b];
        until(&both, || a.leads() || b.leads()).await;
        sleep(Duration::from_mins(1)).await;
        let (leader, other) = if a.leads() { (&a, &b) } else { (&b, &a) };
        assert!(!other.leads());
        leader.set(cut);
        let stopped = until(&both, || !leader.leads()).await;
        assert!(stopped <= Duration::from_secs(10), "{cut:?}: {stopped:?}");
        let taken = stopped + until(&both, || other.leads()).await;
        // What it wrote last without its knowledge, it wrote ten seconds later.
        let longest = Duration::from_secs(if cut == Cut::Requests { 18 } else { 28 });
        assert!(taken <= longest, "{cut:?}: {taken:?}");
        leader.set(Cut::No);
        sleep(Duration::from_mins(1)).await;
        assert!(other.leads() && !leader.leads(), "{cut:?}: the other one goes on");
        assert!(!leader.ended.is_finished(), "{cut:?}: it stands by");
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_told_to_stop_gives_the_lease_back() {
    let server = server();
    let (a, b) = (Replica::start("a", &server), Replica::start("b", &server));
    let both = [&a, &b];
    until(&both, || a.leads() || b.leads()).await;
    let (leader, other) = if a.leads() { (a, b) } else { (b, a) };
    leader.stop.cancel();
    let taken = until(&[&leader, &other], || other.leads()).await;
    assert!(taken <= Duration::from_millis(2500), "{taken:?}");
    leader.ended.await.unwrap().unwrap();
}

/// Nobody answers any more: it ends all the same, before it is killed.
#[tokio::test(start_paused = true)]
async fn a_leader_ends_in_time_though_the_api_server_is_away() {
    let server = server();
    let replica = Replica::start("a", &server);
    until(&[&replica], || replica.leads()).await;
    replica.set(Cut::Requests);
    replica.stop.cancel();
    let began = Instant::now();
    replica.ended.await.unwrap().unwrap();
    let took = began.elapsed() + END_SERVERS;
    assert!(took < Duration::from_secs(30), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn what_has_begun_is_finished_before_the_lease_is_given_back() {
    let stored = json!({
        "apiVersion": "wardline.io/v1alpha1", "kind": "Dataplane", "spec": {},
        "metadata": {"name": "default", "uid": "dp", "generation": 1, "resourceVersion": "1",
            "finalizers": ["wardline.io/nodes", "wardline.io/daemons"]},
    });
    let begun = CancellationToken::new();
    let tell = begun.clone();
    let server = server().reply("/dataplanes", testing::collection(vec![stored])).reply(
        "/daemonsets/wardline-node",
        move |_| {
            tell.cancel();
            Reply::Json(200, testing::rolled_out(1, 0))
        },
    );
    let replica = Replica::start("a", &server);
    replica.set(Cut::Slow);
    begun.cancelled().await;
    replica.stop.cancel();
    replica.ended.await.unwrap().unwrap();
    let sent = server.take();
    let position = |is: &dyn Fn(&Sent) -> bool| sent.iter().rposition(is).unwrap();
    let written = position(&|sent| sent.path.ends_with("/dataplanes/default/status"));
    let given_back = position(&|sent| sent.method == "PUT" && sent.body["spec"]["holderIdentity"].is_null());
    assert!(
        written < given_back,
        "{:?}",
        sent.iter().map(Sent::summary).collect::<Vec<_>>()
    );
}
