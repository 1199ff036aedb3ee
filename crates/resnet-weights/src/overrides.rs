//! Overrides of architecture, preprocessing and labels, and the configuration keys that change the network.

use std::path::Path;

use resnet_model::arch::{ArchOptions, StrideIn};
use resnet_model::{Arch, Labels, Preprocess, zoo};
use serde_json::Value;

use crate::location::{read_json, read_text};
use crate::{Error, Result, manifest};

/// Parses an architecture: a name of the zoo, `name,option=value,…` with the fields of the JSON form, or JSON.
pub(crate) fn arch(text: &str) -> Result<Arch> {
    let invalid = |reason: String| Error::Arch { text: text.to_owned(), reason };
    let arch = if text.trim_start().starts_with('{') {
        serde_json::from_str(text).map_err(|e| invalid(e.to_string()))?
    } else {
        let mut parts = text.split(',');
        let arch = zoo::arch(parts.next().unwrap_or_default().trim())?;
        let mut json = serde_json::to_value(&arch).map_err(|e| invalid(e.to_string()))?;
        for option in parts {
            let (key, value) = option
                .split_once('=')
                .ok_or_else(|| invalid(format!("expected option=value, found `{option}`")))?;
            let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value.trim()));
            if let Some(fields) = json.as_object_mut() {
                fields.insert(key.trim().to_owned(), value);
            }
        }
        serde_json::from_value::<Arch>(json).map_err(|e| invalid(e.to_string()))?
    };
    arch.graph()?;
    Ok(arch)
}

/// Returns the preprocessing of a file (ours, timm's `config.json` or transformers' `preprocessor_config.json`) or of
/// published weights.
pub(crate) fn preprocess(text: &str) -> Result<Preprocess> {
    let path = Path::new(text);
    if !path.exists() {
        let found = manifest::find(text)?.ok_or_else(|| Error::NotFound { weights: text.to_owned() })?;
        return Ok(found.preprocess());
    }
    let json = read_json(path)?;
    let has = |keys: &[&str]| keys.iter().any(|key| json.get(key).is_some());
    let read = if has(&["do_resize", "do_normalize", "image_mean", "size", "image_processor_type"]) {
        Preprocess::from_hf_preprocessor(&json)
    } else if has(&["pretrained_cfg", "input_size", "architecture"]) {
        Preprocess::from_hub_config(&json)
    } else {
        let own: Preprocess =
            serde_json::from_value(json).map_err(|source| Error::Json { path: path.to_owned(), source })?;
        own.validate().map(|()| own)
    };
    read.map_err(|e| Error::Preprocess { path: path.to_owned(), source: Box::new(e) })
}

/// Reads names of classes: a `config.json`, one name per line, or a JSON list or object by index.
pub(crate) fn labels(path: &Path) -> Result<Labels> {
    let text = read_text(path)?;
    let labels = if text.trim_start().starts_with(['[', '{']) {
        let json: Value =
            serde_json::from_str(&text).map_err(|source| Error::Json { path: path.to_owned(), source })?;
        Labels::from_hub_config(&json)
            .or_else(|| Labels::from_hub_config(&serde_json::json!({"labels": json})))
    } else {
        let names = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned);
        Some(Labels::Names(names.collect())).filter(|labels| !labels.is_empty())
    };
    labels.ok_or_else(|| Error::Labels { path: path.to_owned() })
}

