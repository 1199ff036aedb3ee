//! Labeled images with a training and a validation split.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::{RgbImage, imageops};
use resnet_image::decode;
use resnet_model::Labels;
use resnet_model::labels::Label;

use crate::random::Random;
use crate::{Error, Result};

/// Labeled images, split into training and validation.
#[derive(Debug, Clone)]
pub struct Dataset {
    origin: PathBuf,
    classes: Vec<String>,
    samples: Vec<Sample>,
    train: Vec<usize>,
    val: Vec<usize>,
}

/// An image and its class.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Image.
    pub image: ImageSource,
    /// Index of its class.
    pub class: usize,
}

/// File or memory of an image.
#[derive(Debug, Clone)]
pub enum ImageSource {
    /// A file.
    File(PathBuf),
    /// A decoded image.
    Memory(Arc<RgbImage>),
}

impl ImageSource {
    /// Decodes the image; errors name the file.
    pub fn open(&self) -> Result<Arc<RgbImage>, resnet_model::Error> {
        match self {
            ImageSource::File(path) => Ok(Arc::new(decode::open(path)?)),
            ImageSource::Memory(image) => Ok(image.clone()),
        }
    }

    /// Decodes the crop `[x, y, width, height]` that `choose` returns for the image's `[width, height]`; of a JPEG file, only
    /// the part needed.
    pub fn open_part(
        &self,
        choose: impl FnOnce([u32; 2]) -> [u32; 4],
    ) -> Result<RgbImage, resnet_model::Error> {
        match self {
            ImageSource::File(path) => Ok(decode::open_region(path, choose)?),
            ImageSource::Memory(image) => {
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

/// Maximum number of images in a dataset.
const MAX_SAMPLES: usize = 1 << 26;

impl Dataset {
    /// Reads a folder with one folder of images per class, or with `train` and `val` (or `test`) folders of that form.
    /// Classes are sorted by name. Without a split, a random `val_fraction` of each class is used for validation.
    pub fn from_folder(path: &Path, val_fraction: f64, seed: u64) -> Result<Dataset> {
        let sub = |name: &str| Some(path.join(name)).filter(|sub| sub.is_dir());
        if let (Some(train), Some(test)) = (sub("train"), sub("val").or_else(|| sub("test"))) {
            let classes = folders(&train)?;
            let mut samples = images(&train, &classes)?;
            let count = samples.len();
            for name in folders(&test)? {
                if !classes.contains(&name) {
                    return Err(invalid(&test, format!("class `{name}` has no training images")));
                }
            }
            let present: Vec<String> =
                classes.iter().filter(|name| test.join(name).is_dir()).cloned().collect();
            let val = images(&test, &present)?;
            // Indices among all classes.
            let index_of =
                |class: usize| classes.iter().position(|name| *name == present[class]).unwrap_or(0);
            samples.extend(val.into_iter().map(|s| Sample { class: index_of(s.class), ..s }));
            let splits = [(0..count).collect(), (count..samples.len()).collect()];
            return Dataset::checked(path, classes, samples, splits);
        }
        let classes = folders(path)?;
        let samples = images(path, &classes)?;
        Dataset::split(path, classes, samples, val_fraction, seed)
    }

    /// Reads a CSV file with the columns `path`, relative to the file, and `label`. A column `split` may contain `train`,
    /// `val` or `test`; without it, a random `val_fraction` of each class is used for validation.
    pub fn from_csv(path: &Path, val_fraction: f64, seed: u64) -> Result<Dataset> {
        let csv_error = |e: csv::Error| invalid(path, e.to_string());
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(path).map_err(csv_error)?;
        let header = reader.headers().map_err(csv_error)?.clone();
        let column = |name: &str| header.iter().position(|h| h == name);
        let (Some(file), Some(label)) = (column("path"), column("label")) else {
            let found: Vec<&str> = header.iter().collect();
            return Err(invalid(
                path,
                format!("found columns {}, expected `path` and `label`", found.join(", ")),
            ));
        };
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut rows: Vec<(PathBuf, String, Option<bool>)> = Vec::new();
        for record in reader.records() {
            let record = record.map_err(csv_error)?;
            let line = record.position().map_or(0, csv::Position::line);
            let cell = |index: usize| record.get(index).unwrap_or_default();
            let is_val = match column("split").map(cell) {
                None => None,
                Some("train") => Some(false),
                Some("val" | "test") => Some(true),
                Some(other) => {
                    return Err(invalid(
                        path,
                        format!("line {line}: invalid split `{other}`, expected train, val or test"),
                    ));
                }
            };
            if cell(file).is_empty() || cell(label).is_empty() {
                return Err(invalid(path, format!("line {line}: path or label is empty")));
            }
            rows.push((folder.join(cell(file)), cell(label).to_owned(), is_val));
            if rows.len() > MAX_SAMPLES {
                return Err(invalid(path, format!("more than {MAX_SAMPLES} images")));
            }
        }
        let names: std::collections::BTreeSet<&String> = rows.iter().map(|(_, label, _)| label).collect();
        let classes: Vec<String> = names.into_iter().cloned().collect();
        let index: BTreeMap<&str, usize> = classes.iter().enumerate().map(|(i, c)| (c.as_str(), i)).collect();
        let sample = |(file, label, _): &(PathBuf, String, Option<bool>)| Sample {
            image: ImageSource::File(file.clone()),
            class: index.get(label.as_str()).copied().unwrap_or(0),
        };
        let samples: Vec<Sample> = rows.iter().map(sample).collect();
        if rows.first().is_some_and(|(_, _, is_val)| is_val.is_none()) {
            return Dataset::split(path, classes, samples, val_fraction, seed);
        }
        let split = |is_val: bool| (0..rows.len()).filter(|&i| rows[i].2 == Some(is_val)).collect();
        let splits = [split(false), split(true)];
        Dataset::checked(path, classes, samples, splits)
    }

    /// Creates a dataset of decoded images and class indices; a random `val_fraction` of each class is used for validation.
    pub fn from_images(
        classes: Vec<String>,
        images: Vec<(Arc<RgbImage>, usize)>,
        val_fraction: f64,
        seed: u64,
    ) -> Result<Dataset> {
        let origin = Path::new("memory");
        if let Some((_, class)) = images.iter().find(|(_, class)| *class >= classes.len()) {
            return Err(invalid(
                origin,
                format!("class index {class}, expected less than {}", classes.len()),
            ));
        }
        let sample = |(image, class)| Sample { image: ImageSource::Memory(image), class };
        Dataset::split(origin, classes, images.into_iter().map(sample).collect(), val_fraction, seed)
    }

    /// Assigns a random `val_fraction` of each class to validation, at least one image of a class of two or more, never all.
    fn split(
        origin: &Path,
        classes: Vec<String>,
        samples: Vec<Sample>,
        val_fraction: f64,
        seed: u64,
    ) -> Result<Dataset> {
        let mut by_class = vec![Vec::new(); classes.len()];
        for (index, sample) in samples.iter().enumerate() {
            if let Some(indices) = by_class.get_mut(sample.class) {
                indices.push(index);
            }
        }
        let mut splits = [Vec::new(), Vec::new()];
        for (class, indices) in by_class.iter().enumerate() {
            let count = indices.len();
            let val = match val_fraction > 0.0 && count > 1 {
                true => ((val_fraction * count as f64).round() as usize).clamp(1, count - 1),
                false => 0,
            };
            let order = Random::new(seed, &[purpose::SPLIT, class as u64]).permutation(count);
            for (position, index) in order.into_iter().enumerate() {
                splits[usize::from(position < val)].push(indices[index]);
            }
        }
        splits.iter_mut().for_each(|split| split.sort_unstable());
        Dataset::checked(origin, classes, samples, splits)
    }

    fn checked(
        origin: &Path,
        classes: Vec<String>,
        samples: Vec<Sample>,
        [train, val]: [Vec<usize>; 2],
    ) -> Result<Dataset> {
        if classes.len() < 2 {
            let found = classes.first().map_or("no classes".into(), |c| format!("only one class, `{c}`"));
            return Err(invalid(origin, format!("found {found}; expected at least two")));
        }
        let mut has_images = vec![false; classes.len()];
        for &index in &train {
            if let Some(found) = has_images.get_mut(samples[index].class) {
                *found = true;
            }
        }
        if let Some(empty) = has_images.iter().position(|has_images| !has_images) {
            return Err(invalid(origin, format!("class `{}` has no training images", classes[empty])));
        }
        Ok(Dataset { origin: origin.to_owned(), classes, samples, train, val })
    }

    /// Renumbers the classes to match `labels`, by name or synset, of a network with `classes` classes. Without labels, the
    /// indices are kept.
    ///
    /// # Errors
    /// A class that the network does not have.
    pub fn with_labels(mut self, labels: &Labels, classes: usize) -> Result<Dataset> {
        if labels.is_none() {
            let found = self.classes.len();
            return match found == classes {
                true => Ok(self),
                false => Err(invalid(
                    &self.origin,
                    format!("found {found} classes, but the network has {classes}, without names"),
                )),
            };
        }
        let known: Vec<Label> = (0..classes).filter_map(|index| labels.get(index)).collect();
        let mut by_name = BTreeMap::new();
        // In reverse, so that the first of equal names wins.
        for (index, label) in known.iter().enumerate().rev() {
            label.synset.map(|synset| by_name.insert(synset, index));
            by_name.insert(label.name, index);
        }
        let index = |name: &String| {
            by_name
                .get(name.as_str())
                .copied()
                .ok_or_else(|| invalid(&self.origin, format!("the network has no class `{name}`")))
        };
        let indices: Vec<usize> = self.classes.iter().map(index).collect::<Result<_>>()?;
        for sample in &mut self.samples {
            sample.class = indices[sample.class];
        }
        self.classes = known.iter().map(|label| label.name.to_owned()).collect();
        Ok(self)
    }

    /// Returns the folder or CSV file.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// Returns the names of the classes, by index.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Returns the sample of this index.
    pub fn sample(&self, index: usize) -> Option<&Sample> {
        self.samples.get(index)
    }

    /// Returns the indices of the training images, ascending.
    pub fn train(&self) -> &[usize] {
        &self.train
    }

    /// Returns the indices of the validation images, ascending.
    pub fn val(&self) -> &[usize] {
        &self.val
    }

    /// Returns all indices.
    pub fn all(&self) -> Vec<usize> {
        (0..self.samples.len()).collect()
    }

    /// Returns a hash that changes when images are added, removed, renamed or moved between classes and splits; files are
    /// not read.
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
                ImageSource::File(path) => {
                    add(path.strip_prefix(&self.origin).unwrap_or(path).as_os_str().as_encoded_bytes());
                }
                ImageSource::Memory(image) => add(image.as_raw()),
            }
            add(&sample.class.to_le_bytes());
        }
        self.val.iter().for_each(|index| add(&index.to_le_bytes()));
        u64::from(hash.finalize()) << 32 | u64::from(second.finalize())
    }
}

/// First part of the key of every random sequence.
pub(crate) mod purpose {
    pub(crate) const SPLIT: u64 = 1;
    pub(crate) const ORDER: u64 = 2;
    pub(crate) const AUGMENT: u64 = 3;
    pub(crate) const MIX: u64 = 4;
    pub(crate) const DROP: u64 = 5;
}

fn invalid(path: &Path, why: String) -> Error {
    Error::Dataset { path: path.to_owned(), why }
}

/// Returns the sorted names of the folders in `path`, without hidden ones.
fn folders(path: &Path) -> Result<Vec<String>> {
    let root = path.canonicalize().map_err(Error::io(path))?;
    let (mut names, mut targets) = (Vec::new(), BTreeMap::new());
    for entry in std::fs::read_dir(path).map_err(Error::io(path))? {
        let entry = entry.map_err(Error::io(path))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            return Err(invalid(path, format!("file name `{}` is not valid UTF-8", name.display())));
        };
        if entry.path().is_dir() && !name.starts_with('.') {
            // A symbolic link must not give the images of one folder two labels.
            let target = entry.path().canonicalize().map_err(Error::io(path))?;
            if root.starts_with(&target) {
                return Err(invalid(path, format!("class folder `{name}` is a symbolic link to its parent")));
            }
            if let Some(other) = targets.insert(target, name.to_owned()) {
                return Err(invalid(
                    path,
                    format!("class folders `{name}` and `{other}` are the same folder"),
                ));
            }
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Returns the images in the folders of `classes`, sorted by name.
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
                return Err(invalid(path, format!("more than {MAX_SAMPLES} images")));
            }
        }
        if files.is_empty() {
            return Err(invalid(path, format!("class `{name}` has no images")));
        }
        files.sort();
        samples.extend(files.into_iter().map(|file| Sample { image: ImageSource::File(file), class }));
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
    fn class_folders_are_read() {
        let dir = tree(&["b/1.png", "b/2.JPG", "b/notes.txt", "a/1.png", "a/2.png", ".git/x.png"]);
        let data = Dataset::from_folder(dir.path(), 0.4, 1).unwrap();
        assert_eq!(data.classes(), ["a", "b"]);
        assert_eq!((data.train().len(), data.val().len()), (2, 2));
        let class = |part: &[usize]| part.iter().map(|&i| data.sample(i).unwrap().class).collect::<Vec<_>>();
        assert_eq!((class(data.train()), class(data.val())), (vec![0, 1], vec![0, 1]));
        let again = Dataset::from_folder(dir.path(), 0.4, 1).unwrap();
        assert_eq!(again.fingerprint(), data.fingerprint());
        std::fs::write(dir.path().join("a/3.png"), b"").unwrap();
        assert_ne!(Dataset::from_folder(dir.path(), 0.4, 1).unwrap().fingerprint(), data.fingerprint());
    }

