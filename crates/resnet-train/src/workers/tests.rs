use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use candle_core::{DType, Device};
use image::RgbImage;
use resnet_model::parameters::Initialization;
use resnet_model::{Arch, Meta, Parameters, Preprocess, safetensors};

use super::*;
use crate::augment::{Augment, Crop};
use crate::fit::{End, Report, fit_together};
use crate::random::Random;
use crate::{Begin, Config, Dataset, Event, Run};

/// A process of a test: channels to and from every worker, itself included.
struct Channels {
    rank: usize,
    to: Vec<Sender<Vec<u8>>>,
    from: Vec<Receiver<Vec<u8>>>,
    /// Messages of buckets, counted over the workers.
    buckets: Arc<Mutex<usize>>,
}

/// The wires of `count` workers.
fn wires(count: usize) -> (Vec<Channels>, Arc<Mutex<usize>>) {
    let buckets = Arc::new(Mutex::new(0));
    let mut to: Vec<Vec<Sender<Vec<u8>>>> = (0..count).map(|_| Vec::new()).collect();
    let mut all = Vec::new();
    for rank in 0..count {
        let from = (0..count)
            .map(|other: usize| {
                let (sender, receiver) = channel();
                to[other].push(sender);
                receiver
            })
            .collect();
        all.push(Channels { rank, to: Vec::new(), from, buckets: buckets.clone() });
    }
    all.iter_mut().zip(to).for_each(|(wire, to)| wire.to = to);
    (all, buckets)
}

impl Channels {
    /// Every worker's bytes, by rank.
    fn exchange(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
        self.to.iter().try_for_each(|to| to.send(bytes.to_vec())).map_err(|e| e.to_string())?;
        self.from.iter().map(|from| from.recv().map_err(|e| e.to_string())).collect()
    }

    fn sum<T: Copy + std::iter::Sum, const N: usize>(
        &mut self,
        values: &mut [T],
        write: fn(T) -> [u8; N],
        read: fn([u8; N]) -> T,
    ) -> Result<(), String> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| write(*value)).collect();
        let all = self.exchange(&bytes)?;
        for (index, value) in values.iter_mut().enumerate() {
            *value = all.iter().map(|bytes| read(bytes.as_chunks().0[index])).sum();
        }
        Ok(())
    }
}

impl Wire for Channels {
    fn rank(&self) -> usize {
        self.rank
    }

    fn count(&self) -> usize {
        self.from.len()
    }

    fn sum_f64(&mut self, values: &mut [f64]) -> Result<(), String> {
        self.sum(values, f64::to_le_bytes, f64::from_le_bytes)
    }

    fn sum_f32(&mut self, values: &mut [f32]) -> Result<(), String> {
        *self.buckets.lock().unwrap() += 1;
        self.sum(values, f32::to_le_bytes, f32::from_le_bytes)
    }

    fn share(&mut self, root: usize, bytes: &mut Vec<u8>) -> Result<(), String> {
        *bytes = self.exchange(bytes)?.swap_remove(root);
        Ok(())
    }
}

fn limits() -> Limits {
    Limits { timeout: Duration::from_secs(60), stop: Arc::new(AtomicBool::new(false)) }
}

