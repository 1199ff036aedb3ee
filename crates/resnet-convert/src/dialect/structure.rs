//! Matching by structure: tensors with unknown names are matched by shapes and order against the networks of the zoo.
//!
//! Tensors are grouped by module (`x.weight` and `x.bias` form one). A network matches if its modules, in the order of
//! `state_dict()` or of execution, have the same shapes as the file's modules in order, or if the shapes of every module
//! are unique, so that order is irrelevant. The result is reported as a guess.
//!
//! The order is that of the file and that of the numbers in the names ([`order`]). A file whose names are sorted as text
//! (block 10 before block 2) has no inherent order. If both orders match but assign tensors differently, nothing
//! decides between them and the file is rejected.

use std::collections::{BTreeMap, HashMap, HashSet};

use resnet_model::arch::Arch;
use resnet_model::graph::{Graph, Node};
use resnet_model::param_specs::{ParamSpec, Role};
use resnet_model::{RawTensor, escape, zoo};

use super::{MOMENTUM, TRAINING, Translation, order};
use crate::identify::NameHint;
use crate::report::{Identified, IdentifiedBy, Renamed};
use resnet_model::text::plural;

/// Maximum number of prefixes searched.
const MAX_ROOTS: usize = 32;
/// Minimum number of tensors of a network.
const MIN_TENSORS: usize = 10;

/// Network identified by its structure.
pub(crate) struct StructureMatch {
    pub(crate) names: Translation,
    pub(crate) arch: Arch,
    pub(crate) identified: Identified,
}

/// Tensors of one module.
struct Module<'a> {
    name: &'a str,
    /// Suffixes after the module's name, and tensors.
    parts: Vec<(&'a str, &'a RawTensor)>,
}

/// Names in the file and in the zoo.
type Pairs = Vec<(String, String)>;

/// Role of a tensor in its module.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum ParamKind {
    Weight,
    Bias,
    Mean,
    Variance,
}

/// Finds the network among `tensors` without using a naming scheme. `only` restricts the search to one architecture.
/// Returns a description of the nearest mismatch, if any, as the error.
pub(crate) fn solve(
    tensors: &[(String, RawTensor)],
    only: Option<&Arch>,
    hints: &[NameHint],
) -> Result<StructureMatch, Option<String>> {
    let candidates = match only {
        Some(arch) => vec![(None, arch.clone())],
        None => zoo::all().into_iter().map(|(name, arch)| (Some(name), arch)).collect(),
    };
    let candidates: Vec<Candidate> =
        candidates.into_iter().filter_map(|(name, arch)| Candidate::new(name, arch)).collect();
    let mut near = None;
    for root in roots(tensors) {
        let modules = modules(tensors, root);
        let orders = orders(&modules);
        let mut found: Vec<(&Candidate, Arch, Pairs)> = Vec::new();
        for candidate in &candidates {
            match candidate.matches(&orders) {
                CandidateMatch::Found(arch, names) => found.push((candidate, arch, names)),
                CandidateMatch::Disordered(equal) => {
                    near.get_or_insert_with(|| candidate.disordered(equal));
                }
                CandidateMatch::Ambiguous => {
                    near.get_or_insert_with(|| candidate.ambiguous());
                }
                CandidateMatch::None => {}
            }
        }
        let named = |hint: &NameHint| {
            let name = hint.name.split('.').next();
            found.iter().position(|(c, ..)| name.is_some() && c.name == name)
        };
        let chosen = hints.iter().find_map(named).unwrap_or(0);
        let others: Vec<String> = found.iter().filter_map(|(c, ..)| c.name).map(str::to_owned).collect();
        if chosen < found.len() {
            let (candidate, arch, pairs) = found.swap_remove(chosen);
            let solved = StructureMatch::new(tensors, root, arch, pairs);
            let alternatives = others.into_iter().filter(|n| Some(n.as_str()) != candidate.name);
            return Ok(solved.guessed(&modules, alternatives.collect(), only.is_some()));
        }
    }
    Err(near)
}

