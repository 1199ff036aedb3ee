//! Preprocessing as model hubs describe it.

use serde_json::Value;

use super::{Channels, Filter, IMAGENET_MEAN, IMAGENET_STD, Preprocess, Range, Resize};
use crate::{Error, Result, escape};

fn refuse<T>(what: impl Into<String>) -> Result<T> {
    Err(Error::Preprocess(what.into()))
}

/// `value[key]`, with null as if it were absent.
fn get<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    value.get(key).filter(|v| !v.is_null())
}

/// A JSON value for an error message, cut.
fn shown(value: &Value) -> String {
    escape(&value.to_string())
}

fn positive(value: &Value, what: &str) -> Result<usize> {
    match value.as_u64() {
        // Far beyond what `validate` allows, far below what arithmetic does not.
        Some(n) if (1..1 << 24).contains(&n) => Ok(n as usize),
        _ => refuse(format!("`{what}` is {}, expected a number of pixels", shown(value))),
    }
}

/// One number per channel, or `default` where there is none.
fn per_channel(config: &Value, key: &str, default: &[f32]) -> Result<Vec<f32>> {
    let Some(value) = get(config, key) else { return Ok(default.to_vec()) };
    let numbers = value.as_array().and_then(|a| a.iter().map(|v| v.as_f64().map(|v| v as f32)).collect());
    numbers.map_or_else(|| refuse(format!("`{key}` is {}, expected a list of numbers", shown(value))), Ok)
}

/// timm's `crop_pct`: how much of the resized side the crop takes.
fn fraction(config: &Value, keys: &[&str], default: f64) -> Result<f64> {
    // timm takes 0 as absent.
    let given =
        keys.iter().find_map(|key| get(config, key).filter(|v| v.as_f64() != Some(0.0)).map(|v| (key, v)));
    let Some((key, value)) = given else { return Ok(default) };
    match value.as_f64() {
        Some(f) if (0.01..=100.0).contains(&f) => Ok(f),
        _ => refuse(format!("`{key}` is {}, expected a fraction", shown(value))),
    }
}

fn channels(count: usize) -> Result<Channels> {
    match count {
        1 => Ok(Channels::Grey),
        3 => Ok(Channels::Rgb),
        n => refuse(format!("an input of {n} channels, expected 1 or 3")),
    }
}

impl Preprocess {
    /// The evaluation transform that timm builds from a Hub repository's `config.json`, nested (`pretrained_cfg`) or
    /// flat: `test_input_size` and `test_crop_pct` where present, else `input_size` and `crop_pct`; `interpolation`,
    /// `crop_mode`, `mean`, `std`. What is absent has timm's default: 224 pixels, bicubic, 0.875, `center`,
    /// ImageNet's mean and deviation.
    ///
    /// # Errors
    ///
    /// [`Error::Preprocess`] names a field whose value is not understood.
    pub fn from_hub_config(config: &Value) -> Result<Preprocess> {
        let config = get(config, "pretrained_cfg").unwrap_or(config);
        if !config.is_object() {
            return refuse(format!("the Hub config is {}, expected an object", shown(config)));
        }
        let (depth, crop) = match get(config, "test_input_size").or_else(|| get(config, "input_size")) {
            None => (3, [224; 2]),
            Some(value) => match value.as_array().map(Vec::as_slice) {
                Some([c, h, w]) => {
                    (positive(c, "input_size")?, [positive(h, "input_size")?, positive(w, "input_size")?])
                }
                _ => {
                    return refuse(format!(
                        "`input_size` is {}, expected [channels, height, width]",
                        shown(value)
                    ));
                }
            },
        };
        let percent = fraction(config, &["test_crop_pct", "crop_pct"], 0.875)?;
        let size = crop.map(|side| (side as f64 / percent).floor() as usize);
        let name = |key, default| match get(config, key) {
            None => Ok(default),
            Some(value) => value
                .as_str()
                .map_or_else(|| refuse(format!("`{key}` is {}, expected a name", shown(value))), Ok),
        };
        let preprocess = Preprocess {
            resize: match name("crop_mode", "center")? {
                "center" if size[0] == size[1] => Resize::ShorterSide(size[0]),
                "center" => Resize::Cover(size),
                "squash" => Resize::Exact(size),
                "border" => Resize::Contain(size),
                other => {
                    return refuse(format!(
                        "unknown crop mode `{}`, expected center, squash or border",
                        escape(other)
                    ));
                }
            },
            crop,
            filter: match name("interpolation", "bicubic")? {
                "nearest" => Filter::Nearest,
                "bilinear" => Filter::Bilinear,
                "bicubic" => Filter::Bicubic,
                "lanczos" => Filter::Lanczos,
                other => {
                    return refuse(format!(
                        "unknown interpolation `{}`, expected nearest, bilinear, bicubic or lanczos",
                        escape(other)
                    ));
                }
            },
            channels: channels(depth)?,
            range: Range::Unit,
            mean: per_channel(config, "mean", &IMAGENET_MEAN)?,
            std: per_channel(config, "std", &IMAGENET_STD)?,
        };
        preprocess.validate()?;
        Ok(preprocess)
    }