/// What `work` gives on each of `count` workers.
fn together<T: Send>(count: usize, limits: &Limits, work: impl Fn(Joint) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let start = |(rank, wire)| {
            let (work, limits) = (&work, limits.clone());
            scope.spawn(move || work(Joint::new(Part { rank, count }, || Ok(wire), limits).unwrap()))
        };
        let threads: Vec<_> = wires(count).0.into_iter().enumerate().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn every_item_is_one_workers_and_stays_with_its_partner() {
    for (n, count) in [(8, 1), (8, 2), (12, 3), (7, 2), (3, 2), (2, 3), (0, 2)] {
        let items: Vec<usize> = (100..100 + n).collect();
        let parts: Vec<Vec<usize>> = (0..count).map(|rank| Part { rank, count }.of(&items)).collect();
        let mut all = parts.concat();
        all.sort_unstable();
        assert_eq!(all, items, "{n} of {count}");
        assert!(parts.iter().all(|part| part.len().abs_diff(n / count) <= 1), "{parts:?}");
        if n % (2 * count) == 0 {
            for part in &parts {
                let partners = part.iter().zip(part.iter().rev());
                partners.for_each(|(a, b)| assert_eq!(a - 100, n - 1 - (b - 100), "{parts:?}"));
            }
        }
    }
}

#[test]
fn buckets_hold_what_becomes_known_together() {
    let sums = together(3, &limits(), |team| {
        let scale = (team.rank() + 1) as f64;
        let tensor = |len: usize| Tensor::arange(0f32, len as f32, &Device::Cpu).unwrap();
        let variables = [5, 1, 3, 7].map(tensor);
        let mut buckets = Buckets { size: 6, ..Buckets::new(&team) };
        for variable in &variables {
            buckets.add(variable, (variable * scale).unwrap()).unwrap();
        }
        assert_eq!((buckets.sent.len(), buckets.values), (2, 0));
        let mut found = Vec::new();
        let mut take = |variable: &Tensor, sum: Tensor| {
            found.push((variable.elem_count(), sum.to_vec1::<f32>().unwrap()));
            Ok(())
        };
        buckets.finish(&mut take).unwrap();
        team.close(Duration::from_secs(10));
        found
    });
    for found in sums {
        let expected = |len: usize| (len, (0..len).map(|i| 6.0 * i as f32).collect::<Vec<_>>());
        assert_eq!(found, [5, 1, 3, 7].map(expected));
    }
}

/// The paper's network for small images, four channels wide.
fn arch() -> Arch {
    let json = r#"{"family":"resnet","stem":{"kind":"conv3","width":4},"stages":[
        {"block":"basic","depth":1,"width":4},{"block":"basic","depth":1,"width":8}],
        "shortcut":"projection","in_channels":3,"num_classes":2}"#;
    serde_json::from_str(json).unwrap()
}

fn dataset(count: usize) -> Arc<Dataset> {
    let images = (0..count).map(|i| {
        let mut random = Random::new(11, &[i as u64]);
        let level = |random: &mut Random| (random.below(90) + 80 * (i % 2)) as u8;
        let image = RgbImage::from_fn(12, 12, |_, _| {
            image::Rgb([level(&mut random), level(&mut random), level(&mut random)])
        });
        (Arc::new(image), i % 2)
    });
    Arc::new(Dataset::memory(vec!["dark".into(), "light".into()], images.collect(), 0.2, 1).unwrap())
}

fn config(batch_size: usize) -> Config {
    let augment = Augment { crop: Crop::Pad, pad: 1, mixup: 0.2, brightness: 0.2, ..Augment::none() };
    let mut config = Config { epochs: 2, batch_size, sync_bn: true, augment, ..Config::default() };
    config.schedule.rate = 0.05;
    config.ema = Some(0.9);
    config.clip = Some(1.0);
    config
}

struct Outcome {
    report: Result<Report, crate::Error>,
    losses: Vec<f64>,
}

fn train(folder: &Path, config: &Config, data: &Arc<Dataset>, begin: Begin, team: &dyn Team) -> Outcome {
    let mut preprocess = Preprocess::torchvision(12, 12);
    (preprocess.mean, preprocess.std) = (vec![0.5; 3], vec![0.25; 3]);
    let parameters = Parameters::new(&arch(), Initialization::default(), &Device::Cpu).unwrap();
    let (meta, stop) = (Meta::new(arch(), preprocess), AtomicBool::new(false));
    let (dataset, mut losses) = (data.clone(), Vec::new());
    let run = Run { config, dataset, parameters, meta, folder, begin, stop: &stop };
    let report = fit_together(run, team, &mut |event| {
        if let Event::Step { loss, .. } = event {
            losses.push(loss);
        }
    });
    Outcome { report, losses }
}

/// The tensors of the newest state in `folder`.
fn newest(folder: &Path) -> Vec<(String, Vec<f32>)> {
    let mut states: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    states.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with("state-"));
    states.sort();
    let contents = safetensors::open(states.last().unwrap()).unwrap();
    let floats = contents.tensors.into_iter().filter(|(_, tensor)| tensor.scalar().is_none());
    floats.map(|(name, tensor)| (name.clone(), tensor.to_f32(&name).unwrap())).collect()
}

