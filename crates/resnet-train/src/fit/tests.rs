use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use super::*;
use candle_core::Device;
use image::RgbImage;
use resnet_model::parameters::Initialization;
use resnet_model::{Arch, Checkpoint, Classifier, Preprocess};

use crate::augment::{Augment, Crop};
use crate::random::Random;

/// A CIFAR ResNet with four channels.
fn arch(classes: usize) -> Arch {
    let json = r#"{"family":"resnet","stem":{"kind":"conv3","width":4},"stages":[
        {"block":"basic","depth":1,"width":4},{"block":"basic","depth":1,"width":8}],
        "shortcut":"projection","in_channels":3,"num_classes":2}"#;
    serde_json::from_str::<Arch>(json).unwrap().with_classes(classes)
}

fn meta(classes: usize) -> Meta {
    let mut preprocess = Preprocess::torchvision(12, 12);
    preprocess.mean = vec![0.5; 3];
    preprocess.std = vec![0.25; 3];
    Meta::new(arch(classes), preprocess)
}

/// Noise, with a bright square in one of two corners.
fn dataset(count: usize, val_fraction: f64) -> Arc<Dataset> {
    let images = (0..count).map(|i| {
        let mut random = Random::new(11, &[i as u64]);
        let class = i % 2;
        let image = RgbImage::from_fn(12, 12, |x, y| {
            let inside = if class == 0 { x < 5 && y < 5 } else { x > 6 && y > 6 };
            let level = random.below(120) as u8 + if inside { 120 } else { 0 };
            image::Rgb([level, level / 2, 255 - level])
        });
        (Arc::new(image), class)
    });
    Arc::new(
        Dataset::from_images(vec!["left".into(), "right".into()], images.collect(), val_fraction, 1).unwrap(),
    )
}

fn config() -> Config {
    let mut config = Config {
        epochs: 3,
        batch_size: 4,
        ema_decay: Some(0.9),
        clip_grad: Some(5.0),
        val_fraction: 0.25,
        dropout: 0.1,
        drop_path: 0.2,
        augment: Augment { crop: Crop::Pad, pad: 1, mixup: 0.2, brightness: 0.2, ..Augment::none() },
        ..Config::default()
    };
    config.schedule.lr = Some(0.05);
    config
}

struct Outcome {
    report: Report,
    events: Vec<Event>,
}

/// Runs; requests a stop after `stop_after` steps.
fn run(
    folder: &Path,
    config: &Config,
    data: &Arc<Dataset>,
    begin: Begin,
    stop_after: Option<u64>,
) -> Result<Outcome> {
    let start = Initialization { seed: config.seed, ..Initialization::default() };
    let parameters = Parameters::new(&arch(2), start, &Device::Cpu)?;
    let stop = AtomicBool::new(false);
    let mut events = Vec::new();
    let run = Run { config, dataset: data.clone(), parameters, meta: meta(2), folder, begin, stop: &stop };
    let report = fit(run, &mut |event| {
        if let Event::Step { step, .. } = event
            && Some(step) == stop_after
        {
            stop.store(true, Ordering::Relaxed);
        }
        events.push(event);
    })?;
    Ok(Outcome { report, events })
}

fn newest(folder: &Path) -> Vec<u8> {
    let folder = Folder::open(folder).unwrap();
    std::fs::read(&folder.states().unwrap()[0].1).unwrap()
}

#[test]
fn eight_images_are_memorized() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config { epochs: 150, batch_size: 8, augment: Augment::none(), ..config() };
    (config.ema_decay, config.dropout, config.drop_path) = (None, 0.0, 0.0);
    let outcome = run(dir.path(), &config, &dataset(8, 0.0), Begin::New, None).unwrap();
    let last = outcome.report.records.last().unwrap();
    assert!(last.train_top1 == 1.0 && last.loss < 0.05, "{last:?}");
    assert_eq!((outcome.report.end, outcome.report.records.len()), (End::Complete, 150));
    let checkpoint = Checkpoint::open(&outcome.report.checkpoint.unwrap()).unwrap();
    assert_eq!(checkpoint.meta().labels, Labels::Names(vec!["left".into(), "right".into()]));
    assert!(dir.path().join(CURVES).exists());
}