    #[test]
    fn an_existing_split_is_kept() {
        let dir = tree(&["train/a/1.png", "train/b/1.png", "train/c/1.png", "val/c/1.png"]);
        let data = Dataset::from_folder(dir.path(), 0.4, 1).unwrap();
        assert_eq!((data.train(), data.val()), (&[0, 1, 2][..], &[3][..]));
        assert_eq!(data.sample(3).unwrap().class, 2);
    }

    #[test]
    fn classes_are_renumbered_to_match_labels() {
        let data = || Dataset::from_folder(tree(&["tabby/1.png", "tench/1.png"]).path(), 0.0, 1).unwrap();
        let imagenet = data().with_labels(&Labels::ImageNet1k, 1000).unwrap();
        assert_eq!([0, 1].map(|i| imagenet.sample(i).unwrap().class), [281, 0]);
        assert_eq!(imagenet.classes().len(), 1000);
        let names = |names: &[&str]| Labels::Names(names.iter().map(|n| n.to_string()).collect());
        let error = data().with_labels(&names(&["tench", "trout"]), 2).unwrap_err().to_string();
        assert!(error.contains("the network has no class `tabby`"), "{error}");
        assert!(data().with_labels(&Labels::None, 2).is_ok());
        assert!(data().with_labels(&Labels::None, 3).unwrap_err().to_string().contains("2 classes"));
    }

