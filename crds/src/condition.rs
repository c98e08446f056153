// SPDX-License-Identifier: Apache-2.0
//! Conditions, as the Kubernetes API conventions mean them: one a type, `lastTransitionTime` moves with the status only.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// What a condition is set to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCondition<'a> {
    /// Type, such as `Ready`.
    pub type_: &'a str,
    pub status: Status,
    /// One `CamelCase` word; never empty.
    pub reason: &'a str,
    /// For people; may be empty.
    pub message: &'a str,
    /// `metadata.generation` that the condition speaks of, where the object has one that counts.
    pub generation: Option<i64>,
}

/// Status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    True,
    False,
    Unknown,
}

impl Status {
    /// The spelling of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Status {
    fn from(value: bool) -> Self {
        if value { Self::True } else { Self::False }
    }
}

/// Sets one condition at time `now` and says whether its status changed; a condition that was not there counts as
/// changed. The time is kept, cut to whole seconds as the API stores it, while the status stays.
pub fn set_condition(conditions: &mut Vec<Condition>, new: &NewCondition<'_>, now: Timestamp) -> bool {
    let mut condition = Condition {
        type_: new.type_.to_owned(),
        status: new.status.as_str().to_owned(),
        reason: new.reason.to_owned(),
        message: new.message.to_owned(),
        observed_generation: new.generation,
        last_transition_time: Time(whole_seconds(now)),
    };
    let Some(old) = conditions.iter_mut().find(|c| c.type_ == new.type_) else {
        conditions.push(condition);
        return true;
    };
    let changed = old.status != condition.status;
    if !changed {
        condition.last_transition_time = old.last_transition_time.clone();
    }
    *old = condition;
    changed
}

/// The condition of that type.
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == type_)
}

/// Whether the condition of that type is there and `True`.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    find(conditions, type_).is_some_and(|c| c.status == "True")
}

/// Statuses are compared before they are written, so times must read back as they were written.
pub fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(status: Status, reason: &'static str) -> NewCondition<'static> {
        NewCondition {
            type_: "Ready",
            status,
            reason,
            message: "",
            generation: Some(1),
        }
    }

    #[test]
    fn time_moves_with_the_status_only() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let mut list = Vec::new();
        assert!(set_condition(&mut list, &ready(Status::False, "Starting"), at(10)));
        assert!(!set_condition(&mut list, &ready(Status::False, "Waiting"), at(20)));
        assert_eq!(
            (list[0].reason.as_str(), list[0].last_transition_time.0),
            ("Waiting", at(10))
        );
        assert!(set_condition(&mut list, &ready(Status::True, "Ready"), at(30)));
        assert_eq!(list[0].last_transition_time.0, at(30));
        assert_eq!(list.len(), 1);
        assert!(is_true(&list, "Ready") && !is_true(&list, "Degraded"));
    }

    #[test]
    fn times_read_back_as_written() {
        let mut list = Vec::new();
        set_condition(
            &mut list,
            &ready(Status::True, "Ready"),
            Timestamp::from_millisecond(1_500).unwrap(),
        );
        let text = serde_json::to_string(&list).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Condition>>(&text).unwrap(), list);
    }
}
