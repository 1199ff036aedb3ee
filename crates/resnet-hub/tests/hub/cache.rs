//! The cache: shared with other programs and processes, poisoned, read-only, offline.

use resnet_hub::Missing;

use super::*;
use crate::fake_hub::Fault;

#[test]
fn layout_is_that_of_hf_hub_and_python() {
    let stage = Stage::new();
    let path = stage.get(MODEL).unwrap();
    let commit = stage.hub.commit(REPO);
    assert_eq!(path, stage.path("snapshots").join(&commit).join(MODEL));
    assert_eq!(fs::read_to_string(stage.path("refs/main")).unwrap(), commit);
    assert_eq!(stage.blobs(), [etag(MODEL, &model())]);
    let other = hf_hub::Cache::new(stage.dir.path().into());
    assert_eq!(other.model(REPO.into()).get(MODEL), Some(path.clone()));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let link = fs::read_link(&path).unwrap();
        assert_eq!(link, Path::new("../../blobs").join(etag(MODEL, &model())));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o444, 0o444);
    }
    // A file in a folder, at a branch with a slash.
    stage.hub.add_file(REPO, "a/b/config.json", *b"[1]");
    let (result, _) = stage.get_at("refs/pr/1", "a/b/config.json");
    assert_eq!(fs::read(result.unwrap()).unwrap(), b"[1]");
    assert_eq!(fs::read_to_string(stage.path("refs/refs/pr/1")).unwrap(), commit);
}

/// Writes the cache as Python does, without `.verified`.
#[cfg(unix)]
fn as_python(stage: &Stage) -> PathBuf {
    let commit = stage.hub.commit(REPO);
    let entry = stage.path("snapshots").join(&commit).join(MODEL);
    for folder in
        ["refs", "blobs"].map(|f| stage.path(f)).iter().chain(entry.parent().map(PathBuf::from).iter())
    {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(stage.path("refs/main"), &commit).unwrap();
    fs::write(stage.blob(MODEL, &model()), model()).unwrap();
    link(format!("../../blobs/{}", etag(MODEL, &model())), &entry);
    entry
}

#[cfg(unix)]
fn link(target: impl AsRef<Path>, link: &Path) {
    let _ = fs::remove_file(link);
    std::os::unix::fs::symlink(target, link).unwrap();
}

#[cfg(unix)]
#[test]
fn file_from_python_is_hashed_once() {
    let stage = Stage::new();
    let entry = as_python(&stage);
    assert_eq!(stage.get_valid(), ["verifying"]);
    assert_eq!(stage.get_valid(), [] as [String; 0]);
    // Since version 2.4 a blob may be a link into a store that repositories share.
    let store = stage.dir.path().join("blobs/ab");
    fs::create_dir_all(&store).unwrap();
    let blob = stage.blob(MODEL, &model());
    fs::rename(&blob, store.join("ab".repeat(32))).unwrap();
    link(format!("../../blobs/ab/{}", "ab".repeat(32)), &blob);
    stage.get_valid();
    assert_eq!(stage.hub.requests().len(), 0);
    // A copy, as Python makes without symlinks: its hash is unknown, so the Hub is asked for it, but not for bytes.
    fs::remove_dir_all(stage.path(".verified")).unwrap();
    fs::remove_file(&entry).unwrap();
    fs::write(&entry, model()).unwrap();
    stage.get_valid();
    let asked = stage.hub.requests().len();
    assert!(asked > 0 && stage.hub.gets().is_empty());
    stage.get_valid();
    assert_eq!(stage.hub.requests().len(), asked);
    fs::write(&entry, b"changed").unwrap();
    stage.get_valid();
}

#[test]
fn many_clients_share_an_empty_cache() {
    for locks in [true, false] {
        let mut stage = Stage::new();
        stage.config.locks = locks;
        stage.hub.fault(Fault::Slow);
        let waited = std::thread::scope(|scope| {
            let all: Vec<_> = (0..4).map(|_| scope.spawn(|| stage.get_valid())).collect();
            all.into_iter().map(|t| t.join().unwrap()).filter(|e| e.contains(&"waiting".to_string())).count()
        });
        assert_eq!(stage.blobs(), [etag(MODEL, &model())]);
        assert_eq!(stage.partial(), [] as [String; 0]);
        if locks {
            assert_eq!(stage.hub.gets().len(), 1);
            assert!(waited > 0);
        }
    }
}

#[test]
fn lock_of_a_stalled_process() {
    let mut stage = Stage::new();
    stage.config.limits.stall = Duration::from_millis(300);
    let folder = stage.dir.path().join(".locks").join(FOLDER);
    fs::create_dir_all(&folder).unwrap();
    let held = fs::File::create(folder.join(format!("{}.lock", etag(MODEL, &model())))).unwrap();
    held.lock().unwrap();
    let events = stage.get_valid();
    assert_eq!(events[..2], ["waiting", "start 0"]);
}

#[test]
fn read_only_cache() {
    // Cached, but neither records nor locks can be written.
    let stage = Stage::new();
    stage.get_valid();
    fs::remove_dir_all(stage.path(".verified")).unwrap();
    fs::write(stage.path(".verified"), "").unwrap();
    assert_eq!(stage.get_valid(), ["verifying"]);
    assert_eq!(stage.get_valid(), ["verifying"]);
    fs::remove_dir_all(stage.dir.path().join(".locks")).unwrap();
    fs::write(stage.dir.path().join(".locks"), "").unwrap();
    stage.get(CONFIG).unwrap();

    // The cache is a file.
    let mut stage = Stage::new();
    let file = stage.dir.path().join("file");
    fs::write(&file, "").unwrap();
    stage.config.cache_dir = Some(file.join("hub"));
    let text = stage.get_error().1;
    assert!(text.contains(file.to_str().unwrap()) && text.contains("HF_HOME"), "{text}");
    assert!(stage.hub.gets().is_empty());

    // Folders without write permission, where the user is not root.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let stage = Stage::new();
        stage.get_valid();
        let mode = |m| {
            for folder in ["", "blobs", "refs", "snapshots", ".verified"] {
                fs::set_permissions(stage.path(folder), fs::Permissions::from_mode(m)).unwrap();
            }
        };
        mode(0o555);
        let root = fs::write(stage.path("probe"), "").is_ok();
        stage.get_valid();
        let other = stage.get(CONFIG);
        mode(0o755);
        assert!(root || matches!(other, Err(Error::Cache { .. })), "{other:?}");
    }
}

