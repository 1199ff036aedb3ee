//! Training curves as a picture.

use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use crate::event::Record;
use crate::{Error, Result};

/// One curve.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// Its name in the legend.
    pub name: String,
    /// Points `(x, y)`.
    pub points: Vec<(f64, f64)>,
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
const SIZE: (u32, u32) = (720, 320);

/// The curves of a run: loss, errors and learning rate by epoch, as SVG.
pub fn run(records: &[Record]) -> Result<String> {
    let curve = |name: &str, value: &dyn Fn(&Record) -> Option<f64>| Curve {
        name: name.into(),
        points: records.iter().filter_map(|r| Some((r.epoch as f64 + 1.0, value(r)?))).collect(),
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
            vec![curve("training", &|r| Some(r.loss)), curve("held out", &|r| r.held_out_loss)],
        ),
        chart(
            "errors",
            "per cent",
            vec![
                curve("training", &|r| Some(100.0 * (1.0 - r.train_top1))),
                curve("held out", &|r| Some(100.0 * (1.0 - r.held_out_top1?))),
            ],
        ),
        chart("learning rate", "rate", vec![curve("rate", &|r| Some(r.rate))]),
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

fn draw(root: &DrawingArea<SVGBackend, plotters::coord::Shift>, charts: &[Chart]) -> Result<(), Failure> {
    root.fill(&WHITE).map_err(text)?;
    for (area, chart) in root.split_evenly((charts.len().max(1), 1)).iter().zip(charts) {
        let curves: Vec<(&str, Vec<(f64, f64)>)> = chart
            .curves
            .iter()
            .map(|c| {
                let finite = |p: &&(f64, f64)| p.0.is_finite() && p.1.is_finite();
                (c.name.as_str(), c.points.iter().filter(finite).copied().collect::<Vec<_>>())
            })
            .filter(|(_, points)| !points.is_empty())
            .collect();
        let range = |axis: fn(&(f64, f64)) -> f64| {
            let all = || curves.iter().flat_map(|(_, points)| points).map(axis);
            let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
            match low < high {
                true => low..high,
                false if low.is_finite() => low - 0.5..low + 0.5,
                false => 0.0..1.0,
            }
        };
        let (x, y) = (range(|p| p.0), range(|p| p.1));
        let room = (y.end - y.start) * 0.05;
        let mut context = ChartBuilder::on(area)
            .caption(&chart.title, ("sans-serif", 18))
            .margin(8)
            .x_label_area_size(36)
            .y_label_area_size(56)
            .build_cartesian_2d(x, y.start - room..y.end + room)
            .map_err(text)?;
        lines(&mut context, chart, curves).map_err(text)?;
    }
    root.present().map_err(text)
}

fn text(error: impl std::fmt::Display) -> Failure {
    error.to_string().into()
}

type Context<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

fn lines<'a, 'b: 'a>(
    context: &mut Context<'a, 'b>,
    chart: &Chart,
    curves: Vec<(&str, Vec<(f64, f64)>)>,
) -> Result<(), Failure> {
    context
        .configure_mesh()
        .x_desc(&chart.axes[0])
        .y_desc(&chart.axes[1])
        .light_line_style(WHITE)
        .draw()
        .map_err(text)?;
    for (index, (name, points)) in curves.into_iter().enumerate() {
        let colour = Palette99::pick(index).to_rgba();
        let series = context.draw_series(LineSeries::new(points, colour.stroke_width(2))).map_err(text)?;
        series
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    context
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()
        .map_err(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_are_drawn() {
        let record = |epoch: usize, loss: f64| Record {
            epoch,
            step: 10,
            loss,
            train_top1: 0.5,
            rate: 0.1,
            held_out_loss: None,
            held_out_top1: Some(0.25),
        };
        let records: Vec<Record> = (0..5).map(|i| record(i, 1.0 / (i + 1) as f64)).collect();
        let picture = run(&records).unwrap();
        assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"));
        for word in ["loss", "held out", "learning rate", "<polyline"] {
            assert!(picture.contains(word), "{word}");
        }
        assert!(run(&[]).unwrap().contains("errors"));
        assert!(run(&[record(0, f64::NAN)]).unwrap().contains("errors"));
    }
}
