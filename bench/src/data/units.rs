//! Sizes on the command line: binary units, lists and ranges.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The largest size: 1 TiB.
const SIZE_MAX_BYTES: u64 = 1 << 40;

const UNITS: [(char, u32); 4] = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];

/// A number of bytes; `64K` is 65,536.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size(pub(crate) usize);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || match meant(text) {
            Some(better) => format!("`{text}` is not a size: {better}"),
            None => {
                format!(
                    "`{text}` is not a size: write bytes, or a number with K, M or G, such as 8, 64K or 1M"
                )
            }
        };
        let number = text.strip_suffix("iB").unwrap_or(text);
        let (digits, shift) = match number.chars().last().map(|last| last.to_ascii_uppercase()) {
            Some(last) => match UNITS.iter().find(|(letter, _)| *letter == last) {
                Some((_, shift)) => (&number[..number.len() - 1], *shift),
                None => (number, 0),
            },
            None => return Err(wrong()),
        };
        if digits.is_empty()
            || !digits.bytes().all(|byte| byte.is_ascii_digit())
            || (number != text && shift == 0)
        {
            return Err(wrong());
        }
        let bytes = digits
            .parse::<u64>()
            .ok()
            .and_then(|count| count.checked_mul(1 << shift))
            .filter(|bytes| *bytes <= SIZE_MAX_BYTES)
            .ok_or_else(|| format!("`{text}` is too large: at most 1024G"))?;
        if bytes == 0 {
            return Err(format!("`{text}` is too small: at least 1 byte"));
        }
        usize::try_from(bytes)
            .map(Self)
            .map_err(|_| format!("`{text}` does not fit this machine's addresses"))
    }
}

/// Returns the correct spelling of a size with decimal units, fractions or spaces, if `text` is clear.
fn meant(text: &str) -> Option<String> {
    let number_len = text.find(|digit: char| !digit.is_ascii_digit() && digit != '.').unwrap_or(text.len());
    let (number, unit) =
        (text[..number_len].parse::<f64>().ok()?, text[number_len..].trim().to_ascii_uppercase());
    let (letter, is_decimal) = match unit.as_str() {
        "" | "B" => (None, false),
        _ => (unit.chars().next(), unit.len() == 2 && unit.ends_with('B')),
    };
    let shift = match letter {
        None => 0,
        Some(letter) => {
            let known = UNITS.iter().find(|(known, _)| *known == letter)?;
            let spelled = [letter.to_string(), format!("{letter}B"), format!("{letter}IB")];
            spelled.contains(&unit).then_some(known.1)?
        }
    };
    let binary = number * (1_u64 << shift) as f64;
    if !(1.0..=SIZE_MAX_BYTES as f64).contains(&binary) {
        return None;
    }
    let size = Size(binary.round() as usize);
    let whole = if binary.fract() == 0.0 { "" } else { "a size is whole bytes: " };
    if is_decimal {
        let decimal = number * 1000_f64.powi(shift as i32 / 10);
        return Some(format!("sizes are binary: write {size} for {} bytes, or {decimal:.0}", size.0));
    }
    Some(format!("{whole}write {size}"))
}

