//! Preprocessing configs of timm and transformers.

use serde_json::Value;

use super::{Channels, Filter, IMAGENET_MEAN, IMAGENET_STD, Preprocess, Range, Resize, invalid};
use crate::Result;
use crate::decode::escape;

/// Returns `value[key]`, or `None` if it is absent or null.
fn get<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    value.get(key).filter(|v| !v.is_null())
}

/// An error about the value of `field`.
fn unsupported<T>(field: &'static str, value: &Value, expected: &str) -> Result<T> {
    invalid(field, escape(&value.to_string()), expected)
}

fn pixels(value: &Value, field: &'static str) -> Result<usize> {
    match value.as_u64() {
        // Well above the limit of `validate`, well below where arithmetic overflows.
        Some(n) if (1..1 << 24).contains(&n) => Ok(n as usize),
        _ => unsupported(field, value, "a number of pixels"),
    }
}

/// One number per channel, or `default` if the field is absent.
fn per_channel(config: &Value, field: &'static str, default: &[f32]) -> Result<Vec<f32>> {
    let Some(value) = get(config, field) else { return Ok(default.to_vec()) };
    let numbers = value.as_array().and_then(|a| a.iter().map(|v| v.as_f64().map(|v| v as f32)).collect());
    numbers.map_or_else(|| unsupported(field, value, "a list of numbers"), Ok)
}

