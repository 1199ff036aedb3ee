//! The conversion report.

use std::collections::BTreeMap;
use std::fmt;

use resnet_model::text::{bytes, some_of, thousands, wrap};
use resnet_model::{Arch, escape};
use serde::Serialize;

use crate::source::Format;
use resnet_model::raw::Float;
use resnet_model::text::plural;

/// Report on a conversion. `Display` is for people, `Serialize` for programs.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The input file.
    pub file: String,
    /// The output file, if one was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// The name of the architecture, or a description.
    pub model: String,
    /// The architecture.
    pub arch: Arch,
    /// The basis of the identification.
    pub identified: Identified,
    /// Number of trainable parameters.
    pub parameters: u64,
    /// Number of classes; `None` without a head.
    pub classes: Option<usize>,
    /// The file format.
    pub container: Format,
    /// The naming scheme.
    pub dialect: String,
    /// The prefix of the network's tensor names in the file, e.g. `state_dict.model.`; may be empty.
    pub root: String,
    /// Number of tensors.
    pub tensors: usize,
    /// Total size of the tensors, in bytes.
    pub bytes: u64,
    /// Number of tensors by dtype.
    pub dtypes: BTreeMap<String, usize>,
    /// Renamed tensors.
    pub renamed: Vec<Renamed>,
    /// Omitted tensors.
    pub dropped: Vec<Dropped>,
    /// Reshaped tensors.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reshaped: Vec<Reshaped>,
    /// Tensors transposed to PyTorch's layout.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub transposed: Vec<String>,
    /// Tensors computed from others in the file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub synthesized: Vec<Synthesized>,
    /// Optional tensors of the architecture that the file lacks.
    pub unset: Vec<String>,
    /// Tensors with NaN or infinite elements; only checked when a file is written.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub non_finite: Vec<NonFinite>,
    /// The dtype cast, if one was requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cast: Option<Cast>,
    /// Python classes in the file whose contents were skipped.
    pub opaque: Vec<String>,
    /// Notes for the user.
    pub notes: Vec<String>,
}

/// The basis on which an architecture was identified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum IdentifiedBy {
    /// The file's own metadata.
    Metadata,
    /// The user's [`ConvertOptions::arch`](crate::ConvertOptions::arch).
    Specified,
    /// A name in the file or from the caller that matches an architecture with these tensors.
    Named,
    /// The ONNX graph, matched node by node.
    Graph,
    /// Names and shapes of the tensors, without ambiguity.
    #[default]
    Shapes,
    /// Names and shapes of the tensors, plus assumptions where they are ambiguous.
    Assumed,
    /// Shapes and order of tensors with unknown names.
    Guessed,
}

/// Identification of an architecture and its confidence.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Identified {
    /// The basis.
    pub by: IdentifiedBy,
    /// A description of the evidence.
    pub evidence: String,
    /// Properties that no tensor shows and that are assumed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub assumed: Vec<String>,
    /// Names of other architectures with the same tensors.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alternatives: Vec<String>,
}

impl fmt::Display for Identified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.evidence)?;
        if !self.assumed.is_empty() {
            write!(f, "; assumed: {}", self.assumed.join(", "))?;
        }
        match self.alternatives.as_slice() {
            [] => Ok(()),
            others => write!(f, "; same tensors: {} (--arch)", others.join(", ")),
        }
    }
}

/// Renamed tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Renamed {
    /// The name in the file.
    pub from: String,
    /// The new name.
    pub to: String,
}

/// Omitted tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// The name in the file.
    pub name: String,
    /// The reason.
    pub reason: String,
}

/// Tensor with the same bytes and a new shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reshaped {
    /// The new name.
    pub name: String,
    /// The shape in the file.
    pub from: Vec<usize>,
    /// The new shape.
    pub to: Vec<usize>,
}

/// Tensor with NaN or infinite elements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NonFinite {
    /// The name.
    pub name: String,
    /// Number of NaN elements.
    pub nan: usize,
    /// Number of infinite elements.
    pub infinite: usize,
}

impl fmt::Display for NonFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} NaN, {} infinite)", escape(&self.name), self.nan, self.infinite)
    }
}

