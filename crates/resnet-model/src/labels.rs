//! Class labels.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The classes of ImageNet-1k in the order of PyTorch models: WordNet synset, tab, label.
static IMAGENET: &str = include_str!("../data/imagenet1k.txt");

/// The labels of a network's classes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Labels {
    /// No labels; classes have indices only.
    #[default]
    None,
    /// ImageNet-1k, in the order of PyTorch models (sorted by synset).
    #[serde(rename = "imagenet-1k")]
    ImageNet1k,
    /// One name per class.
    Names(Vec<String>),
}

/// The label of one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label<'a> {
    /// The WordNet synset, e.g. `n02123045`, for ImageNet classes.
    pub synset: Option<&'a str>,
    /// The name, e.g. `tabby`.
    pub name: &'a str,
}

impl Labels {
    /// Returns the labels in a Hub repository's `config.json`: `label_names` (timm, mapped to `label_descriptions` if present),
    /// `labels` (older timm) or `id2label` (transformers), a list or an object by index, at the top level or in
    /// `pretrained_cfg`. Returns `None` if there are none, as in most of timm's ImageNet repositories, if indices are missing,
    /// or if the labels are placeholders.
    pub fn from_hub_config(config: &Value) -> Option<Labels> {
        let objects = [Some(config), config.get("pretrained_cfg")];
        let (object, names) = objects.into_iter().flatten().find_map(|object| {
            let names =
                ["label_names", "labels", "id2label"].iter().find_map(|key| by_index(object.get(key)?))?;
            Some((object, names))
        })?;
        if names.len() == 1000
            && (0..).zip(&names).all(|(i, n)| imagenet(i).is_some_and(|(synset, _)| synset == n))
        {
            return Some(Labels::ImageNet1k);
        }
        if names.iter().enumerate().all(|(i, name)| *name == format!("LABEL_{i}")) {
            return None;
        }
        let descriptions = object.get("label_descriptions");
        let described = |name: String| match descriptions.and_then(|d| d.get(&name)?.as_str()) {
            Some(text) => text.to_owned(),
            None => name,
        };
        Some(Labels::Names(names.into_iter().map(described).collect()))
    }

    /// Returns `true` for [`Labels::None`].
    pub fn is_none(&self) -> bool {
        *self == Labels::None
    }

    /// Returns the number of labels, or `None` for [`Labels::None`].
    pub fn len(&self) -> Option<usize> {
        match self {
            Labels::None => None,
            Labels::ImageNet1k => Some(1000),
            Labels::Names(names) => Some(names.len()),
        }
    }

    /// Returns `true` for an empty list of labels.
    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// Returns the label of a class, or `None` if it has none.
    pub fn get(&self, index: usize) -> Option<Label<'_>> {
        match self {
            Labels::None => None,
            Labels::ImageNet1k => {
                let (synset, name) = imagenet(index)?;
                Some(Label { synset: Some(synset), name })
            }
            Labels::Names(names) => names.get(index).map(|name| Label { synset: None, name }),
        }
    }
}

/// Returns the synset and label of an ImageNet class.
fn imagenet(index: usize) -> Option<(&'static str, &'static str)> {
    IMAGENET.lines().nth(index)?.split_once('\t')
}

/// Parses a list of names, or an object that maps "0", "1", … to names.
fn by_index(value: &Value) -> Option<Vec<String>> {
    let names: Option<Vec<String>> = match value {
        Value::Array(names) => names.iter().map(|n| n.as_str().map(str::to_owned)).collect(),
        Value::Object(map) => {
            (0..map.len()).map(|i| map.get(&i.to_string())?.as_str().map(str::to_owned)).collect()
        }
        _ => None,
    };
    names.filter(|names| !names.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_of_hub_configs_are_parsed() {
        let check = |config: Value, expected: Option<&[&str]>| {
            let expected = expected.map(|names| Labels::Names(names.iter().map(|n| n.to_string()).collect()));
            assert_eq!(Labels::from_hub_config(&config), expected, "{config}");
        };
        check(json!({"architecture": "resnet50", "num_classes": 1000}), None);
        check(json!({"label_names": ["cat", "dog"]}), Some(&["cat", "dog"]));
        check(json!({"pretrained_cfg": {"labels": ["cat", "dog"]}}), Some(&["cat", "dog"]));
        check(json!({"id2label": {"1": "dog", "0": "cat"}}), Some(&["cat", "dog"]));
        check(
            json!({"label_names": {"0": "n1", "1": "n2"}, "label_descriptions": {"n1": "a fish"}}),
            Some(&["a fish", "n2"]),
        );
        check(json!({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}), None);
        check(json!({"id2label": {"0": "cat", "2": "dog"}}), None);
        check(json!({"label_names": [1, 2]}), None);
        check(json!({"label_names": []}), None);
        check(json!([]), None);
        let synsets: Vec<_> = (0..1000).map(|i| imagenet(i).unwrap().0).collect();
        assert_eq!(Labels::from_hub_config(&json!({"label_names": synsets})), Some(Labels::ImageNet1k));
    }

    #[test]
    fn imagenet_classes_are_in_order() {
        let label = |i| Labels::ImageNet1k.get(i).map(|l| (l.synset.unwrap(), l.name));
        assert_eq!(label(0), Some(("n01440764", "tench")));
        assert_eq!(label(281), Some(("n02123045", "tabby")));
        assert_eq!(label(999), Some(("n15075141", "toilet tissue")));
        assert_eq!(label(1000), None);
        let synsets: Vec<_> = (0..1000).map(|i| label(i).unwrap().0).collect();
        assert!(synsets.is_sorted());
    }

    #[test]
    fn labels_serialize_compactly() {
        let json = |labels: &Labels| serde_json::to_string(labels).unwrap();
        assert_eq!(json(&Labels::ImageNet1k), r#""imagenet-1k""#);
        assert_eq!(json(&Labels::Names(vec!["a".into()])), r#"{"names":["a"]}"#);
    }
}
