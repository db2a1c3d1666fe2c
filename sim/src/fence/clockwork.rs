//! Futures without a runtime: polled by hand, in virtual time, in an order that follows from the seed
//! alone. What is to happen at a time is a closure in a queue; a task belongs to a process, which can
//! be stopped, go on, or die in the midst of any `await`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;

use crate::queue::Queue;

type Action = Box<dyn FnOnce() + Send>;
type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Whose tasks these are: a process's life.
pub type Process = u64;

/// Time, what is planned, and which tasks can go on.
#[derive(Default)]
pub struct Clockwork {
    now_ns: AtomicU64,
    planned: Mutex<Queue<Action>>,
    ready: Arc<Mutex<VecDeque<u64>>>,
    spawned: Mutex<Vec<(Process, Task)>>,
    stopped: Mutex<BTreeSet<Process>>,
    dead: Mutex<BTreeSet<Process>>,
}

impl Clockwork {
    pub fn now_ns(&self) -> u64 {
        self.now_ns.load(Ordering::Relaxed)
    }

    /// Plans something `after_ns` from now.
    pub fn after(&self, after_ns: u64, action: impl FnOnce() + Send + 'static) {
        let at = self.now_ns() + after_ns;
        self.planned.lock().push(at, Box::new(action));
    }

    pub fn spawn(&self, process: Process, task: impl Future<Output = ()> + Send + 'static) {
        self.spawned.lock().push((process, Box::pin(task)));
    }

    pub async fn sleep(&self, ns: u64) {
        let (promise, answer) = promise();
        self.after(ns, move || promise.keep(()));
        answer.await;
    }

    /// The process does not run until it goes on.
    pub fn stop(&self, process: Process) {
        self.stopped.lock().insert(process);
    }

    pub fn is_stopped(&self, process: Process) -> bool {
        self.stopped.lock().contains(&process)
    }

    pub fn go_on(&self, process: Process) {
        self.stopped.lock().remove(&process);
    }

    /// Everything the process was doing ends where it is.
    pub fn kill(&self, process: Process) {
        self.dead.lock().insert(process);
    }

    pub fn is_dead(&self, process: Process) -> bool {
        self.dead.lock().contains(&process)
    }

    /// Runs until nothing is left to do, `end_ns` or `is_over`; returns how many steps that took.
    pub fn run(&self, end_ns: u64, is_over: impl Fn() -> bool) -> u64 {
        let mut tasks: BTreeMap<u64, (Process, Task)> = BTreeMap::new();
        let mut waiting: VecDeque<u64> = VecDeque::new();
        let (mut next, mut steps) = (0, 0);
        while !is_over() {
            steps += 1;
            let spawned = std::mem::take(&mut *self.spawned.lock());
            for (process, task) in spawned {
                tasks.insert(next, (process, task));
                self.ready.lock().push_back(next);
                next += 1;
            }
            let woken = self.ready.lock().pop_front();
            if let Some(id) = woken {
                self.poll(id, &mut tasks, &mut waiting);
                continue;
            }
            let now = self.planned.lock().pop();
            let Some((at, action)) = now.filter(|(at, _)| *at <= end_ns) else {
                break;
            };
            self.now_ns.store(at, Ordering::Relaxed);
            action();
            // Tasks of processes that have gone on since.
            self.ready.lock().extend(waiting.drain(..));
        }
        steps
    }

    fn poll(
        &self,
        id: u64,
        tasks: &mut BTreeMap<u64, (Process, Task)>,
        waiting: &mut VecDeque<u64>,
    ) {
        let Some((process, task)) = tasks.get_mut(&id) else {
            return;
        };
        if self.is_dead(*process) {
            tasks.remove(&id);
            return;
        }
        if self.is_stopped(*process) {
            waiting.push_back(id);
            return;
        }
        let waker = Waker::from(Arc::new(Bell {
            id,
            ready: self.ready.clone(),
        }));
        if task
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_ready()
        {
            tasks.remove(&id);
        }
    }
}

struct Bell {
    id: u64,
    ready: Arc<Mutex<VecDeque<u64>>>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ready.lock().push_back(self.id);
    }
}

struct Kept<T> {
    value: Option<T>,
    waker: Option<Waker>,
    is_kept: bool,
}

/// One end: can be kept once, by whoever comes first.
pub struct Promise<T>(Arc<Mutex<Kept<T>>>);

/// The other end.
pub struct Answer<T>(Arc<Mutex<Kept<T>>>);

pub fn promise<T>() -> (Promise<T>, Answer<T>) {
    let kept = Arc::new(Mutex::new(Kept {
        value: None,
        waker: None,
        is_kept: false,
    }));
    (Promise(kept.clone()), Answer(kept))
}

impl<T> Clone for Promise<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Promise<T> {
    pub fn keep(&self, value: T) {
        let mut kept = self.0.lock();
        if !kept.is_kept {
            kept.is_kept = true;
            kept.value = Some(value);
            if let Some(waker) = kept.waker.take() {
                waker.wake();
            }
        }
    }
}

impl<T> Future for Answer<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut kept = self.0.lock();
        match kept.value.take() {
            Some(value) => Poll::Ready(value),
            None => {
                kept.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}
