//! The server under load: one that runs already, or one of our own that ends with the run. Where it
//! listens, which processes it is, its groups, and its own view of its memory.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use trunkline_identity::{DevSecret, mint};

use crate::BenchError;
use crate::args::{TargetArgs, Transport};
use crate::probe;

mod process;

pub use process::Spawned;

/// Where the server is and how to speak to it.
pub struct Target {
    /// Where each edge's WebSockets and raw TCP are.
    pub ws: Vec<String>,
    pub tcp: Vec<String>,
    pub http: String,
    pub secret: String,
    pub processes: Vec<Process>,
}

/// One process of the server.
pub struct Process {
    /// `serve`, `core`, `edge`, `edge_b`: the prefix of its metrics when there are several.
    pub name: String,
    pub pid: u32,
    /// Its admin address, if it is known.
    pub admin: Option<String>,
    /// There when the process is ours.
    pub spawned: Option<Spawned>,
}

/// The secret of a server that lives as long as one measurement.
const SECRET: &str = "of a server that lives as long as one measurement";
/// Bytes of members that go into one call: the core takes bodies of 256 KiB.
const MEMBERS_BYTES: usize = 240_000;

impl Target {
    /// Finds the server, or starts it. `edges`: how many the scenario needs with two tiers.
    pub fn open(args: &TargetArgs, edges: usize) -> Result<Self, BenchError> {
        if args.spawn {
            let serve = Spawned::serve(SECRET, &words(&args.spawn_args))?;
            return Self::of_spawned(vec![("serve".to_owned(), serve)]);
        }
        if args.spawn_two {
            let core = Spawned::core(SECRET, &words(&args.spawn_core_args))?;
            let grpc = core.port("grpc")?.to_owned();
            let mut processes = Vec::new();
            for number in 0..edges {
                let name = match number {
                    0 => "edge".to_owned(),
                    n => format!("edge_{}", (b'a' + n as u8) as char),
                };
                let edge = Spawned::edge(SECRET, &grpc, &words(&args.spawn_args))?;
                processes.push((name, edge));
            }
            processes.push(("core".to_owned(), core));
            return Self::of_spawned(processes);
        }
        if args.spawn_args.is_some() || args.spawn_core_args.is_some() {
            let message = "--spawn-args and --spawn-core-args need --spawn or --spawn-two";
            return Err(BenchError::Usage(message.into()));
        }
        let secret = match &args.secret {
            Some(secret) => secret.clone(),
            None => DevSecret::load_or_create(&args.data)?,
        };
        let processes = args.server_pid.iter().enumerate().map(|(i, &pid)| Process {
            name: match i {
                0 => "server".to_owned(),
                n => format!("server_{}", n + 1),
            },
            pid,
            admin: args.admin.get(i).cloned(),
            spawned: None,
        });
        Ok(Self {
            ws: args.ws.clone(),
            tcp: args.tcp.clone(),
            http: args.http.clone(),
            secret,
            processes: processes.collect(),
        })
    }

    fn of_spawned(spawned: Vec<(String, Spawned)>) -> Result<Self, BenchError> {
        let listeners = |name: &str| -> Vec<String> {
            let ports = spawned.iter().filter_map(|(_, s)| s.port(name).ok());
            ports.map(str::to_owned).collect()
        };
        let (ws, tcp, http) = (listeners("ws"), listeners("tcp"), listeners("http"));
        let http = http.into_iter().next();
        let processes = spawned.into_iter().map(|(name, spawned)| Process {
            name,
            pid: spawned.pid(),
            admin: spawned.port("admin").ok().map(str::to_owned),
            spawned: Some(spawned),
        });
        Ok(Self {
            ws,
            tcp,
            http: http.ok_or_else(|| BenchError::Server("no REST listener".into()))?,
            secret: SECRET.to_owned(),
            processes: processes.collect(),
        })
    }

    /// Where clients of this transport connect to: an address for each edge.
    pub fn addresses(&self, transport: Transport) -> Result<Vec<SocketAddr>, BenchError> {
        let names = match transport {
            Transport::Tcp => &self.tcp,
            Transport::WsProto | Transport::WsJson => &self.ws,
        };
        let first = |name: &String| {
            name.to_socket_addrs()?
                .next()
                .ok_or_else(|| BenchError::Usage(format!("{name}: no such address")))
        };
        names.iter().map(first).collect()
    }

    fn token(&self, user: &str) -> String {
        mint(&self.secret, user, Duration::from_secs(24 * 3600))
    }