#[test]
fn a_resumed_run_equals_an_uninterrupted_one() {
    let data = dataset(24, 0.25);
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let expected = run(whole.path(), &config(), &data, Begin::New, None).unwrap();
    // 18 images make four batches; stopped in the second epoch, then at its end.
    let first = run(parts.path(), &config(), &data, Begin::New, Some(6)).unwrap();
    assert_eq!((first.report.end, first.report.records.len()), (End::Stopped, 1));
    let second = run(parts.path(), &config(), &data, Begin::Resume, Some(8)).unwrap();
    assert_eq!(
        second.events[0],
        Event::Started { train: 18, val: 6, classes: 2, steps: 12, lr: 0.05, resumed: Some(6) }
    );
    let third = run(parts.path(), &config(), &data, Begin::Resume, None).unwrap();
    assert_eq!(third.report.records, expected.report.records);
    assert_eq!(newest(parts.path()), newest(whole.path()));
    let model = |folder: &Path| std::fs::read(folder.join(MODEL)).unwrap();
    assert_eq!(model(parts.path()), model(whole.path()));
    // A complete run has nothing left to do.
    let again = run(parts.path(), &config(), &data, Begin::Resume, None).unwrap();
    assert_eq!((again.report.end, again.events.len()), (End::Complete, 1));
}

#[test]
fn runs_do_not_depend_on_threads() {
    let data = dataset(16, 0.25);
    let on = |threads: usize| {
        let dir = tempfile::tempdir().unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(dir.path(), &config(), &data, Begin::New, None)).unwrap();
        newest(dir.path())
    };
    assert_eq!(on(1), on(3));
}

#[test]
fn runs_with_other_settings_are_not_resumed() {
    let data = dataset(16, 0.25);
    let dir = tempfile::tempdir().unwrap();
    let message = |config: &Config, data: &Arc<Dataset>, begin| {
        run(dir.path(), config, data, begin, None).err().unwrap().to_string()
    };
    assert!(message(&config(), &data, Begin::Resume).contains("contains no state to resume from"));
    run(dir.path(), &config(), &data, Begin::New, Some(2)).unwrap();
    assert!(message(&config(), &data, Begin::New).contains("already contains a run"));
    let other = Config { epochs: 9, clip_grad: None, ..config() };
    let error = message(&other, &data, Begin::Resume);
    assert!(
        error.contains("config.epochs: 3 in the run, 9 now; config.clip_grad: 5.0 in the run, null now"),
        "{error}"
    );
    assert!(message(&config(), &dataset(20, 0.25), Begin::Resume).contains("images: "));
    let _locked = Folder::open(dir.path()).unwrap();
    assert!(message(&config(), &data, Begin::Resume).contains("another process is training"));
}

