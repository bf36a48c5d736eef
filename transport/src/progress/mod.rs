//! Who polls a link: callers that wait, and the driver.

pub(crate) mod driver;
pub(crate) mod spinning;
pub(crate) mod waiting;
