//! What a measurement yields: the sample of one repeat, the ceilings beside it, and the row of a case.

pub(crate) mod ceiling;
pub(crate) mod histogram;
pub(crate) mod number;
pub(crate) mod row;
pub(crate) mod sample;
pub(crate) mod tool_row;
