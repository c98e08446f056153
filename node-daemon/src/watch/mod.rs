// SPDX-License-Identifier: Apache-2.0
//! The Kubernetes streams: objects in, the index's events out. The only place of the daemon that reads the API server.
//!
//! Every watch decodes object by object, so one that does not decode is told as invalid and stops nobody else. Objects
//! are reduced to what the index uses before they leave this module.

pub mod convert;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::core::DeserializeGuard;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use wardline_crds::{Dataplane, NetworkLogging};

use crate::control::Message;
use crate::index::{Event, Kind};

/// Starts one task a kind with `spawn`. They end when cancelled, or when nobody listens any more.
pub fn start(
    client: &Client,
    events: &mpsc::Sender<Message>,
    cancel: &CancellationToken,
    spawn: impl Fn(Kind, BoxFuture<'static, ()>),
) {
    let watch = Watch {
        client: client.clone(),
        events: events.clone(),
        cancel: cancel.clone(),
    };
    let singleton = watcher::Config::default().fields(&format!("metadata.name={}", wardline_crds::SINGLETON_NAME));
    for kind in Kind::WATCHED.into_iter().chain([Kind::Dataplane]) {
        let (watch, all) = (watch.clone(), watcher::Config::default());
        let work = match kind {
            Kind::Namespace => watch.follow::<Namespace>(kind, all, convert::namespace).boxed(),
            Kind::Pod => watch.follow::<Pod>(kind, all, convert::pod).boxed(),
            Kind::NetworkPolicy => watch.follow::<NetworkPolicy>(kind, all, convert::policy).boxed(),
            Kind::Node => watch.follow::<Node>(kind, all, convert::node).boxed(),
            Kind::Service => watch.follow::<Service>(kind, all, convert::service).boxed(),
            Kind::EndpointSlice => watch.follow::<EndpointSlice>(kind, all, convert::slice).boxed(),
            Kind::NetworkLogging => {
                let work = watch.follow::<NetworkLogging>(kind, singleton.clone(), convert::logging);
                work.boxed()
            }
            Kind::Dataplane => {
                let work = watch.follow::<Dataplane>(kind, singleton.clone(), convert::dataplane);
                work.boxed()
            }
        };
        spawn(kind, work);
    }
}

/// What became of an object.
#[derive(Clone, Debug)]
pub enum Seen<K> {
    Here(K),
    Gone,
    /// It does not decode, for this cause.
    Undecodable(String),
}

#[derive(Clone)]
struct Watch {
    client: Client,
    events: mpsc::Sender<Message>,
    cancel: CancellationToken,
}

impl Watch {
    async fn follow<K>(self, kind: Kind, config: watcher::Config, convert: fn(&ObjectKey, Seen<K>) -> Event)
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let api: Api<DeserializeGuard<K>> = Api::all(self.client);
        let stream = watcher(api, config).default_backoff();
        let mut stream = pin!(stream.take_until(self.cancel.cancelled()));
        let mut listed = BTreeSet::new();
        loop {
            let event = match stream.try_next().await {
                Ok(Some(event)) => event,
                Ok(None) => return,
                Err(error) => {
                    // The stream tries again by itself, with growing pauses; what is in force stays in force.
                    tracing::warn!(%kind, %error, "failed to watch; trying again");
                    continue;
                }
            };
            let told = match event {
                watcher::Event::Init => {
                    listed.clear();
                    None
                }
                watcher::Event::InitApply(object) => {
                    let key = ObjectKey::of(&object);
                    listed.insert(key.to_string());
                    Some(convert(&key, seen(object)))
                }
                watcher::Event::InitDone => Some(Event::Listed(kind, std::mem::take(&mut listed))),
                watcher::Event::Apply(object) => Some(convert(&ObjectKey::of(&object), seen(object))),
                watcher::Event::Delete(object) => Some(convert(&ObjectKey::of(&object), Seen::Gone)),
            };
            if let Some(event) = told
                && self.events.send(Message::Cluster(event)).await.is_err()
            {
                return;
            }
        }
    }
}

fn seen<K>(object: DeserializeGuard<K>) -> Seen<K> {
    match object.0 {
        Ok(object) => Seen::Here(object),
        Err(invalid) => Seen::Undecodable(invalid.error),
    }
}

/// Namespace (empty for cluster-scoped kinds) and name, and which of those that had them.
#[derive(Clone, Debug)]
pub struct ObjectKey {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub uid: Arc<str>,
}

impl ObjectKey {
    pub fn of(object: &impl ResourceExt) -> Self {
        Self {
            namespace: object.namespace().unwrap_or_default().into(),
            name: object.name_any().into(),
            uid: object.uid().unwrap_or_default().into(),
        }
    }
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{}", self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}
