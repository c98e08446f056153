// SPDX-License-Identifier: Apache-2.0
//! Another version of the daemon takes over again and again, while connections come and go: each is in the log once.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::monotonic;
use crate::wire::{Cluster, Plugin, inside, listener, on_a_cluster, servers};

const SERVER: u8 = 1;
const CLIENTS: [&str; 2] = ["a", "b"];
const TAKEOVERS: usize = 20;
/// Of traffic between two takeovers.
const PAUSE: Duration = Duration::from_millis(20);
/// Between a client's connections, so that all of them fit into a pod's share of the table.
const INTERVAL: Duration = Duration::from_millis(5);
/// Longer than a busy machine takes for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Ends the traffic, also where the test fails.
struct Traffic<'a>(&'a AtomicBool);

impl Drop for Traffic<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Answers with what comes, one connection after the other.
fn serve(listener: &TcpListener, end: &AtomicBool) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    while !end.load(Ordering::Relaxed) {
        let (mut stream, _) = match listener.accept() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(INTERVAL / 50);
                continue;
            }
            accepted => accepted?,
        };
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut byte = [0];
        while stream.read(&mut byte)? > 0 {
            stream.write_all(&byte)?;
        }
    }
    Ok(())
}

fn ask(server: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut byte = [0];
    for word in [b"1", b"2"] {
        stream.write_all(word)?;
        stream.read_exact(&mut byte)?;
    }
    Ok(())
}

/// Connects again and again, over both families in turn; returns how often.
fn ask_again(end: &AtomicBool) -> io::Result<usize> {
    let mut asked = 0;
    while !end.load(Ordering::Relaxed) {
        servers(SERVER).into_iter().try_for_each(ask)?;
        asked += 2;
        std::thread::sleep(INTERVAL);
    }
    Ok(asked)
}

fn take_over(cluster: &mut Cluster) {
    cluster.restart_as_another_version();
    cluster.apply();
    let life = cluster.life();
    life.succession.advance(&mut life.log).unwrap();
    assert!(!life.succession.is_due());
    // What has closed is not carried along for ever.
    life.conntrack.sweep(monotonic()).unwrap();
}

#[test]
fn each_connection_is_told_once_through_takeovers() {
    on_a_cluster(Plugin::Ptp, |cluster| {
        cluster.pod("server", SERVER);
        for (host, client) in (SERVER + 1..).zip(CLIENTS) {
            cluster.pod(client, host);
        }
        cluster.policy("server", "{podSelector: {matchLabels: {app: server}}, ingress: [{}]}");
        cluster.policy(
            "clients",
            "{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [server]}]}}",
        );
        cluster.apply();
        let (listener, end, served) = (listener("server"), AtomicBool::new(false), AtomicBool::new(false));
        let asked: usize = std::thread::scope(|scope| {
            let server = scope.spawn(|| serve(&listener, &served));
            let serving = Traffic(&served);
            let ask_from = |client| inside(client, || ask_again(&end));
            let clients = CLIENTS.map(|client| scope.spawn(move || ask_from(client)));
            let asking = Traffic(&end);
            for _ in 0..TAKEOVERS {
                std::thread::sleep(PAUSE);
                take_over(cluster);
            }
            drop(asking);
            let asked = clients.map(|client| client.join().unwrap().unwrap());
            drop(serving);
            server.join().unwrap().unwrap();
            asked.into_iter().sum()
        });
        let records = cluster.life().all_records();
        let of = |disposition| {
            records
                .iter()
                .filter(move |record| record["disposition"] == disposition)
        };
        let guessed: Vec<_> = of("allow").filter(|record| record["reason"] == "midstream").collect();
        println!(
            "{TAKEOVERS} takeovers; {asked} connections, {} records, {} of them from mid-stream, {} denies",
            of("allow").count(),
            guessed.len(),
            of("deny").count()
        );
        assert_eq!(guessed.len(), 0, "{:?}", guessed.first());
        assert_eq!(of("allow").count(), asked);
        let others: Vec<_> = of("deny").chain(of("lost")).collect();
        assert_eq!(others.len(), 0, "{others:?}");
    });
}