/// Losses within 1e-5 and weights within 1e-4 of each other.
fn check_same(what: &str, found: (&[f64], &Path), expected: (&[f64], &Path)) {
    assert!(!expected.0.is_empty() && found.0.len() == expected.0.len(), "{what}: {found:?} {expected:?}");
    for (step, (a, b)) in found.0.iter().zip(expected.0).enumerate() {
        assert!((a - b).abs() < 1e-5, "{what}, step {step}: {a}, expected {b}");
    }
    for ((name, a), (other, b)) in newest(found.1).iter().zip(&newest(expected.1)) {
        assert_eq!((name, a.len()), (other, b.len()), "{what}");
        let apart = a.iter().zip(b).map(|(a, b)| (a - b).abs() / (1.0 + b.abs())).fold(0.0, f32::max);
        assert!(apart < 1e-4, "{what}: `{name}` differs by {apart}");
    }
}

/// Workers with `config` are one with as many times the images, in a run of its own.
fn check(what: &str, count: usize, config: &Config) {
    let data = dataset(41);
    let (one, many) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let large = Config { batch_size: config.batch_size * count, ..config.clone() };
    let expected = train(one.path(), &large, &data, Begin::New, &SingleProcess);
    let runs = together(count, &limits(), |team| {
        let run = train(many.path(), config, &data, Begin::New, &team);
        team.close(Duration::from_secs(10));
        run
    });
    let [records, all] = [&expected, &runs[0]].map(|run| run.report.as_ref().unwrap().records.clone());
    for run in &runs {
        check_same(what, (&run.losses, many.path()), (&expected.losses, one.path()));
        assert_eq!(run.report.as_ref().unwrap().end, End::Complete);
    }
    for (a, b) in all.iter().zip(&records) {
        assert_eq!(
            (a.step, a.train_top1, a.held_out_top1),
            (b.step, b.train_top1, b.held_out_top1),
            "{what}"
        );
        let apart = (a.held_out_loss.unwrap() - b.held_out_loss.unwrap()).abs();
        assert!(apart < 1e-5, "{what}: {apart}");
    }
}

#[test]
fn workers_are_one_with_a_larger_batch() {
    check("two, synchronised", 2, &config(4));
    check("three, synchronised", 3, &Config { ema: None, clip: None, ..config(2) });
    check("accumulated", 2, &Config { accumulate: 2, ..config(4) });
    check("frozen", 2, &Config { sync_bn: false, freeze_statistics: true, ..config(4) });
    check("head", 2, &Config { sync_bn: false, train: "head".into(), ..config(4) });
    // Fewer images than a batch, unevenly divided; nothing is mixed.
    check("uneven", 2, &Config { augment: Augment::none(), ..config(30) });
}

/// Each worker leaves out other parts, and unsynchronised statistics are averaged.
#[test]
fn workers_that_leave_out_parts_sum_their_gradients() {
    let data = dataset(41);
    for sync_bn in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { sync_bn, dropout: 0.1, drop_path: 0.2, ..config(4) };
        let runs = together(2, &limits(), |team| {
            let run = train(dir.path(), &config, &data, Begin::New, &team);
            team.close(Duration::from_secs(10));
            run.losses
        });
        assert!(runs[0].len() == 8 && runs[0] == runs[1], "{runs:?}");
        let tensors = newest(dir.path());
        assert!(tensors.iter().flat_map(|(_, values)| values).all(|value| value.is_finite()));
    }
}

/// A wire that breaks at the `left`-th message.
struct Dying {
    wire: Channels,
    left: usize,
    /// Whether it stays silent instead of saying so.
    silent: bool,
}

impl Dying {
    fn alive(&mut self) -> Result<(), String> {
        match self.left.checked_sub(1) {
            Some(left) => self.left = left,
            // For the test long enough, and then the thread ends.
            None if self.silent => std::thread::sleep(Duration::from_secs(5)),
            None => return Err("the cable was cut".into()),
        }
        Ok(())
    }
}

impl Wire for Dying {
    fn rank(&self) -> usize {
        self.wire.rank()
    }

    fn count(&self) -> usize {
        self.wire.count()
    }

    fn sum_f64(&mut self, values: &mut [f64]) -> Result<(), String> {
        self.alive()?;
        self.wire.sum_f64(values)
    }

    fn sum_f32(&mut self, values: &mut [f32]) -> Result<(), String> {
        self.alive()?;
        self.wire.sum_f32(values)
    }

