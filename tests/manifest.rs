//! `weights/manifest.toml` against what the graphs compute.

use resnet_cli::weights::published;
use resnet_model::zoo;

#[test]
fn published_costs_are_those_of_the_graphs() {
    let published = published().unwrap();
    assert!(published.len() > 150, "{} weights", published.len());
    for p in published {
        let graph = zoo::arch(&p.arch).unwrap().with_classes(p.classes).graph().unwrap();
        assert_eq!(graph.param_count(), p.params, "{}", p.name);
        let gmacs = graph.macs(p.size, p.size).unwrap() as f64 / 1e9;
        assert!((gmacs - p.gmacs).abs() < 6e-4, "{}: {gmacs}", p.name);
    }
}
