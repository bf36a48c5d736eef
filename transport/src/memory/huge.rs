//! Huge pages in shared memory: whether the kernel uses them, and why not.

use std::fs;

/// Size of a huge page. The kernel gives larger ones only on request.
pub(super) const PAGE: usize = 2 << 20;

const SETTING: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// Returns how many bytes of the mapping at `base` are in huge pages, or 0 if the kernel gives none or does
/// not report it. Reads `/proc/self/smaps`, which is slower than everything else here, only if huge pages are
/// on.
pub(super) fn bytes_of(base: usize) -> usize {
    if !setting().is_some_and(|setting| is_on(&setting)) {
        return 0;
    }
    fs::read_to_string("/proc/self/smaps").map_or(0, |report| huge_bytes(&report, base))
}

/// Returns why shared memory is not in huge pages, and how to change that.
pub(super) fn why_not() -> String {
    match setting() {
        None => "this kernel has no huge pages for shared memory".into(),
        Some(setting) if is_on(&setting) => {
            "huge pages are on, but the kernel had not enough of them, or a segment is smaller than one"
                .into()
        }
        Some(_) => format!("shmem huge pages are off: echo advise > {SETTING}"),
    }
}

fn setting() -> Option<String> {
    fs::read_to_string(SETTING).ok()
}

/// Parses a line like `always within_size [advise] never deny force`. Returns true if huge pages are on.
fn is_on(setting: &str) -> bool {
    ["[always]", "[within_size]", "[advise]", "[force]"].iter().any(|on| setting.contains(on))
}

/// Returns the huge bytes of the mapping at `base` from the text of `/proc/self/smaps`.
fn huge_bytes(report: &str, base: usize) -> usize {
    let start = format!("{base:x}-");
    let mapping = report.lines().skip_while(|line| !line.starts_with(&start));
    let kib =
        mapping.take(30).find_map(|line| line.strip_prefix("ShmemPmdMapped:")?.split_whitespace().next());
    kib.and_then(|kib| kib.parse::<usize>().ok()).map_or(0, |kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_and_mappings_of_the_kernel_are_parsed() {
        for (setting, on) in [
            ("always within_size advise [never] deny force\n", false),
            ("always within_size advise never [deny] force\n", false),
            ("always within_size [advise] never deny force\n", true),
            ("[always] within_size advise never deny force\n", true),
        ] {
            assert_eq!(is_on(setting), on);
        }
        let report = "7f00-7f10 r--p 00000000 00:00 0\nRss: 4 kB\nShmemPmdMapped:        0 kB\n\
            7f200000-7f600000 rw-s 00000000 00:01 7 /memfd:towline-arena (deleted)\nSize: 4096 kB\n\
            ShmemPmdMapped:     2048 kB\nVmFlags: rd\n";
        assert_eq!((huge_bytes(report, 0x7f20_0000), huge_bytes(report, 0x7f00)), (2 << 20, 0));
        assert_eq!(huge_bytes(report, 0x7f21_0000), 0);
    }
}
