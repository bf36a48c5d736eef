//! One plot as SVG: lines over two axes. The style sheet of the page sets its look: elements have classes,
//! and marks have their values as titles.

use std::fmt;

use super::Escaped;
use super::axis::Axis;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 330.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 28.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 50.0;
/// The space between the lines and the frame, so that marks at the ends are whole.
const PADDING: f64 = 14.0;
/// The number of looks for each kind of line; further lines repeat them.
const LOOKS: usize = 8;

/// A plot with its title.
#[derive(Clone, Debug)]
pub(super) struct Plot {
    /// The kind of plot: `over-size` or `distribution`.
    pub(super) kind: &'static str,
    pub(super) title: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) lines: Vec<Curve>,
}

#[derive(Clone, Debug)]
pub(super) struct Curve {
    pub(super) name: String,
    pub(super) whose: Source,
    /// Its number among the lines of the same kind, the same in all plots of a page.
    pub(super) look: usize,
    pub(super) points: Vec<Point>,
}

/// The source of a line's figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    Ours,
    Ceiling,
    Peer,
}

#[derive(Clone, Debug)]
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    /// Lowest and highest of the repeats.
    pub(super) range: Option<[f64; 2]>,
    /// The value as text. A point without text has no mark.
    pub(super) label: Option<String>,
}

impl Source {
    fn class(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Ceiling => "ceiling",
            Self::Peer => "peer",
        }
    }
}

impl Curve {
    fn look(&self) -> String {
        format!("{} look{}", self.whose.class(), self.look % LOOKS)
    }

