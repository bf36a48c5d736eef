//! What the tests of Towline need and its users do not: memory that behaves like a device's, and memory that runs
//! out.

pub mod guarded;
pub mod scarce;
