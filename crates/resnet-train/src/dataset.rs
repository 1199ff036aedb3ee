//! Which images there are, of which class, and which of them are held out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::{RgbImage, imageops};
use resnet_image::decode;
use resnet_model::Labels;
use resnet_model::labels::Label;

use crate::random::Random;
use crate::{Error, Result};

/// Images with classes, in two parts: those trained on and those held out.
#[derive(Debug, Clone)]
pub struct Dataset {
    origin: PathBuf,
    classes: Vec<String>,
    samples: Vec<Sample>,
    train: Vec<usize>,
    held_out: Vec<usize>,
}

/// An image and its class.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Where the image is.
    pub image: Source,
    /// The number of its class.
    pub class: usize,
}

/// Where an image is.
#[derive(Debug, Clone)]
pub enum Source {
    /// In a file.
    File(PathBuf),
    /// In memory.
    Memory(Arc<RgbImage>),
}

impl Source {
    /// The decoded image, and on failure which one and why.
    pub fn open(&self) -> Result<Arc<RgbImage>, resnet_model::Error> {
        match self {
            Source::File(path) => Ok(Arc::new(decode::open(path)?)),
            Source::Memory(image) => Ok(image.clone()),
        }
    }

    /// The part `[x, y, width, height]` that `choose` chooses of an image `[width, height]`; of a JPEG file no more is
    /// decoded than that takes.
    pub fn open_part(
        &self,
        choose: impl FnOnce([u32; 2]) -> [u32; 4],
    ) -> Result<RgbImage, resnet_model::Error> {
        match self {
            Source::File(path) => Ok(decode::open_region(path, choose)?),
            Source::Memory(image) => {
                let (width, height) = image.dimensions();
                if width == 0 || height == 0 {
                    return Err(resnet_image::Error::EmptyImage {
                        width: width as usize,
                        height: height as usize,
                    }
                    .into());
                }
                let [x, y, width, height] = choose([width, height]);
                Ok(imageops::crop_imm(&**image, x, y, width, height).to_image())
            }
        }
    }
}

/// The most images that a dataset may have.
const MAX_SAMPLES: usize = 1 << 26;

impl Dataset {
    /// A folder with one folder of images per class, or with `train` and `val` (or `test`) folders of that form.
    /// Classes are numbered by name. Without a split, `held_out` of each class are held out, chosen by `seed`.
    pub fn folder(path: &Path, held_out: f64, seed: u64) -> Result<Dataset> {
        let sub = |name: &str| Some(path.join(name)).filter(|sub| sub.is_dir());
        if let (Some(train), Some(test)) = (sub("train"), sub("val").or_else(|| sub("test"))) {
            let classes = folders(&train)?;
            let mut samples = images(&train, &classes)?;
            let count = samples.len();
            for name in folders(&test)? {
                if !classes.contains(&name) {
                    return Err(wrong(&test, format!("class `{name}` has no image to train on")));
                }
            }
            let present: Vec<String> =
                classes.iter().filter(|name| test.join(name).is_dir()).cloned().collect();
            let held = images(&test, &present)?;
            // Numbers are those of all classes.
            let number = |class: usize| classes.iter().position(|name| *name == present[class]).unwrap_or(0);
            samples.extend(held.into_iter().map(|s| Sample { class: number(s.class), ..s }));
            let parts = [(0..count).collect(), (count..samples.len()).collect()];
            return Dataset::checked(path, classes, samples, parts);
        }
        let classes = folders(path)?;
        let samples = images(path, &classes)?;
        Dataset::split(path, classes, samples, held_out, seed)
    }

