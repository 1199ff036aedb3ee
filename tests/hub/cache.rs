//! The cache: shared with other programs and other processes, poisoned, read-only, offline.

use super::*;
use crate::fakehub::Fault;

#[test]
fn layout_is_the_one_that_others_read() {
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
    // In a folder, at a branch with a slash.
    stage.hub.add_file(REPO, "a/b/config.json", *b"[1]");
    let (result, _) = stage.get_at("refs/pr/1", "a/b/config.json");
    assert_eq!(fs::read(result.unwrap()).unwrap(), b"[1]");
    assert_eq!(fs::read_to_string(stage.path("refs/refs/pr/1")).unwrap(), commit);
}

/// Writes the cache as Python does, without our records.
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
fn file_of_python_is_hashed_once() {
    let stage = Stage::new();
    let entry = as_python(&stage);
    assert_eq!(stage.get_good(), ["verifying"]);
    assert_eq!(stage.get_good(), [] as [String; 0]);
    // Since version 2.4 a blob may be a link into a store that repositories share.
    let store = stage.dir.path().join("blobs/ab");
    fs::create_dir_all(&store).unwrap();
    let blob = stage.blob(MODEL, &model());
    fs::rename(&blob, store.join("ab".repeat(32))).unwrap();
    link(format!("../../blobs/ab/{}", "ab".repeat(32)), &blob);
    stage.get_good();
    assert_eq!(stage.hub.requests().len(), 0);
    // A copy, as where there are no links: nobody says what it should be, so the Hub is asked, but for no bytes.
    fs::remove_dir_all(stage.path(".verified")).unwrap();
    fs::remove_file(&entry).unwrap();
    fs::write(&entry, model()).unwrap();
    stage.get_good();
    let asked = stage.hub.requests().len();
    assert!(asked > 0 && stage.hub.gets().is_empty());
    stage.get_good();
    assert_eq!(stage.hub.requests().len(), asked);
    fs::write(&entry, b"changed").unwrap();
    stage.get_good();
}

