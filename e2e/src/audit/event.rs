// SPDX-License-Identifier: Apache-2.0
//! Lines of the audit log: who asked what, and what the API server answered.

use serde::Deserialize;

use super::STOLEN;

/// The answer's message where an object is to be made in a namespace that is being deleted: nobody's right is missing.
const NAMESPACE_ENDS: &str = "because it is being terminated";

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    user: User,
    verb: String,
    #[serde(rename = "requestURI")]
    uri: String,
    #[serde(default)]
    user_agent: String,
    /// Not of what is no resource, such as `/version`.
    object_ref: Option<ObjectRef>,
    /// Not of what the API server has not answered yet.
    response_status: Option<ResponseStatus>,
}

#[derive(Debug, Clone, Deserialize)]
struct User {
    username: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ObjectRef {
    api_group: String,
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ResponseStatus {
    code: u16,
    message: String,
}

/// What a request needed the right to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Use {
    pub user: String,
    pub group: String,
    /// With its subresource, as roles write it: `pods/status`.
    pub resource: String,
    pub verb: String,
    /// Empty where it is all namespaces, or the resource has none.
    pub namespace: String,
    /// Empty where it is no one object.
    pub name: String,
}

impl Event {
    /// Whether a test made it, with a token of ours.
    pub fn is_of_a_thief(&self) -> bool {
        self.user_agent.starts_with(STOLEN)
    }

    /// What was refused, where it was.
    pub fn refusal(&self) -> Option<String> {
        let answer = self.response_status.as_ref().filter(|answer| answer.code == 403)?;
        let Self { user, verb, uri, .. } = self;
        (!answer.message.contains(NAMESPACE_ENDS))
            .then(|| format!("{}: {verb} {uri}: {}", user.username, answer.message))
    }

    /// What it needed: two rights where an object was applied that was not there yet.
    pub fn uses(&self) -> Vec<Use> {
        let is_refused = self.code() == 403;
        if is_refused { Vec::new() } else { self.needs() }
    }

    fn code(&self) -> u16 {
        self.response_status.as_ref().map_or(0, |answer| answer.code)
    }

    /// The same, whether it was allowed or not.
    pub fn needs(&self) -> Vec<Use> {
        let code = self.code();
        let Some(object) = &self.object_ref else {
            return Vec::new();
        };
        let made = (self.verb == "patch" && code == 201).then(|| "create".to_owned());
        let resource = match &*object.subresource {
            "" => object.resource.clone(),
            subresource => format!("{}/{subresource}", object.resource),
        };
        let needed = [Some(self.verb.clone()), made].into_iter().flatten();
        needed
            .map(|verb| Use {
                user: self.user.username.clone(),
                group: object.api_group.clone(),
                resource: resource.clone(),
                verb,
                namespace: object.namespace.clone(),
                name: object.name.clone(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(verb: &str, subresource: &str, code: u16, message: &str) -> Event {
        let event = json!({
            "user": {"username": "system:serviceaccount:wardline-system:wardline-node"},
            "verb": verb,
            "requestURI": "/api/v1/namespaces/shop/pods/db-0",
            "objectRef": {"resource": "pods", "subresource": subresource, "namespace": "shop", "name": "db-0"},
            "responseStatus": {"code": code, "message": message},
        });
        serde_json::from_value(event).unwrap()
    }

    #[test]
    fn what_a_request_needed() {
        let needed = |verb, subresource, code| {
            let uses = event(verb, subresource, code, "").uses();
            let text = uses
                .into_iter()
                .map(|needed| format!("{} {}", needed.verb, needed.resource));
            text.collect::<Vec<_>>()
        };
        assert_eq!(needed("patch", "status", 200), ["patch pods/status"]);
        assert_eq!(needed("get", "", 404), ["get pods"]);
        assert_eq!(needed("patch", "", 201), ["patch pods", "create pods"]);
        assert!(needed("get", "", 403).is_empty());
    }

    #[test]
    fn what_was_refused() {
        assert_eq!(event("get", "", 200, "").refusal(), None);
        assert_eq!(
            event("get", "", 403, "it ends, because it is being terminated").refusal(),
            None
        );
        assert_eq!(
            event("get", "", 403, "no").refusal().unwrap(),
            "system:serviceaccount:wardline-system:wardline-node: get /api/v1/namespaces/shop/pods/db-0: no"
        );
    }
}
