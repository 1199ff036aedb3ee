//! `summary`: the layers of a network with output shapes, parameters and MACs; as a table or diagram.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use resnet_model::cost::Cost;
use resnet_model::file::{Existing, write_atomically};
use resnet_model::text::thousands;
use resnet_model::{Arch, Graph};

use crate::draw::{self, Diagram};
use crate::exit::Outcome;
use crate::weights::{Access, Subjects};
use crate::{models, terminal};
use resnet_weights::Options;

/// Show the layers of a network, or draw it
///
/// For each layer, shows the output shape, parameters and multiply-adds (MACs) of convolutions and fully connected layers.
/// --depth 1 shows one line per stage, 2 per block, 9 per operation; a line that combines several layers shows the last
/// output shape.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// An architecture (resnet50), published weights (resnet50.a1_in1k), a checkpoint file, a folder or a Hub id
    #[arg(value_name = "MODEL|FILE|DIR|HUB-ID")]
    model: String,
    #[command(flatten)]
    access: Access,
    /// Height and width of the input in pixels; default: that of the weights
    #[arg(long, value_name = "PIXELS", value_parser = super::predict::positive)]
    input: Option<usize>,
    /// Levels of nesting to show
    #[arg(long, value_name = "N", default_value = "2", value_parser = super::predict::positive)]
    depth: usize,
    /// Show only the layers under this name, e.g. layer1.0
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Draw the graph to this SVG file instead
    #[arg(long, value_name = "FILE.svg")]
    svg: Option<PathBuf>,
    /// Write the graph to this Graphviz file instead
    #[arg(long, value_name = "FILE.dot")]
    dot: Option<PathBuf>,
    /// Replace the files of --svg and --dot if they exist
    #[arg(long)]
    force: bool,
}

/// Runs the command.
pub fn run(args: Args, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    if let Some(path) = &args.svg {
        super::require_extension("--svg", path, "svg")?;
    }
    let (name, arch, size) = resolve(&args.model, &args.access)?;
    let side = args.input.unwrap_or(size);
    let graph = arch.graph()?;
    let costs = graph.costs(side, side).context("--input")?;
    let only = args.only.as_deref();
    if args.svg.is_none() && args.dot.is_none() {
        let table = Table::new(&graph, &costs, args.depth, only)?;
        table.write(out, &name, terminal::width().unwrap_or(100))?;
        return Ok(Outcome::Success);
    }
    let Some(diagram) = Diagram::new(&graph, &costs, only) else { return Err(unknown_layer(&graph, only)) };
    let title = only.map_or(name.clone(), |only| format!("{name}: {only}"));
    let existing = Existing::replace_if(args.force);
    let write = |path: &Path, text: String| {
        write_atomically(path, existing, |file| Ok(file.write_all(text.as_bytes())?))
    };
    if let Some(path) = &args.svg {
        write(path, draw::svg(&diagram, &title))?;
    }
    if let Some(path) = &args.dot {
        write(path, draw::dot(&diagram, &title))?;
    }
    Ok(Outcome::Success)
}

/// Resolves a name or weights; returns its name, architecture and default input side in pixels.
fn resolve(model: &str, access: &Access) -> anyhow::Result<(String, Arch, usize)> {
    // The names of the manifest include Hub ids, which need no download.
    let found = models::find(model);
    if Path::new(model).exists() || (found.is_err() && model.contains('/')) {
        let options = Options { weights: Some(model.to_owned()), ..Options::default() };
        let checkpoint = access.open(options, Subjects::Arch)?;
        let meta = checkpoint.meta();
        let side = meta.preprocess.crop[0];
        return Ok((meta.arch.to_string(), meta.arch.clone(), side));
    }
    let model = found.with_context(|| format!("`{}` is not a file", resnet_model::escape(model)))?;
    Ok((model.name().to_owned(), model.arch, model.size))
}

