//! A diagram in the DOT language of Graphviz.

use std::fmt::Write;

use super::{Diagram, Shape, ShapeKind};

/// Returns the diagram in the DOT language; blocks are clusters.
pub fn dot(diagram: &Diagram, title: &str) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_dot(&mut out, diagram, title);
    out
}

fn write_dot(out: &mut String, diagram: &Diagram, title: &str) -> std::fmt::Result {
    writeln!(out, "digraph {} {{", quoted(title))?;
    writeln!(out, "  node [shape=box, style=\"rounded,filled\", fontname=\"sans-serif\", fontsize=11];")?;
    let mut inside = vec![false; diagram.shapes.len()];
    for (i, block) in diagram.blocks.iter().enumerate() {
        writeln!(out, "  subgraph cluster_{i} {{")?;
        writeln!(
            out,
            "    label={}; labeljust=l; color=gray80; fontname=\"sans-serif\";",
            quoted(&block.name)
        )?;
        for &shape in &block.shapes {
            inside[shape] = true;
            writeln!(out, "    {}", node(shape, &diagram.shapes[shape]))?;
        }
        writeln!(out, "  }}")?;
    }
    for (i, shape) in diagram.shapes.iter().enumerate().filter(|(i, _)| !inside[*i]) {
        writeln!(out, "  {}", node(i, shape))?;
    }
    for (to, shape) in diagram.shapes.iter().enumerate() {
        for from in &shape.inputs {
            writeln!(out, "  n{from} -> n{to};")?;
        }
    }
    writeln!(out, "}}")
}

fn node(index: usize, shape: &Shape) -> String {
    let label = std::iter::once(shape.label.as_str()).chain(shape.notes.iter().copied());
    let label = label.collect::<Vec<_>>().join("\n");
    let (fill, form) = match shape.kind {
        ShapeKind::Input => ("white", ", shape=plaintext"),
        ShapeKind::Conv => ("#dbe9f6", ""),
        ShapeKind::Pool => ("#dff0df", ""),
        ShapeKind::Linear => ("#fbe3cd", ""),
        ShapeKind::Other => ("#f2f2f2", ""),
        ShapeKind::Merge => ("white", ", shape=circle, margin=0"),
    };
    format!(
        "n{index} [label={}, tooltip={}, fillcolor=\"{fill}\"{form}];",
        quoted(&label),
        quoted(&shape.name)
    )
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}