    /// A CSV file with the columns `path`, relative to the file, and `label`. A third, `split`, may say `train`, `val` or
    /// `test`; otherwise `held_out` of each class are held out.
    pub fn csv(path: &Path, held_out: f64, seed: u64) -> Result<Dataset> {
        let invalid = |e: csv::Error| wrong(path, e.to_string());
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(path).map_err(invalid)?;
        let header = reader.headers().map_err(invalid)?.clone();
        let column = |name: &str| header.iter().position(|h| h == name);
        let (Some(file), Some(label)) = (column("path"), column("label")) else {
            let found: Vec<&str> = header.iter().collect();
            return Err(wrong(path, format!("columns {found:?}, expected `path` and `label`")));
        };
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut rows: Vec<(PathBuf, String, Option<bool>)> = Vec::new();
        for record in reader.records() {
            let record = record.map_err(invalid)?;
            let line = record.position().map_or(0, csv::Position::line);
            let cell = |index: usize| record.get(index).unwrap_or_default();
            let held = match column("split").map(cell) {
                None => None,
                Some("train") => Some(false),
                Some("val" | "test") => Some(true),
                Some(other) => return Err(wrong(path, format!("line {line}: unknown split `{other}`"))),
            };
            if cell(file).is_empty() || cell(label).is_empty() {
                return Err(wrong(path, format!("line {line}: path or label is empty")));
            }
            rows.push((folder.join(cell(file)), cell(label).to_owned(), held));
            if rows.len() > MAX_SAMPLES {
                return Err(wrong(path, format!("more than {MAX_SAMPLES} images")));
            }
        }
        let names: std::collections::BTreeSet<&String> = rows.iter().map(|(_, label, _)| label).collect();
        let classes: Vec<String> = names.into_iter().cloned().collect();
        let number: BTreeMap<&str, usize> =
            classes.iter().enumerate().map(|(i, c)| (c.as_str(), i)).collect();
        let sample = |(file, label, _): &(PathBuf, String, Option<bool>)| Sample {
            image: Source::File(file.clone()),
            class: number.get(label.as_str()).copied().unwrap_or(0),
        };
        let samples: Vec<Sample> = rows.iter().map(sample).collect();
        if rows.first().is_some_and(|(_, _, held)| held.is_none()) {
            return Dataset::split(path, classes, samples, held_out, seed);
        }
        let part = |held: bool| (0..rows.len()).filter(|&i| rows[i].2 == Some(held)).collect();
        let parts = [part(false), part(true)];
        Dataset::checked(path, classes, samples, parts)
    }

    /// Images in memory, `held_out` of each class held out.
    pub fn memory(
        classes: Vec<String>,
        images: Vec<(Arc<RgbImage>, usize)>,
        held_out: f64,
        seed: u64,
    ) -> Result<Dataset> {
        let origin = Path::new("memory");
        if let Some((_, class)) = images.iter().find(|(_, class)| *class >= classes.len()) {
            return Err(wrong(origin, format!("class {class} of {}", classes.len())));
        }
        let sample = |(image, class)| Sample { image: Source::Memory(image), class };
        Dataset::split(origin, classes, images.into_iter().map(sample).collect(), held_out, seed)
    }

    /// Holds out a share of each class, at least one image of it where there are two or more, never all.
    fn split(
        origin: &Path,
        classes: Vec<String>,
        samples: Vec<Sample>,
        share: f64,
        seed: u64,
    ) -> Result<Dataset> {
        let mut parts = [Vec::new(), Vec::new()];
        for class in 0..classes.len() {
            let of_class: Vec<usize> = (0..samples.len()).filter(|&i| samples[i].class == class).collect();
            let count = of_class.len();
            let held = match share > 0.0 && count > 1 {
                true => ((share * count as f64).round() as usize).clamp(1, count - 1),
                false => 0,
            };
            let order = Random::new(seed, &[purpose::SPLIT, class as u64]).permutation(count);
            for (rank, index) in order.into_iter().enumerate() {
                parts[usize::from(rank < held)].push(of_class[index]);
            }
        }
        parts.iter_mut().for_each(|part| part.sort_unstable());
        Dataset::checked(origin, classes, samples, parts)
    }

    fn checked(
        origin: &Path,
        classes: Vec<String>,
        samples: Vec<Sample>,
        [train, held_out]: [Vec<usize>; 2],
    ) -> Result<Dataset> {
        if classes.len() < 2 {
            let found = classes.first().map_or("no class".into(), |c| format!("one class, `{c}`"));
            return Err(wrong(origin, format!("{found}; a classifier needs two")));
        }
        for (class, name) in classes.iter().enumerate() {
            if !train.iter().any(|&i| samples[i].class == class) {
                return Err(wrong(origin, format!("class `{name}` has no image to train on")));
            }
        }
        Ok(Dataset { origin: origin.to_owned(), classes, samples, train, held_out })
    }