/// timm's `crop_pct`: the size of the crop as a fraction of the resized side.
fn fraction(config: &Value, fields: &[&'static str], default: f64) -> Result<f64> {
    // timm treats 0 as absent.
    let present = fields
        .iter()
        .find_map(|field| get(config, field).filter(|v| v.as_f64() != Some(0.0)).map(|v| (field, v)));
    let Some((field, value)) = present else { return Ok(default) };
    match value.as_f64() {
        Some(f) if (0.01..=100.0).contains(&f) => Ok(f),
        _ => unsupported(field, value, "a fraction from 0.01 to 100"),
    }
}

fn channels(count: usize, field: &'static str) -> Result<Channels> {
    match count {
        1 => Ok(Channels::Gray),
        3 => Ok(Channels::Rgb),
        n => invalid(field, format!("for {n} channels"), "1 or 3 channels"),
    }
}

impl Preprocess {
    /// Returns the evaluation transform that timm builds from a Hub repository's `config.json`, nested (`pretrained_cfg`)
    /// or flat: `test_input_size` and `test_crop_pct` if present, else `input_size` and `crop_pct`; `interpolation`,
    /// `crop_mode`, `mean`, `std`. Absent fields have timm's defaults: 224 pixels, bicubic, 0.875, `center`,
    /// ImageNet's mean and std.
    ///
    /// # Errors
    ///
    /// [`Error::Preprocess`](crate::Error::Preprocess) names a field whose value is invalid or unsupported.
    pub fn from_hub_config(config: &Value) -> Result<Preprocess> {
        let config = get(config, "pretrained_cfg").unwrap_or(config);
        if !config.is_object() {
            return unsupported("config", config, "an object");
        }
        let (depth, crop) = match get(config, "test_input_size").or_else(|| get(config, "input_size")) {
            None => (3, [224; 2]),
            Some(value) => match value.as_array().map(Vec::as_slice) {
                Some([c, h, w]) => {
                    (pixels(c, "input_size")?, [pixels(h, "input_size")?, pixels(w, "input_size")?])
                }
                _ => return unsupported("input_size", value, "[channels, height, width]"),
            },
        };
        let percent = fraction(config, &["test_crop_pct", "crop_pct"], 0.875)?;
        let size = crop.map(|side| (side as f64 / percent).floor() as usize);
        let crop_mode = get(config, "crop_mode").cloned().unwrap_or("center".into());
        let interpolation = get(config, "interpolation").cloned().unwrap_or("bicubic".into());
        let preprocess = Preprocess {
            resize: match crop_mode.as_str() {
                Some("center") if size[0] == size[1] => Resize::ShorterSide(size[0]),
                Some("center") => Resize::Cover(size),
                Some("squash") => Resize::Exact(size),
                Some("border") => Resize::Contain(size),
                _ => return unsupported("crop_mode", &crop_mode, "center, squash or border"),
            },
            crop,
            filter: match interpolation.as_str() {
                Some("nearest") => Filter::Nearest,
                Some("bilinear") => Filter::Bilinear,
                Some("bicubic") => Filter::Bicubic,
                Some("lanczos") => Filter::Lanczos,
                _ => {
                    const FILTERS: &str = "nearest, bilinear, bicubic or lanczos";
                    return unsupported("interpolation", &interpolation, FILTERS);
                }
            },
            channels: channels(depth, "input_size")?,
            range: Range::Unit,
            mean: per_channel(config, "mean", &IMAGENET_MEAN)?,
            std: per_channel(config, "std", &IMAGENET_STD)?,
        };
        preprocess.validate()?;
        Ok(preprocess)
    }

    /// Returns the transform of a Hugging Face transformers `preprocessor_config.json`, for the image processors that
    /// ResNets use: `size` as a number, `shortest_edge` or `height` and `width`; `crop_size`; `crop_pct` as in
    /// ConvNeXt's processor; `resample`; `image_mean`, `image_std`; the `do_…` switches.
    ///
    /// If the resized image has an odd number of rows or columns more than the crop, transformers crops one pixel
    /// further up or left than torchvision in half of the cases; this crops as torchvision.
    ///
    /// # Errors
    ///
    /// [`Error::Preprocess`](crate::Error::Preprocess) names a field whose value is invalid or unsupported.
    pub fn from_hf_preprocessor(config: &Value) -> Result<Preprocess> {
        if !config.is_object() {
            return unsupported("config", config, "an object");
        }
        let switch = |key| get(config, key).and_then(Value::as_bool);
        if switch("do_resize") == Some(false) {
            return invalid("do_resize", "false".into(), "true");
        }
        let both = |value: &Value, field: &'static str| -> Result<Option<[usize; 2]>> {
            match (get(value, "height"), get(value, "width")) {
                (Some(h), Some(w)) => Ok(Some([pixels(h, field)?, pixels(w, field)?])),
                _ => Ok(None),
            }
        };
        let Some(size) = get(config, "size") else {
            return invalid("size", "missing".into(), "a size in pixels");
        };
        let shortest = match get(size, "shortest_edge").or(Some(size).filter(|s| s.is_number())) {
            Some(value) => Some(pixels(value, "size")?),
            None => None,
        };
        let convnext = ["image_processor_type", "feature_extractor_type"]
            .iter()
            .find_map(|key| config.get(key)?.as_str())
            .is_some_and(|name| name.to_ascii_lowercase().starts_with("convnext"));
        let (resize, crop) = match (shortest, both(size, "size")?) {
            (Some(side), _) if convnext || get(config, "crop_pct").is_some() => {
                // ConvNeXt's processor crops inputs below 384 pixels and squashes others.
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
                    Some(value) if value.is_number() => Some([pixels(value, "crop_size")?; 2]),
                    Some(value) => both(value, "crop_size")?,
                    None => None,
                };
                match (shortest, exact, crop) {
                    (Some(side), _, Some(crop)) => (Resize::ShorterSide(side), crop),
                    // A number without a crop is a square.
                    (Some(side), _, None) if size.is_number() => (Resize::Exact([side; 2]), [side; 2]),
                    (None, Some(size), crop) => (Resize::Exact(size), crop.unwrap_or(size)),
                    _ => {
                        return unsupported("size", size, "height and width, or a crop size as well");
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
                _ => return unsupported("resample", value, "0 to 3"),
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
        let channels = channels(mean.len(), "image_mean")?;
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
    fn timm_configs_are_parsed() {
        let tv2 = json!({"architecture": "resnet50", "pretrained_cfg": {
            "input_size": [3, 176, 176], "test_input_size": [3, 224, 224], "crop_pct": 0.875, "test_crop_pct": 0.965,
            "interpolation": "bilinear", "crop_mode": "center", "pool_size": null}});
        check(&Preprocess::from_hub_config(&tv2).unwrap(), Resize::ShorterSide(232), 224, Filter::Bilinear);
        let a1 = json!({"input_size": [3, 224, 224], "test_input_size": [3, 288, 288], "test_crop_pct": 1.0,
            "interpolation": "bicubic", "crop_pct": 0.95});
        check(&Preprocess::from_hub_config(&a1).unwrap(), Resize::ShorterSide(288), 288, Filter::Bicubic);
        let empty = Preprocess::from_hub_config(&json!({})).unwrap();
        check(&empty, Resize::ShorterSide(256), 224, Filter::Bicubic);
        assert_eq!((&empty.mean[..], &empty.std[..]), (&IMAGENET_MEAN[..], &IMAGENET_STD[..]));
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
    fn errors_name_the_field() {
        let cases = [
            (json!({"interpolation": "hamming"}), "`interpolation` is \"hamming\""),
            (json!({"interpolation": 3}), "`interpolation` is 3"),
            (json!({"crop_mode": "x\u{1b}[2J"}), "`crop_mode` is \"x\\u001b[2J\""),
            (json!({"input_size": [3, 224]}), "`input_size` is [3,224]"),
            (json!({"input_size": [3, -1, 224]}), "`input_size` is -1"),
            (json!({"input_size": [3, 1u64 << 60, 224]}), "`input_size` is 1152921504606846976"),
            (json!({"input_size": [4, 224, 224]}), "`input_size` is for 4 channels"),
            (json!({"crop_pct": 1e-9}), "`crop_pct` is 1e-9"),
            (json!({"mean": [0.5]}), "`mean` is [0.5]"),
            (json!({"mean": "x"}), "`mean` is \"x\""),
            (json!({"std": [1.0, 0.0, 1.0]}), "`std` is 0"),
            (json!([1]), "expected an object"),
        ];
        for (config, expected) in cases {
            let error = Preprocess::from_hub_config(&config).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn transformers_configs_are_parsed() {
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
            (json!({"size": {"longest_edge": 5}}), "expected height and width"),
            (json!({"size": 224, "resample": 9}), "`resample` is 9"),
        ] {
            let error = Preprocess::from_hf_preprocessor(&bad).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
