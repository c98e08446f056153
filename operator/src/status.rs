// SPDX-License-Identifier: Apache-2.0
//! Writing a status by server-side apply. The answer is not decoded into the kind: what was written counts, and the rest
//! of the object may be of a version that this operator does not know.

use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde_json::json;

use crate::MANAGER;
use crate::context::Context;
use crate::error::Error;

/// Applies `status` whole. The uid keeps it from a successor of the same name.
pub(crate) async fn apply<K>(context: &Context, object: &K, status: &impl Serialize) -> Result<(), Error>
where
    K: Resource<DynamicType = ()>,
{
    let (kind, name) = (K::kind(&()), object.name_any());
    let patch = json!({
        "apiVersion": K::api_version(&()), "kind": kind,
        "metadata": {"name": name, "uid": object.uid()}, "status": status,
    });
    let api: Api<DynamicObject> = Api::all_with(context.client.clone(), &ApiResource::erase::<K>(&()));
    let patched = api
        .patch_status(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&patch))
        .await;
    patched.map_err(Error::api("update status of", format!("{kind} {name}")))?;
    Ok(())
}
