// SPDX-License-Identifier: Apache-2.0
//! The control thread: what the cluster and the node say goes in, in order; the kernel is brought to the state that
//! follows. One thread owns index and datapath, so that no two changes can mix.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use wardline_policy::model::{Direction, ObjectName};

use wardline_cni::Code;

use crate::cni::{Bound, Call, Refusal, Waiting};
use crate::datapath::{Applied, ApplyError, Datapath, KeptLimit, Restored, ServiceCounts};
use crate::events::LogHealth;
use crate::index::{Desired, Event, Index, InvalidObject, LoggingSpec};
use crate::interfaces;
use crate::metrics::Metrics;
use crate::names::{Names, PodName};

/// How long nothing must happen before the kernel is tidied.
const IDLE: Duration = Duration::from_millis(500);
/// How long at most while something happens all the time.
const BUSY: Duration = Duration::from_secs(5);
/// How often the journal is tidied and other programs are looked for.
const LOOK: Duration = Duration::from_secs(15);
/// How often a change that the kernel refused is tried again when nothing else happens.
const RETRY: Duration = Duration::from_secs(5);
/// How long no pod must have been added before links take over from filters, and the time between two of them: each
/// waits for a grace period, and whoever changes an interface meanwhile waits too.
const ADDED: Duration = Duration::from_secs(2);
const HAND_OVER: Duration = Duration::from_millis(100);
/// Changes taken in at once: those that come together take effect together.
const BATCH: usize = 1024;

/// What the control thread is told.
#[derive(Debug)]
pub enum Message {
    Cluster(Event),
    /// Links or addresses of the node changed.
    InterfacesChanged,
    /// Somebody attached or detached programs at this interface; None is any.
    ProgramsChanged(Option<u32>),
    Cni(Call),
    /// How the policy log is.
    PolicyLog(LogHealth),
    /// How the programs did in their test: how many packets they judged, or what was wrong.
    SelfTest(Result<usize, String>),
}

/// What the node is like, for its status and its readiness.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeState {
    /// All kinds were listed and the kernel holds what they say.
    pub synced: bool,
    pub managed: usize,
    pub unmanaged: BTreeMap<ObjectName, String>,
    pub invalid: Vec<InvalidObject>,
    /// Services that could not be brought in force as they are, and why.
    pub refused_services: BTreeMap<ObjectName, String>,
    pub services: ServiceCounts,
    /// None while there is no NetworkLogging.
    pub logging: Option<LoggingSpec>,
    /// Why a change is not in force, or what else is wrong; empty where all is well.
    pub problems: Vec<String>,
    /// Pods that another program could pass packets by.
    pub bypassed: Vec<String>,
    /// Whether that was looked for since policies are in force.
    pub is_looked_at: bool,
    /// Of the pods that an earlier life guarded, those that this one cannot.
    pub unattached: BTreeMap<ObjectName, String>,
    /// What keeps the CNI plugin from being installed.
    pub plugin: Option<String>,
    pub log: LogHealth,
    /// None until the programs were tested.
    pub self_test: Option<Result<usize, String>>,
    pub last_applied: Option<std::time::SystemTime>,
    /// Whether pods are guarded that an earlier life brought in force.
    pub inherits: bool,
}

/// Owned by the control thread.
#[derive(Debug)]
pub struct Control {
    index: Index,
    datapath: Datapath,
    names: Arc<Names>,
    state: watch::Sender<NodeState>,
    metrics: Arc<Metrics>,
    kept_limits: Vec<KeptLimit>,
    /// Pods that an earlier life guarded.
    inherited: BTreeSet<ObjectName>,
    refused_services: BTreeMap<ObjectName, String>,
    /// Whether this life has brought all Services in force once.
    has_services: bool,
    /// When refused Services were tried last.
    services_tried: Instant,
    waiting: Waiting,
    /// Since when something waits for another try: a refused change, a pod that could not be managed.
    unsettled: Option<Instant>,
    tidied: Instant,
    looked: Instant,
    /// Programs at some interface changed since.
    look_soon: bool,
    /// When the next link may take over from a filter.
    hand_over_at: Instant,
}

impl Control {
    pub fn new(
        mut index: Index,
        datapath: Datapath,
        names: Arc<Names>,
        metrics: Arc<Metrics>,
        kept_limits: Vec<KeptLimit>,
    ) -> (Self, watch::Receiver<NodeState>) {
        index.set_room(datapath.room());
        let inherited: BTreeSet<ObjectName> = datapath.inherited().into_iter().map(|(_, spec)| spec.pod).collect();
        let (state, receiver) = watch::channel(NodeState {
            inherits: !inherited.is_empty(),
            ..NodeState::default()
        });
        (
            Self {
                index,
                datapath,
                names,
                state,
                metrics,
                kept_limits,
                inherited,
                refused_services: BTreeMap::new(),
                has_services: false,
                services_tried: Instant::now(),
                waiting: Waiting::default(),
                unsettled: None,
                tidied: Instant::now(),
                looked: Instant::now(),
                look_soon: false,
                hand_over_at: Instant::now() + ADDED,
            },
            receiver,
        )
    }

