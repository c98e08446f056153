// SPDX-License-Identifier: Apache-2.0
//! An API server that a test plays: it answers each path as it is told to, and execs over a WebSocket.

#![allow(clippy::unwrap_used, dead_code, reason = "tests, of which each uses a part")]

use std::io::{BufRead as _, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};
use tungstenite::protocol::Role;
use tungstenite::{Message, WebSocket, handshake};

/// Channels of the exec protocol.
pub const STDOUT: u8 = 1;
pub const STDERR: u8 = 2;
pub const STATUS: u8 = 3;

/// What a GET is answered.
pub enum Answer {
    Json(Value),
    Text(String),
    /// A code, and a message.
    Refused(u16, String),
    /// Nothing, for longer than anybody waits.
    Never,
}

pub struct Exec(WebSocket<TcpStream>);

impl Exec {
    pub fn send(&mut self, channel: u8, text: &str) {
        let message = [&[channel], text.as_bytes()].concat();
        self.0.send(Message::Binary(message.into())).unwrap();
    }

    pub fn ends_well(&mut self) {
        self.send(STATUS, r#"{"metadata":{},"status":"Success"}"#);
    }

    pub fn fails(&mut self, why: &str) {
        let status = json!({"metadata": {}, "status": "Failure", "message": why});
        self.send(STATUS, &status.to_string());
    }
}

/// Its address, and what each exec asks for: pod and query.
pub fn start(answer: fn(&str) -> Answer, serve_exec: fn(&str, &mut Exec)) -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (asked, told) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let asked = asked.clone();
            // Whoever asks may go at any time.
            std::thread::spawn(move || serve(stream.unwrap(), &asked, answer, serve_exec));
        }
    });
    (address, told)
}

fn serve(
    stream: TcpStream,
    asked: &mpsc::Sender<String>,
    answer: fn(&str) -> Answer,
    serve_exec: fn(&str, &mut Exec),
) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    loop {
        let (mut request, mut key) = (String::new(), String::new());
        reader.read_line(&mut request).ok().filter(|read| *read > 0)?;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).ok()?;
            match header.trim().split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("sec-websocket-key") => value.clone_into(&mut key),
                Some(_) => {}
                None => break,
            }
        }
        let path = request.split_whitespace().nth(1)?.to_owned();
        if let Some((pod, query)) = path.split_once("/exec?") {
            // The test may have heard enough.
            let _ = asked.send(format!("{pod} {query}"));
            let accept = handshake::derive_accept_key(key.as_bytes());
            write!(
                &stream,
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"
            )
            .ok()?;
            let mut exec = Exec(WebSocket::from_raw_socket(stream, Role::Server, None));
            serve_exec(pod.rsplit('/').next()?, &mut exec);
            exec.0.close(None).ok()?;
            while exec.0.read().is_ok() {}
            return None;
        }
        let (code, body) = match answer(&path) {
            Answer::Json(body) => (200, body.to_string()),
            Answer::Text(body) => (200, body),
            Answer::Refused(code, message) => {
                let reason = match code {
                    403 => "Forbidden",
                    404 => "NotFound",
                    _ => "InternalError",
                };
                let status = json!({
                    "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason,
                    "message": message,
                });
                (code, status.to_string())
            }
            Answer::Never => {
                std::thread::sleep(Duration::from_mins(5));
                return None;
            }
        };
        let head = format!(
            "HTTP/1.1 {code} -\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        (&stream).write_all((head + &body).as_bytes()).ok()?;
    }
}

/// A list of these, as the API server wraps it.
pub fn list(items: Vec<Value>) -> Answer {
    Answer::Json(json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": items}))
}

/// Written to a directory, for a server.
pub fn kubeconfig(directory: &Path, server: &str) -> PathBuf {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": server}}],
        "users": [{"name": "test", "user": {}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    });
    let path = directory.join("kubeconfig");
    std::fs::write(&path, config.to_string()).unwrap();
    path
}