#[cfg(unix)]
#[test]
fn poisoned_entries() {
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let check = |what: &str, poison: &dyn Fn(&Path, &Path)| {
        let stage = Stage::new();
        let entry = stage.get(MODEL).unwrap();
        let blob = stage.blob(MODEL, &model());
        poison(&entry, &blob);
        let mut offline = stage.config.clone();
        offline.offline = true;
        let repo = RepoId::parse(REPO).unwrap();
        let result = Client::new(offline).unwrap().file(&repo, MODEL, &mut |_| {});
        assert!(matches!(result, Err(Error::Offline { .. })), "{what}: {result:?}");
        stage.get_valid();
        assert_eq!(fs::read(&secret).unwrap(), b"secret", "{what}");
        assert!(fs::symlink_metadata(&blob).unwrap().is_file(), "{what}");
    };
    check("entry links out", &|entry, _| link(&secret, entry));
    check("entry links to the name of a blob in another folder", &|entry, blob| {
        let fake = outside.path().join(blob.file_name().unwrap());
        fs::write(&fake, model()).unwrap();
        link(fake, entry);
    });
    check("entry dangles", &|entry, _| link("../../blobs/none", entry));
    check("entry links to itself", &|entry, _| link(MODEL, entry));
    check("blob links out", &|_, blob| link(&secret, blob));
    check("blob links to a valid file outside", &|_, blob| {
        let valid = outside.path().join("valid");
        fs::write(&valid, model()).unwrap();
        link(valid, blob);
    });
    check("blob dangles", &|_, blob| link(outside.path().join("none"), blob));
    check("blob is a pipe", &|_, blob| {
        fs::remove_file(blob).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(blob).status().unwrap().success());
    });

    // A folder cannot be replaced by a rename.
    let stage = Stage::new();
    stage.get_valid();
    let blob = stage.blob(MODEL, &model());
    fs::remove_file(&blob).unwrap();
    fs::create_dir(&blob).unwrap();
    let error = stage.get(MODEL).unwrap_err();
    assert!(matches!(error, Error::Cache { .. }), "{error:?}");
    // A linked folder of the repository is not written to.
    let stage = Stage::new();
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir_all(stage.path("")).unwrap();
    for folder in ["blobs", "snapshots"] {
        link(outside.path(), &stage.path(folder));
        let error = stage.get(MODEL).unwrap_err();
        assert!(matches!(error, Error::Cache { .. }), "{error:?}");
        fs::remove_file(stage.path(folder)).unwrap();
    }
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn damaged_blobs() {
    for damage in [vec![], model()[..1000].to_vec(), vec![1; model().len()], [model(), vec![0]].concat()] {
        let stage = Stage::new();
        stage.get_valid();
        fs::write(stage.blob(MODEL, &model()), damage).unwrap();
        let events = stage.get_valid();
        assert!(events.contains(&"done".to_string()), "{events:?}");
        assert_eq!(stage.get_valid(), [] as [String; 0]);
    }
}