    /// The same images with the numbers that `labels` gives to their classes, by name or synset, for a network of
    /// `classes` classes. Without labels the numbers stay. Error: a class that the network does not know.
    pub fn numbered(mut self, labels: &Labels, classes: usize) -> Result<Dataset> {
        if labels.is_none() {
            let found = self.classes.len();
            return match found == classes {
                true => Ok(self),
                false => Err(wrong(
                    &self.origin,
                    format!("{found} classes, but the network has {classes} and no names"),
                )),
            };
        }
        let known: Vec<_> = (0..classes).filter_map(|index| labels.get(index)).collect();
        let number = |name: &String| {
            let is_it = |label: &Label| label.name == name || label.synset == Some(name.as_str());
            let found = known.iter().position(is_it);
            found.ok_or_else(|| wrong(&self.origin, format!("the network knows no class `{name}`")))
        };
        let numbers: Vec<usize> = self.classes.iter().map(number).collect::<Result<_>>()?;
        for sample in &mut self.samples {
            sample.class = numbers[sample.class];
        }
        self.classes = known.iter().map(|label| label.name.to_owned()).collect();
        Ok(self)
    }

    /// The folder or list.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// The names of the classes, by number.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// The image of this number.
    pub fn sample(&self, index: usize) -> Option<&Sample> {
        self.samples.get(index)
    }

    /// The numbers of the images trained on, ascending.
    pub fn train(&self) -> &[usize] {
        &self.train
    }

    /// The numbers of the images held out, ascending.
    pub fn held_out(&self) -> &[usize] {
        &self.held_out
    }

    /// All numbers.
    pub fn all(&self) -> Vec<usize> {
        (0..self.samples.len()).collect()
    }

    /// A number that changes when images are added, removed, renamed or moved between classes and parts; their contents
    /// are not read.
    pub fn fingerprint(&self) -> u64 {
        let mut hash = crc32fast::Hasher::new();
        let mut second = crc32fast::Hasher::new_with_initial(0x9e37_79b9);
        let mut add = |bytes: &[u8]| {
            hash.update(bytes);
            second.update(bytes);
            second.update(&[0]);
        };
        self.classes.iter().for_each(|class| add(class.as_bytes()));
        for sample in &self.samples {
            match &sample.image {
                // Relative to the dataset, so that it may be moved.
                Source::File(path) => {
                    add(path.strip_prefix(&self.origin).unwrap_or(path).as_os_str().as_encoded_bytes());
                }
                Source::Memory(image) => add(image.as_raw()),
            }
            add(&sample.class.to_le_bytes());
        }
        self.held_out.iter().for_each(|index| add(&index.to_le_bytes()));
        u64::from(hash.finalize()) << 32 | u64::from(second.finalize())
    }
}

/// What random numbers are drawn for: the first part of every key.
pub(crate) mod purpose {
    pub(crate) const SPLIT: u64 = 1;
    pub(crate) const ORDER: u64 = 2;
    pub(crate) const AUGMENT: u64 = 3;
    pub(crate) const MIX: u64 = 4;
    pub(crate) const DROP: u64 = 5;
}

fn wrong(path: &Path, why: String) -> Error {
    Error::Dataset { path: path.to_owned(), why }
}