impl StructureMatch {
    fn new(
        tensors: &[(String, RawTensor)],
        root: &str,
        arch: Arch,
        pairs: Vec<(String, String)>,
    ) -> StructureMatch {
        let to: HashMap<&str, &str> = pairs.iter().map(|(from, to)| (from.as_str(), to.as_str())).collect();
        let mut names =
            Translation { dialect: "unknown", root: root.to_owned(), ..Translation::identity(&[]) };
        for (name, tensor) in tensors {
            match name.strip_prefix(root).and_then(|inner| to.get(inner)) {
                Some(&to) => {
                    names.tensors.insert(to.to_owned(), tensor.clone());
                    names.renamed.push(Renamed { from: name.clone(), to: to.to_owned() });
                }
                None if is_counter(name, tensor) => names.drop(name, "batch counter"),
                None => names.outside(name, &[root]),
            }
        }
        StructureMatch { names, arch, identified: Identified::default() }
    }

    fn guessed(mut self, modules: &[Module], alternatives: Vec<String>, insisted: bool) -> StructureMatch {
        let tensors = modules.iter().map(|m| m.parts.len()).sum::<usize>();
        let evidence = format!(
            "a guess from shapes, because the names are unknown: {} in {} match this network{}",
            plural(tensors, "tensor"),
            plural(modules.len(), "module"),
            if alternatives.is_empty() { " and no other known one" } else { " and others" },
        );
        let by = if insisted { IdentifiedBy::Specified } else { IdentifiedBy::Guessed };
        self.identified = Identified { by, evidence, alternatives, ..Identified::default() };
        self
    }
}

/// Returns `true` for batch counters, which are irrelevant to the structure and optional.
fn is_counter(name: &str, tensor: &RawTensor) -> bool {
    tensor.shape().is_empty() || name.ends_with("num_batches_tracked")
}

/// Returns the prefixes that may hold the network: averaged weights first, then the prefix with most tensors.
fn roots(tensors: &[(String, RawTensor)]) -> Vec<&str> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for (name, _) in tensors {
        let ends = name.match_indices(['.', '/']).map(|(i, _)| i.saturating_add(1)).take(4);
        for end in std::iter::once(0).chain(ends) {
            let count = counts.entry(name.get(..end).unwrap_or_default()).or_default();
            *count = count.saturating_add(1);
        }
    }
    let mut roots: Vec<(usize, usize, &str)> = counts
        .into_iter()
        .filter(|(_, n)| *n >= MIN_TENSORS)
        .map(|(root, n)| (super::rank(root), usize::MAX.saturating_sub(n), root))
        .collect();
    // Of prefixes of the same tensors, the longest is the most specific.
    roots.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)).then(b.2.len().cmp(&a.2.len())).then(a.2.cmp(b.2)));
    roots.into_iter().map(|(.., root)| root).take(MAX_ROOTS).collect()
}

/// Groups the tensors under `root` by module, in the order of their first tensors.
fn modules<'a>(tensors: &'a [(String, RawTensor)], root: &str) -> Vec<Module<'a>> {
    let mut modules: Vec<Module> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    for (name, tensor) in tensors {
        let Some(inner) = name.strip_prefix(root) else { continue };
        let first = inner.split(['.', '/']).next().unwrap_or_default();
        if is_counter(name, tensor) || TRAINING.contains(&first) || MOMENTUM.contains(&first) {
            continue;
        }
        let cut = inner.rfind(['.', '/']).or_else(|| inner.rfind('_')).unwrap_or(0);
        let (module, leaf) = inner.split_at_checked(cut).unwrap_or(("", inner));
        let place = *places.entry(module).or_insert(modules.len());
        match modules.get_mut(place) {
            Some(module) => module.parts.push((leaf, tensor)),
            None => modules.push(Module { name: module, parts: vec![(leaf, tensor)] }),
        }
    }
    modules
}

/// Returns the orders to match: file order and numeric order, or one if they agree or the file is sorted by name.
fn orders<'a, 'b>(modules: &'b [Module<'a>]) -> Vec<Vec<&'b Module<'a>>> {
    let names: Vec<&str> = modules.iter().map(|m| m.name).collect();
    let numeric = order::numeric(&names);
    let numeric: Vec<&Module> = numeric.iter().filter_map(|&i| modules.get(i)).collect();
    let file: Vec<&Module> = modules.iter().collect();
    if numeric.iter().zip(&file).all(|(a, b)| a.name == b.name) || names.is_sorted() {
        return vec![numeric];
    }
    vec![file, numeric]
}

