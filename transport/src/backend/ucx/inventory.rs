//! The inventory of a UCX: its file, its transports with their devices, and the memory kinds that it
//! supports.

use ucx_sys::*;

use super::context::{Context, POSIX_NOTE};
use crate::backend::Inventory;

/// UCX's names for memory kinds. Later versions have more.
const KINDS: [(ucs_memory_type, &str); 5] = [
    (UCS_MEMORY_TYPE_HOST, "host"),
    (UCS_MEMORY_TYPE_CUDA, "cuda"),
    (UCS_MEMORY_TYPE_CUDA_MANAGED, "cuda-managed"),
    (UCS_MEMORY_TYPE_ROCM, "rocm"),
    (UCS_MEMORY_TYPE_ROCM_MANAGED, "rocm-managed"),
];

/// The module that adds CUDA support, relative to the library's folder.
const CUDA_MODULE: &str = "ucx/libuct_cuda.so.0";

pub(super) fn of(context: &Context) -> Inventory {
    let (library, kinds) = (context.ucx.path(), context.memory_kinds());
    let has_module = library.parent().is_some_and(|folder| folder.join(CUDA_MODULE).exists());
    let posix = context.uses_posix().then_some(POSIX_NOTE);
    let mut notes: Vec<_> =
        [without_cuda(kinds, has_module), posix].into_iter().flatten().map(str::to_owned).collect();
    notes.extend(context.check(false, false).err().map(|refused| refused.detail().to_owned()));
    Inventory {
        library: Some(library.to_owned()),
        devices: context.transports.clone(),
        memory: names(kinds),
        notes,
    }
}

/// Returns the names of the memory kinds whose bits are set.
fn names(kinds: u64) -> Vec<String> {
    let set = (0..u64::BITS).filter(|bit| kinds & (1 << bit) != 0);
    set.map(|bit| {
        let known = KINDS.iter().find(|(kind, _)| *kind == bit);
        known.map_or_else(|| format!("kind {bit} of UCX"), |(_, name)| (*name).to_owned())
    })
    .collect()
}

/// Returns why this UCX does not support CUDA, if so.
fn without_cuda(kinds: u64, has_module: bool) -> Option<&'static str> {
    match (kinds & (1 << UCS_MEMORY_TYPE_CUDA), has_module) {
        (0, true) => Some("this libucp was built with CUDA, and found no CUDA on this machine"),
        (0, false) => Some("this libucp was built without CUDA"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_kinds_are_named_by_bit() {
        assert_eq!(names(0b1), ["host"]);
        assert_eq!(names(0b1_1111), ["host", "cuda", "cuda-managed", "rocm", "rocm-managed"]);
        assert_eq!(names(1 << 5 | 1 << 63), ["kind 5 of UCX", "kind 63 of UCX"]);
        assert!(names(0).is_empty());
    }

    #[test]
    fn the_note_on_cuda_names_what_lacks_it() {
        assert_eq!(without_cuda(0b1, false), Some("this libucp was built without CUDA"));
        assert!(without_cuda(0b1, true).unwrap().contains("found no CUDA on this machine"));
        assert_eq!((without_cuda(0b11, true), without_cuda(0b11, false)), (None, None));
    }
}