    /// Creates a group; the first member owns it. Returns its conversation id.
    pub fn create_group(&self, title: &str, members: &[String]) -> Result<String, BenchError> {
        #[derive(Deserialize)]
        struct Created {
            conversation_id: String,
        }
        let failed = |e: ureq::Error| {
            let cure = "is the group larger than --group-members-max of the server?";
            BenchError::Server(format!(
                "creating a group of {}: {e}; {cure}",
                members.len()
            ))
        };
        let owner = members
            .first()
            .ok_or_else(|| BenchError::Usage("a group of nobody".into()))?;
        let bearer = format!("Bearer {}", self.token(owner));
        // Each with two quotation marks and a comma.
        let fit = MEMBERS_BYTES / (owner.len() + 3);
        let (first, rest) = members.split_at(members.len().min(fit));
        let body = serde_json::json!({"kind": "group", "title": title, "members": first});
        let created: Created = ureq::post(format!("http://{}/v1/conversations", self.http))
            .header("Authorization", &bearer)
            .send_json(body)
            .and_then(|mut answer| answer.body_mut().read_json())
            .map_err(failed)?;
        let id = created.conversation_id;
        for member in rest {
            let url = format!(
                "http://{}/v1/conversations/{id}/members/{member}",
                self.http
            );
            ureq::put(url)
                .header("Authorization", &bearer)
                .send_json(serde_json::json!({}))
                .map_err(failed)?;
        }
        Ok(id)
    }

    /// CPU time of all the server's processes so far; `None` if no process is known.
    pub fn cpu(&self) -> Option<Duration> {
        let all: Option<Duration> = self.processes.iter().map(|p| probe::cpu_of(p.pid)).sum();
        all.filter(|_| !self.processes.is_empty())
    }

    /// Resident memory of all the server's processes in bytes.
    pub fn resident(&self) -> Option<u64> {
        let all: Option<u64> = self
            .processes
            .iter()
            .map(|p| probe::resident_of(p.pid))
            .sum();
        all.filter(|_| !self.processes.is_empty())
    }

    /// Anonymous memory of all the server's processes in bytes: without code and files.
    pub fn anonymous(&self) -> Option<u64> {
        let all: Option<u64> = self
            .processes
            .iter()
            .map(|p| probe::anonymous_of(p.pid))
            .sum();
        all.filter(|_| !self.processes.is_empty())
    }

    /// The process of this name.
    pub fn process(&mut self, name: &str) -> Option<&mut Process> {
        self.processes.iter_mut().find(|p| p.name == name)
    }

    /// Ends the servers of our own: edges first.
    pub fn close(mut self) -> Result<(), BenchError> {
        for process in &mut self.processes {
            if let Some(spawned) = process.spawned.take() {
                spawned.stop()?;
            }
        }
        Ok(())
    }
}

impl Process {
    /// A page of its admin listener; `None` if there is none or it does not answer.
    pub fn page(&self, path: &str) -> Option<String> {
        let admin = self.admin.as_ref()?;
        let mut answer = ureq::get(format!("http://{admin}{path}")).call().ok()?;
        answer.body_mut().read_to_string().ok()
    }

    /// A number of `/debug/memory`.
    pub fn debug_memory(&self, field: &str) -> Option<f64> {
        let page: serde_json::Value = serde_json::from_str(&self.page("/debug/memory")?).ok()?;
        page.get(field)?.as_f64()
    }

    /// The sum over one metric's lines in `/metrics` whose labels contain `label`.
    pub fn metric(&self, name: &str, label: &str) -> Option<f64> {
        Some(sum_of(&self.page("/metrics")?, name, label))
    }
}

fn sum_of(page: &str, name: &str, label: &str) -> f64 {
    let lines = page.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (labels, value) = rest.rsplit_once(' ')?;
        let whole = labels.is_empty() || labels.starts_with('{');
        (whole && labels.contains(label)).then(|| value.parse::<f64>().ok())?
    });
    lines.sum()
}

fn words(text: &Option<String>) -> Vec<String> {
    let words = text.iter().flat_map(|text| text.split_whitespace());
    words.map(str::to_owned).collect()
}

/// A directory of the server's, removed with it.
fn under(dir: &Path, name: &str) -> String {
    dir.join(name).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_lines_and_no_other() {
        let page = "# HELP x_total y\nx_total{reason=\"a\"} 2\nx_total{reason=\"b\"} 3\n\
                    x_total_more{reason=\"a\"} 9\nx_total 1\n";
        assert_eq!(sum_of(page, "x_total", ""), 6.0);
        assert_eq!(sum_of(page, "x_total", "reason=\"a\""), 2.0);
        assert_eq!(sum_of(page, "absent", ""), 0.0);
    }
}
