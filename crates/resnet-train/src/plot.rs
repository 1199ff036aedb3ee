//! Charts as SVG in one style: the training curves of a run, the scatter plot of `resnet-cli list` and the example `degradation`.
//!
//! Not drawn with `plotters`: its SVG backend rounds coordinates to whole pixels and has neither tooltips nor style sheets, and
//! labels that avoid each other would be written by hand all the same.

use std::fmt::{Result, Write};

use crate::event::EpochMetrics;

/// Colors that color-blind readers can distinguish (Okabe and Ito), with gray instead of black and without yellow.
pub const COLORS: [&str; 7] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#666666", "#d55e00", "#56b4e9"];

const WIDTH: f64 = 900.0;
/// Margins on the left, right, top and bottom for axes and legend.
const MARGINS: [f64; 4] = [72.0, 20.0, 44.0, 48.0];

const STYLE: &str = "text{font-family:Helvetica,Arial,sans-serif;font-size:12px;fill:#333}\
.tick{font-size:11px;fill:#666}.label{font-size:10px;paint-order:stroke;stroke:#fff;stroke-width:3px}\
.grid{stroke:#e8e8e8}.line{fill:none;stroke-linejoin:round}.rule{stroke-width:1.2;stroke-dasharray:5 4}\
circle{stroke:#fff;stroke-width:.8}.dot{fill-opacity:.75}";

/// Series over a common pair of axes.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// Height in pixels; the width is 900.
    pub height: f64,
    /// Horizontal axis.
    pub x: Axis,
    /// Vertical axis.
    pub y: Axis,
    /// Series in the order of drawing.
    pub series: Vec<Series>,
    /// Text in the lower right corner; may be empty.
    pub note: String,
}

/// Title and scale of an axis. Its range is that of the points.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// Quantity and unit.
    pub title: String,
    /// Distribution of the values.
    pub scale: Scale,
}

/// Scale of an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Real numbers.
    Linear,
    /// Integers.
    Integer,
    /// Logarithms of positive numbers; others are left out.
    Log,
}

/// Points with a common appearance.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Name in the legend, or empty if it is not listed there.
    pub name: String,
    /// Color as in CSS.
    pub color: &'static str,
    /// Appearance.
    pub mark: Mark,
    /// Points; those that are not finite are left out.
    pub points: Vec<Point>,
}

/// Appearance of a series.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mark {
    /// A line of this width in pixels, with a dot at every point that has a tooltip.
    Line(f64),
    /// A dot per point.
    Dots,
    /// A dashed vertical line at the `x` of every point.
    Rule,
}

/// A point of a series.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Point {
    /// Value on the horizontal axis.
    pub x: f64,
    /// Value on the vertical axis.
    pub y: f64,
    /// Text next to the point, left out where it would cover a dot or another label; may be empty.
    pub label: String,
    /// Text that browsers show for the point under the cursor; may be empty.
    pub tooltip: String,
}

impl Axis {
    /// Creates an axis.
    pub fn new(title: impl Into<String>, scale: Scale) -> Self {
        Self { title: title.into(), scale }
    }
}

impl Point {
    /// Creates a point without texts.
    pub fn new(x: f64, y: f64) -> Self {
        Self { x, y, ..Self::default() }
    }
}

