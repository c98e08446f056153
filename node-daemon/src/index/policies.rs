// SPDX-License-Identifier: Apache-2.0
//! Policies as the API server tells them. Of one that cannot be used, the last good version is in force; where there is
//! none, what isolates its pods: docs/decisions/0006-bad-policies-isolate.md.

use std::sync::Arc;

use wardline_policy::model::{ObjectName, Policy};

use super::{Index, PolicyInfo};

/// A policy, as far as it can be used.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) policy: Arc<Policy>,
    uid: Arc<str>,
    /// It was never good: this isolates, and follows the object.
    pub(super) is_stand_in: bool,
}

impl Index {
    pub(super) fn set_policy(&mut self, name: ObjectName, told: PolicyInfo) {
        self.forget_others(&name, &told.uid);
        let told = Told {
            policy: Arc::new(told.policy),
            uid: told.uid,
            is_stand_in: false,
        };
        self.policies.insert(name, told);
    }

    /// `instead` is what isolates its pods; None where whom it means cannot be told: what was in force stays.
    pub(super) fn refuse_policy(&mut self, name: ObjectName, uid: Arc<str>, instead: Option<Policy>) {
        self.forget_others(&name, &uid);
        let is_good = self.policies.get(&name).is_some_and(|told| !told.is_stand_in);
        // One that was good and had no room is not in force either.
        let is_in_force = is_good && !self.stand_ins.contains(&name);
        if let Some(instead) = instead.filter(|_| !is_in_force) {
            let told = Told {
                policy: Arc::new(instead),
                uid,
                is_stand_in: true,
            };
            self.policies.insert(name, told);
        }
    }

    pub(super) fn remove_policy(&mut self, name: &ObjectName) {
        self.policies.remove(name);
        // Nothing of it is the version before of another that gets its name.
        self.objects.policies.remove(name);
        self.stand_ins.remove(name);
    }

    /// An object that had the name before is gone, also where nobody saw that.
    fn forget_others(&mut self, name: &ObjectName, uid: &str) {
        if self.policies.get(name).is_some_and(|told| *told.uid != *uid) {
            self.remove_policy(name);
        }
    }
}
