//! What this machine is: its fingerprint, its load, its devices, and the version that runs on it.

pub(crate) mod devices;
pub(crate) mod fingerprint;
pub(crate) mod host_load;
pub(crate) mod version;
