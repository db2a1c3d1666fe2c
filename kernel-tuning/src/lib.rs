//! What this machine's kernel allows, measured against what so-and-so many connections need, with
//! a cure for each thing that stands in the way.
//!
//! # Layout
//! - [`facts`]: what the kernel says (procfs, a probe of io_uring)
//! - [`capacity`]: how many sockets that makes, as plain arithmetic
//! - [`checks`]: facts and a target to a [`Report`]; pure
//! - [`report`]: the report for people; it serialises to JSON as it stands
//!
//! Called by `trunkline doctor`. Nothing here changes the machine.

pub mod capacity;
pub mod checks;
pub mod facts;
pub mod report;

pub use checks::examine;
pub use facts::Facts;
pub use report::{Check, Report, Status};
