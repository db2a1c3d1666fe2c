//! Whom the generator speaks to: a server that runs already, or one that is started for the run on a
//! processor of its own, and ends with it.

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::Deserialize;
use trunkline_edge::ring::pin_to_core;

use super::args::Shape;
use super::protocol::Scheme;
use crate::BenchError;

const READY_MAX: Duration = Duration::from_secs(30);
const READY_POLL: Duration = Duration::from_millis(20);
/// Attempts at starting a command.
const TRIES_MAX: u32 = 3;

/// What the command line names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contestant {
    /// The bare socket loop, in a process of its own.
    Floor,
    /// Our edge with `--echo`.
    Edge { scheme: Scheme },
    /// A server that runs already.
    Running { url: Url, pids: Vec<u32> },
    /// A command that is a server at `url`. `{port}` and `{port2}` in both are free ports,
    /// `{file:PATH}` is a copy of a file with those filled in.
    Command { url: Url, command: Vec<String> },
}

/// `scheme://host:port/path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    pub scheme: Scheme,
    /// host:port
    pub authority: String,
    pub path: String,
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| format!("{text:?}: a URL is SCHEME://HOST:PORT/PATH"))?;
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        if !authority.contains(':') {
            return Err(format!("{text:?}: name the port too"));
        }
        Ok(Self {
            scheme: scheme.parse()?,
            authority: authority.to_owned(),
            path: path.to_owned(),
        })
    }
}

impl FromStr for Contestant {
    type Err = String;

    /// `floor`, `edge`, `edge-tcp`, `URL`, `URL@PID,PID`, or `URL COMMAND ARGUMENT…`.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        match text {
            "floor" => return Ok(Self::Floor),
            "edge" => return Ok(Self::Edge { scheme: Scheme::Ws }),
            "edge-tcp" => {
                return Ok(Self::Edge {
                    scheme: Scheme::Tcp,
                });
            }
            _ => {}
        }
        let mut words = text.split_whitespace().map(str::to_owned);
        let first = words.next().unwrap_or_default();
        let command: Vec<_> = words.collect();
        if !command.is_empty() {
            return Ok(Self::Command {
                url: first.parse()?,
                command,
            });
        }
        let (url, pids) = match first.rsplit_once('@') {
            None => (first.as_str(), Vec::new()),
            Some((url, pids)) => {
                let pids: Result<_, _> = pids.split(',').map(str::parse).collect();
                let pids = pids.map_err(|e| format!("{text:?}: after @ stand process ids: {e}"))?;
                (url, pids)
            }
        };
        Ok(Self::Running {
            url: url.parse()?,
            pids,
        })
    }
}

/// What a server of ours must know about the load.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub shape: Shape,
    pub payload: u32,
    pub core: Option<usize>,
}

/// A contestant that listens.
pub struct Server {
    pub address: SocketAddr,
    pub url: Url,
    pub pids: Vec<u32>,
    child: Option<Child>,
    _dir: Option<tempfile::TempDir>,
}

impl Contestant {
    /// Starts it, unless it runs, and waits until it listens.
    pub fn open(&self, wanted: &Wanted) -> Result<Server, BenchError> {
        match self {
            Self::Floor => open_floor(wanted),
            Self::Edge { scheme } => open_edge(*scheme, wanted),
            Self::Running { url, pids } => Ok(Server {
                address: resolve(&url.authority)?,
                url: url.clone(),
                pids: pids.clone(),
                child: None,
                _dir: None,
            }),
            Self::Command { url, command } => open_command(url, command, wanted),
        }
    }
}

