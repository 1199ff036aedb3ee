//! From a file to a checkpoint, and to a file that describes itself.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use resnet_model::arch::{Arch, Clip, ClipHead, ResNet, ResNetV2, Stem, StemV2};
use resnet_model::file::Existing;
use resnet_model::meta::{KEY, Origin};
use resnet_model::param_specs::{self, Role};
use resnet_model::preprocess::{Channels, Filter, Resize};
use resnet_model::{Checkpoint, Labels, Meta, Preprocess, RawTensor, escape};

use crate::cast::{self, Float};
use crate::dialect::{self, Translation, structure};
use crate::error::{Code, Error, Fault, Result};
use crate::identify::{self, NameHint, Shapes};
use crate::non_finite::NonFiniteCounter;
use crate::onnx;
use crate::reconcile;
use crate::report::{Cast, Dropped, Identified, IdentifiedBy, Report, plural};
use crate::source::{self, StateDict};
use crate::write::{self, OutputFormat};

/// What is known about a file beyond its bytes, and what is wanted.
#[derive(Debug, Clone, Default)]
pub struct ConvertOptions {
    /// The architecture to insist on, instead of finding it from the shapes. The numbers of classes and input channels
    /// are always the file's.
    pub arch: Option<Arch>,
    /// What those who publish the weights call the architecture, e.g. `architecture` in timm's `config.json`. It decides
    /// between architectures that have the same tensors; it is no reason to doubt the tensors.
    pub name: Option<String>,
    /// What the outputs mean. By default 1000 classes are ImageNet's and others have no names.
    pub labels: Option<Labels>,
    /// How images are prepared. By default as torchvision does, unless the dialect is known to differ.
    pub preprocess: Option<Preprocess>,
    /// The type to cast floating-point tensors to. By default every tensor keeps its bytes.
    pub dtype: Option<Float>,
    /// Leave out tensors beside the network that nothing is known about, instead of failing.
    pub partial: bool,
    /// How ONNX is written, if it is.
    pub onnx: onnx::Export,
}

/// One conversion.
#[derive(Debug, Clone, Copy)]
pub struct Conversion<'a> {
    /// The file to read.
    pub input: &'a Path,
    /// The file to write: ONNX if its name ends in `.onnx`, PyTorch's if it ends in `.pth`, `.pt` or `.bin`, safetensors if
    /// it ends in `.safetensors` or has no ending; other endings are refused.
    pub output: &'a Path,
    /// What to do if there is one already.
    pub existing: Existing,
    /// How to understand the input.
    pub options: &'a ConvertOptions,
}

/// How far a conversion is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of tensors written.
    pub done: u64,
    /// Bytes of tensors in all.
    pub total: u64,
}

/// Opens any file that is understood. Tensors are read when they are asked for, and checked then.
pub fn open(path: &Path, options: &ConvertOptions) -> Result<(Checkpoint, Report)> {
    build_checkpoint(source::read(path)?, path, options)
}

/// [`open`] for what [`source::read`] gave of the file at `path`.
pub fn build_checkpoint(
    state: StateDict,
    path: &Path,
    options: &ConvertOptions,
) -> Result<(Checkpoint, Report)> {
    assemble(state, path, options, None)
}

/// Converts a file: reads it, finds out what it is, and writes it whole or not at all.
pub fn convert(job: Conversion, progress: &mut dyn FnMut(Progress)) -> Result<Report> {
    let same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
    let format = OutputFormat::of(job.output).ok_or_else(|| Error::Extension(job.output.to_owned()))?;
    if format != OutputFormat::Onnx && job.options.onnx != onnx::Export::default() {
        return Err(Error::OnlyOnnx(job.output.to_owned()));
    }
    let watch = Arc::new(NonFiniteCounter::default());
    let (checkpoint, mut report) = assemble(source::read(job.input)?, job.input, job.options, Some(&watch))?;
    if same(job.input, job.output) {
        return Err(Error::SameFile(job.input.to_owned()));
    }
    let total = checkpoint.byte_len();
    let mut done = 0u64;
    let mut written = |bytes: u64| {
        // Another format may take more or fewer of them.
        done = done.saturating_add(bytes).min(total);
        progress(Progress { done, total });
    };
    let below = |e| Error::from_model(e, job.input);
    match format {
        OutputFormat::Onnx => onnx::write(&checkpoint, &job, &mut written)?,
        OutputFormat::Torch => {
            write::torch::write(&checkpoint, job.output, job.existing, &mut written).map_err(below)?;
        }
        OutputFormat::Safetensors => {
            checkpoint.save(job.output, job.existing, &mut written).map_err(below)?
        }
    }
    report.non_finite = watch.seen();
    report.output = Some(job.output.display().to_string());
    Ok(report)
}