/// Draws the curves of a run: loss, top-1 error and learning rate by epoch, with the best epoch marked.
pub fn run(records: &[EpochMetrics]) -> String {
    let curve = |name: &str, color: usize, value: &dyn Fn(&EpochMetrics) -> Option<f64>| {
        let point = |r: &EpochMetrics| {
            let (x, y) = (r.epoch as f64 + 1.0, value(r)?);
            // The dots of more epochs would touch each other.
            let dots = records.len() <= 100;
            let tooltip = if dots { format!("epoch {x}, {name}: {}", number(y)) } else { String::new() };
            Some(Point { tooltip, ..Point::new(x, y) })
        };
        let points = records.iter().filter_map(point).collect();
        Series { name: name.into(), color: COLORS[color], mark: Mark::Line(2.0), points }
    };
    // As in training: the highest accuracy, of equal ones the lowest loss, of equal ones the first.
    let best = records.iter().filter(|r| r.val_top1.is_some()).reduce(|best, r| {
        let key = |r: &EpochMetrics| (r.val_top1, r.val_loss.map(|loss| -loss));
        if key(r) > key(best) { r } else { best }
    });
    let chart = |title: &str, scale, mut series: Vec<Series>| {
        series.extend(best.map(|best| Series {
            name: format!("best epoch: {}", best.epoch + 1),
            color: COLORS[4],
            mark: Mark::Rule,
            points: vec![Point::new(best.epoch as f64 + 1.0, 0.0)],
        }));
        let (x, y) = (Axis::new("epoch", Scale::Integer), Axis::new(title, scale));
        Chart { height: 280.0, x, y, series, note: String::new() }
    };
    let loss = vec![curve("training", 0, &|r| Some(r.loss)), curve("validation", 5, &|r| r.val_loss)];
    let errors = vec![
        curve("training", 0, &|r| Some(100.0 * (1.0 - r.train_top1))),
        curve("validation", 5, &|r| Some(100.0 * (1.0 - r.val_top1?))),
    ];
    svg(&[
        chart("loss (logarithmic)", Scale::Log, loss),
        chart("top-1 errors, %", Scale::Linear, errors),
        chart("learning rate", Scale::Linear, vec![curve("learning rate", 2, &|r| Some(r.lr))]),
    ])
}

/// Draws charts below each other.
pub fn svg(charts: &[Chart]) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut out, charts);
    out
}

/// Returns `text` for an XML element or attribute.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn write(out: &mut String, charts: &[Chart]) -> Result {
    let height: f64 = charts.iter().map(|chart| chart.height).sum();
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\">\n<style>{STYLE}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>"
    )?;
    let mut top = 0.0;
    for chart in charts {
        writeln!(out, "<g transform=\"translate(0 {top})\">")?;
        Frame::new(chart).write(out)?;
        writeln!(out, "</g>")?;
        top += chart.height;
    }
    writeln!(out, "</svg>")
}

impl Scale {
    /// Maps a value to the axis, where distances are linear; not finite if the axis cannot show it.
    fn map(self, value: f64) -> f64 {
        if self == Scale::Log { value.log10() } else { value }
    }

    /// Returns the mapped ends of an axis: the values and some space.
    fn range(self, values: impl Iterator<Item = f64>) -> [f64; 2] {
        let range = values.map(|v| [v, v]).reduce(|[low, high], [v, _]| [low.min(v), high.max(v)]);
        let [low, high] = range.unwrap_or([0.0, 1.0]);
        let space = match self {
            Scale::Integer => 0.5,
            _ if high - low > 1e-9 * low.abs().max(high.abs()) => 0.05 * (high - low),
            Scale::Linear if low != 0.0 => 0.5 * low.abs(),
            _ => 0.5,
        };
        // Epochs, losses and errors are not negative.
        let least = if self != Scale::Log && low >= 0.0 { 0.0 } else { f64::NEG_INFINITY };
        [(low - space).max(least), high + space]
    }

    /// Returns the values with a tick on an axis with these ends: three or more if the range has them.
    fn ticks(self, [low, high]: [f64; 2]) -> Vec<f64> {
        const DIGITS: [&[f64]; 3] =
            [&[1.0, 2.0, 5.0], &[1.0], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]];
        let within = |value: &f64| (low..=high).contains(&self.map(*value));
        if self == Scale::Log {
            for digits in DIGITS {
                let decades = low.floor() as i32..=high.ceil() as i32;
                let tick = |decade| digits.iter().map(move |digit| digit * 10f64.powi(decade));
                let ticks: Vec<f64> = decades.flat_map(tick).filter(within).collect();
                if (3..=14).contains(&ticks.len()) {
                    return ticks;
                }
            }
        }
        let [low, high] =
            if self == Scale::Log { [low, high].map(|end| 10f64.powf(end)) } else { [low, high] };
        let longest = (high - low) / 4.0;
        let decade = 10f64.powf(longest.log10().floor());
        let step = [5.0, 2.0].map(|digit| digit * decade).into_iter().find(|step| *step <= longest);
        let step = step.unwrap_or(decade).max(if self == Scale::Integer { 1.0 } else { 0.0 });
        let first = (low / step).ceil();
        (0..12).map(|i| (first + f64::from(i)) * step).take_while(|tick| *tick <= high).collect()
    }
}