impl Server {
    fn spawned(url: Url, child: Child, dir: Option<tempfile::TempDir>) -> Result<Self, BenchError> {
        let mut server = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            url,
            pids: vec![child.id()],
            child: Some(child),
            _dir: dir,
        };
        server.address = resolve(&server.url.authority)?;
        Ok(server)
    }

    /// An error if it has ended by itself.
    pub fn check(&mut self) -> Result<(), BenchError> {
        if let Some(child) = &mut self.child
            && let Some(status) = child.try_wait()?
        {
            return Err(BenchError::Server(format!("it has ended: {status}")));
        }
        Ok(())
    }

    fn wait_listening(&mut self) -> Result<(), BenchError> {
        let deadline = Instant::now() + READY_MAX;
        loop {
            self.check()?;
            match TcpStream::connect(self.address) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() >= deadline => {
                    let address = self.address;
                    return Err(BenchError::Server(format!(
                        "nothing listens on {address} after {} s: {error}",
                        READY_MAX.as_secs()
                    )));
                }
                Err(_) => std::thread::sleep(READY_POLL),
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It holds nothing that a sudden end could damage. One that has ended is not there to be
        // killed.
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn resolve(authority: &str) -> Result<SocketAddr, BenchError> {
    authority
        .to_socket_addrs()
        .map_err(|e| BenchError::Usage(format!("{authority}: {e}")))?
        .next()
        .ok_or_else(|| BenchError::Usage(format!("{authority}: no such address")))
}

/// Starts a process that may run on one processor only: it inherits that from the thread that makes
/// it.
fn spawn_on(core: Option<usize>, command: &mut Command) -> Result<Child, BenchError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let failed = |e: std::io::Error| BenchError::Server(format!("{name}: {e}"));
    let Some(core) = core else {
        return command.spawn().map_err(failed);
    };
    let pinned = || {
        pin_to_core(core).map_err(|e| BenchError::Usage(format!("--pin-server {core}: {e}")))?;
        command.spawn().map_err(failed)
    };
    std::thread::scope(|scope| scope.spawn(pinned).join())
        .unwrap_or_else(|_| Err(BenchError::Server("the starting thread panicked".into())))
}

fn open_floor(wanted: &Wanted) -> Result<Server, BenchError> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["bench", "floor-server", "--shape", wanted.shape.name()])
        .args(["--payload", &wanted.payload.to_string()])
        // It ends when this pipe does.
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = spawn_on(wanted.core, &mut command)?;
    let mut line = String::new();
    let read = match child.stdout.take() {
        Some(stdout) => BufReader::new(stdout).read_line(&mut line),
        None => Ok(0),
    };
    if read? == 0 {
        let status = child.wait()?;
        return Err(BenchError::Server(format!("the floor has ended: {status}")));
    }
    let url = format!("tcp://{}", line.trim());
    let url = url.parse().map_err(BenchError::Server)?;
    Server::spawned(url, child, None)
}

fn open_edge(scheme: Scheme, wanted: &Wanted) -> Result<Server, BenchError> {
    #[derive(Deserialize)]
    struct Ports {
        ws: String,
        tcp: String,
    }
    if wanted.shape != Shape::Echo {
        return Err(BenchError::Usage(
            "the edge alone echoes: for chat and fan-out use bench chat".into(),
        ));
    }
    let dir = tempfile::tempdir()?;
    let ports_file = dir.path().join("ports.json");
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["edge", "--echo", "--shards", "1"]);
    for listener in ["--ws", "--tcp", "--admin"] {
        command.args([listener, "127.0.0.1:0"]);
    }
    command.arg("--ports-file").arg(&ports_file);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = spawn_on(wanted.core, &mut command)?;
    let deadline = Instant::now() + READY_MAX;
    // The file is there, whole, once the server listens.
    let text = loop {
        if let Ok(text) = std::fs::read(&ports_file) {
            break text;
        }
        if let Some(status) = child.try_wait()? {
            return Err(BenchError::Server(format!("the edge has ended: {status}")));
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            return Err(BenchError::Server("the edge does not start".into()));
        }
        std::thread::sleep(READY_POLL);
    };
    let ports: Ports =
        serde_json::from_slice(&text).map_err(|e| BenchError::Server(format!("its ports: {e}")))?;
    let url = Url {
        scheme,
        authority: match scheme {
            Scheme::Tcp => ports.tcp,
            _ => ports.ws,
        },
        path: "/".to_owned(),
    };
    Server::spawned(url, child, Some(dir))
}

/// Starts a command. Its ports are free when they are chosen; should somebody take one before it
/// does, others are tried.
fn open_command(url: &Url, command: &[String], wanted: &Wanted) -> Result<Server, BenchError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match start_command(url, command, wanted) {
            Err(BenchError::Server(_)) if tries < TRIES_MAX => {}
            other => return other,
        }
    }
}

fn start_command(url: &Url, command: &[String], wanted: &Wanted) -> Result<Server, BenchError> {
    let dir = tempfile::tempdir()?;
    let places = Places {
        ports: free_ports()?.map(|port| port.to_string()),
        dir: dir.path(),
    };
    let url = Url {
        authority: places.fill(&url.authority),
        ..url.clone()
    };
    let words: Result<Vec<_>, _> = command.iter().map(|word| places.fill_word(word)).collect();
    let words = words?;
    let Some((program, arguments)) = words.split_first() else {
        return Err(BenchError::Usage("a command of no words".into()));
    };
    let mut process = Command::new(program);
    process
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let child = spawn_on(wanted.core, &mut process)?;
    let mut server = Server::spawned(url, child, Some(dir))?;
    server.wait_listening()?;
    Ok(server)
}

