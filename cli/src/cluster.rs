// SPDX-License-Identifier: Apache-2.0
//! The API server: the only place that holds a client.

use anyhow::Context as _;
use kube::api::{Api, DynamicObject, ListParams};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kube::core::ApiResource;
use kube::{Client, Resource};
use serde_json::Value;

use crate::args::ClusterArgs;

/// Objects a request: large clusters are read in pieces, as kubectl does.
const PAGE: u32 = 500;

/// A connection, and the thread that drives it.
pub(crate) struct Cluster {
    runtime: tokio::runtime::Runtime,
    client: Client,
}

impl Cluster {
    pub(crate) fn connect(args: &ClusterArgs) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("failed to start the runtime")?;
        let client = runtime.block_on(async {
            // kube's errors spell out their causes already.
            let config = config(args)
                .await
                .map_err(|error| anyhow::anyhow!("failed to read the kubeconfig: {error}"))?;
            Client::try_from(config).context("failed to make a client of the kubeconfig")
        })?;
        Ok(Self { runtime, client })
    }

    /// Runs what needs the connection.
    pub(crate) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// All objects of a kind; None where the API server does not know the kind.
    pub(crate) fn list<K: Resource<DynamicType = ()>>(&self) -> anyhow::Result<Option<Vec<Value>>> {
        let resource = ApiResource::erase::<K>(&());
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        let listed = match self.runtime.block_on(pages(&api)) {
            Err(kube::Error::Api(response)) if response.code == 404 => return Ok(None),
            listed => listed.map_err(|error| anyhow::anyhow!("failed to list {}: {error}", resource.plural))?,
        };
        let values = listed.into_iter().map(serde_json::to_value).collect::<Result<_, _>>();
        values
            .map(Some)
            .with_context(|| format!("failed to read {}", resource.plural))
    }

    /// All objects of a kind that every cluster has.
    pub(crate) fn list_known<K: Resource<DynamicType = ()>>(&self) -> anyhow::Result<Vec<Value>> {
        self.list::<K>()?
            .with_context(|| format!("failed to list {}: the API server does not know them", K::plural(&())))
    }
}

async fn config(args: &ClusterArgs) -> anyhow::Result<Config> {
    let options = KubeConfigOptions {
        context: args.context.clone(),
        ..KubeConfigOptions::default()
    };
    Ok(match (&args.kubeconfig, &args.context) {
        (Some(path), _) => Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &options).await?,
        (None, Some(_)) => Config::from_kubeconfig(&options).await?,
        (None, None) => Config::infer().await?,
    })
}

async fn pages(api: &Api<DynamicObject>) -> kube::Result<Vec<DynamicObject>> {
    let mut parameters = ListParams::default().limit(PAGE);
    let mut all = Vec::new();
    loop {
        let page = api.list(&parameters).await?;
        all.extend(page.items);
        match page.metadata.continue_ {
            Some(token) if !token.is_empty() => parameters = parameters.continue_token(&token),
            _ => return Ok(all),
        }
    }
}
