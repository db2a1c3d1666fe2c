//! What this machine's kernel allows, measured against what so-and-so many connections need, with
//! a cure for each thing that stands in the way; and the sysctls of a profile, set and taken back.
//!
//! # Layout
//! - [`facts`], [`uring`]: what the kernel says (procfs, a probe of io_uring)
//! - [`capacity`]: how many sockets that makes, as plain arithmetic
//! - [`profile`], [`sysctl`]: what a machine for so many connections should be like
//! - [`checks`]: facts, a target and a profile to a [`Report`]; pure
//! - [`report`]: the report for people; it serialises to JSON as it stands
//! - [`tune`], [`state`]: `apply` and `revert`, all or nothing
//!
//! Called by `trunkline doctor`. Only [`tune::apply`] and [`tune::revert`] change anything.

pub mod capacity;
pub mod checks;
pub mod facts;
pub mod profile;
pub mod report;
pub mod state;
pub mod sysctl;
pub mod tune;
pub mod uring;

pub use checks::{Wish, examine};
pub use facts::Facts;
pub use profile::Profile;
pub use report::{Check, Report, Status};