    #[test]
    fn csv_files_are_read() {
        let dir = tree(&[]);
        let list = dir.path().join("list.csv");
        let read = |text: &str| {
            std::fs::write(&list, text).unwrap();
            Dataset::from_csv(&list, 0.5, 1).map_err(|e| e.to_string())
        };
        let data =
            read("path,label,split\nx.png,dog,train\n\"y, z.png\",cat,train\nw.png,cat,val\n").unwrap();
        assert_eq!((data.classes(), data.val()), (&["cat".to_owned(), "dog".to_owned()][..], &[2][..]));
        let ImageSource::File(path) = &data.sample(1).unwrap().image else { panic!("not a file") };
        assert_eq!(path, &dir.path().join("y, z.png"));
        for (text, message) in [
            ("file,label\nx,y\n", "found columns file, label, expected `path` and `label`"),
            ("path,label,split\nx.png,a,tset\n", "line 2: invalid split `tset`"),
            ("path,label\nx.png,\n", "line 2: path or label is empty"),
            ("path,label\nx.png,a\n", "one class, `a`"),
            ("path,label\nx.png\n", "found record with 1 fields"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn unusable_datasets_are_rejected() {
        let check = |files: &[&str], message: &str| {
            let error = Dataset::from_folder(tree(files).path(), 0.1, 1).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        check(&["a/1.png"], "found only one class, `a`; expected at least two");
        check(&["a/1.png", "b/readme.txt"], "class `b` has no images");
        check(&[], "found no classes");
        check(&["train/a/1.png", "train/b/1.png", "val/c/1.png"], "class `c` has no training images");
    }

    #[cfg(unix)]
    #[test]
    fn class_folders_that_link_elsewhere_are_checked() {
        use std::os::unix::fs::symlink;
        let dir = tree(&["1.png", "a/1.png", "b/1.png"]);
        let check = |target: &str, message: &str| {
            let link = dir.path().join("link");
            symlink(target, &link).unwrap();
            let error = Dataset::from_folder(dir.path(), 0.1, 1).unwrap_err().to_string();
            assert!(error.contains(message) && error.contains("`link`"), "{error}");
            std::fs::remove_file(link).unwrap();
        };
        check(".", "is a symbolic link to its parent");
        check("..", "is a symbolic link to its parent");
        check("a", "are the same folder");
        let other = tree(&["c/1.png"]);
        symlink(other.path().join("c"), dir.path().join("c")).unwrap();
        assert_eq!(Dataset::from_folder(dir.path(), 0.1, 1).unwrap().classes(), ["a", "b", "c"]);
    }
}
