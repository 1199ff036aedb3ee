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
use crate::fit::{End, Report, fit_distributed};
use crate::random::Random;
use crate::{Begin, Config, Dataset, Event, Run};

/// A transport over channels to and from every rank, including itself.
struct Channels {
    rank: usize,
    to: Vec<Sender<Vec<u8>>>,
    from: Vec<Receiver<Vec<u8>>>,
    /// Number of bucket messages of all ranks.
    buckets: Arc<Mutex<usize>>,
}

/// Creates the transports of `count` ranks.
fn transports(count: usize) -> (Vec<Channels>, Arc<Mutex<usize>>) {
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
    /// Returns the bytes of every rank.
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

impl Transport for Channels {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.from.len()
    }

    fn all_reduce_f64(&mut self, values: &mut [f64]) -> Result<(), String> {
        self.sum(values, f64::to_le_bytes, f64::from_le_bytes)
    }

    fn all_reduce_f32(&mut self, values: &mut [f32]) -> Result<(), String> {
        *self.buckets.lock().unwrap() += 1;
        self.sum(values, f32::to_le_bytes, f32::from_le_bytes)
    }

    fn broadcast(&mut self, root: usize, bytes: &mut Vec<u8>) -> Result<(), String> {
        *bytes = self.exchange(bytes)?.swap_remove(root);
        Ok(())
    }
}

fn limits() -> Limits {
    Limits { timeout: Duration::from_secs(60), stop: Arc::new(AtomicBool::new(false)) }
}