/// The names of the folders in `path` that do not begin with a dot, sorted.
fn folders(path: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(Error::io(path))? {
        let entry = entry.map_err(Error::io(path))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            return Err(wrong(path, format!("the name {name:?} is not UTF-8")));
        };
        if entry.path().is_dir() && !name.starts_with('.') {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The images in the folders of `classes`, sorted by name.
fn images(path: &Path, classes: &[String]) -> Result<Vec<Sample>> {
    let mut samples = Vec::new();
    for (class, name) in classes.iter().enumerate() {
        let folder = path.join(name);
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(Error::io(&folder))? {
            let file = entry.map_err(Error::io(&folder))?.path();
            let extension = file.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
            if extension.is_some_and(|e| decode::EXTENSIONS.contains(&e.as_str())) {
                files.push(file);
            }
            if samples.len() + files.len() > MAX_SAMPLES {
                return Err(wrong(path, format!("more than {MAX_SAMPLES} images")));
            }
        }
        if files.is_empty() {
            return Err(wrong(path, format!("class `{name}` has no image")));
        }
        files.sort();
        samples.extend(files.into_iter().map(|file| Sample { image: Source::File(file), class }));
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"").unwrap();
        }
        dir
    }

    #[test]
    fn folders_are_classes() {
        let dir = tree(&["b/1.png", "b/2.JPG", "b/notes.txt", "a/1.png", "a/2.png", ".git/x.png"]);
        let data = Dataset::folder(dir.path(), 0.4, 1).unwrap();
        assert_eq!(data.classes(), ["a", "b"]);
        assert_eq!((data.train().len(), data.held_out().len()), (2, 2));
        let class = |part: &[usize]| part.iter().map(|&i| data.sample(i).unwrap().class).collect::<Vec<_>>();
        assert_eq!((class(data.train()), class(data.held_out())), (vec![0, 1], vec![0, 1]));
        let again = Dataset::folder(dir.path(), 0.4, 1).unwrap();
        assert_eq!(again.fingerprint(), data.fingerprint());
        std::fs::write(dir.path().join("a/3.png"), b"").unwrap();
        assert_ne!(Dataset::folder(dir.path(), 0.4, 1).unwrap().fingerprint(), data.fingerprint());
    }

    #[test]
    fn a_split_of_its_own_is_kept() {
        let dir = tree(&["train/a/1.png", "train/b/1.png", "train/c/1.png", "val/c/1.png"]);
        let data = Dataset::folder(dir.path(), 0.4, 1).unwrap();
        assert_eq!((data.train(), data.held_out()), (&[0, 1, 2][..], &[3][..]));
        assert_eq!(data.sample(3).unwrap().class, 2);
    }

    #[test]
    fn classes_are_numbered_as_the_network_does() {
        let data = || Dataset::folder(tree(&["tabby/1.png", "tench/1.png"]).path(), 0.0, 1).unwrap();
        let imagenet = data().numbered(&Labels::ImageNet1k, 1000).unwrap();
        assert_eq!([0, 1].map(|i| imagenet.sample(i).unwrap().class), [281, 0]);
        assert_eq!(imagenet.classes().len(), 1000);
        let names = |names: &[&str]| Labels::Names(names.iter().map(|n| n.to_string()).collect());
        let error = data().numbered(&names(&["tench", "trout"]), 2).unwrap_err().to_string();
        assert!(error.contains("the network knows no class `tabby`"), "{error}");
        assert!(data().numbered(&Labels::None, 2).is_ok());
        assert!(data().numbered(&Labels::None, 3).unwrap_err().to_string().contains("2 classes"));
    }

    #[test]
    fn lists_name_files_and_classes() {
        let dir = tree(&[]);
        let list = dir.path().join("list.csv");
        let read = |text: &str| {
            std::fs::write(&list, text).unwrap();
            Dataset::csv(&list, 0.5, 1).map_err(|e| e.to_string())
        };
        let data =
            read("path,label,split\nx.png,dog,train\n\"y, z.png\",cat,train\nw.png,cat,val\n").unwrap();
        assert_eq!((data.classes(), data.held_out()), (&["cat".to_owned(), "dog".to_owned()][..], &[2][..]));
        let Source::File(path) = &data.sample(1).unwrap().image else { panic!("not a file") };
        assert_eq!(path, &dir.path().join("y, z.png"));
        for (text, message) in [
            ("file,label\nx,y\n", "columns [\"file\", \"label\"], expected `path` and `label`"),
            ("path,label,split\nx.png,a,tset\n", "line 2: unknown split `tset`"),
            ("path,label\nx.png,\n", "line 2: path or label is empty"),
            ("path,label\nx.png,a\n", "one class, `a`"),
            ("path,label\nx.png\n", "found record with 1 fields"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn datasets_that_teach_nothing_are_refused() {
        let check = |files: &[&str], message: &str| {
            let error = Dataset::folder(tree(files).path(), 0.1, 1).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        check(&["a/1.png"], "one class, `a`; a classifier needs two");
        check(&["a/1.png", "b/readme.txt"], "class `b` has no image");
        check(&[], "no class");
        check(&["train/a/1.png", "train/b/1.png", "val/c/1.png"], "class `c` has no image to train on");
    }
}