    /// Works until cancelled.
    ///
    /// # Errors
    /// Only where going on makes no sense: the node's interfaces cannot be read.
    pub fn run(
        mut self,
        runtime: &Handle,
        mut messages: mpsc::Receiver<Message>,
        cancel: &CancellationToken,
    ) -> std::io::Result<()> {
        for (index, spec) in self.datapath.inherited() {
            self.index.inherit(index, spec);
        }
        self.index.set_interfaces(interfaces::scan()?);
        loop {
            let batch = runtime
                .block_on(cancel.run_until_cancelled(next_batch(&mut messages, self.patience())))
                .unwrap_or(Batch::Closed);
            self.metrics.control_alive();
            let is_idle = matches!(batch, Batch::Idle);
            match batch {
                Batch::Closed => return Ok(()),
                Batch::Idle => {}
                Batch::Messages(batch) => self.take_in(batch),
            }
            self.waiting.expire();
            if self.tidied.elapsed() >= if is_idle { IDLE } else { BUSY } {
                self.tidy();
            }
            if messages.is_empty() {
                self.hand_over();
            }
        }
    }

    /// How long to wait for messages before something else is due.
    fn patience(&self) -> Duration {
        if self.datapath.has_filters() {
            self.hand_over_at.saturating_duration_since(Instant::now()).min(IDLE)
        } else {
            IDLE
        }
    }

    /// Lets a link take over from a filter, where nobody would wait for it.
    fn hand_over(&mut self) {
        if Instant::now() < self.hand_over_at {
            return;
        }
        let pause = match self.datapath.hand_over() {
            Ok(()) => HAND_OVER,
            Err(error) => {
                tracing::warn!(%error, "a pod's programs stay filters for now; trying again");
                RETRY
            }
        };
        self.hand_over_at = Instant::now() + pause;
    }

    /// Reads the node's interfaces and says whether they changed; what was known of them stays where that fails.
    fn scan(&mut self) -> bool {
        match interfaces::scan() {
            Ok(found) => self.index.set_interfaces(found),
            Err(error) => {
                tracing::warn!(%error, "failed to read the node's interfaces; trying again");
                false
            }
        }
    }

    fn take_in(&mut self, batch: Vec<Message>) {
        let began = Instant::now();
        let (mut scan, mut changed) = (false, false);
        let mut touched = Some(BTreeSet::new());
        for message in batch {
            match message {
                Message::ProgramsChanged(Some(ifindex)) => touched.iter_mut().for_each(|all| {
                    all.insert(ifindex);
                }),
                Message::ProgramsChanged(None) => touched = None,
                Message::InterfacesChanged => scan = true,
                Message::Cluster(event) => changed |= self.index.apply(event),
                Message::Cni(call) => changed |= self.take_call(call),
                Message::PolicyLog(health) => self.publish_with(|state| state.log = health),
                Message::SelfTest(result) => {
                    // What came before it waited.
                    changed = true;
                    self.publish_with(|state| state.self_test = Some(result));
                }
            }
        }
        scan |= self.waiting.wants_scan(&self.index);
        if scan {
            changed |= self.scan();
        }
        if touched.as_ref().is_none_or(|touched| !touched.is_empty()) {
            self.restore(touched.as_ref());
            self.look_soon = true;
        }
        if !self.may_begin() {
            return;
        }
        // An ADD tells where a pod's host ports lead.
        let bound = self.waiting.attach(&mut self.index);
        // Before policy, which brings new pods in force: they find all Services there.
        self.apply_services();
        self.names.apply_moves(self.index.take_moves());
        if !changed && bound.is_empty() {
            return;
        }
        let mut desired = self.index.desired();
        if !desired.unmanaged.is_empty() && !scan {
            // The address inside a pod's namespace tells nobody outside when it is set.
            self.scan();
            desired = self.index.desired();
        }
        let failed = self.apply(&desired);
        self.metrics.observe_apply(began.elapsed());
        self.answer(bound, &failed);
    }

    /// Whether the cluster is known, and our programs judge as they should here: until then, what an earlier life brought in
    /// force is better than what this one would.
    fn may_begin(&self) -> bool {
        self.index.is_synced() && matches!(self.state.borrow().self_test, Some(Ok(_)))
    }

