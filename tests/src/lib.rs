//! What the tests of Towline need and its users do not: so far, memory that behaves like a device's.

pub mod guarded;
