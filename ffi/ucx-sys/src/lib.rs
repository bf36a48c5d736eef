//! UCX by way of the `libucp` that is there at run time: bindings to what Towline uses of it, and its opening.
//!
//! Nothing of UCX is needed to build this. [`Library::open`] finds it, or says why there is none and what to do about that:
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
//! A [`Library`] is a table of functions ([`Functions`]), each `unsafe` and called as in C. The constants and structs are those
//! of the headers of UCX 1.13, which later versions only add to: they were tried with 1.13 to 1.22. Enums are integers, as a later
//! library may know more values. Every parameter struct tells by a mask which of its fields are meant; its `default()` is
//! all zeros, so that what a later library adds is not taken for an argument.
//!
//! Never pass `UCS_MEMORY_TYPE_UNKNOWN` or `_LAST`: their number means another kind of memory to a later library. Leave the field
//! out of the mask instead.

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