    /// Brings the Services that changed in force. One that is refused holds up no other.
    fn apply_services(&mut self) {
        let began = Instant::now();
        let services = self.index.services();
        let changes = services.take_changes();
        let is_changed = !changes.is_empty();
        if is_changed {
            let fronts = changes.iter().flat_map(|change| change.fronts.keys());
            let owners = fronts.map(|key| (*key, services.owner(key).cloned()));
            self.names.apply_services(owners);
        }
        for change in changes {
            match self.datapath.apply_services(&change) {
                Ok(()) => _ = self.refused_services.remove(&change.service),
                Err(error) => {
                    let cause = error.to_string();
                    tracing::error!(service = %change.service, cause, "a Service was refused; what was in force stays");
                    self.refused_services.insert(change.service.clone(), cause);
                    self.index.services().refuse(change);
                }
            }
        }
        if !self.has_services {
            let services = self.index.services();
            match self.datapath.retain_services(|key| services.front(key).is_some()) {
                Ok(()) => self.has_services = true,
                Err(error) => tracing::warn!(%error, "failed to take away former Services; trying again"),
            }
        }
        if is_changed {
            self.metrics.observe_service_apply(began.elapsed());
        }
        let invalid = self.index.invalid_objects().collect();
        let (refused, counts) = (self.refused_services.clone(), self.datapath.service_counts());
        self.publish_with(|state| {
            state.invalid = invalid;
            state.refused_services = refused;
            state.services = counts;
        });
    }

    /// Returns whether the index may desire something else now.
    fn take_call(&mut self, call: Call) -> bool {
        match call {
            Call::Attach { network, bound, answer } => {
                self.waiting.push(network, bound, answer);
                false
            }
            Call::Detach { attachment, answer } => {
                self.waiting.give_up(&attachment);
                // Who asked may have given up.
                let _ = answer.send(self.index.announced(&attachment));
                self.index.detach(&attachment)
            }
            Call::Collect(valid) => self.index.collect(&valid),
            Call::Check { network, answer } => {
                let at = self.index.attached_at(&network);
                let is_managed = at.is_some_and(|(index, uid)| self.datapath.manages(index, &uid));
                let refusal = || {
                    let pod = format!("{}/{}", network.pod.namespace, network.pod.name);
                    Refusal::new(Code::NotManaged, format!("Pod {pod} is not guarded"))
                };
                // Who asked may have given up.
                let _ = answer.send(if is_managed { Ok(()) } else { Err(refusal()) });
                false
            }
            Call::Installed(problem) => {
                self.publish_with(|state| state.plugin = problem);
                false
            }
        }
    }

    /// Tells the ADDs that were waited for. One whose pod could not be guarded, or that nobody waits for any more,
    /// leaves nothing behind.
    fn answer(&mut self, bound: Vec<Bound>, failed: &BTreeMap<ObjectName, String>) {
        for Bound {
            network,
            index,
            pod_uid,
            answer,
        } in bound
        {
            let pod = ObjectName::new(network.pod.namespace, network.pod.name);
            let is_taken = if self.datapath.manages(index, &pod_uid) {
                answer.send(Ok(())).is_ok()
            } else {
                let cause = failed
                    .get(&pod)
                    .map_or("its programs could not be put in place", String::as_str);
                let message = format!("failed to guard Pod {pod}: {cause}");
                let _ = answer.send(Err(Refusal::new(Code::TryAgainLater, message)));
                false
            };
            self.hand_over_at = Instant::now() + ADDED;
            if !is_taken && self.index.unattach(index) {
                self.unsettled = Some(Instant::now());
            }
        }
    }

    /// Returns the pods that could not be managed, and why.
    fn apply(&mut self, desired: &Desired) -> BTreeMap<ObjectName, String> {
        let index = &self.index;
        let result = self.datapath.apply(desired, |pod| pod_name(index, pod));
        let is_settled = desired.unmanaged.is_empty() && result.as_ref().is_ok_and(|applied| applied.failed.is_empty());
        self.unsettled = (!is_settled).then(Instant::now);
        if let Err(error) = &result {
            tracing::error!(%error, "a change was refused; what was in force stays");
        }
        let failed = result
            .as_ref()
            .map_or_else(|_| BTreeMap::new(), |applied| applied.failed.clone());
        self.publish(desired, result);
        failed
    }