/// Applies the keys of a `config.json` that change the network but not its tensors. Returns `None` if there are none.
///
/// Keys: transformers' `downsample_in_bottleneck`, `downsample_in_first_stage` and `hidden_act`, and timm's `model_args`.
pub(crate) fn adapt(arch: &Arch, config: &Value, path: &Path) -> Result<Option<Arch>> {
    let unsupported = |key: &str, value: &Value| Error::ConfigKey {
        path: path.to_owned(),
        key: key.to_owned(),
        found: value.to_string(),
    };
    let is_true = |key: &str| config.get(key).and_then(Value::as_bool) == Some(true);
    let mut adapted = arch.clone();
    if config.get("model_type").and_then(Value::as_str) == Some("resnet") {
        if is_true("downsample_in_bottleneck")
            && let Arch::ResNet(net) = &mut adapted
        {
            net.stride_in = StrideIn::Conv1x1;
        }
        if is_true("downsample_in_first_stage") {
            return Err(unsupported("downsample_in_first_stage", &Value::Bool(true)));
        }
        if let Some(value) = config.get("hidden_act").filter(|v| *v != "relu") {
            return Err(unsupported("hidden_act", value));
        }
    }
    for (key, value) in config.get("model_args").and_then(Value::as_object).into_iter().flatten() {
        match key.as_str() {
            // The tensors show these, or they have no effect in evaluation.
            "num_classes" | "in_chans" | "drop_rate" | "drop_path_rate" | "drop_block_rate"
            | "zero_init_last" => {}
            "output_stride" => {
                let stride = value.as_u64().ok_or_else(|| unsupported(key, value))?;
                let output_stride = Some(stride as usize).filter(|s| *s != 32);
                adapted = adapted.with(ArchOptions { output_stride, ..ArchOptions::default() })?;
            }
            "global_pool" if value == "avg" => {}
            _ => return Err(unsupported(&format!("model_args.{key}"), value)),
        }
    }
    Ok(Some(adapted).filter(|adapted| adapted != arch))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn architectures() {
        let resnet50 = zoo::arch("resnet50").unwrap();
        assert_eq!(arch("resnet50").unwrap(), resnet50);
        assert_eq!(arch(&serde_json::to_string(&resnet50).unwrap()).unwrap(), resnet50);
        let Arch::ResNet(net) = arch("resnet50,stride_in=conv1x1,norm_eps=0.001,num_classes=7").unwrap()
        else {
            panic!("expected a ResNet")
        };
        assert_eq!((net.stride_in, net.norm_eps, net.num_classes), (StrideIn::Conv1x1, 0.001, 7));
        for invalid in ["resnet51", "resnet50,stride_in", "resnet50,x=1", "resnet50,stride_in=first", "{}"] {
            assert!(arch(invalid).is_err(), "{invalid}");
        }
    }

    #[test]
    fn config_keys_that_change_the_network() {
        let resnet50 = zoo::arch("resnet50").unwrap();
        let adapt = |config: Value| adapt(&resnet50, &config, Path::new("config.json"));
        assert_eq!(adapt(json!({"model_type": "resnet", "hidden_act": "relu"})).unwrap(), None);
        let stride = adapt(json!({"model_type": "resnet", "downsample_in_bottleneck": true})).unwrap();
        assert_eq!(stride, Some(arch("resnet50,stride_in=conv1x1").unwrap()));
        let dilated = adapt(json!({"model_args": {"output_stride": 8, "drop_rate": 0.1}})).unwrap();
        assert_eq!(dilated, Some(arch("resnet50,output_stride=8").unwrap()));
        for (config, key) in [
            (json!({"model_type": "resnet", "downsample_in_first_stage": true}), "downsample_in_first_stage"),
            (json!({"model_type": "resnet", "hidden_act": "gelu"}), "hidden_act"),
            (json!({"model_args": {"act_layer": "silu"}}), "model_args.act_layer"),
        ] {
            let error = adapt(config).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("--arch"), "{error}");
        }
    }

    #[test]
    fn label_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("labels");
        for text in [
            "cat\n dog\n",
            r#"["cat", "dog"]"#,
            r#"{"1": "dog", "0": "cat"}"#,
            r#"{"id2label": {"0": "cat", "1": "dog"}}"#,
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(labels(&path).unwrap(), Labels::Names(vec!["cat".into(), "dog".into()]), "{text}");
        }
        for invalid in ["", "{}", "[1]", r#"{"0": "cat", "2": "dog"}"#] {
            std::fs::write(&path, invalid).unwrap();
            assert!(labels(&path).is_err(), "{invalid}");
        }
    }
}
