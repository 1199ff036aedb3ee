//! Reader of sharded checkpoints with an index, as saved by the Hugging Face libraries:
//! `model.safetensors.index.json`, `pytorch_model.bin.index.json`.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use resnet_model::escape;
use resnet_model::raw::Bytes;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use super::pickle::specs::MAX_TENSORS;
use super::{StateDict, companion_files, read_bytes};
use crate::error::{Code, Fault, Result};

const MAX_INDEX: u64 = 64 << 20;
const MAX_SHARDS: usize = 10_000;

/// Index of shards; other keys are ignored.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: Option<Pairs>,
}

/// Key-value pairs of a JSON object in order, including duplicates, which a map would drop silently.
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Pairs, D::Error> {
        struct Keep;
        impl<'de> Visitor<'de> for Keep {
            type Value = Pairs;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object from tensor name to file name")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Keep)
    }
}

/// Reads the index at `path` with contents `bytes`, and the files that it names in the same folder.
pub(super) fn read(path: &Path, bytes: &dyn Bytes) -> Result<StateDict> {
    let index = parse(bytes).map_err(|fault| fault.in_file(path))?;
    let mut files: Vec<&str> = Vec::new();
    let mut places: HashMap<&str, &str> = HashMap::new();
    for (tensor, file) in &index {
        if places.insert(tensor, file).is_some() {
            let detail = format!("tensor `{}` is in the index twice", escape(tensor));
            return Err(Fault::new(Code::DuplicateName, detail).in_file(path));
        }
    }
    let mut seen = std::collections::HashSet::new();
    files.extend(index.iter().map(|(_, file)| file.as_str()).filter(|file| seen.insert(*file)));
    if files.len() > MAX_SHARDS {
        let detail = format!("{} shards, the limit is {MAX_SHARDS}", files.len());
        return Err(Fault::new(Code::Limit, detail).in_file(path));
    }
    let mut whole: Option<StateDict> = None;
    for name in &files {
        let (file, bytes) =
            companion_files::open(path, name, Code::ShardPath).map_err(|fault| fault.in_file(path))?;
        let part = read_bytes(Arc::new(bytes)).map_err(|fault| fault.in_file(&file))?;
        let whole = whole.get_or_insert_with(|| StateDict::new(part.container));
        add(whole, part, name, &mut places).map_err(|fault| fault.in_file(&file))?;
    }
    // Tensors left in `places` are in no file.
    if let Some((tensor, file)) = index.iter().find(|(tensor, _)| places.contains_key(tensor.as_str())) {
        let detail = format!("tensor `{}` is not in `{}`", escape(tensor), escape(file));
        return Err(Fault::new(Code::Shard, detail).in_file(path));
    }
    let empty = || Fault::new(Code::Empty, "the index has no tensors").in_file(path);
    let mut whole = whole.ok_or_else(empty)?;
    whole.notes.push(format!("read from {}", resnet_model::text::plural(files.len(), "shard")));
    Ok(whole)
}

fn parse(bytes: &dyn Bytes) -> Result<Vec<(String, String)>, Fault> {
    let len = bytes.len();
    if len > MAX_INDEX {
        return Err(Fault::new(Code::Limit, format!("JSON of {len} bytes, the limit is {MAX_INDEX}")));
    }
    let mut text = vec![0; len as usize];
    bytes.read_at(0, &mut text)?;
    let index = serde_json::from_slice::<Index>(&text);
    let index = index.map_err(|e| {
        let detail = format!("JSON, but not an index of shards: {}", escape(&e.to_string()));
        Fault::new(Code::Shard, detail)
    })?;
    let Pairs(pairs) = index
        .weight_map
        .ok_or_else(|| Fault::new(Code::Format, "JSON without `weight_map`, not an index of shards"))?;
    match pairs.len() > MAX_TENSORS {
        true => Err(Fault::new(Code::Limit, format!("more than {MAX_TENSORS} tensors"))),
        false => Ok(pairs),
    }
}

/// Adds the tensors of the file `name` and removes them from `places`.
fn add(
    whole: &mut StateDict,
    part: StateDict,
    name: &str,
    places: &mut HashMap<&str, &str>,
) -> Result<(), Fault> {
    if part.container != whole.container {
        let detail = format!("shard format {}, expected {}", part.container, whole.container);
        return Err(Fault::new(Code::Shard, detail));
    }
    let names = part.tensors.iter().map(|(n, _)| n).chain(part.unsupported.iter().map(|(n, _)| n));
    for tensor in names {
        match places.remove(tensor.as_str()) {
            Some(place) if place == name => {}
            Some(place) => {
                let detail = format!(
                    "unexpected tensor `{}`, the index has it in `{}`",
                    escape(tensor),
                    escape(place)
                );
                return Err(Fault::new(Code::Shard, detail));
            }
            None => {
                let detail =
                    format!("unexpected tensor `{}`: not in the index, or in two files", escape(tensor));
                return Err(Fault::new(Code::Shard, detail));
            }
        }
    }
    whole.tensors.extend(part.tensors);
    whole.unsupported.extend(part.unsupported);
    for (all, more) in [(&mut whole.opaque, part.opaque), (&mut whole.notes, part.notes)] {
        let new: Vec<String> = more.into_iter().filter(|text| !all.contains(text)).collect();
        all.extend(new);
    }
    Ok(())
}