fn assemble(
    mut state: StateDict,
    path: &Path,
    options: &ConvertOptions,
    watch: Option<&Arc<NonFiniteCounter>>,
) -> Result<(Checkpoint, Report)> {
    let own = state.metadata.get(KEY).map(|json| Meta::from_json(json)).transpose();
    let mut own = own.map_err(|e| Error::from_model(e, path))?;
    let mut found = match state.graph.take() {
        Some(graph) => Some(match_graph(*graph, &state, path, options)?),
        None => None,
    };
    let (mut names, known) = match (&own, &mut found) {
        (_, Some(found)) => {
            own = found.meta.take();
            let (by, evidence) = match options.arch {
                Some(_) => (IdentifiedBy::Specified, INSISTED),
                None => (IdentifiedBy::Graph, "every node of the graph"),
            };
            let identified = Identified { by, evidence: evidence.into(), ..Identified::default() };
            (Translation::graph(found), Some((found.arch.clone(), identified)))
        }
        (Some(_), None) => (Translation::identity(&state.tensors), None),
        (None, None) => translate(&state, path, options)?,
    };
    if !names.leftover.is_empty() {
        if !options.partial {
            return Err(Error::Leftover { path: path.to_owned(), names: names.leftover });
        }
        let reason = "beside the network";
        names.dropped.extend(names.leftover.drain(..).map(|name| Dropped { name, reason: reason.into() }));
    }
    if let Some((name, kind)) = state.unsupported.iter().find(|(n, _)| n.starts_with(&names.root)) {
        let fault = Fault::new(Code::Unsupported, format!("`{}` is {kind}, which is not read", escape(name)));
        return Err(Error::Fault { path: path.to_owned(), fault: Box::new(fault) });
    }
    let (mut meta, identified) = match own {
        Some(meta) => (meta, described()),
        None => {
            let given = Given { state: &state, path, options };
            let prelude = found.as_ref().and_then(|found| found.prelude.as_ref());
            describe(given, &mut names, known, prelude)?
        }
    };
    if let Some(preprocess) = &options.preprocess {
        preprocess.validate()?;
        meta.preprocess = preprocess.clone();
    }
    if let Some(labels) = &options.labels {
        meta.labels = labels.clone();
    }
    check_labels(&meta)?;
    check_types(&meta, &names.tensors, path)?;
    let cast = options.dtype.map(|to| Cast { to, tensors: cast_all(&mut names.tensors, to) });
    if let Some(watch) = watch {
        names.tensors.iter_mut().for_each(|(name, tensor)| *tensor = watch.over(name, tensor));
    }
    let checkpoint = Checkpoint::new(meta, names.tensors).map_err(|e| Error::from_model(e, path))?;
    let mut report = Report {
        file: path.display().to_string(),
        output: None,
        model: checkpoint.meta().arch.to_string(),
        arch: checkpoint.meta().arch.clone(),
        identified,
        parameters: param_specs::count(checkpoint.graph()),
        classes: checkpoint.meta().arch.classes(),
        container: state.container,
        dialect: names.dialect.into(),
        root: names.root,
        tensors: checkpoint.tensors().len(),
        bytes: checkpoint.byte_len(),
        dtypes: BTreeMap::new(),
        renamed: names.renamed,
        dropped: names.dropped,
        reshaped: names.reshaped,
        transposed: names.transposed,
        synthesized: names.synthesized,
        unset: names.unset,
        non_finite: vec![],
        cast,
        opaque: state.opaque,
        notes: state.notes,
    };
    report.notes.extend(names.notes);
    for tensor in checkpoint.tensors().values() {
        let count = report.dtypes.entry(format!("{:?}", tensor.dtype())).or_default();
        *count = count.saturating_add(1);
    }
    Ok((checkpoint, report))
}