#[test]
fn h19_one_cold_cache_and_many_clients() {
    for locks in [true, false] {
        let mut stage = Stage::new();
        stage.config.locks = locks;
        stage.hub.fault(Fault::Slow);
        let waited = std::thread::scope(|scope| {
            let all: Vec<_> = (0..4).map(|_| scope.spawn(|| stage.get_good())).collect();
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
fn h19_lock_of_a_process_that_stands_still() {
    let mut stage = Stage::new();
    stage.config.limits.stall = Duration::from_millis(300);
    let folder = stage.dir.path().join(".locks").join(FOLDER);
    fs::create_dir_all(&folder).unwrap();
    let held = fs::File::create(folder.join(format!("{}.lock", etag(MODEL, &model())))).unwrap();
    held.lock().unwrap();
    let events = stage.get_good();
    assert_eq!(events[..2], ["waiting", "start 0"]);
}

#[test]
fn h20_cache_that_cannot_be_written() {
    // Cached, but neither records nor locks can be made.
    let stage = Stage::new();
    stage.get_good();
    fs::remove_dir_all(stage.path(".verified")).unwrap();
    fs::write(stage.path(".verified"), "").unwrap();
    assert_eq!(stage.get_good(), ["verifying"]);
    assert_eq!(stage.get_good(), ["verifying"]);
    fs::remove_dir_all(stage.dir.path().join(".locks")).unwrap();
    fs::write(stage.dir.path().join(".locks"), "").unwrap();
    stage.get(CONFIG).unwrap();

    // The cache is a file.
    let mut stage = Stage::new();
    let file = stage.dir.path().join("file");
    fs::write(&file, "").unwrap();
    stage.config.cache_dir = Some(file.join("hub"));
    let text = stage.get_bad().1;
    assert!(text.contains(file.to_str().unwrap()) && text.contains("HF_HOME"), "{text}");
    assert!(stage.hub.gets().is_empty());

    // Folders without write permission, where the user is not root.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let stage = Stage::new();
        stage.get_good();
        let mode = |m| {
            for folder in ["", "blobs", "refs", "snapshots", ".verified"] {
                fs::set_permissions(stage.path(folder), fs::Permissions::from_mode(m)).unwrap();
            }
        };
        mode(0o555);
        let root = fs::write(stage.path("probe"), "").is_ok();
        stage.get_good();
        let other = stage.get(CONFIG);
        mode(0o755);
        assert!(root || matches!(other, Err(HubError::Cache { .. })), "{other:?}");
    }
}

#[cfg(unix)]
#[test]
fn h21_poisoned_entries() {
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
        let (repo, main) = RepoId::parse(REPO).unwrap();
        let refused = Client::new(offline).unwrap().file(&repo, &main, MODEL, &mut |_| {});
        assert!(matches!(refused, Err(HubError::Offline { .. })), "{what}: {refused:?}");
        stage.get_good();
        assert_eq!(fs::read(&secret).unwrap(), b"secret", "{what}");
        assert!(fs::symlink_metadata(&blob).unwrap().is_file(), "{what}");
    };
    check("entry links out", &|entry, _| link(&secret, entry));
    check("entry links to a blob's name elsewhere", &|entry, blob| {
        let fake = outside.path().join(blob.file_name().unwrap());
        fs::write(&fake, model()).unwrap();
        link(fake, entry);
    });
    check("entry dangles", &|entry, _| link("../../blobs/none", entry));
    check("entry links to itself", &|entry, _| link(MODEL, entry));
    check("blob links out", &|_, blob| link(&secret, blob));
    check("blob links to a good file outside", &|_, blob| {
        let good = outside.path().join("good");
        fs::write(&good, model()).unwrap();
        link(good, blob);
    });
    check("blob dangles", &|_, blob| link(outside.path().join("none"), blob));
    check("blob is a pipe", &|_, blob| {
        fs::remove_file(blob).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(blob).status().unwrap().success());
    });

    // Folders cannot be replaced by a rename: a clear line.
    let stage = Stage::new();
    stage.get_good();
    let blob = stage.blob(MODEL, &model());
    fs::remove_file(&blob).unwrap();
    fs::create_dir(&blob).unwrap();
    let error = stage.get(MODEL).unwrap_err();
    assert!(matches!(error, HubError::Cache { .. }), "{error:?}");
    // A folder of the repository that leads elsewhere is not written to.
    let stage = Stage::new();
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir_all(stage.path("")).unwrap();
    for folder in ["blobs", "snapshots"] {
        link(outside.path(), &stage.path(folder));
        let error = stage.get(MODEL).unwrap_err();
        assert!(matches!(error, HubError::CacheEntry { .. }), "{error:?}");
        fs::remove_file(stage.path(folder)).unwrap();
    }
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn h22_damaged_blobs() {
    for damage in [vec![], model()[..1000].to_vec(), vec![1; model().len()], [model(), vec![0]].concat()] {
        let stage = Stage::new();
        stage.get_good();
        fs::write(stage.blob(MODEL, &model()), damage).unwrap();
        let events = stage.get_good();
        assert!(events.contains(&"done".to_string()), "{events:?}");
        assert_eq!(stage.get_good(), [] as [String; 0]);
    }
}

#[test]
fn h22_damage_that_keeps_size_and_time() {
    let mut stage = Stage::new();
    let path = stage.get(MODEL).unwrap();
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    let blob = stage.blob(MODEL, &model());
    fs::write(&blob, vec![1; model().len()]).unwrap();
    fs::File::options().write(true).open(&blob).unwrap().set_modified(time).unwrap();
    // The record stands, so it takes the option to look closer.
    assert_eq!(stage.get_at("main", MODEL).1, [] as [String; 0]);
    stage.config.verify = true;
    assert_eq!(stage.get_good(), ["verifying", "verifying", "start 0", "progress", "verifying", "done"]);
    assert_eq!(stage.get_good(), ["verifying"]);
}

#[test]
fn h23_damaged_refs() {
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
        stage.get_good();
        fs::write(stage.path("refs/main"), &damage).unwrap();
        stage.config.offline = true;
        let error = stage.get(MODEL).unwrap_err();
        assert!(error.to_string().contains("does not hold a commit"), "{error}");
        stage.config.offline = false;
        stage.get_good();
        assert_eq!(fs::read_to_string(stage.path("refs/main")).unwrap(), stage.hub.commit(REPO));
    }
    assert_eq!(commit.len(), 40);
}

#[test]
fn h24_one_content_in_two_revisions_and_repositories() {
    let stage = Stage::new();
    let first = stage.hub.commit(REPO);
    stage.get_good();
    let second = stage.hub.new_commit(REPO);
    stage.hub.add_file(REPO, MODEL, model());
    stage.hub.add_file(REPO, CONFIG, *b"{\"new\": 1}");
    // A branch stays at its commit, for all of its files, until a file is asked for that is not there.
    stage.get_good();
    let (result, events) = stage.get_at(&second, MODEL);
    assert!(result.unwrap().to_str().unwrap().contains(&second));
    assert!(!events.contains(&"start 0".to_string()), "{events:?}");
    assert_eq!((stage.blobs().len(), stage.hub.gets().len()), (1, 1));
    assert_eq!(fs::read(stage.get(CONFIG).unwrap()).unwrap(), b"{\"new\": 1}");
    let (result, _) = stage.get_at(&first, MODEL);
    assert!(result.unwrap().to_str().unwrap().contains(&first));

    stage.hub.add_file("timm/resnet0.TEST", MODEL, [model(), vec![1]].concat());
    let (repo, main) = RepoId::parse("timm/resnet0.TEST").unwrap();
    let path = Client::new(stage.config.clone()).unwrap().file(&repo, &main, MODEL, &mut |_| {}).unwrap();
    assert_eq!(fs::metadata(path).unwrap().len(), SIZE + 1);
    stage.get_good();
}

#[test]
fn h27_offline() {
    let mut stage = Stage::new();
    stage.config.offline = true;
    let (error, text) = stage.get_bad();
    assert!(matches!(error, HubError::Offline { .. }) && text.contains("HF_HUB_OFFLINE"), "{text}");
    assert!(text.contains("never downloaded"), "{text}");
    assert_eq!(stage.hub.connections(), 0);
    assert_eq!(fs::read_dir(stage.dir.path()).unwrap().count(), 0);
    stage.config.offline = false;
    stage.get_good();
    let connections = stage.hub.connections();
    stage.config.offline = true;
    stage.get_good();
    assert!(matches!(stage.get(CONFIG), Err(HubError::Offline { .. })));
    assert_eq!(stage.hub.connections(), connections);
}
