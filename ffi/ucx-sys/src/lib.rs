//! Bindings to the parts of UCX that Towline uses, and a loader that opens the installed `libucp` at run
//! time.
//!
//! Building this crate needs no UCX. [`Library::open`] opens it, or returns why it cannot and what to do
//! about it:
//!
//! ```
//! use ucx_sys::Library;
//!
//! match Library::open() {
//!     Ok(ucx) => println!("libucp {} from {}", ucx.version(), ucx.path().display()),
//!     Err(why) => println!("no UCX: {why}"),
//! }
//! ```
//!
//! A [`Library`] is a table of functions ([`Functions`]), each `unsafe` and called as in C. The constants and
//! structs are those of the headers of UCX 1.13, to which later versions only add; they were tested with 1.13
//! to 1.22. Enums are integers, since a later library may return more values. Every parameter struct has a
//! mask of the fields that are set. Its `default()` is all zeros, so fields added by a later library are not
//! read.
//!
//! Never pass `UCS_MEMORY_TYPE_UNKNOWN` or `_LAST`: a later library uses their numbers for other kinds of
//! memory. Leave the field out of the mask instead.

#[expect(
    unsafe_code,
    missing_docs,
    missing_debug_implementations,
    non_camel_case_types,
    clippy::missing_safety_doc,
    clippy::multiple_unsafe_ops_per_block,
    clippy::too_many_arguments,
    clippy::undocumented_unsafe_blocks,
    clippy::use_self,
    reason = "made from C headers"
)]
mod bindings;
mod library;
mod loaded;
mod log;
mod posted;
mod settings;
mod signals;
mod text;
mod transports;
mod unavailable;
mod version;

pub use bindings::*;
pub use library::Library;
pub use posted::Posted;
pub use settings::Setting;
pub use text::text_of;
pub use unavailable::Unavailable;
pub use version::Version;