#[test]
fn divergence_ends_a_run_and_keeps_the_last_good_state() {
    let data = dataset(16, 0.25);
    let dir = tempfile::tempdir().unwrap();
    let mut wild = Config { clip_grad: None, ema_decay: None, save_every: Some(1), ..config() };
    wild.schedule.lr = Some(1e30);
    wild.schedule.warmup = 0.0;
    let error = run(dir.path(), &wild, &data, Begin::New, None).err().unwrap();
    assert!(matches!(error, Error::Diverged { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("diverged at step") && text.contains("at a learning rate of"), "{error}");
    let folder = Folder::open(dir.path()).unwrap();
    for (_, path) in folder.states().unwrap() {
        let contents = resnet_model::safetensors::open(&path).unwrap();
        for (name, tensor) in contents.tensors {
            if tensor.scalar().is_none() && name.starts_with("model/") {
                assert!(tensor.to_f32(&name).unwrap().iter().all(|v| v.is_finite()), "{name}");
            }
        }
    }
    assert!(!dir.path().join(MODEL).exists());
}

/// Weight decay that overshoots 0 ever further as the learning rate rises: some good epochs, then NaN, found within an
/// epoch by the loss, or at its end by the parameters.
#[test]
fn divergence_after_good_epochs_keeps_their_network_and_state() {
    let data = dataset(16, 0.25);
    for (batch_size, keep) in [(4, Keep::Best), (16, Keep::Last)] {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join(MODEL);
        let mut wild = Config { epochs: 60, batch_size, keep, clip_grad: None, ema_decay: None, ..config() };
        (wild.optimizer.momentum, wild.optimizer.weight_decay) = (0.0, 30.0);
        (wild.schedule.lr, wild.schedule.warmup) = (Some(0.02 * 60.0), 1.0);
        let whole = Parameters::new(&arch(2), Initialization::default(), &Device::Cpu).unwrap();
        let stop = AtomicBool::new(false);
        let (steps, written) = (Cell::new(0), RefCell::new(BTreeMap::new()));
        let train = |begin| {
            let (config, dataset, parameters) = (&wild, data.clone(), whole.copy().unwrap());
            let run =
                Run { config, dataset, parameters, meta: meta(2), folder: dir.path(), begin, stop: &stop };
            fit(run, &mut |event| match event {
                Event::Step { step, .. } => steps.set(step),
                Event::Best { path } | Event::Saved { path } => {
                    let bytes = std::fs::read(&path).unwrap();
                    written.borrow_mut().insert(path, bytes);
                }
                _ => {}
            })
            .unwrap_err()
        };
        let error = train(Begin::New);
        let text = error.to_string();
        let Error::Diverged { step, lr, value, .. } = error else { panic!("{text}") };
        // Found in the next step, or after the last one of the epoch.
        assert!((step == steps.get() || batch_size == 16) && !value.is_finite(), "{text} after {steps:?}");
        assert!(text.contains(&format!("at step {step}")) && text.contains(&format!("{lr:e}")), "{text}");
        let check_kept = || {
            let written = written.borrow();
            let states = Folder::open(dir.path()).unwrap().states().unwrap();
            assert!(states.len() == 2 && states[0].0 <= step, "{states:?}");
            for path in states.iter().map(|(_, path)| path).chain([&model]) {
                assert!(std::fs::read(path).unwrap() == written[path], "`{}` changed", path.display());
            }
        };
        check_kept();
        let checkpoint = Checkpoint::open(&model).unwrap();
        assert!(checkpoint.meta().metrics["epoch"] >= 1.0, "{:?}", checkpoint.meta());
        let image = RgbImage::from_pixel(12, 12, image::Rgb([90, 45, 200]));
        let classifier = Classifier::new(&checkpoint, &Device::Cpu).unwrap();
        let answers = classifier.classify(&[image], 2).unwrap();
        assert!(answers[0].iter().all(|answer| answer.score.is_finite()), "{answers:?}");
        // Resuming from the state diverges in the same step.
        assert_eq!(train(Begin::Resume).to_string(), text);
        check_kept();
    }
}

#[test]
fn accumulated_batches_are_one_step() {
    let data = dataset(16, 0.0);
    let steps = |config: &Config| {
        let dir = tempfile::tempdir().unwrap();
        let outcome = run(dir.path(), config, &data, Begin::New, None).unwrap();
        outcome.events.iter().filter(|e| matches!(e, Event::Step { images: 8, .. })).count()
    };
    assert_eq!(steps(&Config { grad_accum_steps: 2, ..config() }), 6);
    let dir = tempfile::tempdir().unwrap();
    let error =
        run(dir.path(), &Config { grad_accum_steps: 9, ..config() }, &data, Begin::New, None).err().unwrap();
    assert!(error.to_string().contains("setting `grad_accum_steps` is 9"), "{error}");
}

#[test]
fn fewer_images_than_a_batch_make_one_batch() {
    let dir = tempfile::tempdir().unwrap();
    let large = Config { batch_size: 64, ..config() };
    let outcome = run(dir.path(), &large, &dataset(6, 0.0), Begin::New, None).unwrap();
    let steps: Vec<&Event> = outcome.events.iter().filter(|e| matches!(e, Event::Step { .. })).collect();
    assert_eq!(steps.len(), 3);
    assert!(steps.iter().all(|e| matches!(e, Event::Step { images: 6, .. })), "{steps:?}");
}

#[test]
fn keep_last_keeps_the_last_network() {
    let data = dataset(16, 0.25);
    // A learning rate so high that later epochs are worse.
    let mut wild = Config { epochs: 4, ema_decay: None, ..config() };
    wild.schedule.lr = Some(3.0);
    let kept = |keep: Keep| {
        let dir = tempfile::tempdir().unwrap();
        let outcome = run(dir.path(), &Config { keep, ..wild.clone() }, &data, Begin::New, None).unwrap();
        let meta = Checkpoint::open(&dir.path().join(MODEL)).unwrap().meta().clone();
        let top1 = |r: &EpochMetrics| r.val_top1.unwrap();
        let all: Vec<f64> = outcome.report.records.iter().map(top1).collect();
        (meta.metrics["epoch"] as usize, all)
    };
    let (best, top1) = kept(Keep::Best);
    assert_eq!(top1[best - 1], top1.iter().copied().fold(0.0, f64::max));
    assert!(best < 4, "nothing became worse: {top1:?}");
    assert_eq!(kept(Keep::Last), (4, top1));
}

#[test]
fn patience_ends_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let mut idle = Config { epochs: 50, patience: Some(2), ema_decay: None, ..config() };
    // A learning rate so small that nothing changes.
    idle.schedule.lr = Some(1e-30);
    idle.freeze_bn = true;
    let outcome = run(dir.path(), &idle, &dataset(16, 0.25), Begin::New, None).unwrap();
    assert_eq!((outcome.report.end, outcome.report.records.len()), (End::EarlyStopping, 3));
}

#[test]
fn unreadable_images_are_counted_up_to_a_limit() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..12 {
        let path = dir.path().join(format!("data/{}/{i}.png", i % 2));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        match i {
            3 => std::fs::write(&path, b"broken").unwrap(),
            _ => RgbImage::from_pixel(12, 12, image::Rgb([i * 20; 3])).save(&path).unwrap(),
        }
    }
    let data = Arc::new(Dataset::from_folder(&dir.path().join("data"), 0.0, 1).unwrap());
    let out = dir.path().join("run");
    let lenient = Config { max_unreadable: 0.1, ..config() };
    let outcome = run(&out, &lenient, &data, Begin::New, None).unwrap();
    let skipped =
        outcome.events.iter().filter(|e| matches!(e, Event::Skipped { why } if why.contains("3.png")));
    assert_eq!(skipped.count(), 3);
    let strict = Config { max_unreadable: 0.0, ..config() };
    let error = run(&dir.path().join("other"), &strict, &data, Begin::New, None).err().unwrap();
    assert!(error.to_string().contains("1 images cannot be read, more than the 0 allowed"), "{error}");
}