    fn publish(&self, desired: &Desired, result: Result<Applied, ApplyError>) {
        let mut state = self.state.borrow().clone();
        state.invalid = self.index.invalid_objects().collect();
        state.unmanaged = desired
            .unmanaged
            .iter()
            .map(|(pod, cause)| (pod.clone(), (*cause).to_owned()))
            .collect();
        state.problems = self.kept_limits.iter().map(describe).collect();
        match result {
            Ok(applied) => {
                state.synced = true;
                state.managed = applied.managed;
                state.logging = self.index.logging();
                let is_inherited = |(pod, _): &(&ObjectName, &String)| self.inherited.contains(pod);
                let unattached = applied.failed.iter().filter(is_inherited);
                state.unattached = unattached.map(|(pod, cause)| (pod.clone(), cause.clone())).collect();
                state.unmanaged.extend(applied.failed);
                let others = self.datapath.judged_by_others();
                if others > 0 {
                    let problem = format!("{others} pods are still judged by the programs of another version");
                    state.problems.push(problem);
                }
                if applied.changed || state.last_applied.is_none() {
                    state.last_applied = Some(std::time::SystemTime::now());
                }
            }
            Err(error) => {
                state.synced = false;
                state.problems.push(error.to_string());
            }
        }
        self.publish_with(|old| *old = state);
    }

    fn publish_with(&self, change: impl FnOnce(&mut NodeState)) {
        self.state.send_if_modified(|state| {
            let before = state.clone();
            change(state);
            *state != before
        });
        self.metrics.set_node(&self.state.borrow());
    }

    /// What is off the way from a change to its being in force.
    fn tidy(&mut self) {
        self.tidied = Instant::now();
        if self.may_begin() && self.unsettled.is_some_and(|since| since.elapsed() >= RETRY) {
            self.scan();
            self.apply_services();
            let desired = self.index.desired();
            self.apply(&desired);
        }
        if !self.refused_services.is_empty() && self.services_tried.elapsed() >= RETRY {
            self.services_tried = Instant::now();
            self.index.services().retry();
            self.apply_services();
        }
        if let Err(error) = self.datapath.collect_garbage() {
            tracing::warn!(%error, "failed to tidy the kernel's tables; trying again");
            return;
        }
        let is_in_force = self.state.borrow().last_applied.is_some();
        let is_first = is_in_force && !self.state.borrow().is_looked_at;
        if is_first || self.look_soon || self.looked.elapsed() >= LOOK {
            (self.look_soon, self.looked) = (false, Instant::now());
            if let Err(error) = self.datapath.forget_names() {
                tracing::warn!(%error, "failed to tidy the journal; trying again");
            }
            let failed = self.restore(None);
            let bypassed = self.datapath.bypassed();
            let bypassed = bypassed.iter().map(describe_bypassed).chain(failed).collect();
            self.publish_with(|state| {
                state.bypassed = bypassed;
                state.is_looked_at = is_in_force;
            });
        }
    }

    /// Sees that our programs are in place, at all pods or at those of the interfaces `only`, and says what could not
    /// be put back.
    fn restore(&mut self, only: Option<&BTreeSet<u32>>) -> Vec<String> {
        let restored = self.datapath.restore(only);
        for Restored {
            pod,
            direction,
            failure,
        } in &restored
        {
            match failure {
                None => {
                    tracing::warn!(%pod, ?direction, "somebody took our program off; put back, packets passed meanwhile");
                    self.metrics.program_restored();
                }
                Some(error) => {
                    tracing::error!(%pod, ?direction, %error, "somebody took our program off; trying again");
                }
            }
        }
        restored.iter().filter_map(describe_failed).collect()
    }
}

fn pod_name(index: &Index, pod: &ObjectName) -> PodName {
    PodName {
        pod: pod.clone(),
        workload: index.pod(pod).and_then(|info| info.workload.clone()),
    }
}

fn describe_bypassed((pod, directions): &(ObjectName, Vec<Direction>)) -> String {
    format!("another program is ahead of ours at pod {pod} ({directions:?})")
}

fn describe_failed(restored: &Restored) -> Option<String> {
    let Restored { pod, failure, .. } = restored;
    let cause = failure.as_ref()?;
    Some(format!(
        "a program of pod {pod} was taken off and cannot be put back: {cause}"
    ))
}

fn describe(kept: &KeptLimit) -> String {
    let KeptLimit { map, wanted, in_force } = kept;
    format!("table {map} keeps its size {in_force} while the kernel holds state; {wanted} needs a restart of the node")
}

enum Batch {
    Messages(Vec<Message>),
    Idle,
    Closed,
}

async fn next_batch(messages: &mut mpsc::Receiver<Message>, patience: Duration) -> Batch {
    let mut batch = Vec::new();
    match tokio::time::timeout(patience, messages.recv_many(&mut batch, BATCH)).await {
        Ok(0) => Batch::Closed,
        Ok(_) => Batch::Messages(batch),
        Err(_) => Batch::Idle,
    }
}
