// SPDX-License-Identifier: Apache-2.0
//! `traffic`: an echo server and its clients, for tests in pods. Apart from the lab's crate, so that the image is small.
//!
//! Clients print one JSON object a line, so that a test can wait for what it wants to see instead of sleeping.

mod client;
mod server;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

/// An echo server and its clients, for tests in pods.
#[derive(Parser)]
#[command(name = "traffic")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Echo what comes in over TCP and UDP
    Serve {
        /// The ports to listen on
        #[arg(long = "port", default_values_t = [8080])]
        ports: Vec<u16>,
    },
    /// One connection, one message and its echo; exits with 0 if the echo came
    Connect {
        #[command(flatten)]
        target: Target,
        /// How long connecting and the echo may take, each, in milliseconds
        #[arg(long, default_value_t = 2000)]
        timeout: u64,
    },
    /// One connection that stays open and sends a message each interval, until the standard input ends
    Hold {
        #[command(flatten)]
        target: Target,
        /// Milliseconds between messages
        #[arg(long, default_value_t = 100)]
        interval: u64,
    },
}

/// Whom a client talks to, and how.
#[derive(Args, Clone, Copy)]
struct Target {
    /// Address and port of the server
    server: SocketAddr,
    /// UDP instead of TCP
    #[arg(long)]
    udp: bool,
    /// The source port, chosen by the kernel unless given; UDP only
    #[arg(long, default_value_t = 0, requires = "udp")]
    source_port: u16,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve { ports } => server::serve(&ports),
        Command::Connect { target, timeout } => client::connect(&target, Duration::from_millis(timeout)),
        Command::Hold { target, interval } => client::hold(&target, Duration::from_millis(interval)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
