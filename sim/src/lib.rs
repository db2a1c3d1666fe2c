//! The simulator: the whole platform in one thread and in virtual time, from one seed. It drives the
//! product's own machines (the edge's shard, the core's engine and edge streams, the client's
//! machine) and stands for everything around them: clocks, sockets, links, the disk, people, and
//! all that can go wrong with these. A checker looks at every boundary.
//!
//! # Layout
//! - [`plan`]: what a seed stands for
//! - [`world`]: the machines and the world around them
//! - [`check`]: the promises, as rules about what crosses the boundaries
//! - [`bugs`]: defects planted on purpose, to see that the checker notices
//! - [`fence`]: another world, of several cores over replicas: what the fenced store promises
//! - [`coverage`]: how often the interesting things happened
//! - [`rng`], [`queue`], [`trace`], [`store`], [`wire`]: the tools
//!
//! # Invariants
//! 1. One seed is one run, byte for byte: no clock, no thread, no address, no order of a hash table
//!    that was seeded elsewhere has any say.
//! 2. The checker draws nothing and changes nothing.
//! 3. A run ends: talk and faults end at a planned time, and quiet must come within a bound.

pub mod bugs;
pub mod check;
pub mod coverage;
pub mod fence;
pub mod plan;
pub mod queue;
pub mod rng;
pub mod runs;
pub mod store;
pub mod trace;
pub mod wire;
pub mod world;
