//! The plots of a run, and the figures in each.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use super::axis::{Axis, QUANTILES, size_label};
use super::plot::{Curve, Plot, Point, Source};
use crate::results::number::figure;
use crate::results::row::Row;

/// Points of a distribution's line.
const STEPS: u32 = 96;

/// The plots of one pattern.
#[derive(Debug)]
pub(super) struct Figures {
    pub(super) pattern: &'static str,
    pub(super) over_size: Option<Plot>,
    pub(super) distributions: Vec<Plot>,
}

/// The quantity of a plot.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Quantity {
    Bandwidth,
    Median,
}

/// The names of all lines, so that each has one look on the whole page.
#[derive(Debug, Default)]
struct Legend(Vec<(Source, String)>);

pub(super) fn all(rows: &[Row]) -> Vec<Figures> {
    let mut legend = Legend::default();
    let patterns = unique(rows.iter().map(|row| row.pattern));
    let figures = patterns.into_iter().map(|pattern| {
        let rows: Vec<&Row> = rows.iter().filter(|row| row.pattern == pattern).collect();
        let sizes = unique(rows.iter().map(|row| row.size_bytes));
        let distributions = sizes.iter().filter_map(|size| distribution(&rows, *size, &mut legend));
        let distributions = distributions.collect();
        Figures { pattern, over_size: over_size(&rows, sizes.len(), &mut legend), distributions }
    });
    figures.collect()
}

impl Legend {
    fn look(&mut self, whose: Source, name: &str) -> usize {
        let known = |(other, known): &&(Source, String)| *other == whose && known == name;
        let before = self.0.iter().filter(|(other, _)| *other == whose);
        match before.clone().position(|entry| known(&entry)) {
            Some(look) => look,
            None => {
                let look = before.count();
                self.0.push((whose, name.to_owned()));
                look
            }
        }
    }

    /// Returns a line for every name among `points`, in the order of their appearance.
    fn lines(&mut self, points: Vec<(Source, String, Point)>) -> Vec<Curve> {
        let mut lines: Vec<Curve> = Vec::new();
        for (whose, name, point) in points {
            match lines.iter_mut().find(|line| line.whose == whose && line.name == name) {
                Some(line) => line.points.push(point),
                None => lines.push(Curve { look: self.look(whose, &name), name, whose, points: vec![point] }),
            }
        }
        lines
    }
}

impl Quantity {
    fn of(self, gb_per_s: Option<f64>, p50_us: Option<f64>) -> Option<f64> {
        let value = match self {
            Self::Bandwidth => gb_per_s,
            Self::Median => p50_us,
        };
        value.filter(|value| *value > 0.0)
    }

    fn better(self, one: f64, other: f64) -> f64 {
        match self {
            Self::Bandwidth => one.max(other),
            Self::Median => one.min(other),
        }
    }

    fn text(self, value: f64) -> String {
        match self {
            Self::Bandwidth => format!("{} GB/s", figure(Some(value))),
            Self::Median => format!("{} µs", figure(Some(value))),
        }
    }
}

