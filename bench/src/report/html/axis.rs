//! An axis: the position of each value, and the labelled values.

use crate::data::units::Size;

/// The most labels: more would overlap.
const TICKS_MAX: usize = 9;

/// From this ratio between the largest and the smallest rate on, the axis is logarithmic.
const LINEAR_RATIO_MAX: f64 = 25.0;

/// The labelled quantiles.
pub(super) const QUANTILES: [(f64, &str); 5] =
    [(0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %")];

#[derive(Clone, Debug)]
pub(super) struct Axis {
    pub(super) title: &'static str,
    scale: Scale,
    low: f64,
    high: f64,
    ticks: Vec<(f64, String)>,
}

#[derive(Clone, Copy, Debug)]
enum Scale {
    Linear,
    Logarithmic,
    /// Each further nine of a quantile takes the same space.
    Nines,
}

impl Scale {
    fn of(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Logarithmic => value.ln(),
            Self::Nines => -(1.0 - value).ln(),
        }
    }
}

impl Axis {
    /// Returns the axis of payload sizes, by powers of two.
    pub(super) fn sizes(sizes: impl IntoIterator<Item = usize>) -> Self {
        let mut sizes: Vec<usize> = sizes.into_iter().collect();
        sizes.sort_unstable();
        sizes.dedup();
        let (low, high) = match sizes[..] {
            [] => (1.0, 2.0),
            [only] => (only as f64 / 2.0, only as f64 * 2.0),
            [first, .., last] => (first as f64, last as f64),
        };
        let every = sizes.len().div_ceil(TICKS_MAX).max(1);
        let mut axis = Self::new("payload of a message", Scale::Logarithmic, low, high);
        for size in sizes.into_iter().step_by(every) {
            let near =
                axis.ticks.last().is_some_and(|(last, _)| axis.at(size as f64) - axis.at(*last) < 0.08);
            if !near {
                axis.ticks.push((size as f64, size_label(size)));
            }
        }
        axis
    }

    /// Returns the axis of bandwidths: from zero, unless they are too far apart.
    pub(super) fn rates(values: impl IntoIterator<Item = f64>) -> Self {
        let (low, high) = ends(values);
        if high / low > LINEAR_RATIO_MAX {
            return Self::decades("GB/s, logarithmic", low, high, |mantissa, exponent| {
                scientific(mantissa, exponent).to_string()
            });
        }
        let exponent = (high / 4.0).log10().floor() as i32;
        let unit = 10f64.powi(exponent);
        let mantissa = [1, 2, 5, 10].into_iter().find(|m| f64::from(*m) * unit * 5.0 >= high).unwrap_or(10);
        let steps = (high / (f64::from(mantissa) * unit)).ceil().max(1.0) as u32;
        let decimals = usize::try_from(-exponent).unwrap_or(0);
        let mut axis = Self::new("GB/s", Scale::Linear, 0.0, f64::from(steps * mantissa) * unit);
        axis.ticks = (0..=steps)
            .map(|step| f64::from(step * mantissa) * unit)
            .map(|value| (value, format!("{value:.decimals$}")))
            .collect();
        axis
    }

    /// Returns the axis of times in microseconds.
    pub(super) fn times_us(values: impl IntoIterator<Item = f64>) -> Self {
        let (low, high) = ends(values);
        Self::decades("time, logarithmic", low, high, |mantissa, exponent| {
            let (unit, shift) = match exponent {
                ..0 => ("ns", 3),
                0..3 => ("µs", 0),
                3..6 => ("ms", -3),
                _ => ("s", -6),
            };
            format!("{} {unit}", scientific(mantissa, exponent + shift))
        })
    }

    /// Returns the axis of shares of all messages, from the median on.
    pub(super) fn percentiles() -> Self {
        let [first, .., last] = QUANTILES.map(|(quantile, _)| quantile);
        let mut axis = Self::new("messages that took no longer", Scale::Nines, first, last);
        axis.ticks = QUANTILES.map(|(quantile, label)| (quantile, label.to_owned())).to_vec();
        axis
    }

    /// Returns an axis with every power of ten, and values between them if there is space.
    fn decades(title: &'static str, low: f64, high: f64, label: fn(i32, i32) -> String) -> Self {
        let first = low.log10().floor() as i32;
        let last = (high.log10().ceil() as i32).max(first + 1);
        let mantissas: &[i32] = if last - first <= 3 { &[1, 2, 5] } else { &[1] };
        let grid: Vec<(i32, i32)> = (first..=last)
            .flat_map(|exponent| mantissas.iter().map(move |mantissa| (*mantissa, exponent)))
            .filter(|(mantissa, exponent)| *exponent < last || *mantissa == 1)
            .collect();
        let value = |step: &(i32, i32)| scientific(step.0, step.1);
        let begin = grid.iter().rposition(|step| value(step) <= low * (1.0 + 1e-9)).unwrap_or(0);
        let end = grid.iter().position(|step| value(step) >= high * (1.0 - 1e-9)).unwrap_or(grid.len() - 1);
        let end = end.max(begin + 1).min(grid.len() - 1);
        let begin = begin.min(end - 1);
        let mut axis = Self::new(title, Scale::Logarithmic, value(&grid[begin]), value(&grid[end]));
        axis.ticks = grid[begin..=end].iter().map(|step| (value(step), label(step.0, step.1))).collect();
        axis
    }

    fn new(title: &'static str, scale: Scale, low: f64, high: f64) -> Self {
        Self { title, scale, low, high, ticks: Vec::new() }
    }

    /// Returns the position of `value`: 0 at the start, 1 at the end.
    pub(super) fn at(&self, value: f64) -> f64 {
        let [low, high, value] = [self.low, self.high, value].map(|value| self.scale.of(value));
        ((value - low) / (high - low)).clamp(0.0, 1.0)
    }

    /// Returns the labelled values with their positions.
    pub(super) fn ticks(&self) -> impl Iterator<Item = (f64, &str)> {
        self.ticks.iter().map(|(value, label)| (self.at(*value), label.as_str()))
    }
}

/// `64 KiB`
pub(super) fn size_label(bytes: usize) -> String {
    let short = Size(bytes).to_string();
    match short.chars().last() {
        Some(unit) if unit.is_ascii_alphabetic() => format!("{} {unit}iB", &short[..short.len() - 1]),
        _ => format!("{short} B"),
    }
}

/// Returns `mantissa * 10^exponent`, as exact as a decimal literal.
fn scientific(mantissa: i32, exponent: i32) -> f64 {
    let power = 10f64.powi(exponent.abs());
    if exponent < 0 { f64::from(mantissa) / power } else { f64::from(mantissa) * power }
}

/// Returns the smallest and the largest value above zero.
fn ends(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let above = values.into_iter().filter(|value| *value > 0.0 && value.is_finite());
    let ends = above.fold(None, |ends: Option<(f64, f64)>, value| {
        let (low, high) = ends.unwrap_or((value, value));
        Some((low.min(value), high.max(value)))
    });
    ends.unwrap_or((1.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks().map(|(_, label)| label).collect()
    }

    fn at(axis: &Axis, value: f64) -> f64 {
        (axis.at(value) * 1000.0).round() / 1000.0
    }

    #[test]
    fn doublings_of_a_size_are_equally_wide() {
        let axis = Axis::sizes([64, 8, 16, 32, 8]);
        assert_eq!(labels(&axis), ["8 B", "16 B", "32 B", "64 B"]);
        assert_eq!([8.0, 16.0, 64.0].map(|size| at(&axis, size)), [0.0, 0.333, 1.0]);
        let many = Axis::sizes((3..27).map(|power| 1 << power));
        assert_eq!(labels(&many), ["8 B", "64 B", "512 B", "4 KiB", "32 KiB", "256 KiB", "2 MiB", "16 MiB"]);
        assert_eq!(labels(&Axis::sizes([1500, 1501, 9000])), ["1500 B", "9000 B"], "words do not touch");
        assert_eq!(at(&Axis::sizes([8]), 8.0), 0.5, "one size stands in the middle");
    }

    #[test]
    fn rates_begin_at_zero_unless_they_are_far_apart() {
        let near = Axis::rates([3.1, 0.4, 8.7]);
        assert_eq!((near.title, labels(&near)), ("GB/s", vec!["0", "2", "4", "6", "8", "10"]));
        assert_eq!((at(&near, 0.0), at(&near, 5.0)), (0.0, 0.5));
        assert_eq!(labels(&Axis::rates([0.031, 0.05])), ["0.00", "0.01", "0.02", "0.03", "0.04", "0.05"]);
        let far = Axis::rates([0.002, 19.0, 4100.0]);
        assert_eq!(labels(&far), ["0.001", "0.01", "0.1", "1", "10", "100", "1000", "10000"]);
        assert_eq!(at(&far, 1.0), 0.429);
    }

    #[test]
    fn times_are_told_in_fitting_units() {
        assert_eq!(labels(&Axis::times_us([6.2, 31.0])), ["5 µs", "10 µs", "20 µs", "50 µs"]);
        assert_eq!(labels(&Axis::times_us([0.3, 0.9])), ["200 ns", "500 ns", "1 µs"]);
        assert_eq!(
            labels(&Axis::times_us([900.0, 3e6])),
            ["100 µs", "1 ms", "10 ms", "100 ms", "1 s", "10 s"]
        );
        assert_eq!(labels(&Axis::times_us([10.0])), ["10 µs", "20 µs"], "an axis has a length");
        assert_eq!(labels(&Axis::times_us([100.0, 100.0, 50.0])), ["50 µs", "100 µs"]);
    }

    #[test]
    fn each_nine_of_a_percentile_takes_the_same_room() {
        let axis = Axis::percentiles();
        let steps: Vec<f64> = axis.ticks().map(|(at, _)| at).collect();
        assert_eq!((steps[0], steps[4]), (0.0, 1.0));
        assert!((steps[2] - steps[1] - (steps[4] - steps[3])).abs() < 1e-9, "{steps:?}");
    }

    #[test]
    fn nothing_measured_is_an_axis_too() {
        for axis in [Axis::sizes([]), Axis::rates([]), Axis::times_us([0.0, f64::NAN])] {
            assert!(axis.at(1.0).is_finite() && axis.low < axis.high, "{axis:?}");
        }
    }
}
