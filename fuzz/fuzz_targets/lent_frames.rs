//! See docs/fuzzing.md.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| towline_fuzz::bounded(input, towline_fuzz::lent_frames::run));