fn unknown_layer(graph: &Graph, only: Option<&str>) -> anyhow::Error {
    let mut first: Vec<&str> = graph.nodes().iter().filter_map(|n| n.name.split('.').next()).collect();
    first.dedup();
    anyhow::anyhow!(
        "--only {}: no layer has this name; available: {}",
        resnet_model::escape(only.unwrap_or_default()),
        first.join(", ")
    )
}

/// Rows of layers, nested by name.
struct Table {
    rows: Vec<LayerRow>,
    total: LayerRow,
    /// Bytes of all activations in f32.
    bytes: u64,
    input: String,
}

#[derive(Debug, Clone, Default)]
struct LayerRow {
    depth: usize,
    name: String,
    operation: String,
    shape: Vec<usize>,
    params: u64,
    macs: u64,
}

impl Table {
    fn new(graph: &Graph, costs: &[Cost], depth: usize, only: Option<&str>) -> anyhow::Result<Table> {
        let weights = parameters(graph);
        let mut rows: Vec<LayerRow> = Vec::new();
        let mut places: BTreeMap<Vec<&str>, usize> = BTreeMap::new();
        let mut total = LayerRow { name: "total".into(), ..LayerRow::default() };
        let mut bytes = 0;
        for (node, cost) in graph.nodes().iter().zip(costs) {
            if !only.is_none_or(|only| draw::is_under(&node.name, only)) {
                continue;
            }
            let params = weights.get(node.name.as_str()).copied().unwrap_or(0);
            let path: Vec<&str> = node.name.split('.').collect();
            // The operation itself and all modules that contain it.
            for end in 1..=path.len().min(depth) {
                let whole = end == path.len();
                let place = *places.entry(path[..end].to_vec()).or_insert_with(|| {
                    let name = path[end - 1].to_owned();
                    rows.push(LayerRow { depth: end - 1, name, ..LayerRow::default() });
                    rows.len() - 1
                });
                let row = &mut rows[place];
                if whole {
                    row.operation = draw::operation(&node.op);
                }
                row.shape.clone_from(&cost.shape);
                row.params += params;
                row.macs += cost.macs;
            }
            total.params += params;
            total.macs += cost.macs;
            total.shape.clone_from(&cost.shape);
            bytes += cost.bytes;
        }
        if rows.is_empty() {
            return Err(unknown_layer(graph, only));
        }
        let rows = in_order(rows, &places);
        Ok(Table { rows, total, bytes, input: draw::dims(&costs[0].shape) })
    }

    fn write(&self, out: &mut dyn Write, title: &str, width: usize) -> anyhow::Result<()> {
        let cells = |row: &LayerRow| {
            [
                format!("{}{}", "  ".repeat(row.depth), row.name),
                row.operation.clone(),
                draw::dims(&row.shape),
                if row.params > 0 { thousands(row.params) } else { "-".into() },
                if row.macs > 0 { terminal::short(row.macs) } else { "-".into() },
            ]
        };
        let head = ["layer", "operation", "output", "parameters", "MACs"].map(str::to_owned);
        let lines: Vec<[String; 5]> =
            std::iter::once(head).chain(self.rows.iter().chain([&self.total]).map(cells)).collect();
        let longest = |column: usize| lines.iter().map(|l| l[column].chars().count()).max().unwrap_or(0);
        let mut widths = [0, 1, 2, 3, 4].map(longest);
        // Operations, then names are truncated.
        let gaps = 2 * (widths.len() - 1);
        let mut excess = (widths.iter().sum::<usize>() + gaps).saturating_sub(width);
        for (column, least) in [(1, 9), (0, 12)] {
            let cut = excess.min(widths[column].saturating_sub(least));
            widths[column] -= cut;
            excess -= cut;
        }
        let [name, operation, result, params, macs] = widths;
        writeln!(out, "{}", terminal::fit(&format!("{title}, input {}", self.input), width))?;
        for (i, line) in lines.iter().enumerate() {
            if i + 1 == lines.len() {
                writeln!(out, "{}", "─".repeat((widths.iter().sum::<usize>() + gaps).min(width)))?;
            }
            let [a, b, c, d, e] = line;
            let (a, b) = (terminal::fit(a, name), terminal::fit(b, operation));
            writeln!(out, "{a:<name$}  {b:<operation$}  {c:>result$}  {d:>params$}  {e:>macs$}")?;
        }
        writeln!(
            out,
            "in f32: parameters {:.1} MiB, activations of one image {:.1} MiB",
            terminal::mib(4 * self.total.params),
            terminal::mib(self.bytes)
        )?;
        Ok(())
    }
}

