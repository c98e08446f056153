// SPDX-License-Identifier: Apache-2.0
//! What roles grant Wardline's service accounts, a line for each right.

use anyhow::{Result, ensure};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject};
use kube::core::ObjectMeta;

use super::event::Use;

/// One right: what a rule says of one resource, one verb and, where it names objects, one name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grant {
    user: String,
    /// Kind and name.
    role: String,
    /// Where it holds; everywhere where there is none.
    namespace: Option<String>,
    group: String,
    resource: String,
    verb: String,
    name: Option<String>,
}

/// Roles and what binds them.
#[derive(Debug, Default)]
pub struct Roles {
    pub cluster_roles: Vec<ClusterRole>,
    pub cluster_role_bindings: Vec<ClusterRoleBinding>,
    pub roles: Vec<Role>,
    pub role_bindings: Vec<RoleBinding>,
}

impl Roles {
    /// The rights of the service accounts of a namespace.
    ///
    /// # Errors
    /// When a rule grants all of something: no run could show that all of it is needed.
    pub fn grants_of(&self, namespace: &str) -> Result<Vec<Grant>> {
        let mut grants = Vec::new();
        for binding in &self.cluster_role_bindings {
            let rules = self.rules_of(&binding.role_ref, None);
            for user in users(binding.subjects.as_deref(), namespace) {
                expand(&mut grants, &user, &binding.role_ref, None, &rules)?;
            }
        }
        for binding in &self.role_bindings {
            let place = binding.metadata.namespace.as_deref();
            let rules = self.rules_of(&binding.role_ref, place);
            for user in users(binding.subjects.as_deref(), namespace) {
                expand(&mut grants, &user, &binding.role_ref, place, &rules)?;
            }
        }
        grants.sort();
        grants.dedup();
        Ok(grants)
    }

    fn rules_of(&self, role: &RoleRef, namespace: Option<&str>) -> Vec<PolicyRule> {
        let is_here =
            |meta: &ObjectMeta| meta.name.as_deref() == Some(&role.name) && meta.namespace.as_deref() == namespace;
        let rules = if role.kind == "ClusterRole" {
            let named = |one: &&ClusterRole| one.metadata.name.as_deref() == Some(&role.name);
            self.cluster_roles.iter().find(named).and_then(|one| one.rules.clone())
        } else {
            let mut roles = self.roles.iter();
            roles
                .find(|one| is_here(&one.metadata))
                .and_then(|one| one.rules.clone())
        };
        rules.unwrap_or_default()
    }
}

/// The service accounts of a namespace among subjects, as the API server calls them.
fn users(subjects: Option<&[Subject]>, namespace: &str) -> Vec<String> {
    let ours = subjects
        .into_iter()
        .flatten()
        .filter(|subject| subject.kind == "ServiceAccount" && subject.namespace.as_deref() == Some(namespace));
    ours.map(|subject| format!("system:serviceaccount:{namespace}:{}", subject.name))
        .collect()
}

fn expand(
    grants: &mut Vec<Grant>,
    user: &str,
    role: &RoleRef,
    namespace: Option<&str>,
    rules: &[PolicyRule],
) -> Result<()> {
    let role = format!("{} {}", role.kind, role.name);
    for rule in rules {
        let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        let (groups, resources, names) = (
            list(&rule.api_groups),
            list(&rule.resources),
            list(&rule.resource_names),
        );
        let is_all = |list: &[String]| list.iter().any(|one| one.contains('*'));
        ensure!(
            !is_all(&groups) && !is_all(&resources) && !is_all(&rule.verbs) && rule.non_resource_urls.is_none(),
            "{role} grants more than resources and verbs by their names: {rule:?}"
        );
        let names: Vec<Option<String>> = if names.is_empty() {
            vec![None]
        } else {
            names.into_iter().map(Some).collect()
        };
        for (group, resource) in groups
            .iter()
            .flat_map(|group| resources.iter().map(move |one| (group, one)))
        {
            for (verb, name) in rule
                .verbs
                .iter()
                .flat_map(|verb| names.iter().map(move |name| (verb, name)))
            {
                grants.push(Grant {
                    user: user.to_owned(),
                    role: role.clone(),
                    namespace: namespace.map(Into::into),
                    group: group.clone(),
                    resource: resource.clone(),
                    verb: verb.clone(),
                    name: name.clone(),
                });
            }
        }
    }
    Ok(())
}