    /// Draws a mark at (`x`, `y`), whose shape shows the source.
    fn mark(&self, f: &mut fmt::Formatter<'_>, x: f64, y: f64, label: &str) -> fmt::Result {
        match self.whose {
            Source::Ours => write!(f, r#"<circle cx="{x:.1}" cy="{y:.1}" r="3.6">"#)?,
            Source::Ceiling => write!(f, r#"<path d="M{x:.1} {y:.1}m0 -5l5 5l-5 5l-5 -5z">"#)?,
            Source::Peer => {
                write!(f, r#"<rect x="{:.1}" y="{:.1}" width="7" height="7">"#, x - 3.5, y - 3.5)?;
            }
        }
        write!(f, "<title>{}</title>", Escaped(label))?;
        f.write_str(match self.whose {
            Source::Ours => "</circle>",
            Source::Ceiling => "</path>",
            Source::Peer => "</rect>",
        })
    }

    /// Draws the line for the legend.
    fn sample(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, r#"<svg class="sample {}" viewBox="0 0 34 12" aria-hidden="true">"#, self.look())?;
        f.write_str(r#"<path class="line" d="M1 6H33"/><g class="marks">"#)?;
        self.mark(f, 17.0, 6.0, &self.name)?;
        f.write_str("</g></svg>")
    }
}

impl Plot {
    fn place(&self, point: &Point) -> (f64, f64) {
        (self.across(self.x.at(point.x)), up(self.y.at(point.y)))
    }

    fn across(&self, part: f64) -> f64 {
        LEFT + PADDING + part * (WIDTH - LEFT - RIGHT - 2.0 * PADDING)
    }

    fn frame(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        f.write_str(r#"<g class="grid">"#)?;
        for (at, label) in self.x.ticks() {
            let (x, below) = (self.across(at), bottom + 18.0);
            write!(f, r#"<path d="M{x:.1} {TOP}V{bottom}"/>"#)?;
            write!(f, r#"<text x="{x:.1}" y="{below}" text-anchor="middle">{label}</text>"#)?;
        }
        for (at, label) in self.y.ticks() {
            let (y, beside) = (up(at), LEFT - 8.0);
            write!(f, r#"<path d="M{LEFT} {y:.1}H{right}"/>"#)?;
            write!(f, r#"<text x="{beside}" y="{:.1}" text-anchor="end">{label}</text>"#, y + 4.0)?;
        }
        f.write_str(r#"</g><g class="axis">"#)?;
        write!(f, r#"<path d="M{LEFT} {TOP}V{bottom}H{right}"/>"#)?;
        write!(f, r#"<text x="{LEFT}" y="{}">{}</text>"#, TOP - 14.0, self.y.title)?;
        let below = HEIGHT - 10.0;
        write!(f, r#"<text x="{right}" y="{below}" text-anchor="end">{}</text></g>"#, self.x.title)
    }

    fn line(&self, f: &mut fmt::Formatter<'_>, line: &Curve) -> fmt::Result {
        let marked = line.points.iter().filter(|point| point.label.is_some());
        write!(f, r#"<g class="{}" data-line="{}""#, line.look(), Escaped(&line.name))?;
        write!(f, r#" data-marks="{}">"#, marked.clone().count())?;
        if line.points.len() > 1 {
            f.write_str(r#"<path class="line" d=""#)?;
            for (index, point) in line.points.iter().enumerate() {
                let (x, y) = self.place(point);
                write!(f, "{}{x:.1} {y:.1}", if index == 0 { 'M' } else { 'L' })?;
            }
            f.write_str(r#""/>"#)?;
        }
        for (point, [low, high]) in line.points.iter().filter_map(|point| Some((point, point.range?))) {
            let x = self.place(point).0;
            write!(
                f,
                r#"<path class="range" d="M{x:.1} {:.1}V{:.1}"/>"#,
                up(self.y.at(low)),
                up(self.y.at(high))
            )?;
        }
        f.write_str(r#"<g class="marks">"#)?;
        for point in marked {
            let (x, y) = self.place(point);
            let label = point.label.as_deref().unwrap_or_default();
            line.mark(f, x, y, &format!("{}: {label}", line.name))?;
        }
        f.write_str("</g></g>")
    }
}

fn up(part: f64) -> f64 {
    HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)
}

impl fmt::Display for Plot {
    /// Writes the plot and its legend.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let title = Escaped(&self.title);
        writeln!(f, r#"<figure data-plot="{}">"#, self.kind)?;
        writeln!(f, "<figcaption>{title}</figcaption>")?;
        write!(f, r#"<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}: "#)?;
        writeln!(f, r#"{} over {}">"#, self.y.title, self.x.title)?;
        self.frame(f)?;
        // Our lines are drawn last, on top of the others.
        for line in self.lines.iter().rev() {
            writeln!(f)?;
            self.line(f, line)?;
        }
        writeln!(f, "\n</svg>")?;
        f.write_str(r#"<ul class="legend">"#)?;
        for line in &self.lines {
            f.write_str("\n<li>")?;
            line.sample(f)?;
            write!(f, "{}</li>", Escaped(&line.name))?;
        }
        writeln!(f, "\n</ul>\n</figure>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(lines: Vec<Curve>) -> String {
        let plot = Plot {
            kind: "over-size",
            title: "a < b".into(),
            x: Axis::sizes([8, 16]),
            y: Axis::rates([1.0, 5.0]),
            lines,
        };
        plot.to_string()
    }

    fn point(x: f64, y: f64) -> Point {
        Point { x, y, range: None, label: Some(format!("{y} GB/s")) }
    }

    #[test]
    fn every_told_point_is_a_mark_where_its_value_is() {
        let silent = Point { label: None, ..point(12.0, 3.0) };
        let ranged = Point { range: Some([4.0, 5.0]), ..point(16.0, 5.0) };
        let points = vec![point(8.0, 0.0), silent, ranged];
        let svg = plot(vec![Curve { name: "<tcp>".into(), whose: Source::Ours, look: 9, points }]);
        assert!(svg.contains(r#"<g class="ours look1" data-line="&lt;tcp&gt;" data-marks="2">"#), "{svg}");
        let (left, bottom) = (LEFT + PADDING, HEIGHT - BOTTOM);
        assert!(svg.contains(&format!(r#"<circle cx="{left:.1}" cy="{bottom:.1}" r="3.6">"#)), "{svg}");
        assert!(svg.contains("<title>&lt;tcp&gt;: 5 GB/s</title>") && !svg.contains("3 GB/s"), "{svg}");
        assert_eq!(svg.matches(r#"class="range""#).count(), 1);
        assert!(svg.contains(r#"aria-label="a &lt; b: GB/s over payload of a message">"#), "{svg}");
    }

    #[test]
    fn one_point_alone_is_no_line() {
        let svg = plot(vec![Curve {
            name: "p".into(),
            whose: Source::Peer,
            look: 0,
            points: vec![point(8.0, 1.0)],
        }]);
        assert_eq!(svg.matches(r#"class="line""#).count(), 1, "only the legend's: {svg}");
        assert_eq!(svg.matches("<rect").count(), 2, "one in the plot, one in the legend");
    }
}
