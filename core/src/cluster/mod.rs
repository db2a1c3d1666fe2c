//! A core among others: it follows ownership, has its engine follow, and asks other cores what is
//! theirs.
//!
//! # Layout
//! - [`store`]: the store of the present incarnation, behind one that stays
//! - `follow`: what is done when ownership or the engine says something
//! - [`peers`]: other cores, as this one asks them; `service`: this core, as others ask it
//!
//! Invariants:
//! 1. The store and the lease of an incarnation are in place before the engine hears of it, and the
//!    engine forgets a partition before ownership gives it away.
//! 2. An incarnation's work (releases, journals) ends with it: what comes of it later is dropped.
//!
//! Called by the command line, beside [`crate::runtime`].

mod follow;
pub mod peers;
mod service;
pub mod store;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use self::peers::Peers;
pub use self::service::PeerService;
use self::store::CurrentStore;
use crate::ownership::control::{Control, Deployment};
use crate::ownership::driver::{Ownership, OwnershipHandle};
use crate::ownership::events::{MessageIds, OwnershipEvent};
use crate::ownership::held::{BootClock, Held};
use crate::ownership::settings::Settings;
use crate::runtime::CoreHandle;
use crate::runtime::cluster::{ClusterJob, ClusterLink};
use crate::store::fenced::rows::Rows;

/// How a core stands among others.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// As the control tables have it.
    pub deployment: Deployment,
    pub settings: Settings,
    /// Where edges and other cores reach this one: `http://host:port` of its gRPC address.
    pub address: String,
    /// Prove each commit by a look at the own row instead of by the clock: for machines that may be
    /// frozen and thawed with their clock.
    pub verify: bool,
}

/// The lease of the present incarnation, if there is one.
type Lease = Arc<RwLock<Option<(Arc<Held>, Arc<MessageIds>)>>>;

/// What a core needs before it can be started: make it, start the core with
/// [`Prepared::link`] and [`Prepared::store`], then [`Prepared::run`].
pub struct Prepared<R, C> {
    config: ClusterConfig,
    rows: Arc<R>,
    control: Arc<C>,
    clock: Arc<dyn BootClock>,
    store: Arc<CurrentStore<R>>,
    lease: Lease,
    jobs: mpsc::UnboundedSender<ClusterJob>,
    jobs_rx: mpsc::UnboundedReceiver<ClusterJob>,
}

impl<R: Rows, C: Control> Prepared<R, C> {
    pub fn new(
        config: ClusterConfig,
        rows: Arc<R>,
        control: Arc<C>,
        clock: Arc<dyn BootClock>,
    ) -> Self {
        let (jobs, jobs_rx) = mpsc::unbounded_channel();
        Self {
            config,
            rows,
            control,
            clock,
            store: Arc::new(CurrentStore::default()),
            lease: Lease::default(),
            jobs,
            jobs_rx,
        }
    }

    /// For [`crate::runtime::CoreConfig::cluster`].
    pub fn link(&self) -> ClusterLink {
        let (valid, ids) = (Arc::clone(&self.lease), Arc::clone(&self.lease));
        ClusterLink {
            jobs: self.jobs.clone(),
            is_valid: Arc::new(move || {
                let lease = valid.read();
                lease.as_ref().is_some_and(|(held, _)| held.is_valid())
            }),
            id_time_ms: Arc::new(move |wall_ms| {
                let lease = ids.read();
                lease
                    .as_ref()
                    .map_or(wall_ms, |(_, ids)| ids.clamp(wall_ms))
            }),
        }
    }

    /// For [`crate::runtime::Core::start`].
    pub fn store(&self) -> Arc<CurrentStore<R>> {
        Arc::clone(&self.store)
    }

    /// Enters the cluster with a core that runs. On the current tokio runtime.
    pub fn run(self, core: CoreHandle) -> Cluster {
        let (ownership, events) = Ownership::start(
            self.config.settings.clone(),
            self.config.address.clone(),
            Arc::clone(&self.control) as Arc<dyn Control>,
            Arc::clone(&self.clock),
        );
        let handle = ownership.handle();
        let peers = Arc::new(Peers::new(handle.map()));
        let follower = follow::Follower::new(self, core, Arc::clone(&peers));
        Cluster {
            handle,
            ownership,
            task: tokio::spawn(follower.run(events)),
        }
    }
}

/// A core that has entered a cluster, or tries to.
pub struct Cluster {
    handle: OwnershipHandle,
    ownership: Ownership,
    task: JoinHandle<()>,
}

impl Cluster {
    pub fn handle(&self) -> OwnershipHandle {
        self.handle.clone()
    }

    /// Drops everything on the spot, as a death would.
    #[cfg(test)]
    fn abort(self) {
        self.ownership.abort();
        self.task.abort();
    }

    /// Hands everything over and leaves. The core has to run until this is over.
    pub async fn leave(self) {
        self.ownership.drain().await;
        // Ends with the events. Its panic has been logged by the runtime.
        let _ = self.task.await;
    }
}

/// The queue of what ownership says.
type Events = mpsc::UnboundedReceiver<OwnershipEvent>;