/// Tensor computed from others in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Synthesized {
    /// The name.
    pub name: String,
    /// The source of its values.
    pub reason: String,
}

/// Dtype cast of a conversion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cast {
    /// The new dtype.
    pub to: Float,
    /// Number of tensors that were cast.
    pub tensors: usize,
}

/// Line width, and the column at which the text of a field starts.
const WIDTH: usize = 80;
const INDENT: usize = 15;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", escape(&self.file))?;
        if let Some(output) = &self.output {
            write!(f, " → {}", escape(output))?;
        }
        let head = match self.classes {
            Some(classes) => plural(classes, "class"),
            None => "no head (feature extractor)".into(),
        };
        let mut line = |label: &str, text: String| {
            let mut title = format!("  {label}");
            for part in wrap(&text, WIDTH.saturating_sub(INDENT)) {
                write!(f, "\n{title:<INDENT$}{part}")?;
                title.clear();
            }
            Ok(())
        };
        line("architecture", format!("{}, {} parameters, {head}", self.model, thousands(self.parameters)))?;
        line("identified", self.identified.to_string())?;
        line("format", self.container.to_string())?;
        let root =
            if self.root.is_empty() { String::new() } else { format!(", under `{}`", escape(&self.root)) };
        line("names", format!("{}{root}", self.dialect))?;
        let dtypes: Vec<String> =
            self.dtypes.iter().map(|(t, n)| format!("{} {t}", thousands(*n as u64))).collect();
        line(
            "tensors",
            format!("{} ({}), {}", thousands(self.tensors as u64), dtypes.join(", "), bytes(self.bytes)),
        )?;
        if let Some(first) = self.renamed.first() {
            let example = format!("{} → {}", escape(&first.from), escape(&first.to));
            line(
                "renamed",
                format!("{} ({example}{})", thousands(self.renamed.len() as u64), more(self.renamed.len())),
            )?;
        }
        if let Some(first) = self.reshaped.first() {
            let example = format!("{} {:?} → {:?}", escape(&first.name), first.from, first.to);
            let more = more(self.reshaped.len());
            line("reshaped", format!("{} ({example}{more})", thousands(self.reshaped.len() as u64)))?;
        }
        if !self.transposed.is_empty() {
            line(
                "transposed",
                format!("{} ({})", thousands(self.transposed.len() as u64), some_of(&self.transposed)),
            )?;
        }
        let dropped = self.dropped.iter().map(|d| (&d.name, &d.reason));
        for text in by_reason(dropped) {
            line("dropped", text)?;
        }
        for text in by_reason(self.synthesized.iter().map(|s| (&s.name, &s.reason))) {
            line("synthesized", text)?;
        }
        if !self.unset.is_empty() {
            line("unset", format!("{} ({})", thousands(self.unset.len() as u64), some_of(&self.unset)))?;
        }
        if let Some(cast) = &self.cast {
            line("cast", format!("{} to {:?}", plural(cast.tensors, "tensor"), cast.to))?;
        }
        if !self.non_finite.is_empty() {
            let count = plural(self.non_finite.len(), "tensor");
            let shown: Vec<String> = self.non_finite.iter().take(3).map(NonFinite::to_string).collect();
            let more = more(self.non_finite.len().div_euclid(4).saturating_add(1));
            line("WARNING", format!("{count} with NaN or infinity: {}{more}", shown.join(", ")))?;
        }
        if !self.opaque.is_empty() {
            line("skipped", format!("Python objects: {}", some_of(&self.opaque)))?;
        }
        self.notes.iter().try_for_each(|note| line("note", note.clone()))
    }
}

/// Groups names by reason, one line each.
fn by_reason<'a>(all: impl Iterator<Item = (&'a String, &'a String)>) -> Vec<String> {
    let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, reason) in all {
        reasons.entry(reason).or_default().push(name.clone());
    }
    let text = |(reason, names): (&str, Vec<String>)| {
        format!("{} ({}): {}", thousands(names.len() as u64), some_of(&names), escape(reason))
    };
    reasons.into_iter().map(text).collect()
}

fn more(n: usize) -> &'static str {
    if n > 1 { ", …" } else { "" }
}
