//! From arguments to image files: folders, lists and patterns.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use resnet_image::decode::EXTENSIONS;
use walkdir::{DirEntry, WalkDir};

/// Extensions of image formats that are not supported, so that skipped files can be reported.
const UNSUPPORTED: [&str; 10] = ["tif", "tiff", "avif", "heic", "heif", "jxl", "jp2", "ico", "pnm", "svg"];

/// Image files, and messages about what was skipped.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Paths in the order of the arguments; files of a folder by name.
    pub(crate) images: Vec<PathBuf>,
    pub(crate) warnings: Vec<String>,
}

/// Finds the images that `arguments` name: files, folders, patterns (`photos/*.jpg`), and lists (`@list.txt`, one of
/// these per line).
///
/// # Errors
///
/// A list cannot be read, or a folder or pattern contains no image.
pub(crate) fn find(arguments: &[PathBuf]) -> anyhow::Result<Found> {
    let mut found = Found::default();
    for argument in arguments {
        let text = argument.to_str().unwrap_or_default();
        match text.strip_prefix('@').filter(|_| !argument.exists()) {
            Some(list) => {
                let lines = std::fs::read_to_string(list).with_context(|| format!("`{list}`"))?;
                for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
                    found.add(Path::new(line)).with_context(|| format!("`{list}`"))?;
                }
            }
            None => found.add(argument)?,
        }
    }
    Ok(found)
}

impl Found {
    fn add(&mut self, path: &Path) -> anyhow::Result<()> {
        let name = path.display();
        if path.is_dir() {
            let before = self.images.len();
            self.search(path);
            if self.images.len() == before {
                bail!("`{name}`: no images in this folder (supported: {})", EXTENSIONS.join(", "));
            }
            return Ok(());
        }
        // A file may have such a name; shells pass a pattern on if nothing matches, and on Windows always.
        let pattern = path.to_str().filter(|text| text.contains(['*', '?', '[']) && !path.exists());
        let Some(pattern) = pattern else {
            self.images.push(path.to_owned());
            return Ok(());
        };
        let mut matches =
            glob::glob(pattern).with_context(|| format!("`{name}`: invalid pattern"))?.peekable();
        if matches.peek().is_none() {
            bail!("`{name}`: no file matches this pattern");
        }
        for entry in matches {
            match entry {
                Ok(path) if path.is_dir() => self.search(&path),
                Ok(path) => self.images.push(path),
                Err(error) => self.warnings.push(format!("skipped {error}")),
            }
        }
        Ok(())
    }

    /// Adds the images in a folder and its subfolders. Follows symbolic links, except to a parent folder.
    fn search(&mut self, folder: &Path) {
        let mut unsupported: BTreeMap<String, usize> = BTreeMap::new();
        let is_hidden = |entry: &DirEntry| {
            entry.depth() > 0 && entry.file_name().to_str().is_some_and(|name| name.starts_with('.'))
        };
        let entries = WalkDir::new(folder).follow_links(true).sort_by_file_name().into_iter();
        for entry in entries.filter_entry(|entry| !is_hidden(entry)) {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    self.warnings.push(format!("skipped: {error}"));
                    continue;
                }
            };
            if entry.file_type().is_dir() {
                continue;
            }
            let extension = entry.path().extension().unwrap_or_default().to_string_lossy().to_lowercase();
            if EXTENSIONS.contains(&extension.as_str()) {
                self.images.push(entry.into_path());
            } else if UNSUPPORTED.contains(&extension.as_str()) {
                *unsupported.entry(extension).or_default() += 1;
            }
        }
        for (extension, count) in unsupported {
            let folder = folder.display();
            self.warnings.push(format!("`{folder}`: skipped {count} .{extension} (unsupported format)"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn names(found: &Found, root: &Path) -> Vec<String> {
        let name = |path: &PathBuf| path.strip_prefix(root).unwrap_or(path).display().to_string();
        found.images.iter().map(|path| name(path).replace('\\', "/")).collect()
    }

    #[test]
    fn folders_are_searched_without_hidden_files() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("b/.cache")).unwrap();
        for file in ["z.JPG", "b/a.png", "b/._a.png", "b/.cache/x.png", "note.txt", "scan.tiff", "new.avif"] {
            fs::write(root.join(file), "").unwrap();
        }
        let found = find(&[root.to_owned()]).unwrap();
        assert_eq!(names(&found, root), ["b/a.png", "z.JPG"]);
        assert!(found.warnings.iter().any(|w| w.contains("1 .tiff")), "{:?}", found.warnings);
        assert!(found.warnings.iter().any(|w| w.contains("1 .avif")), "{:?}", found.warnings);
    }

    #[cfg(unix)]
    #[test]
    fn loops_of_links_are_skipped_with_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join("sub")).unwrap();
        fs::write(root.join("sub/a.png"), "").unwrap();
        for link in ["loop", "sub/one", "sub/two"] {
            std::os::unix::fs::symlink(root, root.join(link)).unwrap();
        }
        let found = find(&[root.to_owned()]).unwrap();
        assert_eq!(names(&found, root), ["sub/a.png"]);
        assert_eq!(found.warnings.len(), 3, "{:?}", found.warnings);
    }

    #[test]
    fn lists_and_patterns_name_images() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for file in ["a.png", "b.png", "c.jpg"] {
            fs::write(root.join(file), "").unwrap();
        }
        let list = root.join("list.txt");
        let pattern = root.join("*.png");
        fs::write(&list, format!("{}\n\n  {}\n", pattern.display(), root.join("c.jpg").display())).unwrap();
        let found = find(&[PathBuf::from(format!("@{}", list.display()))]).unwrap();
        assert_eq!(names(&found, root), ["a.png", "b.png", "c.jpg"]);
        assert_eq!(names(&find(&[pattern]).unwrap(), root), ["a.png", "b.png"]);
        let error = find(&[root.join("*.webp")]).unwrap_err().to_string();
        assert!(error.contains("no file matches"), "{error}");
        let error = find(&[PathBuf::from("@nothing.txt")]).unwrap_err().to_string();
        assert!(error.contains("nothing.txt"), "{error}");
    }
}
