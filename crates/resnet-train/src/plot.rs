//! Training curves as a picture.

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use crate::event::EpochMetrics;
use crate::{Error, Result};

/// One curve.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// Its name in the legend.
    pub name: String,
    /// Points `(x, y)`.
    pub points: Vec<(f64, f64)>,
    /// Its number in a palette of colors that are easy to tell apart.
    pub color: usize,
    /// Its width in pixels.
    pub width: u32,
}

/// Curves over a common pair of axes.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// Above the chart.
    pub title: String,
    /// Below and to the left.
    pub axes: [String; 2],
    /// The curves; points that are not finite are left out.
    pub curves: Vec<Curve>,
}

/// Width in pixels, and height of each chart.
const SIZE: (u32, u32) = (760, 320);
/// Width of the legend next to a chart.
const LEGEND: u32 = 116;

/// The curves of a run: loss, errors and learning rate by epoch, as SVG.
pub fn run(records: &[EpochMetrics]) -> Result<String> {
    let curve = |name: &str, color: usize, value: &dyn Fn(&EpochMetrics) -> Option<f64>| Curve {
        name: name.into(),
        points: records.iter().filter_map(|r| Some((r.epoch as f64 + 1.0, value(r)?))).collect(),
        color,
        width: 2,
    };
    let chart = |title: &str, unit: &str, curves| Chart {
        title: title.into(),
        axes: ["epoch".into(), unit.into()],
        curves,
    };
    svg(&[
        chart(
            "loss",
            "loss",
            vec![curve("training", 0, &|r| Some(r.loss)), curve("validation", 1, &|r| r.val_loss)],
        ),
        chart(
            "errors",
            "per cent",
            vec![
                curve("training", 0, &|r| Some(100.0 * (1.0 - r.train_top1))),
                curve("validation", 1, &|r| Some(100.0 * (1.0 - r.val_top1?))),
            ],
        ),
        chart("learning rate", "learning rate", vec![curve("learning rate", 0, &|r| Some(r.lr))]),
    ])
}

/// Charts below each other as SVG.
pub fn svg(charts: &[Chart]) -> Result<String> {
    let mut text = String::new();
    {
        let height = SIZE.1 * charts.len().max(1) as u32;
        let root = SVGBackend::with_string(&mut text, (SIZE.0, height)).into_drawing_area();
        draw(&root, charts).map_err(|e| Error::Plot(e.to_string()))?;
    }
    Ok(text)
}

type Failure = Box<dyn std::error::Error>;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Context<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

fn draw(root: &Area, charts: &[Chart]) -> Result<(), Failure> {
    root.fill(&WHITE).map_err(text)?;
    for (area, chart) in root.split_evenly((charts.len().max(1), 1)).iter().zip(charts) {
        let finite = |p: &(f64, f64)| p.0.is_finite() && p.1.is_finite();
        let curves: Vec<Curve> = chart
            .curves
            .iter()
            .map(|c| Curve { points: c.points.iter().copied().filter(finite).collect(), ..c.clone() })
            .filter(|c| !c.points.is_empty())
            .collect();
        let range = |axis: fn(&(f64, f64)) -> f64| {
            let all = || curves.iter().flat_map(|curve| &curve.points).map(axis);
            let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
            match low < high {
                true => low..high,
                false if low.is_finite() => low - 0.5..low + 0.5,
                false => 0.0..1.0,
            }
        };
        let (x, y) = (range(|p| p.0), range(|p| p.1));
        let room = (y.end - y.start) * 0.05;
        let (plot, names) = area.split_horizontally(SIZE.0 - LEGEND);
        let mut context = ChartBuilder::on(&plot)
            .caption(&chart.title, ("sans-serif", 18))
            .margin(8)
            // Half of the last number's width.
            .margin_right(24)
            .x_label_area_size(36)
            .y_label_area_size(56)
            .build_cartesian_2d(x, y.start - room..y.end + room)
            .map_err(text)?;
        lines(&mut context, chart, &curves).map_err(text)?;
        legend(&names, &curves).map_err(text)?;
    }
    root.present().map_err(text)
}

fn text(error: impl std::fmt::Display) -> Failure {
    error.to_string().into()
}

fn style(curve: &Curve) -> ShapeStyle {
    Palette99::pick(curve.color).to_rgba().stroke_width(curve.width)
}

fn lines(context: &mut Context, chart: &Chart, curves: &[Curve]) -> Result<(), Failure> {
    let mesh = &mut context.configure_mesh();
    // Four digits, less the zeros at the end: 2 rather than 2.0.
    let number = |value: &f64| ((value * 1e4).round() / 1e4).to_string();
    mesh.x_label_formatter(&number).y_label_formatter(&number);
    mesh.x_desc(&chart.axes[0]).y_desc(&chart.axes[1]).light_line_style(WHITE).draw().map_err(text)?;
    for curve in curves {
        context.draw_series(LineSeries::new(curve.points.iter().copied(), style(curve))).map_err(text)?;
    }
    Ok(())
}

/// Draws the legend next to the chart, where it hides no curve.
fn legend(area: &Area, curves: &[Curve]) -> Result<(), Failure> {
    for (place, curve) in curves.iter().enumerate() {
        let y = 48 + 18 * place as i32;
        area.draw(&PathElement::new([(0, y), (18, y)], style(curve))).map_err(text)?;
        area.draw(&Text::new(curve.name.as_str(), (24, y - 6), ("sans-serif", 13))).map_err(text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_are_drawn() {
        let record = |epoch: usize, loss: f64| EpochMetrics {
            epoch,
            step: 10,
            loss,
            train_top1: 0.5,
            lr: 0.1,
            val_loss: None,
            val_top1: Some(0.25),
        };
        let records: Vec<EpochMetrics> = (0..5).map(|i| record(i, 1.0 / (i + 1) as f64)).collect();
        let picture = run(&records).unwrap();
        assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"));
        for word in ["loss", "validation", "learning rate", "<polyline"] {
            assert!(picture.contains(word), "{word}");
        }
        assert!(run(&[]).unwrap().contains("errors"));
        assert!(run(&[record(0, f64::NAN)]).unwrap().contains("errors"));
    }
}
