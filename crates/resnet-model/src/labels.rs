//! What a network's outputs mean.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The 1000 classes of ImageNet-1k in the order that PyTorch's models use: WordNet synset, tab, label.
static IMAGENET: &str = include_str!("../data/imagenet1k.txt");

/// Names of classes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Labels {
    /// Unknown; classes have numbers only.
    #[default]
    None,
    /// ImageNet-1k, in the usual order of synsets.
    #[serde(rename = "imagenet-1k")]
    ImageNet1k,
    /// One name per class.
    Names(Vec<String>),
}

/// One class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label<'a> {
    /// The WordNet synset, e.g. `n02123045`, for ImageNet classes.
    pub synset: Option<&'a str>,
    /// The name, e.g. `tabby`.
    pub name: &'a str,
}

impl Labels {
    /// The labels in a Hub repository's `config.json`: `label_names` (timm; with `label_descriptions` the text of
    /// each name), `labels` (older timm) or `id2label` (transformers), a list or an object by index, at the top or in
    /// `pretrained_cfg`. `None` if there are none, if indices are missing, or if they are mere placeholders; most of
    /// timm's ImageNet repositories have none.
    pub fn from_hub_config(config: &Value) -> Option<Labels> {
        let homes = [Some(config), config.get("pretrained_cfg")];
        let (home, names) = homes.into_iter().flatten().find_map(|home| {
            let names =
                ["label_names", "labels", "id2label"].iter().find_map(|key| by_index(home.get(key)?))?;
            Some((home, names))
        })?;
        if names.len() == 1000
            && (0..).zip(&names).all(|(i, n)| imagenet(i).is_some_and(|(synset, _)| synset == n))
        {
            return Some(Labels::ImageNet1k);
        }
        if names.iter().enumerate().all(|(i, name)| *name == format!("LABEL_{i}")) {
            return None;
        }
        let descriptions = home.get("label_descriptions");
        let described = |name: String| match descriptions.and_then(|d| d.get(&name)?.as_str()) {
            Some(text) => text.to_owned(),
            None => name,
        };
        Some(Labels::Names(names.into_iter().map(described).collect()))
    }

    /// Whether nothing is known.
    pub fn is_none(&self) -> bool {
        *self == Labels::None
    }

    /// Number of classes; `None` if unknown.
    pub fn len(&self) -> Option<usize> {
        match self {
            Labels::None => None,
            Labels::ImageNet1k => Some(1000),
            Labels::Names(names) => Some(names.len()),
        }
    }

    /// Whether there are labels, but for no class.
    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// The class of this index; `None` if its name is unknown.
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

/// Synset and label of an ImageNet class.
fn imagenet(index: usize) -> Option<(&'static str, &'static str)> {
    IMAGENET.lines().nth(index)?.split_once('\t')
}

/// A list of names, or an object from "0", "1", … to names.
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
    fn hub_configs_give_labels_in_every_form() {
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
    fn imagenet_has_its_classes_in_order() {
        let label = |i| Labels::ImageNet1k.get(i).map(|l| (l.synset.unwrap(), l.name));
        assert_eq!(label(0), Some(("n01440764", "tench")));
        assert_eq!(label(281), Some(("n02123045", "tabby")));
        assert_eq!(label(999), Some(("n15075141", "toilet tissue")));
        assert_eq!(label(1000), None);
        let synsets: Vec<_> = (0..1000).map(|i| label(i).unwrap().0).collect();
        assert!(synsets.is_sorted());
    }

    #[test]
    fn labels_are_stored_briefly() {
        let json = |labels: &Labels| serde_json::to_string(labels).unwrap();
        assert_eq!(json(&Labels::ImageNet1k), r#""imagenet-1k""#);
        assert_eq!(json(&Labels::Names(vec!["a".into()])), r#"{"names":["a"]}"#);
    }
}
