//! The chat scenario: connect, settle, load for a while, wait for what is under way, report.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use trunkline_proto::ids::ConversationId;

use crate::BenchError;
use crate::args::{ChatArgs, Transport};
use crate::report::{self, ChatReport, ConnectPart, Host, Latency, LoadPart, MemoryPart};
use crate::target::{Target, cpu_of};
use crate::worker::{self, ClientPlan, Phase, Plan, Shared, Tally};

/// Without one more connection for this long, connecting has failed.
const CONNECT_STALL_MAX: Duration = Duration::from_secs(20);
/// Sessions that are up before the server's memory is read for the first time, at most.
const FIRST_SESSIONS: u32 = 256;
/// Between the last connection and the reading of the server's memory.
const SETTLE: Duration = Duration::from_secs(1);
/// For answers that are under way when the load ends.
const DRAIN_MAX: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// Runs the scenario and returns its report; the caller prints it.
pub fn run(args: &ChatArgs) -> Result<ChatReport, BenchError> {
    args.check()?;
    let target = Target::open(args)?;
    let result = measure(args, &target);
    target.close()?;
    result
}

fn measure(args: &ChatArgs, target: &Target) -> Result<ChatReport, BenchError> {
    let plans = plan(args, target)?;
    let resident_before = target.resident();
    let shared = Arc::new(Shared::new());
    let workers: Vec<_> = plans.into_iter().map(|plan| start(plan, &shared)).collect();
    let outcome = drive(args, target, &shared, resident_before, &workers);
    shared.set_phase(Phase::Stop);
    let mut total: Option<Tally> = None;
    for worker in workers {
        let tally = worker
            .join()
            .map_err(|_| BenchError::Server("a generator thread panicked".into()))??;
        match &mut total {
            None => total = Some(tally),
            Some(sum) => sum.add(&tally).map_err(BenchError::Server)?,
        }
    }
    let mut report = outcome?;
    let total = total.ok_or_else(|| BenchError::Usage("no worker".into()))?;
    complete(&mut report, &total);
    Ok(report)
}

fn start(plan: Plan, shared: &Arc<Shared>) -> JoinHandle<Result<Tally, BenchError>> {
    let shared = Arc::clone(shared);
    std::thread::spawn(move || worker::run(plan, &shared))
}

/// Takes the run through its phases; all but what the workers counted.
fn drive(
    args: &ChatArgs,
    target: &Target,
    shared: &Shared,
    resident_before: Option<u64>,
    workers: &[JoinHandle<Result<Tally, BenchError>>],
) -> Result<ChatReport, BenchError> {
    // What the first sessions cost once (code paged in, buffers touched) is not the others' price.
    let first = (args.connections / 10).clamp(1, FIRST_SESSIONS);
    let per_worker = first.div_ceil(args.threads);
    shared.dial_max.store(per_worker, Ordering::Relaxed);
    let first = per_worker * args.threads;
    wait_connected(first.min(args.connections), shared, workers)?;
    std::thread::sleep(SETTLE);
    let resident_first = target.resident();
    shared.dial_max.store(u32::MAX, Ordering::Relaxed);
    let seconds = wait_connected(args.connections, shared, workers)?;
    let further = f64::from(args.connections.saturating_sub(first).max(1));
    let connect = ConnectPart {
        connections: args.connections,
        seconds,
        per_second: further / seconds,
    };
    shared.set_phase(Phase::Idle);
    std::thread::sleep(SETTLE);
    let memory = resident_before
        .zip(resident_first)
        .zip(target.resident())
        .map(|((before, first), after)| MemoryPart {
            resident_before_bytes: before,
            resident_first_bytes: first,
            resident_connected_bytes: after,
            bytes_per_connection: (after as f64 - first as f64) / further,
        });
    let load = if args.closed_loop() == Some(0) {
        None
    } else {
        Some(load(args, target, shared))
    };
    Ok(ChatReport {
        version: report::VERSION,
        command: std::env::args()
            .skip(1)
            .filter(|a| !a.is_empty())
            .collect::<Vec<_>>()
            .join(" "),
        finished_at_ms: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_millis() as u64),
        git_revision: report::git_revision(),
        host: Host::here(),
        connect,
        memory,
        load,
        ack_latency: None,
        delivery_latency: None,
    })
}

/// Waits until `wanted` connections are up in all; the seconds that it took.
fn wait_connected(
    wanted: u32,
    shared: &Shared,
    workers: &[JoinHandle<Result<Tally, BenchError>>],
) -> Result<f64, BenchError> {
    let began = Instant::now();
    let (mut last, mut last_change) = (0, began);
    loop {
        let connected = shared.connected.load(Ordering::Relaxed);
        if connected >= wanted {
            return Ok(began.elapsed().as_secs_f64());
        }
        if connected != last {
            (last, last_change) = (connected, Instant::now());
        }
        let failure = shared.failure.lock().ok().and_then(|f| f.clone());
        let dead = workers.iter().any(JoinHandle::is_finished);
        if failure.is_some() || dead || last_change.elapsed() > CONNECT_STALL_MAX {
            return Err(BenchError::Connect {
                connected,
                wanted,
                seconds: began.elapsed().as_secs(),
                failure: failure.unwrap_or_else(|| "no answer".to_owned()),
            });
        }
        std::thread::sleep(POLL);
    }
}