    /// The transform that a `preprocessor_config.json` of Hugging Face's transformers describes, for the image
    /// processors that ResNets use: `size` as a number, `shortest_edge` or `height` and `width`; `crop_size`;
    /// `crop_pct` as ConvNeXt's processor takes it; `resample`; `image_mean`, `image_std`; the `do_…` switches.
    ///
    /// Where the resized image has an odd number of rows or columns more than the crop, transformers crops one pixel
    /// further up or left than torchvision in half of the cases; this takes torchvision's place.
    ///
    /// # Errors
    ///
    /// [`Error::Preprocess`] names a field whose value is not understood.
    pub fn from_hf_preprocessor(config: &Value) -> Result<Preprocess> {
        if !config.is_object() {
            return refuse(format!("the preprocessor config is {}, expected an object", shown(config)));
        }
        let switch = |key| get(config, key).and_then(Value::as_bool);
        if switch("do_resize") == Some(false) {
            return refuse("`do_resize` is false, expected a size that images are resized to");
        }
        let both = |value: &Value, key: &str| -> Result<Option<[usize; 2]>> {
            match (get(value, "height"), get(value, "width")) {
                (Some(h), Some(w)) => Ok(Some([positive(h, key)?, positive(w, key)?])),
                _ => Ok(None),
            }
        };
        let Some(size) = get(config, "size") else { return refuse("`size` is missing") };
        let shortest = match get(size, "shortest_edge").or(Some(size).filter(|s| s.is_number())) {
            Some(value) => Some(positive(value, "size")?),
            None => None,
        };
        let convnext = ["image_processor_type", "feature_extractor_type"]
            .iter()
            .find_map(|key| config.get(key)?.as_str())
            .is_some_and(|name| name.to_ascii_lowercase().starts_with("convnext"));
        let (resize, crop) = match (shortest, both(size, "size")?) {
            (Some(side), _) if convnext || get(config, "crop_pct").is_some() => {
                // ConvNeXt's processor crops small inputs and squashes large ones.
                if side < 384 {
                    let percent = fraction(config, &["crop_pct"], 224.0 / 256.0)?;
                    (Resize::ShorterSide((side as f64 / percent) as usize), [side; 2])
                } else {
                    (Resize::Exact([side; 2]), [side; 2])
                }
            }
            (shortest, exact) => {
                let crop = match get(config, "crop_size").filter(|_| switch("do_center_crop") != Some(false))
                {
                    Some(value) if value.is_number() => Some([positive(value, "crop_size")?; 2]),
                    Some(value) => both(value, "crop_size")?,
                    None => None,
                };
                match (shortest, exact, crop) {
                    (Some(side), _, Some(crop)) => (Resize::ShorterSide(side), crop),
                    // A bare number without a crop is a square.
                    (Some(side), _, None) if size.is_number() => (Resize::Exact([side; 2]), [side; 2]),
                    (None, Some(size), crop) => (Resize::Exact(size), crop.unwrap_or(size)),
                    _ => {
                        return refuse(format!(
                            "`size` is {} without a crop, expected a fixed size",
                            shown(size)
                        ));
                    }
                }
            }
        };
        let filter = match get(config, "resample") {
            None => Filter::Bilinear,
            Some(value) => match value.as_u64() {
                Some(0) => Filter::Nearest,
                Some(1) => Filter::Lanczos,
                Some(2) => Filter::Bilinear,
                Some(3) => Filter::Bicubic,
                _ => return refuse(format!("unknown `resample` {}, expected 0 to 3", shown(value))),
            },
        };
        let (mean, std) = match switch("do_normalize") {
            Some(false) => (vec![0.0; 3], vec![1.0; 3]),
            _ => (
                per_channel(config, "image_mean", &IMAGENET_MEAN)?,
                per_channel(config, "image_std", &IMAGENET_STD)?,
            ),
        };
        let range = if switch("do_rescale") == Some(false) { Range::Byte } else { Range::Unit };
        let channels = channels(mean.len())?;
        let preprocess = Preprocess { resize, crop, filter, channels, range, mean, std };
        preprocess.validate()?;
        Ok(preprocess)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(preprocess: &Preprocess, resize: Resize, crop: usize, filter: Filter) {
        assert_eq!((preprocess.resize, preprocess.crop, preprocess.filter), (resize, [crop; 2], filter));
    }

    #[test]
    fn timm_configs_give_their_evaluation_transform() {
        let tv2 = json!({"architecture": "resnet50", "pretrained_cfg": {
            "input_size": [3, 176, 176], "test_input_size": [3, 224, 224], "crop_pct": 0.875, "test_crop_pct": 0.965,
            "interpolation": "bilinear", "crop_mode": "center", "pool_size": null}});
        check(&Preprocess::from_hub_config(&tv2).unwrap(), Resize::ShorterSide(232), 224, Filter::Bilinear);
        let a1 = json!({"input_size": [3, 224, 224], "test_input_size": [3, 288, 288], "test_crop_pct": 1.0,
            "interpolation": "bicubic", "crop_pct": 0.95});
        check(&Preprocess::from_hub_config(&a1).unwrap(), Resize::ShorterSide(288), 288, Filter::Bicubic);
        let nothing = Preprocess::from_hub_config(&json!({})).unwrap();
        check(&nothing, Resize::ShorterSide(256), 224, Filter::Bicubic);
        assert_eq!((&nothing.mean[..], &nothing.std[..]), (&IMAGENET_MEAN[..], &IMAGENET_STD[..]));
        let squash = json!({"input_size": [3, 320, 320], "crop_pct": 1, "crop_mode": "squash", "mean": [0.5, 0.5, 0.5]});
        check(&Preprocess::from_hub_config(&squash).unwrap(), Resize::Exact([320; 2]), 320, Filter::Bicubic);
        let border = json!({"crop_mode": "border", "crop_pct": null});
        check(
            &Preprocess::from_hub_config(&border).unwrap(),
            Resize::Contain([256; 2]),
            224,
            Filter::Bicubic,
        );
        let oblong = json!({"input_size": [3, 112, 224]});
        assert_eq!(Preprocess::from_hub_config(&oblong).unwrap().resize, Resize::Cover([128, 256]));
    }

    #[test]
    fn configs_that_are_not_understood_say_which_field() {
        let cases = [
            (json!({"interpolation": "hamming"}), "unknown interpolation `hamming`"),
            (json!({"interpolation": 3}), "`interpolation` is 3"),
            (json!({"crop_mode": "x\u{1b}[2J"}), "unknown crop mode `x\\u{1b}[2J`"),
            (json!({"input_size": [3, 224]}), "`input_size` is [3,224]"),
            (json!({"input_size": [3, -1, 224]}), "`input_size` is -1"),
            (json!({"input_size": [3, 1u64 << 60, 224]}), "`input_size` is 1152921504606846976"),
            (json!({"input_size": [4, 224, 224]}), "4 channels"),
            (json!({"crop_pct": 1e-9}), "`crop_pct` is 1e-9"),
            (json!({"mean": [0.5]}), "mean is [0.5]"),
            (json!({"mean": "x"}), "`mean` is \"x\""),
            (json!({"std": [1.0, 0.0, 1.0]}), "std is 0"),
            (json!([1]), "expected an object"),
        ];
        for (config, expected) in cases {
            let error = Preprocess::from_hub_config(&config).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn transformers_configs_are_read() {
        let convnext = json!({"crop_pct": 0.875, "do_resize": true, "feature_extractor_type": "ConvNextFeatureExtractor",
            "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 3, "size": 224});
        check(
            &Preprocess::from_hf_preprocessor(&convnext).unwrap(),
            Resize::ShorterSide(256),
            224,
            Filter::Bicubic,
        );
        let large = json!({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}});
        check(
            &Preprocess::from_hf_preprocessor(&large).unwrap(),
            Resize::Exact([384; 2]),
            384,
            Filter::Bilinear,
        );
        let clip = json!({"crop_size": {"height": 224, "width": 224}, "do_center_crop": true, "resample": 3,
            "size": {"shortest_edge": 240}, "do_rescale": false, "do_normalize": false});
        let clip = Preprocess::from_hf_preprocessor(&clip).unwrap();
        check(&clip, Resize::ShorterSide(240), 224, Filter::Bicubic);
        assert_eq!((clip.range, &clip.std[..]), (Range::Byte, &[1.0; 3][..]));
        let vit = json!({"size": {"height": 224, "width": 224}, "resample": 2});
        check(
            &Preprocess::from_hf_preprocessor(&vit).unwrap(),
            Resize::Exact([224; 2]),
            224,
            Filter::Bilinear,
        );
        for (bad, expected) in [
            (json!({"size": 224, "do_resize": false}), "`do_resize` is false"),
            (json!({}), "`size` is missing"),
            (json!({"size": {"longest_edge": 5}}), "expected a fixed size"),
            (json!({"size": 224, "resample": 9}), "unknown `resample` 9"),
        ] {
            let error = Preprocess::from_hf_preprocessor(&bad).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
