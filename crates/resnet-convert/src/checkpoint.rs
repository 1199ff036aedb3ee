//! From a [`StateDict`] to a [`Checkpoint`]. Each stage takes the value of the previous one: names are translated
//! ([`Named`]), the architecture is identified ([`Resolved`]), tensors are reconciled with it and metadata is added
//! ([`Described`]), and the result is checked.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use resnet_model::arch::Arch;
use resnet_model::meta::{KEY, Origin};
use resnet_model::param_specs::Role;
use resnet_model::{Checkpoint, Labels, Meta, RawTensor, escape};

use crate::convert::ConvertOptions;
use crate::default_preprocess::default_preprocess;
use crate::dialect::{self, Recognition, Translation, structure};
use crate::error::{Code, Error, Fault, Result};
use crate::identify::{self, NameHint, Shapes};
use crate::non_finite::NonFiniteCounter;
use crate::reconcile;
use crate::report::{Cast, Identified, IdentifiedBy, Report};
use crate::source::StateDict;
use resnet_model::raw::{self, Float};
use resnet_model::text::plural;
use resnet_onnx::Match;

/// The file and the caller's options, the same for all stages.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) path: &'a Path,
    pub(crate) options: &'a ConvertOptions,
    /// Counts NaN and infinity while the tensors are read.
    pub(crate) counter: Option<&'a Arc<NonFiniteCounter>>,
}

impl Context<'_> {
    fn fault(&self, code: Code, detail: String) -> Error {
        Fault::new(code, detail).in_file(self.path)
    }

    fn unrecognized(&self, reason: String) -> Error {
        Error::Unrecognized { path: self.path.to_owned(), reason }
    }

    fn model_error(&self, error: resnet_model::Error) -> Error {
        Error::from_model(error, self.path)
    }
}

/// Tensors under the zoo's names, and what their source says about the network.
struct Named {
    names: Translation,
    /// The file's own metadata.
    meta: Option<Meta>,
    /// The architecture, where matching the names already identified it.
    identified: Option<(Arch, Identified)>,
    /// Normalization at the start of an ONNX graph.
    prelude: Option<resnet_onnx::Prelude>,
}

/// Tensors of an identified architecture.
struct Resolved {
    names: Translation,
    arch: Arch,
    identified: Identified,
    prelude: Option<resnet_onnx::Prelude>,
}

/// Tensors with metadata.
struct Described {
    names: Translation,
    meta: Meta,
    identified: Identified,
}

/// Builds the checkpoint that `state` holds, and the report on it.
pub(crate) fn build(mut state: StateDict, context: Context) -> Result<(Checkpoint, Report)> {
    let named = translate_names(&mut state, context)?;
    let named = drop_unexpected(named, context)?;
    check_supported(&state, &named.names.root, context)?;
    let described = match named.meta {
        Some(meta) => Described { names: named.names, meta, identified: from_metadata() },
        None => describe(resolve(named, &state, context)?, &state, context)?,
    };
    let described = apply_options(described, context.options)?;
    finish(described, state, context)
}

/// Translates the tensors' names to the zoo's.
fn translate_names(state: &mut StateDict, context: Context) -> Result<Named> {
    let meta = state.metadata.get(KEY).map(|json| Meta::from_json(json)).transpose();
    let meta = meta.map_err(|e| context.model_error(e))?;
    if let Some(graph) = state.graph.take() {
        return match_graph(*graph, state, context);
    }
    if meta.is_some() {
        let names = Translation::identity(&state.tensors);
        return Ok(Named { names, meta, identified: None, prelude: None });
    }
    let (names, identified) = match dialect::translate(&state.tensors) {
        Recognition::Translated(names) => (*names, None),
        Recognition::Duplicate(name) => {
            let detail = format!("two tensors translate to the name `{}`", escape(&name));
            return Err(context.fault(Code::DuplicateName, detail));
        }
        Recognition::Unknown => {
            let (names, arch, identified) = match_structure(state, context)?;
            (names, Some((arch, identified)))
        }
    };
    Ok(Named { names, meta: None, identified, prelude: None })
}

