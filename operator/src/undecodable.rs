// SPDX-License-Identifier: Apache-2.0
//! Objects of our own kinds that do not decode: stored under a laxer CRD, or by a later version. Nothing that is in force
//! is touched; the object's conditions and an Event say what is wrong.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::error_boundary::InvalidObject;
use kube::{Api, Resource};
use serde_json::json;
use wardline_crds::condition::{NewCondition, Status, set_condition};

use crate::MANAGER;
use crate::announce::Announcement;
use crate::context::Context;
use crate::error::Error;

/// How a kind says that it cannot be used.
pub(crate) struct Words {
    /// Reason of the conditions and of the Event.
    pub(crate) reason: &'static str,
    /// Conditions, and the status that each gets.
    pub(crate) conditions: &'static [(&'static str, Status)],
}

/// Says of an undecodable object what is wrong with it, once for each cause.
pub(crate) async fn report<K>(context: &Context, invalid: &InvalidObject, words: &Words) -> Result<(), Error>
where
    K: Resource<DynamicType = ()>,
{
    let kind = K::kind(&());
    let name = invalid.metadata.name.clone().unwrap_or_default();
    let key = format!("{kind}/{}", invalid.metadata.uid.as_deref().unwrap_or(&name));
    let message = format!(
        "failed to decode {kind} {name}: {}; what was in force stays in force",
        invalid.error
    );
    if context.first_time(&key, &message) {
        tracing::warn!(kind = %kind, name, error = invalid.error, "object does not decode");
        let reference = ObjectReference {
            api_version: Some(K::api_version(&()).into_owned()),
            kind: Some(kind.clone().into_owned()),
            name: Some(name.clone()),
            uid: invalid.metadata.uid.clone(),
            ..ObjectReference::default()
        };
        let event = Announcement {
            warning: true,
            action: "Decode",
            reason: words.reason.into(),
            note: message.clone(),
        };
        context.announce(&reference, vec![event]).await;
    }
    set_conditions::<K>(context, &name, &message, words).await
}

/// The object is read and written as it is, for its own type cannot hold it. Server-side apply would have to decode it
/// against the CRD, so this is a merge patch.
async fn set_conditions<K>(context: &Context, name: &str, message: &str, words: &Words) -> Result<(), Error>
where
    K: Resource<DynamicType = ()>,
{
    let object = || format!("{} {name}", K::kind(&()));
    let api: Api<DynamicObject> = Api::all_with(context.client.clone(), &ApiResource::erase::<K>(&()));
    let Some(found) = api.get_opt(name).await.map_err(Error::api("read", object()))? else {
        return Ok(());
    };
    let generation = found.metadata.generation;
    let stored = found
        .data
        .pointer("/status/conditions")
        .and_then(|list| list.as_array())
        .cloned()
        .unwrap_or_default();
    let old: Vec<Condition> = stored
        .into_iter()
        .filter_map(|c| serde_json::from_value(c).ok())
        .collect();

    let mut conditions = old.clone();
    for (type_, status) in words.conditions {
        let new = NewCondition {
            type_,
            status: *status,
            reason: words.reason,
            message,
            generation,
        };
        set_condition(&mut conditions, &new, Timestamp::now());
    }
    if conditions == old {
        return Ok(());
    }
    let patch = json!({"status": {"observedGeneration": generation, "conditions": conditions}});
    let params = PatchParams {
        field_manager: Some(MANAGER.into()),
        ..PatchParams::default()
    };
    api.patch_status(name, &params, &Patch::Merge(&patch))
        .await
        .map_err(Error::api("update status of", object()))?;
    Ok(())
}