/// Runs `work` on each of `count` ranks; returns the results.
fn together<T: Send>(count: usize, limits: &Limits, work: impl Fn(TransportGroup) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let start = |(rank, wire)| {
            let (work, limits) = (&work, limits.clone());
            scope.spawn(move || work(TransportGroup::new(rank, count, || Ok(wire), limits).unwrap()))
        };
        let threads: Vec<_> = transports(count).0.into_iter().enumerate().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn shards_cover_a_batch_and_keep_mixup_partners() {
    for (n, count) in [(8, 1), (8, 2), (12, 3), (7, 2), (3, 2), (2, 3), (0, 2)] {
        let items: Vec<usize> = (100..100 + n).collect();
        let parts: Vec<Vec<usize>> =
            (0..count).map(|rank| Shard { rank, world_size: count }.select(&items)).collect();
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
fn buckets_sum_gradients_over_ranks() {
    let sums = together(3, &limits(), |group| {
        let scale = (group.rank() + 1) as f64;
        let tensor = |len: usize| Tensor::arange(0f32, len as f32, &Device::Cpu).unwrap();
        let variables = [5, 1, 3, 7].map(tensor);
        let mut buckets = Buckets { size: 6, ..Buckets::new(&group) };
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
        group.shutdown(Duration::from_secs(10));
        found
    });
    for found in sums {
        let expected = |len: usize| (len, (0..len).map(|i| 6.0 * i as f32).collect::<Vec<_>>());
        assert_eq!(found, [5, 1, 3, 7].map(expected));
    }
}

/// A CIFAR ResNet with four channels.
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
    Arc::new(Dataset::from_images(vec!["dark".into(), "light".into()], images.collect(), 0.2, 1).unwrap())
}

fn config(batch_size: usize) -> Config {
    let augment = Augment { crop: Crop::Pad, pad: 1, mixup: 0.2, brightness: 0.2, ..Augment::none() };
    let mut config = Config { epochs: 2, batch_size, sync_bn: true, augment, ..Config::default() };
    config.schedule.lr = Some(0.05);
    config.ema_decay = Some(0.9);
    config.clip_grad = Some(1.0);
    config
}

struct Outcome {
    report: Result<Report, crate::Error>,
    losses: Vec<f64>,
}

fn train(
    folder: &Path,
    config: &Config,
    data: &Arc<Dataset>,
    begin: Begin,
    group: &dyn Communicator,
) -> Outcome {
    let mut preprocess = Preprocess::torchvision(12, 12);
    (preprocess.mean, preprocess.std) = (vec![0.5; 3], vec![0.25; 3]);
    let parameters = Parameters::new(&arch(), Initialization::default(), &Device::Cpu).unwrap();
    let (meta, stop) = (Meta::new(arch(), preprocess), AtomicBool::new(false));
    let (dataset, mut losses) = (data.clone(), Vec::new());
    let run = Run { config, dataset, parameters, meta, folder, begin, stop: &stop };
    let report = fit_distributed(run, group, &mut |event| {
        if let Event::Step { loss, .. } = event {
            losses.push(loss);
        }
    });
    Outcome { report, losses }
}

/// Returns the tensors of the newest state in `folder`.
fn newest(folder: &Path) -> Vec<(String, Vec<f32>)> {
    let mut states: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    states.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with("state-"));
    states.sort();
    let contents = safetensors::open(states.last().unwrap()).unwrap();
    let floats = contents.tensors.into_iter().filter(|(_, tensor)| tensor.scalar().is_none());
    floats.map(|(name, tensor)| (name.clone(), tensor.to_f32(&name).unwrap())).collect()
}

/// Asserts losses within 1e-5 and weights within 1e-4.
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

/// Asserts that `count` ranks with `config` equal a single process with the total batch size.
fn check(what: &str, count: usize, config: &Config) {
    let data = dataset(41);
    let (one, many) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let large = Config { batch_size: config.batch_size * count, ..config.clone() };
    let expected = train(one.path(), &large, &data, Begin::New, &SingleProcess);
    let runs = together(count, &limits(), |group| {
        let run = train(many.path(), config, &data, Begin::New, &group);
        group.shutdown(Duration::from_secs(10));
        run
    });
    let [records, all] = [&expected, &runs[0]].map(|run| run.report.as_ref().unwrap().records.clone());
    for run in &runs {
        check_same(what, (&run.losses, many.path()), (&expected.losses, one.path()));
        assert_eq!(run.report.as_ref().unwrap().end, End::Complete);
    }
    for (a, b) in all.iter().zip(&records) {
        assert_eq!((a.step, a.train_top1, a.val_top1), (b.step, b.train_top1, b.val_top1), "{what}");
        let apart = (a.val_loss.unwrap() - b.val_loss.unwrap()).abs();
        assert!(apart < 1e-5, "{what}: {apart}");
    }
}

#[test]
fn several_ranks_equal_one_process_with_the_total_batch_size() {
    check("two, synchronized", 2, &config(4));
    check("three, synchronized", 3, &Config { ema_decay: None, clip_grad: None, ..config(2) });
    check("accumulated", 2, &Config { grad_accum_steps: 2, ..config(4) });
    check("frozen", 2, &Config { sync_bn: false, freeze_bn: true, ..config(4) });
    check("head", 2, &Config { sync_bn: false, train: "head".into(), ..config(4) });
    // Fewer images than a batch, unevenly divided.
    check("uneven", 2, &Config { augment: Augment::none(), ..config(30) });
}

/// Each rank drops other features, and unsynchronized statistics are averaged.
#[test]
fn ranks_with_dropout_stay_in_step() {
    let data = dataset(41);
    for sync_bn in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { sync_bn, dropout: 0.1, drop_path: 0.2, ..config(4) };
        let runs = together(2, &limits(), |group| {
            let run = train(dir.path(), &config, &data, Begin::New, &group);
            group.shutdown(Duration::from_secs(10));
            run.losses
        });
        assert!(runs[0].len() == 8 && runs[0] == runs[1], "{runs:?}");
        let tensors = newest(dir.path());
        assert!(tensors.iter().flat_map(|(_, values)| values).all(|value| value.is_finite()));
    }
}

/// A transport that fails at message `left`.
struct Dying {
    transport: Channels,
    left: usize,
    /// Blocks instead of returning an error.
    silent: bool,
}

impl Dying {
    fn count_down(&mut self) -> Result<(), String> {
        match self.left.checked_sub(1) {
            Some(left) => self.left = left,
            // Longer than the timeout of the test.
            None if self.silent => std::thread::sleep(Duration::from_secs(5)),
            None => return Err("the cable was cut".into()),
        }
        Ok(())
    }
}

impl Transport for Dying {
    fn rank(&self) -> usize {
        self.transport.rank()
    }

    fn world_size(&self) -> usize {
        self.transport.world_size()
    }