    fn share(&mut self, root: usize, bytes: &mut Vec<u8>) -> Result<(), String> {
        self.alive()?;
        self.wire.share(root, bytes)
    }
}

/// Runs two workers of which one is lost in the middle; the other one's error, and how long it took.
fn lose(folder: &Path, data: &Arc<Dataset>, silent: bool, limits: &Limits) -> (String, Duration) {
    let wire = wires(2).0;
    let config = config(4);
    std::thread::scope(|scope| {
        let (config, begun) = (&config, Instant::now());
        let threads: Vec<_> = wire
            .into_iter()
            .enumerate()
            .map(|(rank, wire)| {
                let limits = limits.clone();
                scope.spawn(move || {
                    let part = Part { rank, count: 2 };
                    // The state's variables first, then some steps.
                    let left = if rank == 1 { 150 } else { usize::MAX };
                    let open = move || Ok(Dying { wire, left, silent });
                    let team = Joint::new(part, open, limits).unwrap();
                    train(folder, config, data, Begin::New, &team).report.unwrap_err().to_string()
                })
            })
            .collect();
        let errors: Vec<String> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        (errors[0].clone(), begun.elapsed())
    })
}

#[test]
fn a_lost_worker_ends_the_run_which_is_resumed_to_the_same_end() {
    let data = dataset(41);
    let whole = tempfile::tempdir().unwrap();
    let run = |folder: &Path, begin| {
        together(2, &limits(), |team| {
            let run = train(folder, &config(4), &data, begin, &team);
            team.close(Duration::from_secs(10));
            run.report.unwrap();
            run.losses.len()
        })
    };
    let steps = run(whole.path(), Begin::New)[0];
    let short = Limits { timeout: Duration::from_secs(1), ..limits() };
    for (silent, message) in
        [(false, "rank 0 of 2 lost its connection to the process group"), (true, "no answer within 1 s")]
    {
        let parts = tempfile::tempdir().unwrap();
        let (error, took) = lose(parts.path(), &data, silent, &short);
        assert!(error.contains(message) && took < Duration::from_secs(30), "{error} after {took:?}");
        let left = run(parts.path(), Begin::Resume)[0];
        assert!(0 < left && left < steps, "{left} of {steps} steps");
        assert_eq!(newest(parts.path()), newest(whole.path()));
    }
}

#[test]
fn a_worker_that_is_told_to_stop_does_not_wait() {
    let stop = Arc::new(AtomicBool::new(false));
    let limits = Limits { stop: stop.clone(), ..limits() };
    let mut wire = wires(2).0;
    let (_silent, first) = (wire.pop(), wire.remove(0));
    let team = Joint::new(Part { rank: 0, count: 2 }, move || Ok(first), limits).unwrap();
    let begun = Instant::now();
    stop.store(true, Ordering::Relaxed);
    let error = team.sum(&mut [1.0]).unwrap_err().to_string();
    assert!(
        error.contains("told to stop while waiting") && begun.elapsed() < Duration::from_secs(20),
        "{error}"
    );
    // Nothing more is asked of the wire.
    let bucket = Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
    assert!(team.begin(bucket).is_err());
}

#[test]
fn workers_that_differ_do_not_begin() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(41);
    let errors = together(2, &limits(), |team| {
        let config = Config { seed: team.rank() as u64, ..config(4) };
        let run = train(dir.path(), &config, &data, Begin::New, &team);
        team.close(Duration::from_secs(10));
        run.report.unwrap_err().to_string()
    });
    assert_eq!(errors[0], "another worker cannot go on and says why");
    assert!(errors[1].contains("worker 1 has other settings: config.seed: there 0, here 1"), "{errors:?}");
    let elsewhere = Part { rank: 1, count: 2 };
    let error = Joint::new(elsewhere, || Ok(wires(1).0.swap_remove(0)), limits()).unwrap_err().to_string();
    assert!(error.contains("the connection makes it worker 0 of 1"), "{error}");
    let check = |config: Config, message: &str| {
        let error = together(2, &limits(), |team| {
            let dir = tempfile::tempdir().unwrap();
            train(dir.path(), &config, &data, Begin::New, &team).report.unwrap_err().to_string()
        });
        assert!(error[0].contains(message), "{error:?}");
    };
    check(config(3), "setting `batch_size` is 3, expected even");
}
