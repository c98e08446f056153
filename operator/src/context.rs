// SPDX-License-Identifier: Apache-2.0
//! What every reconciliation shares.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::runtime::events::{Recorder, Reporter};
use wardline_crds::RolloutStatus;

use crate::MANAGER;
use crate::args::Args;
use crate::backoff::Backoff;
use crate::caches::Caches;
use crate::dataplane::Applied;
use crate::metrics::Metrics;

/// Objects whose faults are remembered; beyond, some are told again.
const MOST_COMPLAINTS: usize = 1000;

pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) args: Args,
    pub(crate) caches: Caches,
    pub(crate) metrics: Metrics,
    reporter: Reporter,
    /// By kind, name and reason: what was told last, and the recorder that counts how often.
    recorders: Mutex<HashMap<String, (String, Recorder)>>,
    /// What was applied last, so that an unchanged DaemonSet is not sent again for each change of a node.
    pub(crate) applied: Mutex<Option<Applied>>,
    /// What was last written of a Dataplane's rollout, with its uid: the copy of the object may be older.
    pub(crate) rollout: Mutex<Option<(String, RolloutStatus)>>,
    /// When a pod's container was first seen not to start, by the pod's uid: kubelets do not say.
    pub(crate) troubles: Mutex<HashMap<String, Timestamp>>,
    /// When a ConfigMap was first seen to be used by nobody, by its name.
    pub(crate) orphans: Mutex<HashMap<String, Instant>>,
    pub(crate) backoff: Mutex<Backoff>,
    /// What was last said of an object that does not decode, by kind and name.
    complaints: Mutex<HashMap<String, String>>,
    /// The resourceVersion of such an object at which all was said, by kind and name.
    reported: Mutex<HashMap<String, String>>,
}

impl Context {
    pub(crate) fn new(client: Client, args: Args, caches: Caches, metrics: Metrics) -> Self {
        let reporter = Reporter {
            controller: MANAGER.into(),
            instance: Some(args.pod_name.clone()),
        };
        Self {
            client,
            reporter,
            recorders: Mutex::default(),
            args,
            caches,
            metrics,
            applied: Mutex::default(),
            rollout: Mutex::default(),
            troubles: Mutex::default(),
            orphans: Mutex::default(),
            backoff: Mutex::default(),
            complaints: Mutex::default(),
            reported: Mutex::default(),
        }
    }

    /// Who publishes an Event. Recorders count Events of one reason as one, whatever their notes say; here another note is
    /// another Event.
    pub(crate) fn recorder(&self, key: &str, note: &str) -> Recorder {
        let mut recorders = lock(&self.recorders);
        if recorders.len() >= MOST_COMPLAINTS {
            recorders.clear();
        }
        if let Some((_, recorder)) = recorders.get(key).filter(|(told, _)| told == note) {
            return recorder.clone();
        }
        let recorder = Recorder::new(self.client.clone(), self.reporter.clone());
        recorders.insert(key.to_owned(), (note.to_owned(), recorder.clone()));
        recorder
    }

    /// The object can be used: what was wrong with it is news again when it comes back.
    pub(crate) fn succeeded(&self, key: &str) {
        lock(&self.backoff).succeeded(key);
        lock(&self.complaints).remove(key);
        lock(&self.reported).remove(key);
    }

    /// The object was looked at, and cannot be used.
    pub(crate) fn refused(&self, key: &str) {
        lock(&self.backoff).succeeded(key);
    }

    /// Whether all that there is to say of that version of an object was said, which stands in the object now.
    pub(crate) fn is_reported(&self, key: &str, version: Option<&str>) -> bool {
        version.is_some_and(|version| lock(&self.reported).get(key).is_some_and(|of| of == version))
    }

    pub(crate) fn reported(&self, key: &str, version: Option<&str>) {
        let mut reported = lock(&self.reported);
        if reported.len() >= MOST_COMPLAINTS {
            reported.clear();
        }
        if let Some(version) = version {
            reported.insert(key.to_owned(), version.to_owned());
        }
    }

    /// Whether `message` has not been said of that object before; it has been from now on.
    pub(crate) fn first_time(&self, key: &str, message: &str) -> bool {
        let mut complaints = lock(&self.complaints);
        if complaints.len() >= MOST_COMPLAINTS {
            complaints.clear();
        }
        complaints.insert(key.to_owned(), message.to_owned()).as_deref() != Some(message)
    }
}

/// A value that a panic left behind is whole: nothing here is changed in more than one step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
