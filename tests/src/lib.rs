//! Shared parts of Towline's tests: memory that behaves like a device's, memory that others write, memory that
//! runs out or faults, certificates, forked children, waiting with a limit, this process's resource usage, tasks
//! that stop, the installed UCX libraries and endpoints over them, an echo server, the messages of a hostile
//! peer, and requirements that a machine may lack.

pub mod certificates;
pub mod echoing;
pub mod faulting;
pub mod foreign;
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