impl fmt::Display for Size {
    /// Writes the shortest exact spelling: `64K`, `1M`, `1500`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (letter, shift) in UNITS.iter().rev() {
            if self.0 != 0 && self.0.trailing_zeros() >= *shift {
                return write!(f, "{}{letter}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// Formats an amount of data in the largest binary unit that gives at least one: `1.5 KiB`.
pub(crate) fn memory(bytes: f64) -> String {
    in_units(bytes, 1024.0, ["B", "KiB", "MiB", "GiB", "TiB"])
}

/// Formats a bandwidth in the largest decimal unit that gives at least one: `1.5 GB/s`.
pub(crate) fn rate(bytes_per_s: f64) -> String {
    in_units(bytes_per_s, 1000.0, ["B/s", "kB/s", "MB/s", "GB/s", "TB/s"])
}

fn in_units(value: f64, step: f64, units: [&str; 5]) -> String {
    let larger = (1..units.len()).take_while(|power| value >= step.powi(*power as i32)).count();
    let digits = usize::from(larger > 0);
    format!("{:.digits$} {}", value / step.powi(larger as i32), units[larger])
}

/// One item of a list of sizes: a size, or a range of powers of two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sizes(pub(crate) Vec<Size>);

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((from, to)) = text.split_once("..") else {
            return Ok(Self(vec![text.parse()?]));
        };
        let (from, to): (Size, Size) = (from.parse()?, to.parse()?);
        if let Some(odd) = [from, to].iter().find(|size| !size.0.is_power_of_two()) {
            return Err(format!("`{text}` stands for powers of two, and {odd} is none"));
        }
        if from > to {
            return Err(format!("`{text}` runs backwards: write {to}..{from}"));
        }
        let sizes = (from.0.trailing_zeros()..=to.0.trailing_zeros()).map(|power| Size(1 << power));
        Ok(Self(sizes.collect()))
    }
}

/// Parses a number of seconds above zero, such as `0.5` or `3`, at most an hour.
pub(crate) fn parse_seconds(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a time: write seconds, such as 0.5, at most 3600");
    parse_pause(text).ok().filter(|time| !time.is_zero()).ok_or_else(wrong)
}

/// Parses the same, or 0.
pub(crate) fn parse_pause(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.0..=3600.0).contains(seconds));
    let wrong = || format!("`{text}` is not a time: write seconds, such as 0.5, from 0 to 3600");
    seconds.map(Duration::from_secs_f64).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(text: &str) -> Result<usize, String> {
        text.parse().map(|Size(bytes)| bytes)
    }

    #[test]
    fn sizes_are_binary() {
        for (text, bytes) in [
            ("8", 8),
            ("64K", 65_536),
            ("64k", 65_536),
            ("1M", 1 << 20),
            ("2G", 2 << 30),
            ("4KiB", 4096),
            ("1500", 1500),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn nonsense_is_no_size() {
        for text in [
            "", "K", "x", "8 K", "-8", "+8", "1.5M", "8KB", "8iB", "0x10", "8..", "é", "Ké", "8é", "1.2.3",
            ".", "9e99",
        ] {
            assert!(size(text).unwrap_err().contains("not a size"), "{text}");
        }
        assert!(size("0").unwrap_err().contains("at least 1 byte"));
        assert!(size("0K").unwrap_err().contains("at least 1 byte"));
        for text in ["1025G", "99999999999999999999", "18014398509481984K"] {
            assert!(size(text).unwrap_err().contains("too large"), "{text}");
        }
    }

    #[test]
    fn a_near_miss_says_what_to_write() {
        for (text, says) in [
            ("1MB", "sizes are binary: write 1M for 1048576 bytes, or 1000000"),
            ("64kb", "write 64K for 65536 bytes, or 64000"),
            ("1.5M", "write 1536K"),
            ("1.5MiB", "write 1536K"),
            ("0.5K", "write 512"),
            ("1.3K", "a size is whole bytes: write 1331"),
            ("8 K", "write 8K"),
            ("64B", "write 64"),
        ] {
            let wrong = size(text).unwrap_err();
            assert!(wrong.contains(says), "{wrong}");
            let written = says.split("write ").last().and_then(|rest| rest.split_whitespace().next());
            size(written.unwrap()).unwrap();
        }
    }

    #[test]
    fn a_size_prints_as_it_is_written() {
        for text in ["8", "64K", "1M", "3M", "1500", "1G", "1023"] {
            assert_eq!(Size(size(text).unwrap()).to_string(), text);
        }
    }

    #[test]
    fn memory_is_binary_and_a_rate_decimal() {
        for (count, text) in [(0.0, "0 B"), (1023.0, "1023 B"), (1536.0, "1.5 KiB"), (3e12, "2.7 TiB")] {
            assert_eq!(memory(count), text);
        }
        assert_eq!(memory(1e18), "909494.7 TiB");
        for (count, text) in [(0.0, "0 B/s"), (1500.0, "1.5 kB/s"), (9.64e9, "9.6 GB/s")] {
            assert_eq!(rate(count), text);
        }
    }

    #[test]
    fn a_range_is_its_powers_of_two() {
        let range: Sizes = "8..64".parse().unwrap();
        assert_eq!(range.0.iter().map(|size| size.0).collect::<Vec<_>>(), [8, 16, 32, 64]);
        assert_eq!("64K..64K".parse::<Sizes>().unwrap().0.len(), 1);
        assert_eq!("8..64M".parse::<Sizes>().unwrap().0.len(), 24);
        assert!("7..64".parse::<Sizes>().unwrap_err().contains("7 is none"));
        assert!("64..8".parse::<Sizes>().unwrap_err().contains("8..64"));
        for text in ["..", "8..", "..8", "8...64", "8..64..128"] {
            assert!(text.parse::<Sizes>().is_err(), "{text}");
        }
    }

    #[test]
    fn seconds_are_positive_and_bounded() {
        assert_eq!(parse_seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["0", "-1", "nan", "inf", "1s", "", "3601"] {
            assert!(parse_seconds(text).unwrap_err().contains("not a time"), "{text}");
            assert_eq!(parse_pause(text).is_ok(), text == "0", "{text}");
        }
    }
}
