//! Ownership as a whole: the driver on real time, and the machine in simulated time under faults.

mod driver;
mod sim;
mod steps;
