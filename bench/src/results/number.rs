//! Medians, ranges, rounding, and the format of figures.

/// Returns the middle value, or the mean of the two in the middle.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

pub(super) fn range(values: &[f64]) -> Option<[f64; 2]> {
    let low = values.iter().copied().min_by(f64::total_cmp)?;
    let high = values.iter().copied().max_by(f64::total_cmp)?;
    Some([low, high])
}

/// Rounds to six significant digits: more would be noise in the document.
pub(crate) fn round(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let scale = 10f64.powi(5 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}

/// Returns the cell of a figure that does not apply.
pub(crate) fn dash() -> String {
    "-".to_owned()
}

/// Formats a figure with three digits, as exact as a run repeats; with two if it is less than 0.1.
pub(crate) fn figure(value: Option<f64>) -> String {
    match value {
        None => dash(),
        Some(value) if value >= 100.0 => format!("{value:.0}"),
        Some(value) if value >= 10.0 => format!("{value:.1}"),
        Some(value) if value >= 0.1 || value <= 0.0 => format!("{value:.2}"),
        Some(value) => format!("{value:.*}", (1.0 - value.log10().floor()) as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_keep_six_digits() {
        assert_eq!(round(1234.56789), 1234.57);
        assert_eq!(round(0.000_123_456_78), 0.000_123_457);
        assert_eq!(round(0.0), 0.0);
        let figures = [0.0, 0.000_123, 0.0567, 0.5, 12.34, 123.4].map(|value| figure(Some(value)));
        assert_eq!(figures, ["0.00", "0.00012", "0.057", "0.50", "12.3", "123"]);
        assert_eq!((median(&[]), median(&[1.0, 2.0])), (None, Some(1.5)));
    }
}
