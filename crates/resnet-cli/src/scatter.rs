//! Accuracy by multiply-adds as SVG: one dot per model, a line along those that no other model exceeds.

use anyhow::bail;
use resnet_model::Arch;
use resnet_model::arch::Attention;
use resnet_train::plot::{self, Axis, COLORS, Chart, Mark, Point, Scale, Series};

use crate::models::Model;

/// The series, in the order of [`COLORS`].
const GROUPS: [&str; 5] = ["ResNet", "with SE or ECA", "ResNeXt", "ResNet-v2, BiT", "VGG, Inception"];

fn group(arch: &Arch) -> usize {
    match arch {
        Arch::ResNet(net) if net.attention != Attention::None => 1,
        Arch::ResNet(net) if net.groups > 1 => 2,
        Arch::ResNetV2(_) => 3,
        Arch::Vgg(_) | Arch::InceptionV3(_) | Arch::InceptionV4(_) | Arch::InceptionResNetV2(_) => 4,
        _ => 0,
    }
}

/// Draws the models; `best` says which ones no other model exceeds. Returns an error if no model has an accuracy.
pub(crate) fn svg(models: &[Model], best: &[bool]) -> anyhow::Result<String> {
    let mut dots: Vec<(&Model, f64, bool)> =
        models.iter().zip(best).filter_map(|(m, best)| Some((m, m.top1()?, *best))).collect();
    dots.sort_by(|a, b| a.0.gmacs().total_cmp(&b.0.gmacs()));
    // One that is far below the others would squeeze them into a corner.
    let highest = dots.iter().map(|d| d.1).fold(0.0, f64::max);
    let (dots, low): (Vec<_>, Vec<_>) = dots.into_iter().partition(|d| d.1 > highest - 30.0);
    if dots.is_empty() {
        bail!("--plot: none of these models has a published accuracy on ImageNet-1k");
    }
    let frontier = dots.iter().filter(|d| d.2).map(|d| Point::new(d.0.gmacs(), d.1)).collect();
    let mut series =
        vec![Series { name: String::new(), color: "#888", mark: Mark::Line(1.2), points: frontier }];
    for (i, (color, name)) in COLORS.into_iter().zip(GROUPS).enumerate() {
        let point = |(model, top1, best): &(&Model, f64, bool)| Point {
            label: if *best { model.name().into() } else { String::new() },
            tooltip: format!("{}: {top1:.2} %, {:.2} GMACs", model.name(), model.gmacs()),
            ..Point::new(model.gmacs(), *top1)
        };
        let points = dots.iter().filter(|d| group(&d.0.arch) == i).map(point).collect();
        series.push(Series { name: name.into(), color, mark: Mark::Dots, points });
    }
    let names: Vec<String> = low.iter().map(|d| format!("{} ({:.1} %)", d.0.name(), d.1)).collect();
    let note = if names.is_empty() { String::new() } else { format!("below: {}", names.join(", ")) };
    let (x, y) = (Axis::new("10⁹ multiply-adds per image", Scale::Log), "top-1 on ImageNet-1k, %");
    Ok(plot::svg(&[Chart { height: 600.0, x, y: Axis::new(y, Scale::Linear), series, note }]))
}
