// SPDX-License-Identifier: Apache-2.0
//! The commands of the specification.

use std::io::{ErrorKind, Read, Write};
use std::time::Instant;

use serde_json::{Map, Value, json};

use crate::config::{Config, Entry, FailurePolicy, LogLevel};
use crate::daemon::{AskError, ask};
use crate::environment::{Command, Environment};
use crate::error::{Code, Error};
use crate::previous::Previous;
use crate::protocol::{self, Network, Response};
use crate::version::Version;

/// No configuration is longer, in bytes.
const MAX_INPUT: u64 = 4 << 20;
const AWAY: &str = "is the wardline-node pod of this node running? `kubectl -n wardline-system get pods -o wide`; \
                    failurePolicy: Ignore in the Dataplane's spec.cni lets pods start unguarded meanwhile";
/// What to look at where it takes too long. What it decided is not known, so that `Ignore` does not apply.
const SLOW: &str = "what does the wardline-node pod of this node log? `kubectl -n wardline-system get pods -o wide`; \
                    its metrics wardline_cni_add_phase_seconds and wardline_apply_seconds say what takes long";

/// Runs one command, as the runtime calls the plugin, and says whether it succeeded. The answer goes to `stdout`, an
/// error too; what people should know goes to `stderr`.
pub fn run(
    variables: impl Fn(&str) -> Option<String>,
    stdin: &mut impl Read,
    stdout: &mut impl Write,
    stderr: &mut impl Write,
) -> bool {
    let began = Instant::now();
    let environment = Environment(variables);
    let mut version = Version::NEWEST.as_str().to_owned();
    let mut log = Log {
        level: LogLevel::default(),
        to: stderr,
    };
    let result = read_object(stdin).and_then(|input| {
        if let Some(text) = input.get("cniVersion").and_then(Value::as_str) {
            text.clone_into(&mut version);
        }
        dispatch(&environment, &input, &mut log)
    });
    let (answer, is_ok) = match result {
        Ok(answer) => (answer, true),
        Err(error) => {
            log.write(LogLevel::Error, &error.to_string());
            (Some(error.to_json(&version)), false)
        }
    };
    log.write(LogLevel::Debug, &format!("took {} us", began.elapsed().as_micros()));
    let written = answer.is_none_or(|answer| writeln!(stdout, "{answer}").is_ok());
    is_ok && written
}

struct Log<'a, W> {
    level: LogLevel,
    to: &'a mut W,
}

impl<W: Write> Log<'_, W> {
    fn write(&mut self, level: LogLevel, message: &str) {
        if level <= self.level {
            // There is nobody to tell that nobody listens.
            let _ = writeln!(self.to, "wardline-cni: {level:?}: {message}");
        }
    }
}

fn read_object(stdin: &mut impl Read) -> Result<Map<String, Value>, Error> {
    let mut text = Vec::new();
    let read = stdin.take(MAX_INPUT).read_to_end(&mut text);
    read.map_err(|cause| Error::new(Code::Io, format!("failed to read the configuration: {cause}")))?;
    serde_json::from_slice(&text)
        .map_err(|cause| Error::new(Code::Decode, format!("failed to decode the configuration: {cause}")))
}

fn dispatch<F: Fn(&str) -> Option<String>>(
    environment: &Environment<F>,
    input: &Map<String, Value>,
    log: &mut Log<'_, impl Write>,
) -> Result<Option<Value>, Error> {
    let command = environment.command()?;
    match command {
        Command::Version => return Ok(Some(versions(input))),
        Command::Del => {
            del(environment, input, log);
            return Ok(None);
        }
        _ => {}
    }
    let config = Config::parse(input)?;
    log.level = config.entry.log_level;
    needs_version(command, config.version)?;
    match command {
        Command::Add => add(environment, config, log).map(Some),
        Command::Check => {
            let network = network(environment, &Previous::parse(config.prev_result)?)?;
            done(
                ask(&config.entry.socket, protocol::Command::Check(network)),
                Code::TryAgainLater,
            )
            .map(|()| None)
        }
        Command::Status => status(&config.entry, log).map(|()| None),
        Command::Gc => {
            let attachments = config
                .valid_attachments
                .ok_or_else(|| Error::new(Code::InvalidConfiguration, "cni.dev/valid-attachments: missing"))?;
            let collect = protocol::Command::Gc { attachments };
            done(ask(&config.entry.socket, collect), Code::TryAgainLater).map(|()| None)
        }
        Command::Del | Command::Version => Ok(None),
    }
}

