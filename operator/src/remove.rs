// SPDX-License-Identifier: Apache-2.0
//! `wardline-operator remove`: deletes the Dataplane, and waits until the operator that runs in the cluster has taken
//! Wardline off all nodes. For whoever uninstalls: that operator must not go before.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use kube::api::{ApiResource, DeleteParams, DynamicObject};
use kube::{Api, Client, ResourceExt};
use wardline_crds::Dataplane;

use crate::args::RemoveArgs;

/// The only name that one can have.
const NAME: &str = "default";
const LOOK: Duration = Duration::from_secs(1);

/// Prints how far it is.
///
/// # Errors
/// When the API server refuses, or it takes longer than it may; the message says what is waited for and what to do.
pub(crate) async fn remove(args: &RemoveArgs) -> Result<()> {
    let client = Client::try_default().await.context("failed to find the API server")?;
    // One that does not decode is deleted as well.
    let api: Api<DynamicObject> = Api::all_with(client, &ApiResource::erase::<Dataplane>(&()));
    let uid = match api.delete(NAME, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {
            println!("there is no Dataplane {NAME}");
            return Ok(());
        }
        deleted => deleted
            .with_context(|| format!("failed to delete Dataplane {NAME}"))?
            .left()
            .and_then(|object| object.uid()),
    };
    println!("deleted Dataplane {NAME}; waiting until its nodes are clean");
    let began = Instant::now();
    let (mut told, mut trouble) = (String::new(), String::new());
    loop {
        match api.get_opt(NAME).await {
            Ok(Some(object)) if uid.is_none() || object.uid() == uid => {
                let message = progress(&object);
                if message != told {
                    println!("{message}");
                    told = message;
                }
            }
            Ok(_) => {
                println!("Wardline is off all nodes");
                return Ok(());
            }
            Err(error) => trouble = format!(" ({error})"),
        }
        if began.elapsed() >= Duration::from_secs(args.timeout_seconds) {
            bail!(
                "Dataplane {NAME} is still there after {} s{trouble}: {told}. See that an operator runs, and that the \
                 nodes that it waits for are up or deleted; docs/operations.md says how to remove Wardline without them",
                args.timeout_seconds
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn progress(object: &DynamicObject) -> String {
    let conditions = object.data["status"]["conditions"].as_array();
    let progressing = conditions.and_then(|all| all.iter().find(|one| one["type"] == "Progressing"));
    let message = progressing.and_then(|one| one["message"].as_str());
    message.unwrap_or("no operator has looked at it yet").to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn progress_is_in_the_operators_words() {
        let object = |status| -> DynamicObject {
            serde_json::from_value(json!({"metadata": {"name": "default"}, "status": status})).unwrap()
        };
        let conditions = json!([{"type": "Ready"}, {"type": "Progressing", "message": "1 of 2 nodes are clean"}]);
        assert_eq!(
            progress(&object(json!({"conditions": conditions}))),
            "1 of 2 nodes are clean"
        );
        assert_eq!(progress(&object(json!({}))), "no operator has looked at it yet");
    }
}
