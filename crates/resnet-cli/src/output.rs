//! Predictions as text, JSON, JSON lines or CSV.

use std::io::Write;

use clap::ValueEnum;
use resnet_model::{Prediction, escape};
use serde::Serialize;

/// Output format of predictions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Human-readable text
    Text,
    /// One array of objects
    Json,
    /// One JSON object per line, written as soon as it is available
    Ndjson,
    /// One row per prediction, with a header
    Csv,
}

#[derive(Serialize)]
struct ImageRow<'a> {
    image: &'a str,
    predictions: Vec<ClassRow<'a>>,
}

#[derive(Serialize)]
struct ClassRow<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    synset: Option<&'a str>,
    label: &'a str,
    score: f32,
}

/// Writes predictions one image at a time; [`Writer::finish`] completes the output.
pub struct Writer<'a> {
    out: &'a mut dyn Write,
    format: Format,
    images: usize,
}

impl<'a> Writer<'a> {
    /// Creates a writer to `out` and writes the header.
    pub fn new(out: &'a mut dyn Write, format: Format) -> anyhow::Result<Writer<'a>> {
        match format {
            Format::Json => write!(out, "[")?,
            Format::Csv => writeln!(out, "image,rank,index,synset,label,score")?,
            Format::Text | Format::Ndjson => {}
        }
        Ok(Writer { out, format, images: 0 })
    }

    /// Writes the predictions of one image.
    pub fn image(&mut self, name: &str, predictions: &[Prediction]) -> anyhow::Result<()> {
        let classes = predictions.iter().map(|p| ClassRow {
            index: p.index,
            synset: p.synset.as_deref(),
            label: p.label.as_deref().unwrap_or(""),
            score: p.score,
        });
        match self.format {
            Format::Text => self.text(name, predictions)?,
            Format::Json => {
                write!(self.out, "{}", if self.images > 0 { ",\n " } else { "\n " })?;
                serde_json::to_writer(
                    &mut *self.out,
                    &ImageRow { image: name, predictions: classes.collect() },
                )?;
            }
            Format::Ndjson => {
                serde_json::to_writer(
                    &mut *self.out,
                    &ImageRow { image: name, predictions: classes.collect() },
                )?;
                writeln!(self.out)?;
                self.out.flush()?;
            }
            Format::Csv => {
                let mut csv = csv::Writer::from_writer(&mut *self.out);
                for (rank, c) in classes.enumerate() {
                    let (rank, index, score) =
                        ((rank + 1).to_string(), c.index.to_string(), c.score.to_string());
                    csv.write_record([name, &rank, &index, c.synset.unwrap_or(""), c.label, &score])?;
                }
                csv.flush()?;
            }
        }
        self.images += 1;
        Ok(())
    }

    fn text(&mut self, name: &str, predictions: &[Prediction]) -> anyhow::Result<()> {
        writeln!(self.out, "{}", escape(name))?;
        for p in predictions {
            let synset = p.synset.as_deref().map(|s| format!("  {s}")).unwrap_or_default();
            let label = p.label.as_deref().map(escape).unwrap_or_else(|| format!("class {}", p.index));
            writeln!(self.out, "  {:>8.4}{synset}  {label}", p.score)?;
        }
        Ok(())
    }

    /// Writes the end of the output.
    pub fn finish(self) -> anyhow::Result<()> {
        if self.format == Format::Json {
            writeln!(self.out, "{}", if self.images > 0 { "\n]" } else { "]" })?;
        }
        Ok(())
    }
}

/// Formats an error and its causes in one line, without causes that the message already contains.
pub fn describe(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(|cause| cause.to_string().replace('\n', " ")) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(format: Format) -> String {
        let prediction = |index, label: &str, score| Prediction {
            index,
            label: Some(label.to_owned()),
            synset: (index == 281).then(|| "n02123045".to_owned()),
            score,
        };
        let mut out = Vec::new();
        let mut writer = Writer::new(&mut out, format).unwrap();
        writer.image("a.png", &[prediction(281, "tabby", 0.5), prediction(1, "crane, bird", 0.25)]).unwrap();
        writer.image("b.png", &[]).unwrap();
        writer.finish().unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_format() {
        assert_eq!(
            write(Format::Text),
            "a.png\n    0.5000  n02123045  tabby\n    0.2500  crane, bird\nb.png\n"
        );
        let json: serde_json::Value = serde_json::from_str(&write(Format::Json)).unwrap();
        assert_eq!(json[0]["predictions"][0]["label"], "tabby");
        assert_eq!(json[1]["image"], "b.png");
        assert_eq!(write(Format::Ndjson).lines().count(), 2);
        assert!(write(Format::Csv).contains("a.png,2,1,,\"crane, bird\",0.25\n"), "{}", write(Format::Csv));
        let mut out = Vec::new();
        Writer::new(&mut out, Format::Json).unwrap().finish().unwrap();
        assert_eq!(out, b"[]\n");
    }
}
