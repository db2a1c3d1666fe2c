//! The whole instrument against real servers at a small scale: its counts must be those of the
//! server, and a server that errs must be found out.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use trunkline_edge::echo::{Options, run_echo_shard};
use trunkline_edge::ring::{self, BACKLOG, DriverChoice, DriverConfig, Waker, bind_reuseport};

use super::args::{LoadArgs, Shape};
use super::contestant::Contestant;
use super::measure::{Measured, measure};
use crate::BenchError;

/// Ends with its scope.
struct Served {
    stop: Arc<AtomicBool>,
    waker: Option<Waker>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(waker) = &self.waker {
            waker.wake();
        }
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = bind_reuseport(([127, 0, 0, 1], 0).into(), BACKLOG).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Our own echo server; its WebSocket and its TCP address.
fn edge() -> (Served, SocketAddr, SocketAddr) {
    let stop = Arc::new(AtomicBool::new(false));
    let ((ws, ws_address), (tcp, tcp_address)) = (listener(), listener());
    let (told, waker) = std::sync::mpsc::channel();
    let stopped = Arc::clone(&stop);
    let thread = std::thread::spawn(move || {
        let config = DriverConfig::default();
        let mut driver = ring::open(DriverChoice::Auto, &config).unwrap();
        let options = Options::default();
        driver.listen(options.ws, ws).unwrap();
        driver.listen(options.tcp, tcp).unwrap();
        told.send(driver.waker()).unwrap();
        run_echo_shard(&mut *driver, &stopped, &options).unwrap();
    });
    let served = Served {
        stop,
        waker: waker.recv().ok(),
        thread: Some(thread),
    };
    (served, ws_address, tcp_address)
}

fn floor(shape: Shape, payload: usize) -> (Served, SocketAddr) {
    let stop = Arc::new(AtomicBool::new(false));
    let (listener, address) = listener();
    let stopped = Arc::clone(&stop);
    let thread = std::thread::spawn(move || {
        crate::floor::serve(listener, shape, payload, &stopped).unwrap();
    });
    let served = Served {
        stop,
        waker: None,
        thread: Some(thread),
    };
    (served, address)
}

fn load() -> LoadArgs {
    LoadArgs {
        connections: 20,
        connect_inflight: 8,
        depth: 2,
        rate: 0,
        payload: 64,
        duration: Duration::from_millis(300),
        warmup: Duration::from_millis(50),
        shape: Shape::Echo,
        pin_server: None,
        pin_generator: None,
    }
}

fn measured(url: &str, load: &LoadArgs) -> Measured {
    let contestant: Contestant = url.parse().unwrap();
    measure(&contestant, load).unwrap()
}

fn value(measured: &Measured, name: &str) -> f64 {
    measured.metrics[name].value
}

/// This process holds the server as well, so its CPU time is there to be read.
fn own_pid() -> u32 {
    std::process::id()
}

#[test]
fn our_edge_sends_everything_back() {
    let (_served, ws, tcp) = edge();
    for url in [format!("ws://{ws}/any"), format!("tcp://{tcp}")] {
        let measured = measured(&format!("{url}@{}", own_pid()), &load());
        assert_eq!(measured.problems, Vec::<String>::new(), "{url}");
        assert!(value(&measured, "rate") > 0.0);
        assert!(value(&measured, "server_cpu_per_message") > 0.0);
        assert!(value(&measured, "generator_cpu_per_message") > 0.0);
        assert!(!measured.tally.answer.is_empty());
    }
}

#[test]
fn an_open_loop_sends_what_is_due_and_no_more() {
    let (_served, ws, _) = edge();
    let load = LoadArgs {
        rate: 2_000,
        duration: Duration::from_secs(1),
        ..load()
    };
    let begin = Instant::now();
    let measured = measured(&format!("ws://{ws}/"), &load);
    let whole = begin.elapsed().as_secs_f64();
    assert_eq!(measured.problems, Vec::<String>::new());
    // The histogram has what was due in the window, however late it came. The window is at least as
    // long as it should be, and not longer than all of it took.
    let counted = measured.tally.answer.len() as f64;
    assert!((1_999.0..whole * 2_000.0).contains(&counted), "{counted}");
}

#[test]
fn idle_connections_are_held_and_counted() {
    let (_served, ws, _) = edge();
    let load = LoadArgs { depth: 0, ..load() };
    let measured = measured(&format!("ws://{ws}/@{}", own_pid()), &load);
    assert_eq!(measured.problems, Vec::<String>::new());
    assert_eq!(value(&measured, "rate"), 0.0);
    assert_eq!(value(&measured, "connections"), 20.0);
    assert!(
        measured
            .metrics
            .contains_key("server_memory_per_connection")
    );
}

#[test]
fn the_floor_echoes_payloads_of_any_length() {
    for payload in [1, 64, 5_000] {
        let (_served, address) = floor(Shape::Echo, payload);
        let load = LoadArgs {
            payload: payload as u32,
            depth: 20,
            ..load()
        };
        let measured = measured(&format!("tcp://{address}"), &load);
        assert_eq!(measured.problems, Vec::<String>::new(), "{payload}");
        assert!(value(&measured, "rate") > 0.0);
    }
}

#[test]
fn a_fan_out_reaches_everybody_once() {
    let (_served, address) = floor(Shape::Fanout, 128);
    let load = LoadArgs {
        payload: 128,
        shape: Shape::Fanout,
        ..load()
    };
    let measured = measured(&format!("tcp://{address}"), &load);
    assert_eq!(measured.problems, Vec::<String>::new());
    let (answers, deliveries) = (&measured.tally.answer, &measured.tally.delivery);
    assert!(!answers.is_empty());
    assert_eq!(deliveries.len(), answers.len() * 20);
}

#[test]
fn a_chat_message_is_answered_and_delivered() {
    let (_served, address) = floor(Shape::Chat, 64);
    let load = LoadArgs {
        shape: Shape::Chat,
        ..load()
    };
    let measured = measured(&format!("tcp://{address}"), &load);
    assert_eq!(measured.problems, Vec::<String>::new());
    assert!(value(&measured, "rate") > 0.0);
    assert!(value(&measured, "delivery_rate") > 0.0);
}

/// Serves one connection of bare TCP at a time, after `spoil` has had each read.
fn spoiling(spoil: fn(u64, &mut Vec<u8>)) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // It ends with its connection, and what is left of it with the process.
    std::thread::spawn(move || {
        let (mut socket, _): (TcpStream, _) = listener.accept().unwrap();
        let mut buffer = [0; 4_096];
        for number in 0.. {
            let Ok(length @ 1..) = socket.read(&mut buffer) else {
                return;
            };
            let mut answer = buffer[..length].to_vec();
            spoil(number, &mut answer);
            if socket.write_all(&answer).is_err() {
                return;
            }
        }
    });
    address
}

