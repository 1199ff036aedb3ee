//! The origin of everything that is known about weights.

use std::fmt;

use resnet_convert::IdentifiedBy;
use serde::Serialize;

/// The origin of the preprocessing or the labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Provenance {
    /// An override.
    Override,
    /// The metadata of the file.
    Metadata,
    /// A configuration file, such as `config.json`.
    Config(String),
    /// The manifest entry of these published weights, selected by name.
    Manifest(String),
    /// No information: a default.
    Default,
}

impl fmt::Display for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Provenance::Override => f.write_str("an override"),
            Provenance::Metadata => f.write_str("the metadata of the file"),
            Provenance::Config(file) => write!(f, "{file}"),
            Provenance::Manifest(name) => write!(f, "published weights {name}"),
            Provenance::Default => f.write_str("a default"),
        }
    }
}

/// Something that the file does not say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Assumption {
    /// `architecture`, `preprocessing` or `labels`.
    pub subject: &'static str,
    /// The assumed value.
    pub value: String,
    /// The reason for it.
    pub reason: String,
    /// The flag that overrides it.
    pub flag: &'static str,
}

impl fmt::Display for Assumption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { subject, value, reason, flag } = self;
        write!(f, "assumed {subject}: {value} ({reason}; {flag} overrides it)")
    }
}

/// The result of reading the file, and the origin of preprocessing and labels.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The report about the file.
    #[serde(flatten)]
    pub file: resnet_convert::Report,
    /// A description of the preprocessing.
    pub preprocess: String,
    /// The origin of the preprocessing.
    pub preprocess_from: Provenance,
    /// A description of the labels.
    pub labels: String,
    /// The origin of the labels.
    pub labels_from: Provenance,
}

impl Report {
    /// Returns everything that is assumed.
    pub fn assumptions(&self) -> Vec<Assumption> {
        let mut all = vec![];
        let identified = &self.file.identified;
        if matches!(identified.by, IdentifiedBy::Assumed | IdentifiedBy::Guessed)
            || !identified.assumed.is_empty()
        {
            let (value, reason) = (self.file.model.clone(), identified.to_string());
            all.push(Assumption { subject: "architecture", value, reason, flag: "--arch" });
        }
        let mut push = |subject, value: &str, from: &Provenance, flag| {
            if matches!(from, Provenance::Default | Provenance::Manifest(_)) {
                all.push(Assumption { subject, value: value.to_owned(), reason: from.to_string(), flag });
            }
        };
        push("preprocessing", &self.preprocess, &self.preprocess_from, "--preprocess");
        if self.labels != NO_LABELS {
            push("labels", &self.labels, &self.labels_from, "--labels");
        }
        all
    }
}

pub(crate) const NO_LABELS: &str = "none";