/// Matches an ONNX graph against the networks of the zoo.
fn match_graph(graph: resnet_onnx::Graph, state: &StateDict, context: Context) -> Result<Named> {
    let matched = resnet_onnx::identify(graph, &state.tensors, context.options.arch.as_ref());
    let matched = matched.map_err(|fault| Fault::from(fault).in_file(context.path))?;
    let mut found = match matched {
        Match::Network(network) => *network,
        Match::Unknown(reason) => return Err(context.unrecognized(reason)),
    };
    let identified = match context.options.arch {
        Some(_) => specified(),
        None => Identified {
            by: IdentifiedBy::Graph,
            evidence: "every node of the graph".into(),
            ..Identified::default()
        },
    };
    Ok(Named {
        names: Translation::graph(&mut found),
        meta: found.meta,
        identified: Some((found.arch, identified)),
        prelude: found.prelude,
    })
}

/// Matches tensors with unknown names against the networks of the zoo, by shapes and order.
fn match_structure(state: &StateDict, context: Context) -> Result<(Translation, Arch, Identified)> {
    let hints = name_hints(state, context.options);
    let solved = structure::solve(&state.tensors, context.options.arch.as_ref(), &hints);
    let solved = solved.map_err(|near| {
        let near = near.map(|near| format!("; {near}")).unwrap_or_default();
        context.unrecognized(format!(
            "{} with {} that match no known network: {}{near}",
            state.container,
            plural(state.tensors.len(), "tensor"),
            identify::some_names(&state.tensors)
        ))
    })?;
    Ok((solved.names, solved.arch, solved.identified))
}

/// Returns an error for tensors outside the network, or omits them with `partial`.
fn drop_unexpected(named: Named, context: Context) -> Result<Named> {
    let mut names = named.names;
    if !names.leftover.is_empty() && !context.options.partial {
        return Err(Error::Leftover { path: context.path.to_owned(), names: names.leftover });
    }
    for name in std::mem::take(&mut names.leftover) {
        names.drop(&name, "outside the network");
    }
    Ok(Named { names, ..named })
}

/// Returns an error if a tensor of the network is of an unsupported kind.
fn check_supported(state: &StateDict, root: &str, context: Context) -> Result<()> {
    match state.unsupported.iter().find(|(name, _)| name.starts_with(root)) {
        Some((name, kind)) => {
            Err(context.fault(Code::Unsupported, format!("unsupported tensor `{}`: {kind}", escape(name))))
        }
        None => Ok(()),
    }
}

/// Identifies the architecture, unless it is known already.
fn resolve(named: Named, state: &StateDict, context: Context) -> Result<Resolved> {
    let Named { names, identified, prelude, .. } = named;
    let shapes = Shapes::from_tensors(&names.tensors);
    let (arch, identified) = match (identified, &context.options.arch) {
        (Some(identified), _) => identified,
        (None, Some(arch)) => (identify::adapt(arch, &shapes), specified()),
        (None, None) => {
            let hints = name_hints(state, context.options);
            identify::identify(&shapes, &hints).map_err(|reason| context.unrecognized(reason))?
        }
    };
    let names = match state.metadata.get(AUTHOR_KEY) {
        Some(author) => names.with_author(author),
        None => names,
    };
    let (arch, identified) = names.adjust(arch, identified);
    Ok(Resolved { names, arch, identified, prelude })
}

/// Reconciles the tensors with the architecture and derives the metadata.
fn describe(resolved: Resolved, state: &StateDict, context: Context) -> Result<Described> {
    let Resolved { names, arch, identified, prelude } = resolved;
    let (arch, mut names) =
        reconcile::reconcile(arch, names, context.options.partial).map_err(|e| context.model_error(e))?;
    let default = default_preprocess(&arch);
    if context.options.preprocess.is_none() && default.crop != [224; 2] {
        names.notes.push(format!("preprocessing is assumed: images of {0}×{0} pixels", default.crop[0]));
    }
    let preprocess = match prelude {
        Some(prelude) => {
            let preprocess = prelude.preprocess(default, &mut names.notes);
            let preprocess = preprocess.map_err(|fault| Fault::from(fault).in_file(context.path))?;
            preprocess.validate().map_err(resnet_model::Error::from)?;
            preprocess
        }
        None => names.preprocess(default, &arch),
    };
    let mut meta = Meta::new(arch, preprocess);
    if meta.arch.classes() == Some(1000) {
        meta.labels = Labels::ImageNet1k;
    }
    meta.origin = Origin {
        file: context.path.file_name().map(|n| n.to_string_lossy().into_owned()),
        container: Some(state.container.to_string()),
        dialect: Some(names.dialect.into()),
    };
    Ok(Described { names, meta, identified })
}