fn same_pairs(a: &Pairs, b: &Pairs) -> bool {
    a.iter().collect::<HashSet<_>>() == b.iter().collect::<HashSet<_>>()
}

impl Module<'_> {
    fn key(&self) -> Vec<&[usize]> {
        let mut key: Vec<&[usize]> = self.parts.iter().map(|(_, t)| t.shape()).collect();
        key.sort();
        key
    }

    /// Assigns the module's tensors to `needed`, by the words in their names or, without known words, by order.
    fn assign(&self, needed: &[ParamSpec]) -> Option<Vec<(String, String)>> {
        let kinds: Option<Vec<ParamKind>> = self.parts.iter().map(|(leaf, _)| kind_of_leaf(leaf)).collect();
        let kinds = kinds.filter(|kinds| kinds.iter().collect::<HashSet<_>>().len() == kinds.len());
        let mut pairs = Vec::new();
        for (i, param) in needed.iter().enumerate() {
            let at = match &kinds {
                Some(kinds) => kinds.iter().position(|k| *k == kind_of_role(param.role))?,
                None => i,
            };
            let (leaf, tensor) = self.parts.get(at)?;
            if tensor.shape() != param.shape {
                return None;
            }
            pairs.push((format!("{}{leaf}", self.name), param.name.clone()));
        }
        Some(pairs)
    }
}

fn kind_of_leaf(leaf: &str) -> Option<ParamKind> {
    let word = leaf.trim_start_matches(['.', '/', '_']).trim_end_matches(":0").to_ascii_lowercase();
    Some(match word.as_str() {
        "weight" | "kernel" | "w" | "gamma" | "scale" | "s" | "g" => ParamKind::Weight,
        "bias" | "beta" | "b" | "shift" | "offset" => ParamKind::Bias,
        _ if word.contains("mean") => ParamKind::Mean,
        _ if word.contains("var") => ParamKind::Variance,
        _ => return None,
    })
}

fn kind_of_role(role: Role) -> ParamKind {
    match role {
        Role::ConvBias | Role::NormShift | Role::LinearBias => ParamKind::Bias,
        Role::RunningMean => ParamKind::Mean,
        Role::RunningVar => ParamKind::Variance,
        _ => ParamKind::Weight,
    }
}

/// Network of the zoo to match.
struct Candidate {
    name: Option<&'static str>,
    arch: Arch,
    /// Number of modules with tensors, including the head.
    modules: usize,
}

enum CandidateMatch {
    Found(Arch, Vec<(String, String)>),
    /// The shapes match in another order; this many modules have equal shapes.
    Disordered(usize),
    /// File order and numeric order match, with different results.
    Ambiguous,
    None,
}

impl Candidate {
    fn new(name: Option<&'static str>, arch: Arch) -> Option<Candidate> {
        let arch = arch.with_classes(1);
        let modules = by_module(arch.graph().ok()?.param_specs()).len();
        Some(Candidate { name, arch, modules })
    }

    fn disordered(&self, equal: usize) -> String {
        format!(
            "the shapes match {}, but the order of {equal} modules with equal shapes is ambiguous",
            escape(&self.arch.to_string())
        )
    }

    fn ambiguous(&self) -> String {
        format!(
            "the shapes match {}, but file order and the numbers in the names assign them differently",
            escape(&self.arch.to_string())
        )
    }

    /// Matches modules in the given orders. Orders that assign the tensors differently are ambiguous.
    fn matches(&self, orders: &[Vec<&Module>]) -> CandidateMatch {
        let mut result = CandidateMatch::None;
        for modules in orders {
            match (self.matches_in_order(modules), &result) {
                (CandidateMatch::Found(_, found), CandidateMatch::Found(_, known))
                    if !same_pairs(&found, known) =>
                {
                    return CandidateMatch::Ambiguous;
                }
                (found @ CandidateMatch::Found(..), _) => result = found,
                (found, CandidateMatch::None) => result = found,
                _ => {}
            }
        }
        result
    }