/// The answer has the version of the question, also where only the question of versions is understood.
fn versions(input: &Map<String, Value>) -> Value {
    let asked = input.get("cniVersion").and_then(Value::as_str);
    json!({
        "cniVersion": asked.unwrap_or(Version::NEWEST.as_str()),
        "supportedVersions": Version::ALL.map(Version::as_str),
    })
}

fn needs_version(command: Command, version: Version) -> Result<(), Error> {
    let since = match command {
        Command::Check => Version::V0_4_0,
        Command::Status | Command::Gc => Version::V1_1_0,
        Command::Add | Command::Del | Command::Version => return Ok(()),
    };
    if version >= since {
        return Ok(());
    }
    let message = format!(
        "cniVersion {version} has no {}, which came with {since}",
        command.as_str()
    );
    Err(Error::new(Code::IncompatibleVersion, message))
}

fn add<F: Fn(&str) -> Option<String>>(
    environment: &Environment<F>,
    config: Config,
    log: &mut Log<'_, impl Write>,
) -> Result<Value, Error> {
    let previous = Previous::parse(config.prev_result)?;
    let network = network(environment, &previous)?;
    let pod = format!("{}/{}", network.pod.namespace, network.pod.name);
    let answered = match ask(&config.entry.socket, protocol::Command::Add(network)) {
        Err(AskError::Away { socket, cause }) if config.entry.failure_policy == FailurePolicy::Ignore => {
            let why = format!("wardline-node does not answer at {socket} ({cause}), and failurePolicy is Ignore");
            log.write(LogLevel::Warn, &format!("Pod {pod} starts UNGUARDED: {why}"));
            Ok(Response::Done)
        }
        answered => answered,
    };
    done(answered, Code::TryAgainLater)?;
    log.write(LogLevel::Info, &format!("the policy of Pod {pod} is in force"));
    previous.answer(config.version)
}

/// Always succeeds: what the daemon is not told now, it learns from the interface that goes and from the next GC. Of the
/// configuration it takes no more than it needs, for otherwise no pod of the node could end.
fn del<F: Fn(&str) -> Option<String>>(
    environment: &Environment<F>,
    input: &Map<String, Value>,
    log: &mut Log<'_, impl Write>,
) {
    let told = Entry::parse(input).and_then(|entry| {
        log.level = entry.log_level;
        let attachment = environment.attachment()?;
        let asked = ask(&entry.socket, protocol::Command::Del { attachment });
        done(asked, Code::TryAgainLater)
    });
    if let Err(error) = told {
        log.write(LogLevel::Warn, &format!("DEL goes on without the daemon: {error}"));
    }
}

/// A runtime that is told no makes its node `NotReady`, and Kubernetes then takes all pods of the node out of their
/// Services. A daemon that restarts is no reason for that: those pods go on under their policies, and an ADD says itself
/// why it fails. A daemon that never was there since the node started is one: its socket does not outlive the node.
fn status(entry: &Entry, log: &mut Log<'_, impl Write>) -> Result<(), Error> {
    let answered = ask(&entry.socket, protocol::Command::Status);
    let goes_on = match &answered {
        Err(AskError::Away { cause, .. }) => {
            cause.kind() != ErrorKind::NotFound || entry.failure_policy == FailurePolicy::Ignore
        }
        Err(AskError::Slow { .. }) => true,
        _ => false,
    };
    match answered {
        Err(error) if goes_on => {
            log.write(LogLevel::Warn, &format!("STATUS goes on without the daemon: {error}"));
            Ok(())
        }
        answered => done(answered, Code::NotAvailable),
    }
}

fn network<F: Fn(&str) -> Option<String>>(environment: &Environment<F>, previous: &Previous) -> Result<Network, Error> {
    let attachment = environment.attachment()?;
    let netns = environment.netns()?;
    Ok(Network {
        pod: environment.pod()?,
        host_interfaces: previous.host_interfaces(),
        addresses: previous.addresses(&netns, &attachment.ifname)?,
        attachment,
    })
}

/// `away`: the code where the daemon does not answer.
fn done(answered: Result<Response, AskError>, away: Code) -> Result<(), Error> {
    match answered {
        Ok(Response::Done) => Ok(()),
        Ok(Response::Refused { code, message }) => Err(Error::new(code, message)),
        Err(error @ AskError::Away { .. }) => Err(Error::new(away, error.to_string()).with_details(AWAY)),
        Err(error @ AskError::Slow { .. }) => Err(Error::new(away, error.to_string()).with_details(SLOW)),
        Err(error @ AskError::Strange { .. }) => Err(Error::new(Code::Decode, error.to_string())),
    }
}
