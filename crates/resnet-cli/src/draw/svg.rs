//! A diagram as SVG.

use std::fmt::Write;

use resnet_train::plot::escaped;

use super::layout::{Edge, Layout, layout};
use super::{Diagram, Shape, ShapeKind};

/// Row height, and heights of boxes with and without a second line of text, in pixels.
const ROW: f64 = 54.0;
const TALL: f64 = 36.0;
const LOW: f64 = 24.0;
/// Width of a box, of a lane with boxes, and of a lane with lines only.
const BOX: f64 = 138.0;
const WIDE: f64 = 162.0;
const NARROW: f64 = 26.0;
/// Radius of add shapes and of line corners.
const CIRCLE: f64 = 10.0;
const CORNER: f64 = 8.0;
/// Margin, and width of the column of sizes left of the trunk.
const MARGIN: f64 = 10.0;
const SIZES: f64 = 62.0;
/// Width of a character of block names.
const LETTER: f64 = 6.3;

const STYLE: &str = "text{font-family:Helvetica,Arial,sans-serif;font-size:12px;fill:#222;text-anchor:middle}\
.note,.size,.block{font-size:10px;fill:#666}.size{text-anchor:end}.block{text-anchor:start;font-size:11px}\
rect{stroke:#8a8a8a}.area{fill:#f6f6f4;stroke:none}.line{fill:none;stroke:#555;stroke-width:1.2}";

/// Returns the diagram as a standalone SVG file.
pub fn svg(diagram: &Diagram, title: &str) -> String {
    let inputs: Vec<Vec<usize>> = diagram.shapes.iter().map(|s| s.inputs.clone()).collect();
    let drawing = Drawing::new(diagram, layout(&inputs));
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = drawing.write(&mut out, title);
    out
}

struct Drawing<'a> {
    diagram: &'a Diagram,
    layout: Layout,
    /// Left edge and width of each lane.
    lanes: Vec<[f64; 2]>,
    rows: usize,
}

impl<'a> Drawing<'a> {
    fn new(diagram: &'a Diagram, layout: Layout) -> Drawing<'a> {
        let count = layout.places.iter().map(|p| p[1]).chain(layout.edges.iter().map(|e| e.lane)).max();
        let mut widths = vec![NARROW; count.map_or(0, |max| max + 1)];
        for (place, shape) in layout.places.iter().zip(&diagram.shapes) {
            if shape.kind != ShapeKind::Merge || place[1] == 0 {
                widths[place[1]] = WIDE;
            }
        }
        let names = diagram.blocks.iter().map(|b| b.name.len()).max().unwrap_or(0);
        let mut left = MARGIN + names as f64 * LETTER + SIZES;
        let lanes = widths.into_iter().map(|width| {
            left += width;
            [left - width, width]
        });
        let lanes = lanes.collect();
        let rows = layout.places.iter().map(|p| p[0] + 1).max().unwrap_or(0);
        Drawing { diagram, layout, lanes, rows }
    }

    fn shape(&self, i: usize) -> &Shape {
        &self.diagram.shapes[i]
    }

    /// Returns the center of a shape.
    fn center(&self, i: usize) -> [f64; 2] {
        let [row, lane] = self.layout.places[i];
        let [left, width] = self.lanes[lane];
        [left + width / 2.0, MARGIN + ROW * (row as f64 + 0.5)]
    }

    fn half_height(&self, i: usize) -> f64 {
        match self.shape(i) {
            Shape { kind: ShapeKind::Merge, .. } => CIRCLE,
            shape if shape.notes.is_empty() => LOW / 2.0,
            _ => TALL / 2.0,
        }
    }

    fn write(&self, out: &mut String, title: &str) -> std::fmt::Result {
        let width = self.lanes.last().map_or(0.0, |[left, width]| left + width) + MARGIN;
        let height = self.rows as f64 * ROW + 2.0 * MARGIN;
        writeln!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
             viewBox=\"0 0 {width:.0} {height:.0}\">"
        )?;
        writeln!(out, "<title>{}</title>", escaped(title))?;
        writeln!(out, "<style>{STYLE}</style>")?;
        writeln!(
            out,
            "<defs><marker id=\"tip\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" \
             markerHeight=\"7\" orient=\"auto\"><path d=\"M0 0L8 4L0 8Z\" fill=\"#555\"/></marker></defs>"
        )?;
        writeln!(
            out,
            "<rect width=\"100%\" height=\"100%\" fill=\"white\" stroke=\"none\" style=\"stroke:none\"/>"
        )?;
        for block in &self.diagram.blocks {
            self.area(out, &block.name, &block.shapes)?;
        }
        for edge in &self.layout.edges {
            let path = self.path(edge);
            writeln!(out, "<path class=\"line\" d=\"{path}\" marker-end=\"url(#tip)\"/>")?;
        }
        for i in 0..self.diagram.shapes.len() {
            self.draw(out, i)?;
        }
        writeln!(out, "</svg>")
    }