#[test]
fn unreadable_validation_images_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    for split in ["train", "val"] {
        for i in 0..8 {
            let path = dir.path().join(format!("data/{split}/{}/{i}.png", i % 2));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            match (split, i) {
                ("val", 3) => std::fs::write(&path, b"broken").unwrap(),
                _ => RgbImage::from_pixel(12, 12, image::Rgb([i * 20; 3])).save(&path).unwrap(),
            }
        }
    }
    let data = Arc::new(Dataset::from_folder(&dir.path().join("data"), 0.0, 1).unwrap());
    let lenient = Config { max_unreadable: 0.1, ..config() };
    let outcome = run(&dir.path().join("run"), &lenient, &data, Begin::New, None).unwrap();
    let skipped = |e: &&Event| matches!(e, Event::Skipped { why } if why.contains("3.png"));
    assert_eq!(outcome.events.iter().filter(skipped).count(), 3);
    let strict = Config { max_unreadable: 0.0, ..config() };
    let error = run(&dir.path().join("other"), &strict, &data, Begin::New, None).err().unwrap();
    assert!(matches!(error, Error::Unreadable { found: 1, limit: 0, .. }), "{error}");
}

#[test]
fn sync_bn_is_checked_before_the_run_starts() {
    let (data, shard) = (dataset(16, 0.25), Shard { rank: 0, world_size: 2 });
    let sync = Config { sync_bn: true, ..config() };
    assert!(distributed::check(&sync, &data, shard, true).is_ok());
    let error = distributed::check(&sync, &data, shard, false).unwrap_err().to_string();
    assert!(error.contains("setting `sync_bn` is true, expected false"), "{error}");
}
