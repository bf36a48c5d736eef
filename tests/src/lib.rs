//! What the tests of Towline need and its users do not: memory that behaves like a device's, memory that runs out, and
//! certificates.

pub mod certificates;
pub mod guarded;
pub mod scarce;