/// The network that a graph is.
fn match_graph(
    graph: onnx::Graph,
    state: &StateDict,
    path: &Path,
    options: &ConvertOptions,
) -> Result<onnx::Found> {
    let path = path.to_owned();
    match onnx::understand(graph, &state.tensors, options.arch.as_ref()) {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(reason)) => Err(Error::Unrecognized { path, reason }),
        Err(fault) => Err(Error::Fault { path, fault: Box::new(fault) }),
    }
}

/// The tensors under the zoo's names; where no table knows the file's, with what they are guessed to be.
fn translate(
    state: &StateDict,
    path: &Path,
    options: &ConvertOptions,
) -> Result<(Translation, Option<(Arch, Identified)>)> {
    match dialect::translate(&state.tensors) {
        Some(Ok(names)) => return Ok((names, None)),
        Some(Err(name)) => {
            let detail = format!("two tensors that are both called `{}` elsewhere", escape(&name));
            let fault = Box::new(Fault::new(Code::DuplicateName, detail));
            return Err(Error::Fault { path: path.to_owned(), fault });
        }
        None => {}
    }
    match structure::solve(&state.tensors, options.arch.as_ref(), &hints(state, options)) {
        Ok(solved) => Ok((solved.names, Some((solved.arch, solved.identified)))),
        Err(near) => {
            let found = plural(state.tensors.len(), "tensor");
            let near = near.map(|near| format!("; {near}")).unwrap_or_default();
            let reason = format!(
                "a {} of {found}, but no ResNet among them: {}{near}",
                state.container,
                identify::some_names(&state.tensors)
            );
            Err(Error::Unrecognized { path: path.to_owned(), reason })
        }
    }
}

fn described() -> Identified {
    Identified {
        by: IdentifiedBy::Metadata,
        evidence: "the file's own description".into(),
        ..Identified::default()
    }
}

/// The evidence where the user insists.
const INSISTED: &str = "the user's word";

/// A file and what is known of it.
#[derive(Clone, Copy)]
struct Given<'a> {
    state: &'a StateDict,
    path: &'a Path,
    options: &'a ConvertOptions,
}

/// What foreign tensors are; `known` is what their structure told already.
fn describe(
    given: Given,
    names: &mut Translation,
    known: Option<(Arch, Identified)>,
    prelude: Option<&onnx::Prelude>,
) -> Result<(Meta, Identified)> {
    let Given { state, path, options } = given;
    let unrecognized = |reason| Error::Unrecognized { path: path.to_owned(), reason };
    let shapes = Shapes::of_tensors(&names.tensors);
    let (arch, mut identified) = match (known, &options.arch) {
        (Some(known), _) => known,
        (None, Some(arch)) => {
            let evidence = INSISTED.to_owned();
            let identified = Identified { by: IdentifiedBy::Specified, evidence, ..Identified::default() };
            (identify::adapt(arch, &shapes), identified)
        }
        (None, None) => identify::identify(&shapes, &hints(state, options)).map_err(unrecognized)?,
    };
    if let Some(author) = state.metadata.get(AUTHOR_KEY) {
        names.by_author(author);
    }
    let arch = names.adjust(arch, &mut identified);
    let arch = reconcile::reconcile(arch, names, options.partial).map_err(|e| Error::from_model(e, path))?;
    let usual = usual_preprocess(&arch);
    if options.preprocess.is_none() && usual.crop != [224; 2] {
        names.notes.push(format!("preprocessing is a guess: images of {0}×{0} pixels", usual.crop[0]));
    }
    let preprocess = match prelude {
        Some(prelude) => {
            let own = prelude.preprocess(usual, &mut names.notes);
            own.validate()?;
            own
        }
        None => names.preprocess(usual, &arch),
    };
    let mut meta = Meta::new(arch, preprocess);
    if meta.arch.classes() == Some(1000) {
        meta.labels = Labels::ImageNet1k;
    }
    meta.origin = Origin {
        file: path.file_name().map(|n| n.to_string_lossy().into_owned()),
        container: Some(state.container.to_string()),
        dialect: Some(names.dialect.into()),
    };
    Ok((meta, identified))
}