#[test]
fn damage_that_keeps_size_and_time() {
    let mut stage = Stage::new();
    let path = stage.get(MODEL).unwrap();
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    let blob = stage.blob(MODEL, &model());
    fs::write(&blob, vec![1; model().len()]).unwrap();
    fs::File::options().write(true).open(&blob).unwrap().set_modified(time).unwrap();
    // The record matches, so only `verify` detects it.
    assert_eq!(stage.get_at("main", MODEL).1, [] as [String; 0]);
    stage.config.verify = true;
    assert_eq!(stage.get_valid(), ["verifying", "verifying", "start 0", "progress", "verifying", "done"]);
    assert_eq!(stage.get_valid(), ["verifying"]);
}

#[test]
fn damaged_refs() {
    let commit = "c".repeat(40);
    for damage in [
        String::new(),
        commit[..17].into(),
        "../../../../etc".into(),
        format!("{commit}\n"),
        commit.to_uppercase(),
        "c".repeat(1 << 20),
        "c".repeat(41),
    ] {
        let mut stage = Stage::new();
        stage.get_valid();
        fs::write(stage.path("refs/main"), &damage).unwrap();
        stage.config.offline = true;
        let error = stage.get(MODEL).unwrap_err();
        assert!(error.to_string().contains("does not contain a commit"), "{error}");
        stage.config.offline = false;
        stage.get_valid();
        assert_eq!(fs::read_to_string(stage.path("refs/main")).unwrap(), stage.hub.commit(REPO));
    }
    assert_eq!(commit.len(), 40);
}

#[test]
fn one_content_in_two_revisions_and_repositories() {
    let stage = Stage::new();
    let first = stage.hub.commit(REPO);
    stage.get_valid();
    let second = stage.hub.new_commit(REPO);
    stage.hub.add_file(REPO, MODEL, model());
    stage.hub.add_file(REPO, CONFIG, *b"{\"new\": 1}");
    // A branch stays at its commit, for all of its files, until a file is asked for that is not there.
    stage.get_valid();
    let (result, events) = stage.get_at(&second, MODEL);
    assert!(result.unwrap().to_str().unwrap().contains(&second));
    assert!(!events.contains(&"start 0".to_string()), "{events:?}");
    assert_eq!((stage.blobs().len(), stage.hub.gets().len()), (1, 1));
    assert_eq!(fs::read(stage.get(CONFIG).unwrap()).unwrap(), b"{\"new\": 1}");
    let (result, _) = stage.get_at(&first, MODEL);
    assert!(result.unwrap().to_str().unwrap().contains(&first));

    stage.hub.add_file("timm/resnet0.TEST", MODEL, [model(), vec![1]].concat());
    let repo = RepoId::parse("timm/resnet0.TEST").unwrap();
    let path = Client::new(stage.config.clone()).unwrap().file(&repo, MODEL, &mut |_| {}).unwrap();
    assert_eq!(fs::metadata(path).unwrap().len(), SIZE + 1);
    stage.get_valid();
}

