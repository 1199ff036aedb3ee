//! `list`, `info` and `summary`, and the README's table of networks.

use resnet_model::zoo;
use resnet_weights::published;

use crate::cli::{command, digits, file, resnet_cli, run, save};

fn readme() -> String {
    std::fs::read_to_string(file("README.md")).unwrap()
}

#[track_caller]
fn usage_error(args: &[&str], message: &str) {
    let out = resnet_cli(args);
    assert_eq!((out.code, out.stdout.as_str()), (2, ""), "{out:?}");
    assert!(out.stderr.contains(message), "{out:?}");
}

/// Compares the table of the paper's networks with computed values.
#[test]
fn the_table_of_the_papers_networks_is_current() {
    let text = readme();
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.split('|').map(|cell| cell.trim().trim_matches('`')).collect())
        .collect();
    let names: Vec<&str> = rows.iter().map(|row| row[1]).collect();
    assert_eq!(names, ["plain18", "plain34", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]);
    for row in rows {
        let [_, name, _, _, weights, accuracy, parameters, gmacs, ""] = row[..] else { panic!("{row:?}") };
        let graph = zoo::arch(name).unwrap().graph().unwrap();
        assert_eq!(parameters.replace(',', ""), graph.param_count().to_string(), "{name}");
        let computed = graph.macs(224, 224).unwrap() as f64 / 1e9;
        assert_eq!(gmacs, format!("{computed:.3}"), "{name}");
        let default = published().unwrap().iter().find(|p| p.default && p.arch == name);
        let known = default.map(|p| {
            assert_eq!(p.size, 224);
            (p.name.as_str(), format!("{:.2} / {:.2}", p.top1.unwrap(), p.top5.unwrap()))
        });
        assert_eq!((weights, accuracy.to_owned()), known.unwrap_or(("–", "–".to_owned())), "{name}");
    }
    let count = format!("{} published weights", published().unwrap().len());
    assert!(text.contains(&count), "README.md does not say: {count}");
}

#[test]
fn the_figures_are_current() {
    let folder = tempfile::tempdir().unwrap();
    for (name, model) in [("basic-block.svg", "resnet34"), ("bottleneck-block.svg", "resnet50")] {
        let path = folder.path().join(name);
        let path = path.to_str().unwrap();
        resnet_cli(&["summary", model, "--only", "layer1.1", "--svg", path]).ok();
        let drawn = std::fs::read_to_string(path).unwrap();
        assert!(std::fs::read_to_string(file("docs").join(name)).unwrap() == drawn, "{name}: make figures");
        let again = resnet_cli(&["summary", model, "--svg", path]);
        again.fails_with(&["already exists"]);
    }
}

#[test]
fn models_are_listed() {
    let out = resnet_cli(&["list", "resnet*", "--sort", "top1"]);
    let lines: Vec<&str> = out.ok().lines().collect();
    assert!(lines[0].starts_with("  model") && lines.len() > 100, "{}", lines.len());
    let column = |line: &str| line.split_whitespace().rev().nth(5).unwrap().parse::<f64>();
    let accuracies: Vec<f64> = lines[1..].iter().map_while(|line| column(line).ok()).collect();
    assert!(accuracies.len() > 70 && accuracies.is_sorted_by(|a, b| a >= b), "{accuracies:?}");
    let json = resnet_cli(&["list", "resnet18*", "--json", "--sort", "gmacs"]);
    let rows: Vec<serde_json::Value> = serde_json::from_str(json.ok()).unwrap();
    assert!(rows.iter().any(|row| row["name"] == "resnet18.tv_in1k" && row["default"] == true));
    assert!(rows.is_sorted_by(|a, b| a["gmacs"].as_f64() <= b["gmacs"].as_f64()));
    usage_error(&["list", "resnt*"], "no model matches `resnt*`; did you mean resnet*");
    let folder = tempfile::tempdir().unwrap();
    let plot = folder.path().join("plot.svg");
    resnet_cli(&["list", "vgg*", "--plot", plot.to_str().unwrap()]).ok();
    assert_eq!(std::fs::read_to_string(&plot).unwrap().matches("top-1").count(), 1);
    let png = folder.path().join("plot.png");
    usage_error(&["list", "--plot", png.to_str().unwrap()], "expected a file name in .svg");
    let png = png.to_str().unwrap();
    usage_error(&["summary", "resnet18", "--svg", png], "expected a file name in .svg");
    assert!(!std::path::Path::new(png).exists());
}

#[test]
fn facts_of_a_model() {
    let out = resnet_cli(&["info", "resnet50"]);
    for part in ["timm/resnet50.tv2_in1k", "25,557,032", "bsd-3-clause", "80.858", "shorter side to 232"] {
        assert!(out.ok().contains(part), "{part}: {out:?}");
    }
    let json = resnet_cli(&["info", "timm/resnet50.a1_in1k", "--json"]);
    let facts: serde_json::Value = serde_json::from_str(json.ok()).unwrap();
    assert_eq!(facts["weights"]["preprocess"]["crop"], serde_json::json!([288, 288]));
    assert_eq!(facts["features"][4]["name"], "layer4");
    assert_eq!(facts["features"][4]["stride"], 32);
    usage_error(&["info", "resnet51"], "unknown model `resnet51`; did you mean resnet50");
    usage_error(&["info", "resnet50.a9_in1k"], "did you mean resnet50.a1_in1k");
}

#[test]
fn layers_of_a_model_and_of_a_file() {
    let out = resnet_cli(&["summary", "resnet50", "--depth", "1"]);
    assert!(out.ok().contains("layer4") && out.ok().contains("25,557,032"), "{out:?}");
    let out = resnet_cli(&["summary", digits().to_str().unwrap()]);
    assert!(out.ok().starts_with("resnet20_cifar, input 1×28×28"), "{out:?}");
    resnet_cli(&["summary", "resnet50", "--only", "layer5"])
        .fails_with(&["--only layer5", "layer4, avgpool, fc"]);
    resnet_cli(&["summary", "inception_v3", "--input", "32"]).fails_with(&["too small"]);
    usage_error(&["summary", "nothing.pth"], "`nothing.pth` is not a file: unknown model");
    let help = run(&mut command(&["summary", "--help"]), &[]);
    assert!(help.ok().contains("--svg"), "{help:?}");
}

#[test]
fn mismatches_name_the_first_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let path = save(folder.path(), "resnet18", &zoo::arch("resnet18").unwrap());
    let out = resnet_cli(&["predict", "--depth", "34", "--weights", path.to_str().unwrap(), "x.png"]);
    let tensors = "found tensor `layer2.0.conv1.weight`, expected `layer1.2.conv1.weight`";
    out.fails_with(&["contains resnet18", "the model is resnet34", tensors]);
    let out = resnet_cli(&["predict", "--model", "resnet50", "--weights", path.to_str().unwrap(), "x.png"]);
    out.fails_with(&["`layer1.0.conv1.weight` has shape [64, 64, 3, 3], expected [64, 64, 1, 1]"]);
}
