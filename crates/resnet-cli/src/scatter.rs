//! Accuracy over multiply-adds as SVG: one dot per model, a line along those that nothing beats.

use std::fmt::Write;

use anyhow::bail;
use resnet_model::Arch;
use resnet_model::arch::Attention;

use crate::draw::escaped;
use crate::models::Model;

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 600.0;
/// Room to the left, right, above and below for axes and title.
const ROOM: [f64; 4] = [56.0, 20.0, 44.0, 48.0];

const STYLE: &str = "text{font-family:Helvetica,Arial,sans-serif;font-size:12px;fill:#333}\
.tick{font-size:11px;fill:#666}.name{font-size:10px;text-anchor:end}.grid{stroke:#e8e8e8}\
.best{fill:none;stroke:#888;stroke-width:1.2}circle{fill-opacity:.75;stroke:#fff;stroke-width:.8}";

/// Colours that colour-blind readers can tell apart (Okabe and Ito), and what has them.
const GROUPS: [(&str, &str); 5] = [
    ("#0072b2", "ResNet"),
    ("#e69f00", "with SE or ECA"),
    ("#009e73", "ResNeXt"),
    ("#cc79a7", "ResNet-v2, BiT"),
    ("#666666", "VGG, Inception"),
];

fn group(arch: &Arch) -> usize {
    match arch {
        Arch::ResNet(net) if net.attention != Attention::None => 1,
        Arch::ResNet(net) if net.groups > 1 => 2,
        Arch::ResNetV2(_) => 3,
        Arch::Vgg(_) | Arch::InceptionV3(_) | Arch::InceptionV4(_) | Arch::InceptionResNetV2(_) => 4,
        _ => 0,
    }
}

/// The least and the largest of some values.
fn range(values: impl Iterator<Item = f64>) -> Option<[f64; 2]> {
    values.map(|v| [v, v]).reduce(|[low, high], [v, _]| [low.min(v), high.max(v)])
}

/// The picture; `best` says which models nothing beats. Fails if no model has an accuracy.
pub(crate) fn svg(models: &[Model], best: &[bool]) -> anyhow::Result<String> {
    let mut dots: Vec<(&Model, f64, bool)> =
        models.iter().zip(best).filter_map(|(m, best)| Some((m, m.top1()?, *best))).collect();
    // One that is far below the others would squeeze them into a corner.
    let highest = dots.iter().map(|d| d.1).fold(0.0, f64::max);
    let (shown, low): (Vec<_>, Vec<_>) = dots.into_iter().partition(|d| d.1 > highest - 30.0);
    dots = shown;
    let (Some([x0, x1]), Some([y0, y1])) =
        (range(dots.iter().map(|d| d.0.gmacs())), range(dots.iter().map(|d| d.1)))
    else {
        bail!("--plot: none of these models has a published accuracy on ImageNet-1k");
    };
    let axes = Axes { x: [(x0 / 1.3).log10(), (x1 * 1.3).log10()], y: [y0 - 1.0, y1 + 1.5] };
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = axes.write(&mut out, &dots, &low);
    Ok(out)
}

struct Axes {
    /// Logarithms of 10⁹ multiply-adds.
    x: [f64; 2],
    /// Per cent.
    y: [f64; 2],
}

impl Axes {
    fn place(&self, gmacs: f64, top1: f64) -> [f64; 2] {
        let [left, right, top, bottom] = ROOM;
        let share = |value: f64, [low, high]: [f64; 2]| (value - low) / (high - low);
        [
            left + share(gmacs.log10(), self.x) * (WIDTH - left - right),
            HEIGHT - bottom - share(top1, self.y) * (HEIGHT - top - bottom),
        ]
    }

