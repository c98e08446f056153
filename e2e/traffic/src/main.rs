// SPDX-License-Identifier: Apache-2.0
//! `traffic`: servers and clients for tests and benchmarks in pods. Apart from the lab's crate, so that the image is small.
//!
//! Clients print one JSON object a line, so that a test can wait for what it wants to see instead of sleeping.

mod client;
mod flood;
mod load;
mod probe;
mod raw;
mod server;

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

/// Servers and clients for tests and benchmarks in pods.
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
    /// One connection, one message and its echo each interval, until the standard input ends
    Again {
        #[command(flatten)]
        target: Target,
        /// Milliseconds between attempts
        #[arg(long, default_value_t = 10)]
        interval: u64,
        /// How long connecting and the echo may take, each, in milliseconds
        #[arg(long, default_value_t = 2000)]
        timeout: u64,
    },
    /// Answer the clients of `rr` and `crr`
    Respond {
        /// The port to listen on
        #[arg(long)]
        port: u16,
        /// How many connections are served at once
        #[arg(long, default_value_t = 1)]
        threads: u16,
    },
    /// Measure requests and responses of one byte on one TCP connection
    Rr(Load),
    /// Measure TCP connections that carry one request and one response of one byte
    Crr(Load),
    /// Send a numbered datagram each interval, and say when answers stop and when they come again
    Probe {
        /// Address and port of a UDP echo server
        server: SocketAddr,
        /// Microseconds between datagrams
        #[arg(long, default_value_t = 500)]
        interval: u64,
        /// Stop after so many milliseconds, and say how many answers came
        #[arg(long)]
        duration: Option<u64>,
    },
    /// Open TCP connections from raw frames and reset them, without waiting for answers; needs root
    Flood {
        #[command(flatten)]
        load: Load,
        /// The address they come from
        #[arg(long)]
        from: Ipv4Addr,
        /// Connections a second
        #[arg(long)]
        rate: u32,
        /// How many ports of the server are taken in turn, from the one given on
        #[arg(long, default_value_t = 1)]
        ports: u16,
        /// Leave them half open: no reset follows
        #[arg(long)]
        half_open: bool,
    },
    /// Send packets as they are given, again and again until the standard input ends; needs root
    Send {
        /// From the IP header on, in hexadecimal digits
        #[arg(required = true)]
        packets: Vec<raw::Packet>,
        /// End after so many rounds of all of them
        #[arg(long)]
        times: Option<u64>,
        /// Microseconds between rounds
        #[arg(long, default_value_t = 0)]
        interval: u64,
    },
    /// Say which sources the packets have that come in for a port, until the standard input ends; needs root
    Watch {
        /// The destination port, of TCP and UDP
        port: u16,
    },
}

/// A server, and how long it is kept busy.
#[derive(Args, Clone, Copy)]
struct Load {
    /// Address and port of the server
    server: SocketAddr,
    /// How long, in milliseconds
    #[arg(long, default_value_t = 1000)]
    duration: u64,
}

impl Load {
    fn duration(self) -> Duration {
        Duration::from_millis(self.duration)
    }
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
        Command::Again {
            target,
            interval,
            timeout,
        } => client::again(&target, Duration::from_millis(interval), Duration::from_millis(timeout)),
        Command::Hold { target, interval } => client::hold(&target, Duration::from_millis(interval)),
        Command::Respond { port, threads } => load::respond(port, threads),
        Command::Rr(load) => load::rr(load.server, load.duration()),
        Command::Crr(load) => load::crr(load.server, load.duration()),
        Command::Probe {
            server,
            interval,
            duration,
        } => probe::probe(
            server,
            Duration::from_micros(interval),
            duration.map(Duration::from_millis),
        ),
        Command::Flood {
            load,
            from,
            rate,
            ports,
            half_open,
        } => {
            let flood = flood::Flood {
                from,
                rate,
                ports,
                half_open,
            };
            flood::flood(flood, load.server, load.duration())
        }
        Command::Send {
            packets,
            times,
            interval,
        } => raw::send(&packets, times, Duration::from_micros(interval)),
        Command::Watch { port } => raw::watch(port),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