/// Counts the trainable parameters of each operation. Those of nested modules (`head.q.weight`) count for the nearest one.
fn parameters(graph: &Graph) -> BTreeMap<&str, u64> {
    let mut counts: BTreeMap<&str, u64> = graph.nodes().iter().map(|n| (n.name.as_str(), 0)).collect();
    for param in graph.param_specs().iter().filter(|p| p.role.is_trainable()) {
        let elements = param.shape.iter().map(|&d| d as u64).product::<u64>();
        let mut name = param.name.as_str();
        while let Some((module, _)) = name.rsplit_once('.') {
            if let Some(count) = counts.get_mut(module) {
                *count += elements;
                break;
            }
            name = module;
        }
    }
    counts
}

/// Sorts rows so that each follows its parent, in the order of first execution.
fn in_order(rows: Vec<LayerRow>, places: &BTreeMap<Vec<&str>, usize>) -> Vec<LayerRow> {
    let mut keys: Vec<(Vec<usize>, usize)> = places
        .iter()
        .map(|(path, &place)| {
            let key = (1..=path.len()).map(|end| places.get(&path[..end]).copied().unwrap_or(place));
            (key.collect(), place)
        })
        .collect();
    keys.sort();
    keys.into_iter().map(|(_, place)| rows[place].clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(model: &str, depth: usize, only: Option<&str>) -> Table {
        let (_, arch, side) = resolve(model, &Access::default()).unwrap();
        let graph = arch.graph().unwrap();
        Table::new(&graph, &graph.costs(side, side).unwrap(), depth, only).unwrap()
    }

    #[test]
    fn combined_lines_add_up_to_the_total() {
        for model in
            ["resnet50", "resnet50_clip", "inception_resnet_v2", "vgg11", "resnetv2_50x1_bit", "senet154"]
        {
            let (_, arch, side) = resolve(model, &Access::default()).unwrap();
            let graph = arch.graph().unwrap();
            for depth in 1..5 {
                let table = table(model, depth, None);
                let sum = |value: &dyn Fn(&LayerRow) -> u64| {
                    table.rows.iter().filter(|row| row.depth == 0).map(value).sum::<u64>()
                };
                assert_eq!(sum(&|row| row.params), graph.param_count(), "{model} {depth}");
                assert_eq!(sum(&|row| row.macs), graph.macs(side, side).unwrap(), "{model} {depth}");
            }
        }
    }

    #[test]
    fn rows_follow_their_parents() {
        let names: Vec<String> = table("resnet18", 2, None).rows.into_iter().map(|row| row.name).collect();
        assert_eq!(
            names,
            [
                "input", "conv1", "bn1", "relu", "maxpool", "layer1", "0", "1", "layer2", "0", "1", "layer3",
                "0", "1", "layer4", "0", "1", "avgpool", "fc"
            ]
        );
        assert_eq!(table("resnet18", 9, Some("layer1.0")).rows.len(), 9);
    }

    #[test]
    fn tables_fit_80_columns() {
        for model in
            ["resnet50", "resnet50_clip", "inception_resnet_v2", "inception_v3", "resnetv2_152x4_bit"]
        {
            let mut out = Vec::new();
            table(model, 9, None).write(&mut out, model, 80).unwrap();
            let text = String::from_utf8(out).unwrap();
            let longest = text.lines().map(|line| line.chars().count()).max().unwrap();
            assert!(longest <= 80, "{model}: {longest}");
        }
    }
}
