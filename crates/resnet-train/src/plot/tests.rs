use super::*;

fn record(epoch: usize, loss: f64, val_top1: Option<f64>) -> EpochMetrics {
    let val_loss = val_top1.map(|_| 0.5);
    EpochMetrics { epoch, step: 10, loss, train_top1: 0.5, lr: 0.1, val_loss, val_top1 }
}

#[test]
fn curves_are_drawn() {
    let records: Vec<EpochMetrics> = (0..5).map(|i| record(i, 1.0 / (i + 1) as f64, Some(0.25))).collect();
    let image = run(&records);
    assert!(image.starts_with("<svg") && image.trim_end().ends_with("</svg>"));
    for word in ["loss", "validation", "learning rate", "<polyline"] {
        assert!(image.contains(word), "{word}");
    }
    for records in [&[][..], &[record(0, f64::NAN, None)], &[record(0, 0.0, Some(1.0))]] {
        let image = run(records);
        assert!(image.contains("errors") && !image.contains("NaN") && !image.contains("inf"), "{image}");
    }
}

#[test]
fn best_epoch_is_the_first_of_the_most_accurate() {
    let top1 = [0.25, 0.75, 0.5, 0.75];
    let mut records: Vec<EpochMetrics> =
        top1.iter().enumerate().map(|(i, top1)| record(i, 1.0, Some(*top1))).collect();
    assert_eq!(run(&records).matches("best epoch: 2<").count(), 3);
    records[3].val_loss = Some(0.25);
    assert!(run(&records).contains("best epoch: 4<"));
    assert!(!run(&[record(0, 1.0, None)]).contains("best epoch"));
}

#[test]
fn axes_have_three_ticks_or_more() {
    for scale in [Scale::Linear, Scale::Log] {
        for [low, high] in [[1e-3, 1e4], [0.03, 500.0], [2.0, 12.0], [3.8, 6.1], [2.21, 2.29], [1e-9, 1e9]] {
            let ends = scale.range([low, high].map(|v| scale.map(v)).into_iter());
            let ticks = scale.ticks(ends);
            assert!((3..=14).contains(&ticks.len()), "{scale:?} {low} {high}: {ticks:?}");
            assert!(ticks.is_sorted_by(|a, b| a < b), "{ticks:?}");
            assert!(ticks.iter().all(|tick| (ends[0]..=ends[1]).contains(&scale.map(*tick))), "{ticks:?}");
        }
    }
    let epochs = |last: f64| Scale::Integer.ticks(Scale::Integer.range([1.0, last].into_iter()));
    assert_eq!([epochs(1.0), epochs(2.0), epochs(3.0)], [vec![1.0], vec![1.0, 2.0], vec![1.0, 2.0, 3.0]]);
    assert!(epochs(90.0).len() >= 3 && epochs(7.0).iter().all(|epoch| epoch.fract() == 0.0));
    assert_eq!([0.3, 0.1 + 0.2, 50.0, 1e-5, 0.0].map(number), ["0.3", "0.3", "50", "1e-5", "0"]);
}

#[test]
fn labels_do_not_overlap_and_text_is_escaped() {
    let point = |x, y, label: &str| Point { label: label.into(), ..Point::new(x, y) };
    let points = vec![point(1.0, 1.0, "a<b"), point(1.0, 1.0, "same place"), point(2.0, 2.0, "c&d")];
    let series = Series { name: "\"s\"".into(), color: COLORS[0], mark: Mark::Dots, points };
    let axis = || Axis::new("<x>", Scale::Linear);
    let chart = Chart { height: 300.0, x: axis(), y: axis(), series: vec![series], note: "n".into() };
    let image = svg(&[chart]);
    for text in ["a&lt;b", "c&amp;d", "&quot;s&quot;", "&lt;x&gt;"] {
        assert!(image.contains(text), "{text}");
    }
    assert_eq!(image.matches("<circle").count(), 4);
}
