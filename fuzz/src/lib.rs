//! The fuzz targets: what each does with its input, and the assertions on the result.

pub mod addresses;
pub mod control;
pub mod expressions;
pub mod frames;
pub mod handshake;
pub mod lent_frames;
pub mod one_sided;
pub mod script;
pub mod wire;

use peak_alloc::PeakAlloc;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Upper bound on the heap that a target may use at once, in bytes.
pub type HeapMax = usize;

/// Runs a target, and asserts that it stayed within the bound that it returns.
pub fn bounded(input: &[u8], run: fn(&[u8]) -> HeapMax) {
    HEAP.reset_peak_usage();
    let before = HEAP.current_usage();
    let heap_max = run(input);
    let used = HEAP.peak_usage() - before;
    assert!(used <= heap_max, "{used} bytes of heap for an input of {}", input.len());
}
