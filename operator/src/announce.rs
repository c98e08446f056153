// SPDX-License-Identifier: Apache-2.0
//! Events: one for each transition that people act upon, found by comparing conditions before and after.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::runtime::events::{Event, EventType};
use wardline_crds::condition;

use crate::context::Context;
use crate::error::explain;

/// Bytes of note that the API server takes at most: 1 kB.
const LONGEST_NOTE: usize = 1000;

/// One Event, to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Announcement {
    pub(crate) warning: bool,
    pub(crate) action: &'static str,
    pub(crate) reason: String,
    pub(crate) note: String,
}

impl Announcement {
    /// The one line of what was decided.
    fn log(&self, object: &ObjectReference) {
        let Self {
            action, reason, note, ..
        } = self;
        let (kind, namespace, name) = (&object.kind, &object.namespace, &object.name);
        if self.warning {
            tracing::warn!(kind, namespace, name, action, reason, "{note}");
        } else {
            tracing::info!(kind, namespace, name, action, reason, "{note}");
        }
    }
}

/// What a condition means when it changes.
pub(crate) enum Watched {
    /// `True` is good news and `False` is not: Ready, Accepted.
    Good(&'static str),
    /// `True` is bad news: Degraded.
    Bad(&'static str),
}

/// Events for what changed from `old` to `new`. A condition that was not there before and is not worth a word (not good
/// yet, not bad) has none.
pub(crate) fn transitions(
    watched: &[Watched],
    old: &[Condition],
    new: &[Condition],
    action: &'static str,
) -> Vec<Announcement> {
    watched
        .iter()
        .filter_map(|watched| transition(watched, old, new, action))
        .collect()
}

fn transition(watched: &Watched, old: &[Condition], new: &[Condition], action: &'static str) -> Option<Announcement> {
    let (Watched::Good(type_) | Watched::Bad(type_)) = *watched;
    let now = condition::find(new, type_)?;
    let before = condition::find(old, type_);
    let was = before.is_some_and(|c| c.status == "True");
    let is = now.status == "True";
    let announcement = |warning, reason: &str| {
        Some(Announcement {
            warning,
            action,
            reason: reason.to_owned(),
            note: now.message.clone(),
        })
    };
    match watched {
        Watched::Good(_) if is && !was => announcement(false, type_),
        Watched::Good(_) if was && !is => announcement(now.reason != "RollingOut", &now.reason),
        // A refused object is announced for each new mistake in it; a node that joins others is not.
        Watched::Bad(_) if is => {
            let known = before.filter(|_| was).is_some_and(|before| {
                let same_words = before.message == now.message || !now.reason.starts_with("Invalid");
                before.reason == now.reason && same_words
            });
            if known { None } else { announcement(true, &now.reason) }
        }
        Watched::Bad(_) if was => announcement(false, "Recovered"),
        _ => None,
    }
}

impl Context {
    /// Publishes Events on an object, and logs the same. An Event that cannot be written is logged too, and stops nothing.
    pub(crate) async fn announce(&self, object: &ObjectReference, announcements: Vec<Announcement>) {
        for announcement in announcements {
            announcement.log(object);
            let type_ = if announcement.warning {
                EventType::Warning
            } else {
                EventType::Normal
            };
            let note = &announcement.note[..announcement.note.floor_char_boundary(LONGEST_NOTE)];
            let event = Event {
                type_,
                reason: announcement.reason.clone(),
                note: (!note.is_empty()).then(|| note.to_owned()),
                action: announcement.action.into(),
                secondary: None,
            };
            let name = |part: &Option<String>| part.clone().unwrap_or_default();
            let (kind, namespace) = (name(&object.kind), name(&object.namespace));
            let key = format!("{kind}/{namespace}/{}/{}", name(&object.name), event.reason);
            if let Err(error) = self.recorder(&key, note).publish(&event, object).await {
                let cause = explain(&error);
                tracing::warn!(
                    kind = object.kind,
                    name = object.name,
                    event.reason,
                    cause,
                    "failed to publish Event"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn list(conditions: &[(&str, &str, &str, &str)]) -> Vec<Condition> {
        let condition = |(type_, status, reason, message): &(&str, &str, &str, &str)| Condition {
            type_: (*type_).into(),
            status: (*status).into(),
            reason: (*reason).into(),
            message: (*message).into(),
            observed_generation: None,
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
        };
        conditions.iter().map(condition).collect()
    }

    #[test]
    fn one_event_a_transition() {
        let watched = [Watched::Good("Ready"), Watched::Bad("Degraded")];
        for (what, old, new, expected) in [
            (
                "first sight, not ready",
                vec![],
                vec![("Ready", "False", "RollingOut", "")],
                vec![],
            ),
            (
                "ready",
                vec![("Ready", "False", "RollingOut", "")],
                vec![("Ready", "True", "Ready", "")],
                vec!["Ready"],
            ),
            (
                "still ready",
                vec![("Ready", "True", "Ready", "")],
                vec![("Ready", "True", "Ready", "x")],
                vec![],
            ),
            (
                "rollout",
                vec![("Ready", "True", "Ready", "")],
                vec![("Ready", "False", "RollingOut", "")],
                vec!["RollingOut"],
            ),
            (
                "degraded at once",
                vec![],
                vec![("Degraded", "True", "InvalidDataplane", "a")],
                vec!["!InvalidDataplane"],
            ),
            (
                "another mistake",
                vec![("Degraded", "True", "InvalidDataplane", "a")],
                vec![("Degraded", "True", "InvalidDataplane", "b")],
                vec!["!InvalidDataplane"],
            ),
            (
                "one more node",
                vec![("Degraded", "True", "NodesDegraded", "a")],
                vec![("Degraded", "True", "NodesDegraded", "a; b")],
                vec![],
            ),
            (
                "recovered",
                vec![("Degraded", "True", "NodesDegraded", "a")],
                vec![("Degraded", "False", "AsExpected", "")],
                vec!["Recovered"],
            ),
        ] {
            let found: Vec<String> = transitions(&watched, &list(&old), &list(&new), "Reconcile")
                .into_iter()
                .map(|a| format!("{}{}", if a.warning { "!" } else { "" }, a.reason))
                .collect();
            assert_eq!(found, expected, "{what}");
        }
    }
}
