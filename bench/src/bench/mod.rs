//! `towline bench`: moves data between two workers and reports what that costs, beside the machine's ceilings.

pub(crate) mod assertion;
pub(crate) mod case;
pub(crate) mod report;
pub(crate) mod sample;