    fn all_reduce_f64(&mut self, values: &mut [f64]) -> Result<(), String> {
        self.count_down()?;
        self.transport.all_reduce_f64(values)
    }

    fn all_reduce_f32(&mut self, values: &mut [f32]) -> Result<(), String> {
        self.count_down()?;
        self.transport.all_reduce_f32(values)
    }

    fn broadcast(&mut self, root: usize, bytes: &mut Vec<u8>) -> Result<(), String> {
        self.count_down()?;
        self.transport.broadcast(root, bytes)
    }
}

/// Runs two ranks of which one is lost; returns the other one's error and the time taken.
fn lose(folder: &Path, data: &Arc<Dataset>, silent: bool, limits: &Limits) -> (String, Duration) {
    let wire = transports(2).0;
    let config = config(4);
    std::thread::scope(|scope| {
        let (config, begun) = (&config, Instant::now());
        let threads: Vec<_> = wire
            .into_iter()
            .enumerate()
            .map(|(rank, wire)| {
                let limits = limits.clone();
                scope.spawn(move || {
                    // The state's variables first, then some steps.
                    let left = if rank == 1 { 150 } else { usize::MAX };
                    let open = move || Ok(Dying { transport: wire, left, silent });
                    let group = TransportGroup::new(rank, 2, open, limits).unwrap();
                    train(folder, config, data, Begin::New, &group).report.unwrap_err().to_string()
                })
            })
            .collect();
        let errors: Vec<String> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        (errors[0].clone(), begun.elapsed())
    })
}

#[test]
fn a_run_that_lost_a_rank_is_resumed_to_the_same_result() {
    let data = dataset(41);
    let whole = tempfile::tempdir().unwrap();
    let run = |folder: &Path, begin| {
        together(2, &limits(), |group| {
            let run = train(folder, &config(4), &data, begin, &group);
            group.shutdown(Duration::from_secs(10));
            run.report.unwrap();
            run.losses.len()
        })
    };
    let steps = run(whole.path(), Begin::New)[0];
    let short = Limits { timeout: Duration::from_secs(1), ..limits() };
    for (silent, message) in
        [(false, "rank 0 of 2: lost connection to the process group"), (true, "no answer within 1 s")]
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
fn a_stop_request_ends_a_wait() {
    let stop = Arc::new(AtomicBool::new(false));
    let limits = Limits { stop: stop.clone(), ..limits() };
    let mut wire = transports(2).0;
    let (_silent, first) = (wire.pop(), wire.remove(0));
    let group = TransportGroup::new(0, 2, move || Ok(first), limits).unwrap();
    let begun = Instant::now();
    stop.store(true, Ordering::Relaxed);
    let error = group.all_reduce(&mut [1.0]).unwrap_err().to_string();
    assert!(error.contains("stopped while waiting") && begun.elapsed() < Duration::from_secs(20), "{error}");
    // The transport is not used any more.
    let bucket = Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
    assert!(group.all_reduce_async(bucket).is_err());
}

#[test]
fn ranks_with_different_settings_do_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(41);
    let errors = together(2, &limits(), |group| {
        let config = Config { seed: group.rank() as u64, ..config(4) };
        let run = train(dir.path(), &config, &data, Begin::New, &group);
        group.shutdown(Duration::from_secs(10));
        run.report.unwrap_err().to_string()
    });
    assert_eq!(errors[0], "another rank failed and reports the error");
    assert!(
        errors[1].contains("rank 1 has other settings than rank 0: config.seed: 0 in the run, 1 now"),
        "{errors:?}"
    );
    let error =
        TransportGroup::new(1, 2, || Ok(transports(1).0.swap_remove(0)), limits()).unwrap_err().to_string();
    assert!(error.contains("the transport reports rank 0 of 1"), "{error}");
    let check = |config: Config, message: &str| {
        let error = together(2, &limits(), |group| {
            let dir = tempfile::tempdir().unwrap();
            train(dir.path(), &config, &data, Begin::New, &group).report.unwrap_err().to_string()
        });
        assert!(error[0].contains(message), "{error:?}");
    };
    check(config(3), "setting `batch_size` is 3, expected an even number");
}
