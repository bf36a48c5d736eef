//! The command line's expressions: an expression that parses prints as one with the same meaning.

use towline_bench::expressions;

use crate::HeapMax;

/// The first byte selects the kind of expression.
pub fn run(input: &[u8]) -> HeapMax {
    const HEAP_MAX: HeapMax = 256 << 10;
    let Some((which, rest)) = input.split_first() else { return HEAP_MAX };
    let Ok(text) = std::str::from_utf8(rest) else { return HEAP_MAX };
    let error = match which % 6 {
        0 => expressions::assertion(text).map(|printed| assert_eq!(printed, text)),
        1 => expressions::transport(text).map(|printed| {
            assert_eq!(expressions::transport(&printed), Ok(printed.clone()));
        }),
        2 => expressions::sizes(text).map(|sizes| {
            assert!((1..=41).contains(&sizes.len()));
            for (printed, bytes) in sizes {
                assert_eq!(expressions::sizes(&printed), Ok(vec![(printed, bytes)]));
            }
        }),
        3 => expressions::pattern(text).map(|name| assert_eq!(name, text)),
        4 => expressions::place(text),
        _ => expressions::seconds(text).map(|seconds| assert!((0.0..=3600.0).contains(&seconds))),
    };
    if let Err(why) = error {
        // The error repeats the input and lists the valid forms.
        assert!(why.len() <= 4 * text.len() + 1000, "a long error: {} bytes", why.len());
    }
    HEAP_MAX
}
