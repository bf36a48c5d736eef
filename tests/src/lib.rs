//! What the tests of Towline need and its users do not: memory that behaves like a device's, memory that runs out,
//! certificates, forks, waiting with a limit, what a process uses, the libraries of UCX, what a peer made by hand says, and what a machine may lack.

pub mod certificates;
pub mod forked;
pub mod guarded;
pub mod libraries;
pub mod need;
pub mod polls;
pub mod scarce;
pub mod usage;
pub mod wire;