fn problems_of(spoil: fn(u64, &mut Vec<u8>)) -> String {
    let load = LoadArgs {
        connections: 1,
        depth: 1,
        ..load()
    };
    measured(&format!("tcp://{}", spoiling(spoil)), &load)
        .problems
        .join("; ")
}

#[test]
fn a_server_that_errs_is_found_out() {
    assert_eq!(problems_of(|_, _| {}), "");
    let one_bit = problems_of(|number, bytes| {
        if number == 3 {
            bytes[63] ^= 1;
        }
    });
    assert_eq!(one_bit, "1 messages came back changed");
    let twice = problems_of(|number, bytes| {
        if number == 3 {
            bytes.extend_from_within(..);
        }
    });
    assert!(
        twice.contains("messages came that were not sent"),
        "{twice}"
    );
    let never = problems_of(|number, bytes| {
        if number == 3 {
            bytes.clear();
        }
    });
    assert_eq!(never, "1 messages unanswered");
}

#[test]
fn a_server_that_is_not_there_is_an_error() {
    let (listener, address) = listener();
    drop(listener);
    let contestant: Contestant = format!("ws://{address}/").parse().unwrap();
    let error = measure(&contestant, &load()).err().unwrap();
    assert!(matches!(error, BenchError::Connect { .. }), "{error}");
}
