// SPDX-License-Identifier: Apache-2.0
//! What the operator tells the node daemon: the key `config.yaml` of its ConfigMap, which the daemon reads once from
//! `--config FILE`. Every field has a default, so an empty file is a configuration; a field that is not known is an
//! error, so that no setting is dropped unseen.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    CniSpec, DataplaneSpec, Enforcement, FailurePolicy, LimitsSpec, LogFileSpec, LogLevel, LoggingSpec, PolicySpec,
    ServicesMode, ServicesSpec, SourceAddressCheck,
};
use crate::{quantity, validate};

/// Key of the ConfigMap, and name of the file that the daemon sees.
pub const CONFIG_KEY: &str = "config.yaml";
/// Port of the daemon's metrics on every address of its node.
pub const METRICS_PORT: u16 = 9470;
/// Port of the daemon's health answers, on the node's loopback address only.
pub const HEALTH_PORT: u16 = 9471;

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("failed to parse daemon configuration: {0}")]
    Parse(#[from] serde_yaml::Error),
    #[error("failed to read daemon configuration {path}: {cause}", path = path.display())]
    Read { path: PathBuf, cause: std::io::Error },
}

/// Configuration of one node daemon. The same on every node.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct DaemonConfig {
    pub enforcement: Enforcement,
    pub source_address_check: SourceAddressCheck,
    pub services_mode: ServicesMode,
    pub cni: CniConfig,
    pub logging: LoggingConfig,
    pub metrics: MetricsConfig,
    pub limits: Limits,
    pub api_server: ApiServer,
    pub log_level: LogLevel,
    pub log_format: LogFormat,
    /// Where /metrics is served.
    pub metrics_address: SocketAddr,
    /// Where /healthz and /readyz are served.
    pub health_address: SocketAddr,
}

impl Default for DaemonConfig {
    fn default() -> Self {
        let policy = PolicySpec::default();
        Self {
            enforcement: policy.enforcement,
            source_address_check: policy.source_address_check,
            services_mode: ServicesSpec::default().mode,
            cni: CniConfig::default(),
            logging: LoggingConfig::default(),
            metrics: MetricsConfig::default(),
            limits: Limits::default(),
            api_server: ApiServer::default(),
            log_level: LogLevel::Info,
            log_format: LogFormat::Json,
            metrics_address: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), METRICS_PORT),
            health_address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), HEALTH_PORT),
        }
    }
}

impl DaemonConfig {
    /// Reads and parses a file.
    pub fn from_file(path: &std::path::Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|cause| ConfigError::Read {
            path: path.to_owned(),
            cause,
        })?;
        Self::from_yaml(&text)
    }

    /// Parses YAML; nothing but white space and comments is the default configuration.
    pub fn from_yaml(text: &str) -> Result<Self, ConfigError> {
        let value: serde_yaml::Value = serde_yaml::from_str(text)?;
        if value.is_null() {
            return Ok(Self::default());
        }
        Ok(serde_yaml::from_value(value)?)
    }

    /// The YAML that `from_yaml` reads, the same bytes for the same configuration.
    pub fn to_yaml(&self) -> Result<String, ConfigError> {
        Ok(serde_yaml::to_string(self)?)
    }

    /// The configuration that a valid spec asks for.
    pub fn from_spec(spec: &DataplaneSpec) -> Result<Self, validate::SpecError> {
        validate::dataplane(spec)?;
        Ok(Self {
            enforcement: spec.policy.enforcement,
            source_address_check: spec.policy.source_address_check,
            services_mode: spec.services.mode,
            cni: CniConfig::from(&spec.cni),
            logging: LoggingConfig::from_spec(&spec.logging)?,
            metrics: MetricsConfig {
                policies: spec.metrics.policies,
            },
            limits: Limits::from(&spec.limits),
            api_server: ApiServer {
                host: spec.api_server.host.clone(),
                port: spec.api_server.port,
            },
            log_level: spec.daemon.log_level,
            ..Self::default()
        })
    }
}

/// The CNI plugin on the node.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct CniConfig {
    /// Where the node's CNI configuration is, the same inside the daemon as on the node.
    pub conf_dir: PathBuf,
    /// Where its CNI plugins are.
    pub bin_dir: PathBuf,
    /// What happens to new pods while the daemon is away.
    pub failure_policy: FailurePolicy,
}