/// Formats a number with up to five digits.
fn number(value: f64) -> String {
    let text = format!("{value:.4e}");
    let Ok(rounded) = text.parse::<f64>() else { return text };
    if rounded == 0.0 || (1e-4..1e6).contains(&rounded.abs()) {
        rounded.to_string()
    } else {
        format!("{rounded:e}")
    }
}

/// A chart and the mapped ends of its axes.
struct Frame<'a> {
    chart: &'a Chart,
    x: [f64; 2],
    y: [f64; 2],
}

impl<'a> Frame<'a> {
    fn new(chart: &'a Chart) -> Self {
        let (x, y) = (chart.x.scale, chart.y.scale);
        let points = || {
            let series = chart.series.iter().filter(|series| series.mark != Mark::Rule);
            let points = series.flat_map(|series| &series.points).map(|p| [x.map(p.x), y.map(p.y)]);
            points.filter(|[x, y]| x.is_finite() && y.is_finite())
        };
        Self { chart, x: x.range(points().map(|[x, _]| x)), y: y.range(points().map(|[_, y]| y)) }
    }

    /// Coordinate on the horizontal axis in pixels.
    fn x(&self, value: f64) -> f64 {
        let [left, right, ..] = MARGINS;
        left + (self.chart.x.scale.map(value) - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - left - right)
    }

    /// Coordinate on the vertical axis in pixels.
    fn y(&self, value: f64) -> f64 {
        let [.., top, bottom] = MARGINS;
        let height = self.chart.height - top - bottom;
        top + (self.y[1] - self.chart.y.scale.map(value)) / (self.y[1] - self.y[0]) * height
    }