impl Grant {
    /// Whether a request made use of it.
    pub fn allows(&self, request: &Use) -> bool {
        let is_there = self
            .namespace
            .as_ref()
            .is_none_or(|namespace| *namespace == request.namespace);
        let is_named = self.name.as_ref().is_none_or(|name| *name == request.name);
        let what = (&request.user, &request.group, &request.resource, &request.verb);
        what == (&self.user, &self.group, &self.resource, &self.verb) && is_there && is_named
    }
}

impl std::fmt::Display for Grant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let user = self.user.rsplit(':').next().unwrap_or_default();
        write!(f, "{} grants {user}: {} {}", self.role, self.verb, self.resource)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        if let Some(name) = &self.name {
            write!(f, " {name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn roles(rule: serde_json::Value) -> Roles {
        let role = json!({"metadata": {"name": "r", "namespace": "ours"}, "rules": [rule]});
        let binding = json!({
            "metadata": {"name": "b", "namespace": "ours"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
            "subjects": [{"kind": "ServiceAccount", "name": "op", "namespace": "ours"},
                         {"kind": "ServiceAccount", "name": "op", "namespace": "theirs"}],
        });
        Roles {
            roles: vec![serde_json::from_value(role).unwrap()],
            role_bindings: vec![serde_json::from_value(binding).unwrap()],
            ..Roles::default()
        }
    }

    #[test]
    fn rules_are_taken_apart() {
        let rule = json!({"apiGroups": ["apps"], "resources": ["daemonsets"], "resourceNames": ["a", "b"],
                          "verbs": ["patch", "delete"]});
        let grants = roles(rule).grants_of("ours").unwrap();
        let text: Vec<String> = grants.iter().map(ToString::to_string).collect();
        let expected = [
            "delete daemonsets.apps a",
            "delete daemonsets.apps b",
            "patch daemonsets.apps a",
            "patch daemonsets.apps b",
        ];
        assert_eq!(text, expected.map(|right| format!("Role r grants op: {right}")));
    }

    #[test]
    fn a_right_is_used_where_it_holds() {
        let rule = json!({"apiGroups": [""], "resources": ["pods"], "resourceNames": ["a"], "verbs": ["get"]});
        let grant = &roles(rule).grants_of("ours").unwrap()[0];
        let request = Use {
            user: "system:serviceaccount:ours:op".into(),
            group: String::new(),
            resource: "pods".into(),
            verb: "get".into(),
            namespace: "ours".into(),
            name: "a".into(),
        };
        assert!(grant.allows(&request));
        for other in [
            Use {
                user: "system:serviceaccount:ours:node".into(),
                ..request.clone()
            },
            Use {
                resource: "pods/status".into(),
                ..request.clone()
            },
            Use {
                verb: "list".into(),
                ..request.clone()
            },
            Use {
                namespace: "theirs".into(),
                ..request.clone()
            },
            Use {
                name: "b".into(),
                ..request.clone()
            },
        ] {
            assert!(!grant.allows(&other), "{other:?}");
        }
    }

    #[test]
    fn everything_is_too_much() {
        for rule in [
            json!({"apiGroups": ["*"], "resources": ["pods"], "verbs": ["get"]}),
            json!({"apiGroups": [""], "resources": ["pods/*"], "verbs": ["get"]}),
            json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["*"]}),
            json!({"nonResourceURLs": ["/metrics"], "verbs": ["get"]}),
        ] {
            roles(rule).grants_of("ours").unwrap_err();
        }
    }
}
