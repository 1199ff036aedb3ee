//! A picture in Graphviz's language.

use std::fmt::Write;

use super::{Kind, Picture, Shape};

/// The picture for `dot -Tsvg`; blocks are clusters.
pub fn dot(picture: &Picture, title: &str) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write_dot(&mut out, picture, title);
    out
}

fn write_dot(out: &mut String, picture: &Picture, title: &str) -> std::fmt::Result {
    writeln!(out, "digraph {} {{", quoted(title))?;
    writeln!(out, "  node [shape=box, style=\"rounded,filled\", fontname=\"sans-serif\", fontsize=11];")?;
    let mut inside = vec![false; picture.shapes.len()];
    for (i, block) in picture.blocks.iter().enumerate() {
        writeln!(out, "  subgraph cluster_{i} {{")?;
        writeln!(
            out,
            "    label={}; labeljust=l; color=grey80; fontname=\"sans-serif\";",
            quoted(&block.name)
        )?;
        for &shape in &block.shapes {
            inside[shape] = true;
            writeln!(out, "    {}", node(shape, &picture.shapes[shape]))?;
        }
        writeln!(out, "  }}")?;
    }
    for (i, shape) in picture.shapes.iter().enumerate().filter(|(i, _)| !inside[*i]) {
        writeln!(out, "  {}", node(i, shape))?;
    }
    for (to, shape) in picture.shapes.iter().enumerate() {
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
        Kind::Input => ("white", ", shape=plaintext"),
        Kind::Conv => ("#dbe9f6", ""),
        Kind::Pool => ("#dff0df", ""),
        Kind::Linear => ("#fbe3cd", ""),
        Kind::Other => ("#f2f2f2", ""),
        Kind::Merge => ("white", ", shape=circle, margin=0"),
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