    /// The points of a series that can be drawn, with their places.
    fn places<'s>(&self, series: &'s Series) -> Vec<([f64; 2], &'s Point)> {
        let places = series.points.iter().map(|point| ([self.x(point.x), self.y(point.y)], point));
        places.filter(|([x, y], _)| x.is_finite() && y.is_finite()).collect()
    }

    fn write(&self, out: &mut String) -> Result {
        self.grid(out)?;
        let mut dots = Vec::new();
        for series in &self.chart.series {
            let (places, color) = (self.places(series), series.color);
            match series.mark {
                Mark::Rule => {
                    let (top, floor) = (MARGINS[2], self.chart.height - MARGINS[3]);
                    for x in series.points.iter().map(|point| self.x(point.x)).filter(|x| x.is_finite()) {
                        writeln!(
                            out,
                            "<path class=\"rule\" stroke=\"{color}\" d=\"M{x:.1} {top}V{floor}\"/>"
                        )?;
                    }
                }
                Mark::Line(width) => {
                    let points: Vec<String> =
                        places.iter().map(|([x, y], _)| format!("{x:.1},{y:.1}")).collect();
                    let points = points.join(" ");
                    writeln!(
                        out,
                        "<polyline class=\"line\" stroke=\"{color}\" stroke-width=\"{width}\" points=\"{points}\"/>"
                    )?;
                    for place in places.iter().filter(|place| !place.1.tooltip.is_empty()) {
                        dot(out, *place, 3.0, "", color)?;
                    }
                }
                Mark::Dots => {
                    for place in &places {
                        dot(out, *place, 4.0, " class=\"dot\"", color)?;
                    }
                    dots.extend(places);
                }
            }
        }
        self.labels(out, &dots)?;
        self.legend(out)?;
        if !self.chart.note.is_empty() {
            let (x, y, note) = (WIDTH - MARGINS[1], self.chart.height - 10.0, escaped(&self.chart.note));
            writeln!(
                out,
                "<text class=\"label\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"end\">{note}</text>"
            )?;
        }
        Ok(())
    }

    /// Labels next to their dots, or higher, from top to bottom, where they cover neither a label nor a dot.
    fn labels(&self, out: &mut String, dots: &[([f64; 2], &Point)]) -> Result {
        let mut taken: Vec<[f64; 3]> = Vec::new();
        let mut labels: Vec<_> = dots.iter().filter(|dot| !dot.1.label.is_empty()).collect();
        labels.sort_by(|a, b| a.0[1].total_cmp(&b.0[1]));
        for ([x, y], point) in labels {
            let width = 5.2 * point.label.chars().count() as f64;
            // A dot has a radius of 4 pixels, a letter 8 above the line and 2 below.
            let is_free = |[left, base]: &[f64; 2]| {
                let right = left + width;
                *left >= MARGINS[0]
                    && right <= WIDTH - MARGINS[1]
                    && taken.iter().all(|t| (t[2] - base).abs() >= 11.0 || t[1] <= *left || right <= t[0])
                    && !dots
                        .iter()
                        .any(|([x, y], _)| *left < x + 4.0 && x - 4.0 < right && (y - base + 3.0).abs() < 9.0)
            };
            // On the left as high as the dot or higher, or below it on the right: a rising line crosses neither.
            let (before, after) = (x - 7.0 - width, x + 7.0);
            let places = [[before, y - 2.0], [before, y - 9.0], [before, y - 16.0], [after, y + 12.0]];
            if let Some([left, base]) = places.into_iter().find(is_free) {
                taken.push([left, left + width, base]);
                let label = escaped(&point.label);
                // The estimated width is not exact: the label is anchored on the side of its dot.
                let (x, anchor) = if left < *x { (left + width, "end") } else { (left, "start") };
                writeln!(
                    out,
                    "<text class=\"label\" x=\"{x:.1}\" y=\"{base:.1}\" text-anchor=\"{anchor}\">{label}</text>"
                )?;
            }
        }
        Ok(())
    }

    fn grid(&self, out: &mut String) -> Result {
        let [left, right, top, bottom] = MARGINS;
        let (end, floor) = (WIDTH - right, self.chart.height - bottom);
        for value in self.chart.x.scale.ticks(self.x) {
            let (x, y, text) = (self.x(value), floor + 16.0, number(value));
            writeln!(
                out,
                "<path class=\"grid\" d=\"M{x:.1} {top}V{floor}\"/>\
                 <text class=\"tick\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{text}</text>"
            )?;
        }
        for value in self.chart.y.scale.ticks(self.y) {
            let (y, text) = (self.y(value), number(value));
            writeln!(
                out,
                "<path class=\"grid\" d=\"M{left} {y:.1}H{end}\"/>\
                 <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
                left - 8.0,
                y + 4.0
            )?;
        }
        let titles = [&self.chart.x, &self.chart.y].map(|axis| escaped(&axis.title));
        writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text transform=\"translate(18 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            (left + end) / 2.0,
            self.chart.height - 10.0,
            titles[0],
            (top + floor) / 2.0,
            titles[1]
        )
    }

    /// The named series that have points, above the chart in one or two rows.
    fn legend(&self, out: &mut String) -> Result {
        let start = MARGINS[0] + 4.0;
        let [mut x, mut y] = [start, 16.0];
        for Series { name, color, mark, points } in &self.chart.series {
            if name.is_empty() || points.is_empty() {
                continue;
            }
            let width = 42.0 + 6.6 * name.chars().count() as f64;
            if x + width > WIDTH {
                (x, y) = (start, y + 16.0);
            }
            let path = format!("stroke=\"{color}\" d=\"M{x:.1} {y}h18\"");
            match mark {
                Mark::Dots => {
                    let x = x + 12.0;
                    write!(out, "<circle class=\"dot\" cx=\"{x:.1}\" cy=\"{y}\" r=\"5\" fill=\"{color}\"/>")?;
                }
                Mark::Line(width) => write!(out, "<path stroke-width=\"{width}\" {path}/>")?,
                Mark::Rule => write!(out, "<path class=\"rule\" {path}/>")?,
            }
            writeln!(out, "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>", x + 24.0, y + 4.0, escaped(name))?;
            x += width;
        }
        Ok(())
    }
}

fn dot(
    out: &mut String,
    ([x, y], point): ([f64; 2], &Point),
    radius: f64,
    class: &str,
    color: &str,
) -> Result {
    let title = escaped(&point.tooltip);
    writeln!(
        out,
        "<circle{class} cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{color}\"><title>{title}</title></circle>"
    )
}

#[cfg(test)]
mod tests;