    fn write(
        &self,
        out: &mut String,
        dots: &[(&Model, f64, bool)],
        low: &[(&Model, f64, bool)],
    ) -> std::fmt::Result {
        writeln!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
             viewBox=\"0 0 {WIDTH} {HEIGHT}\">\n<style>{STYLE}</style>\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>"
        )?;
        self.grid(out)?;
        let mut line: Vec<[f64; 2]> =
            dots.iter().filter(|d| d.2).map(|d| self.place(d.0.gmacs(), d.1)).collect();
        line.sort_by(|a, b| a[0].total_cmp(&b[0]));
        let points: Vec<String> = line.iter().map(|[x, y]| format!("{x:.1},{y:.1}")).collect();
        writeln!(out, "<polyline class=\"best\" points=\"{}\"/>", points.join(" "))?;
        for (model, top1, _) in dots {
            let [x, y] = self.place(model.gmacs(), *top1);
            let (colour, name) = (GROUPS[group(&model.arch)].0, escaped(model.name()));
            writeln!(
                out,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"><title>{name}: {top1:.2} %, \
                 {:.2} GMACs</title></circle>",
                model.gmacs()
            )?;
        }
        self.names(out, dots)?;
        self.legend(out, dots)?;
        if !low.is_empty() {
            let names: Vec<String> =
                low.iter().map(|d| format!("{} ({:.1} %)", escaped(d.0.name()), d.1)).collect();
            let (x, y) = (WIDTH - ROOM[1], HEIGHT - 10.0);
            let names = names.join(", ");
            writeln!(out, "<text class=\"name\" x=\"{x:.1}\" y=\"{y:.1}\">below: {names}</text>")?;
        }
        writeln!(out, "</svg>")
    }

    /// Names of the best, where they cover no other name and no dot.
    fn names(&self, out: &mut String, dots: &[(&Model, f64, bool)]) -> std::fmt::Result {
        let mut taken: Vec<[f64; 3]> = Vec::new();
        let places: Vec<[f64; 2]> = dots.iter().map(|d| self.place(d.0.gmacs(), d.1)).collect();
        let mut best: Vec<&(&Model, f64, bool)> = dots.iter().filter(|d| d.2).collect();
        best.sort_by(|a, b| b.1.total_cmp(&a.1));
        for (model, top1, _) in best {
            let [x, y] = self.place(model.gmacs(), *top1);
            let right = x - 7.0;
            let left = right - 5.2 * model.name().len() as f64;
            let is_free = |base: &f64| {
                let names = taken
                    .iter()
                    .all(|other| (other[2] - base).abs() >= 11.0 || other[1] <= left || right <= other[0]);
                // A dot has a radius of 4 pixels, a letter 8 above the line and 2 below.
                let covers =
                    |[x, y]: &[f64; 2]| left < x + 4.0 && x - 4.0 < right && (y - base + 3.0).abs() < 9.0;
                names && !places.iter().any(covers)
            };
            // Beside its dot, or higher.
            let Some(base) = [2.0, 9.0, 16.0].map(|above| y - above).into_iter().find(is_free) else {
                continue;
            };
            if left < ROOM[0] {
                continue;
            }
            taken.push([left, right, base]);
            let name = escaped(model.name());
            writeln!(out, "<text class=\"name\" x=\"{right:.1}\" y=\"{base:.1}\">{name}</text>")?;
        }
        Ok(())
    }

    fn grid(&self, out: &mut String) -> std::fmt::Result {
        let [left, right, top, bottom] = ROOM;
        let (end, floor) = (WIDTH - right, HEIGHT - bottom);
        for decade in -3..5 {
            for digit in [1.0, 2.0, 5.0] {
                let gmacs = digit * 10f64.powi(decade);
                if gmacs.log10() < self.x[0] || gmacs.log10() > self.x[1] {
                    continue;
                }
                let [x, _] = self.place(gmacs, self.y[0]);
                writeln!(
                    out,
                    "<path class=\"grid\" d=\"M{x:.1} {top}V{floor}\"/>\
                     <text class=\"tick\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{gmacs}</text>",
                    floor + 16.0
                )?;
            }
        }
        let step = if self.y[1] - self.y[0] > 12.0 { 5.0 } else { 1.0 };
        let mut percent = (self.y[0] / step).ceil() * step;
        while percent <= self.y[1] {
            let [_, y] = self.place(1.0, percent);
            writeln!(
                out,
                "<path class=\"grid\" d=\"M{left} {y:.1}H{end}\"/>\
                 <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{percent}</text>",
                left - 8.0,
                y + 4.0
            )?;
            percent += step;
        }
        writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">10⁹ multiply-adds per image</text>\
             <text transform=\"translate(16 {:.1}) rotate(-90)\" text-anchor=\"middle\">top-1 on ImageNet-1k, %</text>",
            (left + end) / 2.0,
            HEIGHT - 10.0,
            (top + floor) / 2.0
        )
    }

    /// The groups that are shown, above the chart.
    fn legend(&self, out: &mut String, dots: &[(&Model, f64, bool)]) -> std::fmt::Result {
        let mut x = ROOM[0] + 4.0;
        for (i, (colour, name)) in GROUPS.iter().enumerate() {
            if !dots.iter().any(|d| group(&d.0.arch) == i) {
                continue;
            }
            writeln!(
                out,
                "<circle cx=\"{x:.1}\" cy=\"22\" r=\"5\" fill=\"{colour}\"/><text x=\"{:.1}\" y=\"26\">{name}</text>",
                x + 10.0
            )?;
            x += 34.0 + 6.8 * name.len() as f64;
        }
        Ok(())
    }
}
