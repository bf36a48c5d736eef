//! What the tests of Towline need and its users do not: memory that behaves like a device's, that runs out, that faults for ever,
//! certificates, forks, waiting with a limit, what a process uses, tasks that stop, the libraries of UCX and endpoints over them, a process that echoes, what `cargo xtask install` made, what a peer made by hand says, and what a machine may lack.

pub mod certificates;
pub mod echoing;
pub mod faulting;
pub mod forked;
pub mod guarded;
pub mod libraries;
pub mod need;
pub mod over_ucx;
pub mod polls;
pub mod provided;
pub mod scarce;
pub mod usage;
pub mod watched;
pub mod wire;