/// Overrides the metadata with the caller's.
fn apply_options(described: Described, options: &ConvertOptions) -> Result<Described> {
    let mut meta = described.meta;
    if let Some(preprocess) = &options.preprocess {
        preprocess.validate().map_err(resnet_model::Error::from)?;
        meta.preprocess = preprocess.clone();
    }
    if let Some(labels) = &options.labels {
        meta.labels = labels.clone();
    }
    check_labels(&meta)?;
    Ok(Described { meta, ..described })
}

/// Casts and checks the tensors, and builds checkpoint and report.
fn finish(described: Described, state: StateDict, context: Context) -> Result<(Checkpoint, Report)> {
    let Described { names, meta, identified } = described;
    check_dtypes(&meta, &names.tensors, context)?;
    let (tensors, cast) = match context.options.dtype {
        Some(to) => cast_all(names.tensors, to),
        None => (names.tensors, None),
    };
    let tensors = match context.counter {
        Some(counter) => tensors.into_iter().map(|(n, t)| (n.clone(), counter.wrap(&n, &t))).collect(),
        None => tensors,
    };
    let checkpoint = Checkpoint::new(meta, tensors).map_err(|e| context.model_error(e))?;
    let mut dtypes: BTreeMap<String, usize> = BTreeMap::new();
    for tensor in checkpoint.tensors().values() {
        let count = dtypes.entry(format!("{:?}", tensor.dtype())).or_default();
        *count = count.saturating_add(1);
    }
    let arch = checkpoint.meta().arch.clone();
    let report = Report {
        file: context.path.display().to_string(),
        output: None,
        model: arch.to_string(),
        identified,
        parameters: checkpoint.graph().param_count(),
        classes: arch.classes(),
        arch,
        container: state.container,
        dialect: names.dialect.into(),
        root: names.root,
        tensors: checkpoint.tensors().len(),
        bytes: checkpoint.byte_len(),
        dtypes,
        renamed: names.renamed,
        dropped: names.dropped,
        reshaped: names.reshaped,
        transposed: names.transposed,
        synthesized: names.synthesized,
        unset: names.unset,
        non_finite: vec![],
        cast,
        opaque: state.opaque,
        notes: state.notes.into_iter().chain(names.notes).collect(),
    };
    Ok((checkpoint, report))
}

fn from_metadata() -> Identified {
    Identified { by: IdentifiedBy::Metadata, evidence: "the file's metadata".into(), ..Identified::default() }
}

fn specified() -> Identified {
    Identified { by: IdentifiedBy::Specified, evidence: "--arch".into(), ..Identified::default() }
}

/// Metadata key under which Detectron2 names the origin of the weights.
const AUTHOR_KEY: &str = "__author__";

/// Metadata keys under which training scripts name the architecture.
const NAME_KEYS: [&str; 4] = ["architecture", "arch", "model_name", "model"];

/// Returns the names that the caller and the file give the architecture.
fn name_hints(state: &StateDict, options: &ConvertOptions) -> Vec<NameHint> {
    let caller = options
        .name
        .iter()
        .map(|name| NameHint { name: name.clone(), place: "from the configuration".into() });
    let file = NAME_KEYS.iter().filter_map(|key| {
        let name = state.metadata.get(*key)?.clone();
        Some(NameHint { name, place: format!("under `{key}` in the file") })
    });
    caller.chain(file).collect()
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

/// Returns an error unless weights are floating-point. Batch counters may have any dtype.
fn check_dtypes(meta: &Meta, tensors: &BTreeMap<String, RawTensor>, context: Context) -> Result<()> {
    let graph = meta.arch.graph()?;
    let weights = graph.param_specs().into_iter().filter(|p| p.role != Role::BatchesTracked);
    let mut dtypes = weights.filter_map(|p| Some((tensors.get(&p.name)?.dtype(), p.name)));
    match dtypes.find(|(dtype, _)| !raw::is_float(*dtype)) {
        Some((dtype, name)) => {
            let detail = format!("`{}` has dtype {dtype:?}, expected F16, BF16, F32 or F64", escape(&name));
            Err(context.fault(Code::Dtype, detail))
        }
        None => Ok(()),
    }
}

fn cast_all(tensors: BTreeMap<String, RawTensor>, to: Float) -> (BTreeMap<String, RawTensor>, Option<Cast>) {
    let mut count = 0usize;
    let tensors = tensors.into_iter().map(|(name, tensor)| match raw::cast(&tensor, to) {
        Some(cast) => {
            count = count.saturating_add(1);
            (name, cast)
        }
        None => (name, tensor),
    });
    let tensors = tensors.collect();
    (tensors, Some(Cast { to, tensors: count }))
}