/// Plots bandwidth over size; for a pattern without one the median time, if there are several sizes.
fn over_size(rows: &[&Row], sizes: usize, legend: &mut Legend) -> Option<Plot> {
    let quantity = match rows.iter().any(|row| row.reached_gb_per_s().is_some() && !row.handed_over) {
        true => Quantity::Bandwidth,
        false if sizes > 1 => Quantity::Median,
        false => return None,
    };
    let mut points = Vec::new();
    let mut best: BTreeMap<(usize, Source, String), (usize, f64)> = BTreeMap::new();
    // A hand-over has no bandwidth.
    let drawn = rows.iter().filter(|row| quantity == Quantity::Median || !row.handed_over);
    for row in drawn {
        let Some(y) = quantity.of(row.gb_per_s, row.p50_us) else { continue };
        let range = row.gb_per_s_range.filter(|_| quantity == Quantity::Bandwidth);
        let label = format!("{} at {}", quantity.text(y), size_label(row.size_bytes));
        let point = Point { x: row.size_bytes as f64, y, range, label: Some(label) };
        points.push((Source::Ours, row.line_name(), point));
        for (whose, name, value) in beside(row, quantity) {
            let order = best.len();
            let entry = best.entry((row.size_bytes, whose, name)).or_insert((order, value));
            entry.1 = quantity.better(entry.1, value);
        }
    }
    let mut others: Vec<_> = best.into_iter().collect();
    others.sort_by_key(|((size, whose, _), (order, _))| (*whose, *size, *order));
    for ((size, whose, name), (_, y)) in others {
        let label = format!("{} at {}", quantity.text(y), size_label(size));
        points.push((whose, name, Point { x: size as f64, y, range: None, label: Some(label) }));
    }
    for (_, _, point) in &mut points {
        // Rounding may have moved the range off its median; the point would leave the plot.
        point.range = point.range.map(|[low, high]| [low.min(point.y), high.max(point.y)]);
    }
    let values = points.iter().flat_map(|(_, _, point)| {
        let [low, high] = point.range.unwrap_or([point.y; 2]);
        [low, point.y, high]
    });
    let (y, title) = match quantity {
        Quantity::Bandwidth => (Axis::rates(values), "bandwidth over size"),
        Quantity::Median => (Axis::times_us(values), "median time over size"),
    };
    let x = Axis::sizes(rows.iter().map(|row| row.size_bytes));
    let title = format!("{}: {title}", rows.first()?.pattern);
    let mut lines = legend.lines(points);
    for line in &mut lines {
        line.points.sort_by(|one, other| one.x.total_cmp(&other.x));
    }
    Some(Plot { kind: "over-size", title, x, y, lines })
}

/// Plots the distribution of the times at one size.
fn distribution(rows: &[&Row], size_bytes: usize, legend: &mut Legend) -> Option<Plot> {
    let mut points = Vec::new();
    let mut others = Vec::new();
    for row in rows.iter().filter(|row| row.size_bytes == size_bytes) {
        let Some(times) = row.times.as_ref().filter(|times| !times.is_empty()) else { continue };
        points.extend(curve(times).into_iter().map(|point| (Source::Ours, row.line_name(), point)));
        for (whose, name, y) in beside(row, Quantity::Median) {
            let label = format!("median {}", Quantity::Median.text(y));
            let point = Point { x: QUANTILES[0].0, y, range: None, label: Some(label) };
            others.push((whose, name, point));
        }
    }
    if points.is_empty() {
        return None;
    }
    others.sort_by_key(|(whose, _, _)| *whose);
    points.append(&mut others);
    let y = Axis::times_us(points.iter().map(|(_, _, point)| point.y));
    let title = format!("{}, {}: time of a message", rows.first()?.pattern, size_label(size_bytes));
    let mut lines = legend.lines(points);
    for line in lines.iter_mut().filter(|line| line.whose != Source::Ours) {
        // The best of several rows counts, as in the other plots.
        let best = line.points.iter().map(|point| point.y).fold(f64::INFINITY, f64::min);
        line.points.retain(|point| point.y <= best);
        line.points.truncate(1);
    }
    Some(Plot { kind: "distribution", title, x: Axis::percentiles(), y, lines })
}

/// Returns the quantiles from the median on, up to where a single message would decide.
fn curve(times: &Histogram<u64>) -> Vec<Point> {
    let nines = |quantile: f64| -(1.0 - quantile).log10();
    let [first, .., last] = QUANTILES.map(|(quantile, _)| nines(quantile));
    let known = (1.0 - 1.0 / times.len() as f64).max(QUANTILES[0].0);
    let between = (1..STEPS).map(|step| {
        let nines = first + (last - first) * f64::from(step) / f64::from(STEPS);
        (1.0 - 10f64.powf(-nines), None)
    });
    let mut quantiles: Vec<(f64, Option<&str>)> = between.collect();
    quantiles.extend(QUANTILES.map(|(quantile, label)| (quantile, Some(label))));
    quantiles.retain(|(quantile, _)| *quantile <= known);
    quantiles.sort_by(|one, other| one.0.total_cmp(&other.0));
    let point = |(quantile, label): (f64, Option<&str>)| {
        let time_us = times.value_at_quantile(quantile) as f64 / 1e3;
        let label = label.map(|label| format!("{label} took at most {}", Quantity::Median.text(time_us)));
        Point { x: quantile, y: time_us, range: None, label }
    };
    quantiles.into_iter().map(point).collect()
}

