use super::*;
use resnet_model::zoo;

fn diagram(name: &str, only: Option<&str>) -> Diagram {
    let graph = zoo::arch(name).unwrap().graph().unwrap();
    Diagram::new(&graph, &graph.costs(224, 224).unwrap(), only).unwrap()
}

fn labels(diagram: &Diagram) -> Vec<String> {
    let label = |s: &Shape| [&[s.label.as_str()], s.notes.as_slice()].concat().join(" | ");
    diagram.shapes.iter().map(label).collect()
}

#[test]
fn a_block_is_its_convolutions_and_a_sum() {
    let block = diagram("resnet50", Some("layer2.0"));
    assert_eq!(
        labels(&block),
        [
            "256×56×56",
            "1×1 conv, 128 | batch norm | ReLU",
            "3×3 conv, 128, /2 | batch norm | ReLU",
            "1×1 conv, 512 | batch norm",
            "1×1 conv, 512, /2 | batch norm",
            "+ | ReLU",
        ]
    );
    assert_eq!(block.shapes[5].inputs, [3, 4]);
    assert!(block.blocks.is_empty());
}

#[test]
fn blocks_are_found_in_every_family() {
    for (name, first, count) in [
        ("resnet50", "layer1.0", 16),
        ("resnetv2_50", "stages.0.blocks.0", 16),
        ("resnet50_clip", "stages.0.0", 16),
        ("inception_v3", "Mixed_5b", 11),
        ("inception_resnet_v2", "mixed_5b", 43),
        ("plain34", "", 0),
    ] {
        let blocks = diagram(name, None).blocks;
        assert_eq!((blocks.first().map_or("", |b| b.name.as_str()), blocks.len()), (first, count), "{name}");
    }
}

#[test]
fn files_hold_every_shape_and_line() {
    for (name, only) in [("resnet18", None), ("inception_v3", None), ("seresnet50", Some("layer1"))] {
        let diagram = diagram(name, only);
        let lines: usize = diagram.shapes.iter().map(|s| s.inputs.len()).sum();
        let svg = svg(&diagram, "a <title>");
        assert_eq!(svg.matches("class=\"line\"").count(), lines, "{name}");
        assert_eq!(svg.matches("<g>").count(), diagram.shapes.len(), "{name}");
        assert!(svg.contains("a &lt;title&gt;") && svg.trim_end().ends_with("</svg>"));
        let dot = dot(&diagram, "a \"title\"");
        assert_eq!(dot.matches(" -> ").count(), lines, "{name}");
        assert_eq!(dot.matches("subgraph").count(), diagram.blocks.len(), "{name}");
        assert!(dot.starts_with("digraph \"a \\\"title\\\"\" {"));
    }
    let graph = zoo::arch("resnet18").unwrap().graph().unwrap();
    assert!(Diagram::new(&graph, &graph.costs(224, 224).unwrap(), Some("layer9")).is_none());
}