    fn matches_in_order(&self, modules: &[&Module]) -> CandidateMatch {
        let headless = modules.len().checked_add(1) == Some(self.modules);
        if modules.len() != self.modules && !headless {
            return CandidateMatch::None;
        }
        let Some((arch, graph)) = self.fitted(modules, headless) else { return CandidateMatch::None };
        let registered = by_module(graph.param_specs());
        let executed = in_execution(&graph, &registered);
        for order in [&registered, &executed] {
            let pairs: Option<Vec<_>> = modules.iter().zip(order).map(|(m, p)| m.assign(p)).collect();
            if let Some(pairs) = pairs {
                return CandidateMatch::Found(arch, pairs.into_iter().flatten().collect());
            }
        }
        self.unordered(arch, modules, &registered)
    }

    /// Returns the network with the file's numbers of classes and input channels.
    fn fitted(&self, modules: &[&Module], headless: bool) -> Option<(Arch, Graph)> {
        let mut arch = self.arch.clone();
        let weight =
            |m: &Module| m.parts.iter().map(|(_, t)| t.shape()).max_by_key(|s| s.len()).map(<[_]>::to_vec);
        if let [_, channels, _, _] = weight(modules.first()?)?[..] {
            arch = arch.with_in_channels(channels);
        }
        let classes = match headless {
            true => 0,
            false => *weight(modules.last()?)?.first()?,
        };
        arch = arch.with_classes(classes);
        let graph = arch.graph().ok()?;
        Some((arch, graph))
    }

    /// Matches modules regardless of order, provided that their shapes are unique.
    fn unordered(&self, arch: Arch, modules: &[&Module], needed: &[Vec<ParamSpec>]) -> CandidateMatch {
        let mut by_key: BTreeMap<Vec<&[usize]>, Vec<&Module>> = BTreeMap::new();
        for module in modules {
            by_key.entry(module.key()).or_default().push(module);
        }
        let (mut pairs, mut taken, mut alike) = (Vec::new(), HashMap::<Vec<&[usize]>, usize>::new(), 0usize);
        for params in needed {
            let mut key: Vec<&[usize]> = params.iter().map(|p| p.shape.as_slice()).collect();
            key.sort();
            let Some(same) = by_key.get(&key) else { return CandidateMatch::None };
            let count = taken.entry(key).or_default();
            *count = count.saturating_add(1);
            match same.as_slice() {
                _ if *count > same.len() => return CandidateMatch::None,
                [module] => match module.assign(params) {
                    Some(found) => pairs.extend(found),
                    None => return CandidateMatch::None,
                },
                _ => alike = alike.saturating_add(1),
            }
        }
        if alike > 0 { CandidateMatch::Disordered(alike) } else { CandidateMatch::Found(arch, pairs) }
    }
}

/// Parameters by the module that they are of; counters left out.
fn by_module(params: Vec<ParamSpec>) -> Vec<Vec<ParamSpec>> {
    let mut modules: Vec<Vec<ParamSpec>> = Vec::new();
    let module = |p: &ParamSpec| p.name.rsplit_once('.').map(|(m, _)| m.to_owned());
    for param in params.into_iter().filter(|p| !p.role.is_optional()) {
        match modules.last_mut() {
            Some(last) if last.first().is_some_and(|p| module(p) == module(&param)) => last.push(param),
            _ => modules.push(vec![param]),
        }
    }
    modules
}

/// The same modules in the order in which the network runs them.
fn in_execution(graph: &Graph, registered: &[Vec<ParamSpec>]) -> Vec<Vec<ParamSpec>> {
    let owner = |params: &Vec<ParamSpec>| {
        params.first().and_then(|p| p.name.rsplit_once('.')).map(|(m, _)| m.to_owned())
    };
    let by_name: HashMap<String, &Vec<ParamSpec>> =
        registered.iter().filter_map(|p| Some((owner(p)?, p))).collect();
    graph.nodes().iter().filter_map(|node: &Node| by_name.get(&node.name).map(|p| (*p).clone())).collect()
}