/// Two ports that nobody has now.
fn free_ports() -> Result<[u16; 2], BenchError> {
    let listen = || TcpListener::bind("127.0.0.1:0");
    let (first, second) = (listen()?, listen()?);
    Ok([first.local_addr()?.port(), second.local_addr()?.port()])
}

/// What stands for the placeholders of a command.
struct Places<'a> {
    ports: [String; 2],
    /// For the copies of files.
    dir: &'a Path,
}

impl Places<'_> {
    fn fill(&self, text: &str) -> String {
        text.replace("{port}", &self.ports[0])
            .replace("{port2}", &self.ports[1])
    }

    /// One word of the command; `{file:PATH}` becomes a copy of that file, filled in.
    fn fill_word(&self, word: &str) -> Result<String, BenchError> {
        let Some((before, rest)) = word.split_once("{file:") else {
            return Ok(self.fill(word));
        };
        let (path, after) = rest
            .split_once('}')
            .ok_or_else(|| BenchError::Usage(format!("{word}: {{file:PATH}}")))?;
        let wrong = |e: std::io::Error| BenchError::Usage(format!("{path}: {e}"));
        let text = std::fs::read_to_string(path).map_err(wrong)?;
        let name = Path::new(path).file_name().unwrap_or_default();
        let copy = self.dir.join(name);
        std::fs::write(&copy, self.fill(&text))?;
        Ok(format!("{before}{}{after}", copy.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contestants_are_read() {
        assert_eq!("floor".parse(), Ok(Contestant::Floor));
        let running: Contestant = "ws://127.0.0.1:9001/x@17,18".parse().unwrap();
        let Contestant::Running { url, pids } = running else {
            panic!("{running:?}");
        };
        assert_eq!((url.path.as_str(), pids), ("/x", vec![17, 18]));
        let text = "nats+ws://127.0.0.1:{port} nats-server --port {port}";
        let command: Contestant = text.parse().unwrap();
        let Contestant::Command { url, command } = command else {
            panic!("{command:?}");
        };
        assert_eq!((url.scheme, url.path.as_str()), (Scheme::Nats, "/"));
        assert_eq!(command, ["nats-server", "--port", "{port}"]);
    }

    #[test]
    fn what_cannot_be_meant_is_told() {
        for (text, told) in [
            ("flor", "SCHEME://"),
            ("ws://127.0.0.1/", "port"),
            ("gopher://127.0.0.1:1/", "unknown scheme"),
            ("ws://127.0.0.1:1/@me", "process ids"),
        ] {
            let error = text.parse::<Contestant>().unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }

    #[test]
    fn places_are_filled_in_files_too() {
        let dir = tempfile::tempdir().unwrap();
        let template = dir.path().join("server.conf");
        std::fs::write(&template, "listen {port}\nalso {port2}\n").unwrap();
        let copies = tempfile::tempdir().unwrap();
        let places = Places {
            ports: ["11".into(), "22".into()],
            dir: copies.path(),
        };
        assert_eq!(places.fill("127.0.0.1:{port}"), "127.0.0.1:11");
        let word = format!("--conf={{file:{}}}", template.display());
        let filled = places.fill_word(&word).unwrap();
        let copy = filled.strip_prefix("--conf=").unwrap();
        let text = std::fs::read_to_string(copy).unwrap();
        assert_eq!(text, "listen 11\nalso 22\n");
        assert!(places.fill_word("{file:/no/such/file}").is_err());
        assert!(places.fill_word("{file:").is_err());
    }

    #[test]
    fn a_server_that_ends_at_once_is_told() {
        let wanted = Wanted {
            shape: Shape::Echo,
            payload: 64,
            core: None,
        };
        let contestant: Contestant = "ws://127.0.0.1:{port}/ false".parse().unwrap();
        let error = contestant.open(&wanted).err().unwrap().to_string();
        assert!(error.contains("ended"), "{error}");
        let contestant: Contestant = "ws://127.0.0.1:{port}/ no-such-server".parse().unwrap();
        let error = contestant.open(&wanted).err().unwrap().to_string();
        assert!(error.contains("no-such-server"), "{error}");
    }
}