/// Returns the ceilings and tools beside `row`, in terms of `quantity`.
fn beside(row: &Row, quantity: Quantity) -> Vec<(Source, String, f64)> {
    let ceilings = row.ceilings.iter().filter_map(|ceiling| {
        let value = quantity.of(ceiling.gb_per_s, ceiling.p50_us)?;
        Some((Source::Ceiling, ceiling.kind.to_owned(), value))
    });
    let peers = row.against.iter().filter_map(|entry| {
        let value = quantity.of(entry.gb_per_s, entry.p50_us)?;
        Some((Source::Peer, entry.name(), value))
    });
    ceilings.chain(peers).collect()
}

fn unique<T: PartialEq>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut kept = Vec::new();
    for item in items {
        if !kept.contains(&item) {
            kept.push(item);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::row::tests::bandwidth_row;

    /// Returns the lines of a plot with the number of their marks.
    fn lines(plot: &Plot) -> Vec<(Source, &str, usize)> {
        let marks = |line: &Curve| line.points.iter().filter(|point| point.label.is_some()).count();
        plot.lines.iter().map(|line| (line.whose, line.name.as_str(), marks(line))).collect()
    }

    #[test]
    fn bandwidth_lies_over_size_with_its_ceilings() {
        let large = bandwidth_row();
        let mut small = Row { size_bytes: 1 << 16, gb_per_s: Some(2.0), ..large.clone() };
        small.gb_per_s_range = Some([1.9, 2.1]);
        let mut other = Row { transport: "mem".into(), path: Some("mem".into()), ..large.clone() };
        other.ceilings[0].gb_per_s = Some(12.0);
        let figures = all(&[large, small, other]);
        let plot = figures[0].over_size.as_ref().unwrap();
        let ours = Source::Ours;
        assert_eq!(
            lines(plot),
            [(ours, "tcp, adaptive", 2), (ours, "mem, adaptive", 1), (Source::Ceiling, "memcpy", 2)]
        );
        assert_eq!(plot.lines[0].points[0].x, 65_536.0, "smaller ones come first");
        assert_eq!(plot.lines[2].points[1].y, 12.0, "the best of both");
        assert_eq!(figures[0].distributions.len(), 2);
    }

    #[test]
    fn a_distribution_ends_where_too_few_messages_tell() {
        let row = bandwidth_row();
        let figures = all(std::slice::from_ref(&row));
        let plot = &figures[0].distributions[0];
        // Of 300 messages: 50, 90 and 99 %.
        assert_eq!(lines(plot), [(Source::Ours, "tcp, adaptive", 3)]);
        let points = &plot.lines[0].points;
        assert!(points.windows(2).all(|pair| pair[0].x <= pair[1].x && pair[0].y <= pair[1].y));
        assert!(points.last().unwrap().x < 0.999);
        let median = points[0].label.as_deref().unwrap();
        assert_eq!(median, "50 % took at most 50.0 µs");
    }

    #[test]
    fn without_bandwidth_medians_lie_over_sizes_if_there_are_several() {
        let mut row = bandwidth_row();
        (row.pattern, row.gb_per_s, row.gb_per_s_range) = ("latency", None, None);
        (row.ceilings[0].gb_per_s, row.ceilings[0].p50_us) = (None, Some(3.0));
        assert!(all(std::slice::from_ref(&row))[0].over_size.is_none());
        let larger = Row { size_bytes: 2 << 20, gb_per_s: Some(4.0), rate: Some(1000), ..row.clone() };
        let figures = all(&[row, larger]);
        let plot = figures[0].over_size.as_ref().unwrap();
        assert_eq!(plot.title, "latency: median time over size");
        assert_eq!(lines(plot)[1], (Source::Ceiling, "memcpy", 2));
        assert_eq!(lines(&figures[0].distributions[0])[1], (Source::Ceiling, "memcpy", 1));
    }
}
