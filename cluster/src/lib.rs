//! The rig: real Cassandra, Redis and Kafka, and Trunkline's own parts, as processes of one machine.
//! `trunkline cluster` uses it for operators, and tests for everything that needs a real server.
//!
//! # Layout
//! - [`install`]: gets the servers from Maven Central and Debian, by version and checksum
//! - [`process`]: one process, and that nothing else is ever signalled
//! - [`node`]: what all servers can do: be killed, paused, stopped, started again on their data
//! - [`cassandra`], [`redis`], [`kafka`]: one server each; [`cql`] is how Cassandra is asked whether it is ready
//! - [`platform`]: the command lines of cores and edges
//! - [`up`]: a whole cluster in a directory: up, status, down
//!
//! # Invariants
//! - A process is known by its number *and* its start time: a number that the kernel gave to somebody
//!   else is never signalled.
//! - Everything listens on loopback addresses only.
//! - A server that was started for this process ([`process::Lifetime::Bound`]) ends with it, however it ends.

pub mod cassandra;
pub mod cql;
pub mod error;
pub mod install;
mod java;
pub mod kafka;
pub mod maven;
pub mod node;
pub mod platform;
pub mod process;
pub mod redis;
pub mod up;

pub use cassandra::{CassandraConfig, CassandraNode, CommitLogSync};
pub use error::ClusterError;
pub use install::{Installed, Wanted, install};
pub use kafka::{KafkaConfig, KafkaNode};
pub use node::Node;
pub use process::Lifetime;
pub use redis::{RedisConfig, RedisNode, RedisTls};