#[test]
fn offline() {
    let mut stage = Stage::new();
    stage.config.offline = true;
    let (error, text) = stage.get_error();
    assert!(matches!(error, Error::Offline { .. }) && text.contains("HF_HUB_OFFLINE"), "{text}");
    assert!(text.contains("never downloaded"), "{text}");
    assert_eq!(stage.hub.connections(), 0);
    assert_eq!(fs::read_dir(stage.dir.path()).unwrap().count(), 0);
    stage.config.offline = false;
    stage.get_valid();
    let connections = stage.hub.connections();
    stage.config.offline = true;
    stage.get_valid();
    assert!(matches!(stage.get(CONFIG), Err(Error::Offline { .. })));
    assert_eq!(stage.hub.connections(), connections);
}

#[test]
fn missing_files_are_cached() {
    let mut stage = Stage::new();
    let missing = |stage: &Stage| {
        let error = stage.get("none.json").unwrap_err();
        assert!(matches!(error, Error::NotFound { missing: Missing::File, .. }), "{error:?}");
        stage.hub.requests().len()
    };
    let requests = missing(&stage);
    let commit = stage.hub.commit(REPO);
    assert_eq!(fs::read(stage.path(".no_exist").join(&commit).join("none.json")).unwrap(), b"");
    assert_eq!(missing(&stage), requests);
    stage.config.offline = true;
    assert_eq!(missing(&stage), requests);
    // A record that Python wrote.
    let record = stage.path(".no_exist").join(&commit).join("other.json");
    fs::write(record, "").unwrap();
    let error = stage.get("other.json").unwrap_err();
    assert!(matches!(error, Error::NotFound { missing: Missing::File, .. }), "{error:?}");
    // The next commit has it.
    stage.config.offline = false;
    stage.config.refresh = true;
    stage.hub.new_commit(REPO);
    stage.hub.add_file(REPO, "none.json", *b"[]");
    stage.get("none.json").unwrap();
}

#[test]
fn refresh_moves_a_branch() {
    let mut stage = Stage::new();
    let first = stage.get(CONFIG).unwrap();
    stage.hub.new_commit(REPO);
    stage.hub.add_file(REPO, CONFIG, *b"{\"new\": 1}");
    assert_eq!(stage.get(CONFIG).unwrap(), first);
    stage.config.refresh = true;
    assert_eq!(fs::read(stage.get(CONFIG).unwrap()).unwrap(), b"{\"new\": 1}");
    let gets = stage.hub.gets().len();
    stage.get(CONFIG).unwrap();
    assert_eq!(stage.hub.gets().len(), gets, "unchanged content is not downloaded again");
    stage.config.refresh = false;
    assert_eq!(fs::read(stage.get(CONFIG).unwrap()).unwrap(), b"{\"new\": 1}");
}

/// A link has the effect of a file system that ignores case: two names for one folder.
#[cfg(unix)]
#[test]
fn names_that_differ_in_case_share_no_folder() {
    let stage = Stage::new();
    stage.get_valid();
    link(FOLDER, &stage.dir.path().join("models--timm--resnet0.TEST"));
    stage.hub.add_file("timm/resnet0.TEST", MODEL, *b"other");
    let repo = RepoId::parse("timm/resnet0.TEST").unwrap();
    let result = Client::new(stage.config.clone()).unwrap().file(&repo, MODEL, &mut |_| {});
    assert!(
        matches!(&result, Err(Error::Cache { source, .. }) if source.to_string().contains(FOLDER)),
        "{result:?}"
    );
}