    /// Draws the background and name of a block.
    fn area(&self, out: &mut String, name: &str, shapes: &[usize]) -> std::fmt::Result {
        let rows = shapes.iter().map(|&i| self.layout.places[i][0]);
        let (first, last) = (rows.clone().min().unwrap_or(0), rows.max().unwrap_or(0));
        let inside = |edge: &&Edge| shapes.contains(&edge.to);
        let lines = self.layout.edges.iter().filter(inside).map(|e| e.lane);
        let lane = lines.chain(shapes.iter().map(|&i| self.layout.places[i][1])).max().unwrap_or(0);
        let [left, width] = self.lanes[lane];
        let top = MARGIN + first as f64 * ROW + 2.0;
        let height = (last - first + 1) as f64 * ROW - 4.0;
        let x = MARGIN / 2.0;
        let width = left + width - x + 4.0;
        writeln!(
            out,
            "<rect class=\"area\" x=\"{x:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"6\"/>"
        )?;
        let (x, y) = (x + 6.0, top + 15.0);
        writeln!(out, "<text class=\"block\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escaped(name))
    }

    fn draw(&self, out: &mut String, i: usize) -> std::fmt::Result {
        let ([x, y], shape) = (self.center(i), self.shape(i));
        let fill = match shape.kind {
            ShapeKind::Input | ShapeKind::Merge => "#ffffff",
            ShapeKind::Conv => "#dbe9f6",
            ShapeKind::Pool => "#dff0df",
            ShapeKind::Linear => "#fbe3cd",
            ShapeKind::Other => "#f2f2f2",
        };
        writeln!(out, "<g><title>{}</title>", escaped(&shape.name))?;
        let half = self.half_height(i);
        let label = escaped(&shape.label);
        let notes = shape.notes.join(", ");
        match shape.kind {
            ShapeKind::Merge => {
                writeln!(
                    out,
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{CIRCLE}\" fill=\"{fill}\" stroke=\"#555\"/>"
                )?;
                writeln!(out, "<text x=\"{x:.1}\" y=\"{:.1}\">{label}</text>", y + 4.0)?;
                if !notes.is_empty() {
                    let (x, y) = (x - CIRCLE - 6.0, y + 3.5);
                    writeln!(out, "<text class=\"size\" x=\"{x:.1}\" y=\"{y:.1}\">{notes}</text>")?;
                }
            }
            ShapeKind::Input => writeln!(out, "<text x=\"{x:.1}\" y=\"{:.1}\">{label}</text>", y + 4.0)?,
            _ => {
                let (left, top) = (x - BOX / 2.0, y - half);
                writeln!(
                    out,
                    "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{BOX}\" height=\"{:.1}\" rx=\"4\" fill=\"{fill}\"/>",
                    2.0 * half
                )?;
                let first = if notes.is_empty() { y + 4.0 } else { y - 2.5 };
                writeln!(out, "<text x=\"{x:.1}\" y=\"{first:.1}\">{label}</text>")?;
                if !notes.is_empty() {
                    writeln!(out, "<text class=\"note\" x=\"{x:.1}\" y=\"{:.1}\">{notes}</text>", y + 11.0)?;
                }
            }
        }
        if let (Some([h, w]), 0, false) =
            (shape.resized, self.layout.places[i][1], shape.kind == ShapeKind::Input)
        {
            let (x, y) = (x - BOX / 2.0 - 6.0, y + 3.5);
            writeln!(out, "<text class=\"size\" x=\"{x:.1}\" y=\"{y:.1}\">{h}×{w}</text>")?;
        }
        writeln!(out, "</g>")
    }

    /// Returns the path of an edge: straight if both ends are in its lane, else through its lane.
    fn path(&self, edge: &Edge) -> String {
        let ([x1, y1], [x2, y2]) = (self.center(edge.from), self.center(edge.to));
        let ([row1, lane1], [row2, lane2]) = (self.layout.places[edge.from], self.layout.places[edge.to]);
        let merges = self.shape(edge.to).kind == ShapeKind::Merge;
        let bottom = y1 + self.half_height(edge.from);
        let top = y2 - self.half_height(edge.to);
        let side = x2 + if merges { CIRCLE } else { BOX / 2.0 };
        let r = CORNER;
        if lane1 == lane2 && edge.lane == lane1 {
            return format!("M{x1:.1} {bottom:.1}V{top:.1}");
        }
        if edge.lane != lane1 {
            // Around other shapes: right, down, and back.
            let x = self.lanes[edge.lane][0] + 6.0;
            let start = bottom + 5.0;
            return format!(
                "M{x1:.1} {start:.1}H{:.1}Q{x:.1} {start:.1} {x:.1} {:.1}V{:.1}Q{x:.1} {y2:.1} {:.1} {y2:.1}H{side:.1}",
                x - r,
                start + r,
                y2 - r,
                x - r
            );
        }
        if merges && x1 > x2 {
            return format!(
                "M{x1:.1} {bottom:.1}V{:.1}Q{x1:.1} {y2:.1} {:.1} {y2:.1}H{side:.1}",
                y2 - r,
                x1 - r
            );
        }
        // From one lane to another, between two rows.
        let leave = bottom.max(MARGIN + ROW * row2 as f64 - (ROW - LOW) / 2.0);
        let leave = if row2 == row1 + 1 { bottom } else { leave };
        let middle = (leave + top) / 2.0;
        format!("M{x1:.1} {bottom:.1}V{leave:.1}C{x1:.1} {middle:.1} {x2:.1} {middle:.1} {x2:.1} {top:.1}")
    }
}