/// Where Detectron2 tells who trained the weights.
const AUTHOR_KEY: &str = "__author__";

/// Keys under which programs keep the name of an architecture.
const NAME_KEYS: [&str; 4] = ["architecture", "arch", "model_name", "model"];

/// The names that the user's source or the file itself gives the architecture.
fn hints(state: &StateDict, options: &ConvertOptions) -> Vec<NameHint> {
    let given =
        options.name.iter().map(|name| NameHint { name: name.clone(), place: "that came with it".into() });
    let kept = NAME_KEYS.iter().filter_map(|key| {
        let name = state.metadata.get(*key)?.clone();
        Some(NameHint { name, place: format!("under `{key}` in the file") })
    });
    given.chain(kept).collect()
}

/// torchvision's for the ImageNet networks; for the CIFAR ones their images' size, and for one channel plain grey.
fn usual_preprocess(arch: &Arch) -> Preprocess {
    let mut usual = Preprocess::torchvision(256, 224);
    match arch {
        Arch::ResNet(ResNet { stem: Stem::Conv3 { .. }, .. })
        | Arch::ResNetV2(ResNetV2 { stem: StemV2::Conv3 { .. }, .. }) => {
            (usual.resize, usual.crop) = (Resize::Exact([32; 2]), [32; 2]);
        }
        Arch::InceptionV3(_) | Arch::InceptionV4(_) | Arch::InceptionResNetV2(_) => {
            usual = half(Preprocess::torchvision(341, 299));
        }
        Arch::ResNetV2(_) => usual = half(usual),
        Arch::Clip(Clip { head: ClipHead::Attention { grid: [rows, _] }, .. }) => {
            let side = rows.saturating_mul(32).clamp(32, 4096);
            usual = Preprocess::torchvision(side, side);
        }
        _ => {}
    }
    if arch.in_channels() == 1 {
        (usual.channels, usual.mean, usual.std) = (Channels::Grey, vec![0.0], vec![1.0]);
    }
    usual
}

/// timm's for networks that were trained at Google or after their model.
fn half(usual: Preprocess) -> Preprocess {
    Preprocess { filter: Filter::Bicubic, mean: vec![0.5; 3], std: vec![0.5; 3], ..usual }
}

fn check_labels(meta: &Meta) -> Result<()> {
    match (meta.labels.len(), meta.arch.classes()) {
        (Some(labels), classes) if classes != Some(labels) => {
            let head = classes.map_or_else(|| "no head".into(), |k| plural(k, "class"));
            Err(Error::Labels(format!("{} for a network with {head}", plural(labels, "label"))))
        }
        _ => Ok(()),
    }
}

/// Weights are floating-point numbers; counters may be anything.
fn check_types(meta: &Meta, tensors: &BTreeMap<String, RawTensor>, path: &Path) -> Result<()> {
    let graph = meta.arch.graph()?;
    let weights = param_specs::list(&graph).into_iter().filter(|p| p.role != Role::BatchesTracked);
    let odd = weights.filter_map(|p| Some((tensors.get(&p.name)?.dtype(), p.name)));
    match odd.into_iter().find(|(dtype, _)| !cast::is_float(*dtype)) {
        Some((dtype, name)) => {
            let detail = format!("`{}` is of type {dtype:?}, expected F16, BF16, F32 or F64", escape(&name));
            Err(Error::Fault { path: path.to_owned(), fault: Box::new(Fault::new(Code::Dtype, detail)) })
        }
        None => Ok(()),
    }
}

fn cast_all(tensors: &mut BTreeMap<String, RawTensor>, to: Float) -> usize {
    let mut count = 0usize;
    for tensor in tensors.values_mut() {
        if let Some(cast) = cast::cast(tensor, to) {
            *tensor = cast;
            count = count.saturating_add(1);
        }
    }
    count
}

#[cfg(test)]
mod tests;
