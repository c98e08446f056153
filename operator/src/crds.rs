// SPDX-License-Identifier: Apache-2.0
//! `wardline-operator crds`: makes the CRDs in the cluster what this version needs. Helm installs CRDs once and
//! never changes them, so the chart runs this before an upgrade.
//!
//! A definition is replaced whole, and objects stay: applied instead, it would keep each constraint of the old one that
//! the new one no longer has, for that would still be another manager's.

use anyhow::{Context as _, Result, bail};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};

use crate::MANAGER;

/// Prints what it does with each.
///
/// # Errors
/// When the API server refuses one, or its definition is a newer version's.
pub(crate) async fn write() -> Result<()> {
    let client = Client::try_default().await.context("failed to find the API server")?;
    let api: Api<CustomResourceDefinition> = Api::all(client);
    let params = PostParams {
        field_manager: Some(MANAGER.into()),
        ..PostParams::default()
    };
    for wanted in wardline_crds::schema::crds() {
        let name = wanted.name_any();
        let there = api.get_opt(&name).await;
        let there = there.with_context(|| format!("failed to get CustomResourceDefinition {name}"))?;
        let done = match there {
            None => api.create(&params, &wanted).await.map(|_| "created"),
            Some(there) => {
                let wanted = merge(&there, wanted)?;
                if is_same(&there, &wanted) {
                    Ok("unchanged")
                } else {
                    api.replace(&name, &params, &wanted).await.map(|_| "replaced")
                }
            }
        };
        let done = done.with_context(|| format!("failed to write CustomResourceDefinition {name}"))?;
        println!("CustomResourceDefinition {name}: {done}");
    }
    Ok(())
}

/// The wanted definition in the place of the one there, with the labels and annotations that others gave it.
///
/// # Errors
/// Where versions of the API are in use that the wanted one does not know: a newer Wardline was here.
fn merge(there: &CustomResourceDefinition, mut wanted: CustomResourceDefinition) -> Result<CustomResourceDefinition> {
    let known: Vec<&str> = wanted
        .spec
        .versions
        .iter()
        .map(|version| version.name.as_str())
        .collect();
    let stored = there
        .status
        .as_ref()
        .and_then(|status| status.stored_versions.as_deref());
    let unknown: Vec<&str> = stored
        .unwrap_or_default()
        .iter()
        .map(String::as_str)
        .filter(|name| !known.contains(name))
        .collect();
    if !unknown.is_empty() {
        bail!(
            "CustomResourceDefinition {} has objects stored as {}, and this version of Wardline knows {}",
            there.name_any(),
            unknown.join(", "),
            known.join(", ")
        );
    }
    let (labels, annotations) = (wanted.metadata.labels.take(), wanted.metadata.annotations.take());
    wanted.metadata = there.metadata.clone();
    wanted.metadata.managed_fields = None;
    wanted.labels_mut().extend(labels.unwrap_or_default());
    wanted.annotations_mut().extend(annotations.unwrap_or_default());
    Ok(wanted)
}

/// Whether replacing would change nothing. The API server adds defaults, so what it adds is left out of the comparison.
fn is_same(there: &CustomResourceDefinition, wanted: &CustomResourceDefinition) -> bool {
    let mut with_defaults = wanted.spec.clone();
    with_defaults.conversion.clone_from(&there.spec.conversion);
    with_defaults.names.list_kind.clone_from(&there.spec.names.list_kind);
    with_defaults == there.spec
        && there.metadata.labels == wanted.metadata.labels.clone().filter(|labels| !labels.is_empty())
        && there.metadata.annotations == wanted.metadata.annotations.clone().filter(|all| !all.is_empty())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
        CustomResourceConversion, CustomResourceDefinitionStatus,
    };

    use super::*;

    /// A definition as an API server returns it.
    fn there() -> CustomResourceDefinition {
        let mut crd = wardline_crds::schema::crds().remove(0);
        crd.metadata.uid = Some("uid".into());
        crd.metadata.resource_version = Some("7".into());
        crd.spec.names.list_kind = Some("DataplaneList".into());
        crd.spec.conversion = Some(CustomResourceConversion {
            strategy: "None".into(),
            webhook: None,
        });
        crd.status = Some(CustomResourceDefinitionStatus {
            stored_versions: Some(vec!["v1alpha1".into()]),
            ..CustomResourceDefinitionStatus::default()
        });
        crd
    }

    #[test]
    fn what_is_as_it_should_be_is_left_alone() {
        let wanted = merge(&there(), wardline_crds::schema::crds().remove(0)).unwrap();
        assert!(is_same(&there(), &wanted));
    }

    #[test]
    fn an_older_one_is_replaced_in_its_place_with_what_others_wrote_on_it() {
        let mut older = there();
        older.spec.versions[0].additional_printer_columns = None;
        older.metadata.annotations = Some(BTreeMap::from([("kept".into(), "yes".into())]));
        let wanted = merge(&older, wardline_crds::schema::crds().remove(0)).unwrap();
        assert!(!is_same(&older, &wanted));
        assert_eq!(wanted.metadata.resource_version.as_deref(), Some("7"));
        assert_eq!(wanted.annotations()["kept"], "yes");
        assert!(wanted.spec.versions[0].additional_printer_columns.is_some());
    }

    #[test]
    fn a_version_of_the_api_that_is_not_known_is_not_taken_away() {
        let mut newer = there();
        newer.status = Some(CustomResourceDefinitionStatus {
            stored_versions: Some(vec!["v1alpha1".into(), "v1".into()]),
            ..CustomResourceDefinitionStatus::default()
        });
        let refused = merge(&newer, wardline_crds::schema::crds().remove(0)).unwrap_err();
        assert!(refused.to_string().contains("stored as v1,"), "{refused}");
    }
}