impl From<&CniSpec> for CniConfig {
    fn from(spec: &CniSpec) -> Self {
        Self {
            conf_dir: spec.conf_dir.clone().into(),
            bin_dir: spec.bin_dir.clone().into(),
            failure_policy: spec.failure_policy,
        }
    }
}

impl Default for CniConfig {
    fn default() -> Self {
        Self::from(&CniSpec::default())
    }
}

/// The policy log of the node.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct LoggingConfig {
    /// `cluster_name` of each record; empty leaves it out.
    pub cluster_name: String,
    /// Seconds from the first denied attempt to its record.
    pub deny_aggregation_seconds: u32,
    pub file: LogFile,
    /// Lines also go to standard output.
    pub stdout: bool,
}

impl LoggingConfig {
    fn from_spec(spec: &LoggingSpec) -> Result<Self, validate::SpecError> {
        Ok(Self {
            cluster_name: spec.cluster_name.clone(),
            deny_aggregation_seconds: spec.deny_aggregation_seconds,
            file: LogFile {
                path: spec.file.path.clone().into(),
                max_size: quantity::parse_bytes(&spec.file.max_size)?,
                max_files: spec.file.max_files,
                max_age_seconds: spec.file.max_age_seconds,
                min_free_percent: spec.file.min_free_percent,
            },
            stdout: spec.stdout,
        })
    }
}

impl Default for LoggingConfig {
    fn default() -> Self {
        let spec = LoggingSpec::default();
        Self {
            cluster_name: spec.cluster_name,
            deny_aggregation_seconds: spec.deny_aggregation_seconds,
            file: LogFile::default(),
            stdout: spec.stdout,
        }
    }
}

/// What metrics tell beside the totals.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// Policies that are told apart where verdicts are counted by them; 0 counts none.
    pub policies: u32,
}

/// The file of the policy log.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct LogFile {
    pub path: PathBuf,
    /// Bytes that a file may hold.
    pub max_size: u64,
    /// Files kept, the one in use among them.
    pub max_files: u32,
    /// Seconds after which a file is rotated whatever its size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age_seconds: Option<u32>,
    /// Percent of the file system below which nothing is written.
    pub min_free_percent: u32,
}

impl Default for LogFile {
    fn default() -> Self {
        let spec = LogFileSpec::default();
        Self {
            path: spec.path.into(),
            max_size: 10 << 20,
            max_files: spec.max_files,
            max_age_seconds: spec.max_age_seconds,
            min_free_percent: spec.min_free_percent,
        }
    }
}

/// Sizes of the kernel's tables, in entries.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Limits {
    pub connections: u32,
    pub peers: u32,
    pub rules: u32,
    pub deny_aggregates: u32,
}

impl From<&LimitsSpec> for Limits {
    fn from(spec: &LimitsSpec) -> Self {
        Self {
            connections: spec.connections,
            peers: spec.peers,
            rules: spec.rules,
            deny_aggregates: spec.deny_aggregates,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::from(&LimitsSpec::default())
    }
}

/// Where the API server is; an empty host means what kubelet says.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ApiServer {
    pub host: String,
    pub port: u16,
}

impl Default for ApiServer {
    fn default() -> Self {
        Self {
            host: String::new(),
            port: 6443,
        }
    }
}

/// How the daemon writes its own messages.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    #[default]
    Json,
    Text,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_what_an_empty_spec_asks_for() {
        let from_spec = DaemonConfig::from_spec(&DataplaneSpec::default()).unwrap();
        for text in ["", "\n", "# nothing\n", "{}", "logging: {file: {}}"] {
            assert_eq!(DaemonConfig::from_yaml(text).unwrap(), from_spec, "{text:?}");
        }
    }

    #[test]
    fn yaml_reads_back() {
        let mut config = DaemonConfig::default();
        config.logging.file.max_size = 65_536;
        config.log_format = LogFormat::Text;
        config.enforcement = Enforcement::Audit;
        let text = config.to_yaml().unwrap();
        assert_eq!(DaemonConfig::from_yaml(&text).unwrap(), config);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for text in [
            "enforce: true",
            "logging: {file: {size: 1}}",
            "limits: {connections: -1}",
            "servicesMode: Everywhere",
            "logLevel: Loud",
            "[]",
        ] {
            let error = DaemonConfig::from_yaml(text).unwrap_err().to_string();
            assert!(
                error.starts_with("failed to parse daemon configuration: "),
                "{text}: {error}"
            );
        }
    }
}