fn load(args: &ChatArgs, target: &Target, shared: &Shared) -> LoadPart {
    shared.set_phase(Phase::Load);
    std::thread::sleep(args.warmup);
    let cpu = || (target.cpu(), cpu_of(std::process::id()));
    let (server_before, generator_before) = cpu();
    let from = shared.now();
    let to = from + args.duration.as_nanos() as u64;
    shared.window_to.store(to, Ordering::Relaxed);
    shared.window_from.store(from, Ordering::Relaxed);
    std::thread::sleep(args.duration);
    let (server_after, generator_after) = cpu();
    let window = Duration::from_nanos(shared.now() - from);
    shared.set_phase(Phase::Drain);
    let deadline = Instant::now() + DRAIN_MAX;
    while shared.outstanding.load(Ordering::Relaxed) > 0 && Instant::now() < deadline {
        std::thread::sleep(POLL);
    }
    // Deliveries come with or after the last acks.
    std::thread::sleep(Duration::from_millis(200));
    let percent = |before: Option<Duration>, after: Option<Duration>| {
        before
            .zip(after)
            .map(|(b, a)| 100.0 * (a - b).as_secs_f64() / window.as_secs_f64())
    };
    LoadPart {
        window_seconds: args.duration.as_secs_f64(),
        sent: 0,
        acked_per_second: 0.0,
        deliveries_per_second: 0.0,
        acked: 0,
        deliveries: 0,
        errors: Default::default(),
        unanswered: shared.outstanding.load(Ordering::Relaxed),
        not_sent: 0,
        disconnects: 0,
        server_cpu_percent: percent(server_before, server_after)
            .filter(|_| !target.pids.is_empty()),
        server_cpu_us_per_message: None,
        generator_cpu_percent: percent(generator_before, generator_after),
    }
}

/// Fills in what the workers counted.
fn complete(report: &mut ChatReport, total: &Tally) {
    report.ack_latency = Latency::of(&total.ack);
    report.delivery_latency = Latency::of(&total.delivery);
    let Some(load) = &mut report.load else { return };
    load.sent = total.sent;
    load.acked = total.acked;
    load.deliveries = total.delivered;
    load.acked_per_second = total.acked as f64 / load.window_seconds;
    load.deliveries_per_second = total.delivered as f64 / load.window_seconds;
    load.errors.clone_from(&total.errors);
    load.not_sent = total.not_sent;
    load.disconnects = total.disconnects;
    load.server_cpu_us_per_message = load
        .server_cpu_percent
        .filter(|_| total.acked > 0)
        .map(|percent| percent * 1e4 * load.window_seconds / total.acked as f64);
}

/// Who the clients are and what each worker does.
fn plan(args: &ChatArgs, target: &Target) -> Result<Vec<Plan>, BenchError> {
    let address = match args.transport {
        Transport::Tcp => &target.tcp,
        Transport::WsProto | Transport::WsJson => &target.ws,
    };
    let server: SocketAddr = address
        .to_socket_addrs()?
        .next()
        .ok_or_else(|| BenchError::Usage(format!("{address}: no such address")))?;
    let run = std::process::id();
    let user = |i: u32| format!("bench-{run}-{i}");
    let mut groups_of: Vec<Vec<String>> = vec![Vec::new(); args.connections as usize];
    for group in 0..args.groups {
        let members: Vec<u32> = (0..args.group_size)
            .map(|i| (u64::from(group) * u64::from(args.group_size) + u64::from(i)) as u32)
            .map(|i| i % args.connections)
            .collect();
        let names: Vec<_> = members.iter().map(|&i| user(i)).collect();
        let id = target.create_group(&format!("bench {group}"), &names)?;
        for member in members {
            groups_of[member as usize].push(id.clone());
        }
    }
    let senders = args.senders.unwrap_or(args.connections);
    let mut clients = Vec::with_capacity(args.connections as usize);
    for (i, groups) in (0..args.connections).zip(groups_of) {
        // The last of an odd number writes to itself.
        let partner = user(if i ^ 1 < args.connections { i ^ 1 } else { i });
        let can_send = args.group_share < 1.0 || !groups.is_empty();
        clients.push(ClientPlan {
            token: target.token(&user(i)),
            direct_id: ConversationId::direct(&user(i), &partner).to_string(),
            user: user(i),
            partner,
            groups,
            sends: i < senders && can_send,
        });
    }
    Ok(split(args, server, clients))
}

/// Even shares, pairs kept together.
fn split(args: &ChatArgs, server: SocketAddr, clients: Vec<ClientPlan>) -> Vec<Plan> {
    let all_senders = clients.iter().filter(|c| c.sends).count().max(1);
    let share = clients
        .len()
        .div_ceil(args.threads as usize)
        .next_multiple_of(2);
    let mut rest = clients.into_iter().peekable();
    let mut plans = Vec::new();
    let mut first = 0;
    while rest.peek().is_some() {
        let clients: Vec<_> = rest.by_ref().take(share).collect();
        let senders = clients.iter().filter(|c| c.sends).count();
        let count = clients.len() as u32;
        plans.push(Plan {
            server,
            transport: args.transport,
            first_client: first,
            connect_inflight: (args.connect_inflight / args.threads).max(1),
            rate: (args.rate > 0)
                .then(|| f64::from(args.rate) * senders as f64 / all_senders as f64)
                .filter(|&rate| rate > 0.0),
            inflight: args.inflight,
            payload: args.payload as usize,
            group_share: args.group_share,
            clients,
        });
        first += count;
    }
    plans
}
