//! The promises of the external contract, tried on real processes. `TRUNKLINE_IO_DRIVER` chooses the
//! driver of all of them; `./test promises` runs everything once with each.

mod crash;
mod dedup;
mod drain;
mod driver;
mod fsync;
mod group;
mod heartbeat;
mod memory;
mod offline;
mod order;
mod slow;
mod two_tiers;
mod upgrade;
