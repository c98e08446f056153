// SPDX-License-Identifier: Apache-2.0
//! The API server: the only place that holds a client.

use anyhow::Context as _;
use k8s_openapi::jiff::{self, Timestamp};
use kube::api::{Api, DynamicObject, ListParams};
use kube::client::Body;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kube::core::ApiResource;
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
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
    /// Finds the cluster; nothing is sent yet.
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
        let plural = resource.plural;
        let listed = match self.runtime.block_on(pages(&api, &ListParams::default())) {
            Err(kube::Error::Api(response)) if response.code == 404 => return Ok(None),
            listed => listed.map_err(|error| anyhow::anyhow!("failed to list {plural}: {error}"))?,
        };
        let values = listed.into_iter().map(serde_json::to_value).collect::<Result<_, _>>();
        values.map(Some).with_context(|| format!("failed to read {plural}"))
    }

    /// All objects of a kind that every cluster has.
    pub(crate) fn list_known<K: Resource<DynamicType = ()>>(&self) -> anyhow::Result<Vec<Value>> {
        self.list::<K>()?
            .with_context(|| format!("failed to list {}: the API server does not know them", K::plural(&())))
    }
}

/// Under which name a person knows the cluster.
pub(crate) fn context_name(args: &ClusterArgs) -> String {
    let kubeconfig = match &args.kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let current = kubeconfig.ok().and_then(|kubeconfig| kubeconfig.current_context);
    let named = args.context.clone().or(current);
    named.unwrap_or_else(|| "in-cluster".to_owned())
}

async fn config(args: &ClusterArgs) -> anyhow::Result<Config> {
    let options = KubeConfigOptions {
        context: args.context.clone(),
        ..KubeConfigOptions::default()
    };
    let mut config = match (&args.kubeconfig, &args.context) {
        (Some(path), _) => Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &options).await?,
        (None, Some(_)) => Config::from_kubeconfig(&options).await?,
        (None, None) => Config::infer().await?,
    };
    // Why a daemon does not answer is what is asked for, and a proxy says so by 503: it is told at once, not tried for a
    // minute.
    config.default_retry = false;
    if let Some(user) = &args.as_user {
        config.auth_info.impersonate = Some(user.clone());
        config.auth_info.impersonate_groups = Some(args.as_groups.clone()).filter(|groups| !groups.is_empty());
    }
    Ok(config)
}

/// All that is listed, read in pieces.
pub(crate) async fn pages<K>(api: &Api<K>, parameters: &ListParams) -> kube::Result<Vec<K>>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let mut parameters = parameters.clone().limit(PAGE);
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

/// The API server's clock; this machine's where it does not tell. Ages are of what is stamped in the cluster.
pub(crate) async fn clock(client: &Client) -> kube::Result<Timestamp> {
    let request = http::Request::get("/version").body(Body::empty());
    let answer = client.send(request.map_err(kube::Error::HttpError)?).await?;
    let date = answer.headers().get(http::header::DATE);
    let told = date.and_then(|date| jiff::fmt::rfc2822::parse(date.to_str().ok()?).ok());
    Ok(told.map_or_else(Timestamp::now, |told| told.timestamp()))
}
