// SPDX-License-Identifier: Apache-2.0
//! Objects of our own kinds that do not decode: stored under a laxer CRD, or by a later version. Nothing that is in force
//! is touched; the object's conditions and an Event say what is wrong.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::error_boundary::InvalidObject;
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
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

/// Says of an undecodable object what is wrong with it: an Event for each new cause, and its conditions.
pub(crate) async fn report<K>(context: &Context, invalid: &InvalidObject, words: &Words) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    let kind = K::kind(&());
    let name = invalid.metadata.name.clone().unwrap_or_default();
    let key = format!("{kind}/{name}");
    let version = invalid.metadata.resource_version.as_deref();
    if context.is_reported(&key, version) {
        return Ok(());
    }
    // The object is read and written as it is, for its own type cannot hold it.
    let api: Api<DynamicObject> = Api::all_with(context.client.clone(), &ApiResource::erase::<K>(&()));
    let found = api
        .get_opt(&name)
        .await
        .map_err(Error::api("read", format!("{kind} {name}")))?;
    let Some(found) = found else { return Ok(()) };
    let Some(cause) = cause::<K>(&found) else { return Ok(()) };
    let message = format!("failed to decode {kind} {name}: {cause}; what was in force stays in force");

    let complaint = format!("{} {message}", invalid.metadata.uid.as_deref().unwrap_or_default());
    if context.first_time(&key, &complaint) {
        let reference = ObjectReference {
            api_version: Some(K::api_version(&()).into_owned()),
            kind: Some(kind.clone().into_owned()),
            name: Some(name.clone()),
            uid: invalid.metadata.uid.clone(),
            ..ObjectReference::default()
        };
        let note = message.clone();
        let event = Announcement {
            warning: true,
            action: "Decode",
            reason: words.reason.into(),
            note,
        };
        context.announce(&reference, vec![event]).await;
    }
    let Some(status) = status(&found, &message, words, Timestamp::now()) else {
        // Whoever saw an older copy looks once more.
        context.reported(&key, found.metadata.resource_version.as_deref());
        return Ok(());
    };
    // Server-side apply would decode the object against its CRD first, so this is a merge patch.
    let patch = Patch::Merge(json!({ "status": status }));
    let params = PatchParams {
        field_manager: Some(MANAGER.into()),
        ..PatchParams::default()
    };
    let patched = api.patch_status(&name, &params, &patch).await;
    patched.map_err(Error::api("update status of", format!("{kind} {name}")))?;
    Ok(())
}

/// What is wrong, and in which field; the guard of the watch knows no fields. None where it has been mended meanwhile.
fn cause<K: DeserializeOwned>(object: &DynamicObject) -> Option<String> {
    let value = match serde_json::to_value(object) {
        Ok(value) => value,
        Err(error) => return Some(error.to_string()),
    };
    serde_path_to_error::deserialize::<_, K>(value)
        .err()
        .map(|error| error.to_string())
}

/// The part of the status that is to be written, where it is not so already. Conditions that are kept may be ones that
/// this operator does not know.
fn status(object: &DynamicObject, message: &str, words: &Words, now: Timestamp) -> Option<Value> {
    let stored = object
        .data
        .pointer("/status/conditions")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let old: Vec<Condition> = stored
        .into_iter()
        .filter_map(|c| serde_json::from_value(c).ok())
        .collect();
    let generation = object.metadata.generation;
    let mut conditions = old.clone();
    for (type_, status) in words.conditions {
        let new = NewCondition {
            type_,
            status: *status,
            reason: words.reason,
            message,
            generation,
        };
        set_condition(&mut conditions, &new, now);
    }
    (conditions != old).then(|| json!({"observedGeneration": generation, "conditions": conditions}))
}
