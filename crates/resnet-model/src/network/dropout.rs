//! Dropout and drop path (stochastic depth).

use candle_core::{DType, Tensor};

use crate::graph::{Graph, NodeId, Op};
use crate::{Error, Result, random};

/// Regularization of [`Network::train_forward`](super::Network::train_forward).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct DropConfig {
    /// Dropout probability of the input features of the last layer (arXiv 1207.0580).
    pub dropout: f64,
    /// Probability, per image, that the residual branch of the last block is dropped (stochastic depth,
    /// arXiv 1603.09382); it increases linearly with depth from 0 in the first block.
    pub drop_path: f64,
    /// Seed of the random numbers.
    pub seed: u64,
}

/// The probabilities of a [`DropConfig`] for one graph.
#[derive(Debug)]
pub(super) struct DropPlan {
    /// By node: the probability that the branch of a residual add is dropped.
    branches: Vec<f64>,
    /// The last layer and the dropout probability of its inputs.
    head: Option<(NodeId, f64)>,
    seed: u64,
}

impl DropConfig {
    /// Returns `None` if both probabilities are 0.
    ///
    /// # Errors
    ///
    /// Returns an error for probabilities outside [0, 1) and for a graph without the layers to drop.
    pub(super) fn plan(&self, graph: &Graph) -> Result<Option<DropPlan>> {
        if self.dropout == 0.0 && self.drop_path == 0.0 {
            return Ok(None);
        }
        for (name, value) in [("dropout", self.dropout), ("drop_path", self.drop_path)] {
            if !(0.0..1.0).contains(&value) {
                let expected = "a probability in [0, 1)".into();
                return Err(Error::InvalidOption { option: name, found: value.to_string(), expected });
            }
        }
        let mut branches = vec![0.0; graph.nodes().len()];
        let adds: Vec<NodeId> = graph.residual_adds().collect();
        let not_applicable = |option, value, layers| Err(Error::NotApplicable { option, value, layers });
        if self.drop_path > 0.0 && adds.is_empty() {
            return not_applicable("drop_path", self.drop_path, "residual branches");
        }
        for (i, add) in adds.iter().enumerate() {
            branches[add.index()] = self.drop_path * i as f64 / (adds.len() - 1).max(1) as f64;
        }
        let last = graph.output();
        let head = match graph.node(last).op {
            _ if self.dropout == 0.0 => None,
            Op::Linear(_) => Some((last, self.dropout)),
            _ => return not_applicable("dropout", self.dropout, "fully connected last layer"),
        };
        Ok(Some(DropPlan { branches, head, seed: self.seed }))
    }
}

impl DropPlan {
    /// Returns the drop probability of the branch of the residual add `id`.
    pub(super) fn branch(&self, id: NodeId) -> f64 {
        self.branches[id.index()]
    }

    /// Drops the branch `[N, C, H, W]` of the residual add `id` for some images, and scales it up for the others.
    pub(super) fn drop_branch(&self, x: &Tensor, id: NodeId) -> Result<Tensor> {
        let mut shape = vec![1; x.rank()];
        shape[0] = x.dim(0)?;
        Ok(x.broadcast_mul(&mask(self.branch_factors(id, shape[0]), &shape, x)?)?)
    }

    /// Returns the factor of the branch of the residual add `id`, for each image.
    pub(super) fn branch_factors(&self, id: NodeId, images: usize) -> Vec<f32> {
        self.random(id, self.branch(id), images)
    }

    /// Applies dropout to the features `[N, C]` if `id` is the last layer.
    pub(super) fn drop_features(&self, x: &Tensor, id: NodeId) -> Result<Option<Tensor>> {
        match self.head {
            Some((head, p)) if head == id => {
                Ok(Some((x * mask(self.random(id, p, x.elem_count()), x.dims(), x)?)?))
            }
            _ => Ok(None),
        }
    }

    /// Returns `count` factors: 0 with probability `p`, otherwise `1 / (1 - p)`.
    fn random(&self, id: NodeId, p: f64, count: usize) -> Vec<f32> {
        let random = random::sequence(&format!("drop/{}/{}", self.seed, id.index()));
        let kept = (1.0 / (1.0 - p)) as f32;
        (0..count).map(|i| if random(i) < p { 0.0 } else { kept }).collect()
    }
}

/// Returns a tensor with the dtype and device of `like`.
fn mask(values: Vec<f32>, shape: &[usize], like: &Tensor) -> Result<Tensor> {
    let mask = Tensor::from_vec(values, shape, like.device())?;
    Ok(if like.dtype() == DType::F32 { mask } else { mask.to_dtype(like.dtype())? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{Block, ResNet, Shortcut, Stage, Stem};
    use crate::network::Statistics;
    use crate::synthetic;
    use crate::{Arch, Network, zoo};
    use candle_core::{Device, Var};

    fn network(arch: &Arch) -> Network {
        let checkpoint = synthetic::checkpoint(arch).unwrap();
        let mut network = Network::load(&checkpoint, DType::F32, &Device::Cpu).unwrap();
        network.set_statistics(|_| Statistics::Running);
        network
    }

    fn input(n: usize) -> Tensor {
        Tensor::from_vec(synthetic::input(n * 3 * 16 * 16), (n, 3, 16, 16), &Device::Cpu).unwrap()
    }

    fn values(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn forward(network: &Network, x: &Tensor, dropping: DropConfig) -> Vec<f32> {
        values(&network.candle_train_forward(x, dropping).unwrap())
    }

    const SOME: DropConfig = DropConfig { dropout: 0.3, drop_path: 0.5, seed: 1 };

    #[test]
    fn the_seed_determines_the_mask() {
        let network = network(&zoo::arch("resnet20_cifar").unwrap());
        let x = input(4);
        let with = |seed| forward(&network, &x, DropConfig { seed, ..SOME });
        assert_eq!(with(1), with(1));
        assert_ne!(with(1), with(2));
        let whole = values(&network.forward(&x).unwrap());
        assert_eq!(forward(&network, &x, DropConfig { seed: 1, ..DropConfig::default() }), whole);
        assert_ne!(with(1), whole);
        // Evaluation mode ignores dropout.
        assert_eq!(values(&network.forward(&x).unwrap()), whole);
    }

    /// A block with a drop probability of 1 returns its shortcut. The networks cover fused norms, attention gates and
    /// pre-activation.
    #[test]
    fn a_dropped_branch_leaves_the_shortcut() {
        for name in ["resnet20_cifar", "seresnet18", "resnet18d", "resnetv2_18", "resnet50_clip"] {
            let network = network(&zoo::arch(name).unwrap());
            let graph = network.graph();
            let sums: Vec<NodeId> = graph.residual_adds().collect();
            let mut plan =
                DropConfig { drop_path: 0.5, ..DropConfig::default() }.plan(graph).unwrap().unwrap();
            assert_eq!((plan.branch(sums[0]), plan.branch(*sums.last().unwrap())), (0.0, 0.5), "{name}");
            for &sum in [&sums[1], &sums[sums.len() / 2], sums.last().unwrap()] {
                plan.branches.fill(0.0);
                // All random numbers are less.
                plan.branches[sum.index()] = 1.0 - 1e-12;
                let [_, shortcut] = graph.node(sum).inputs[..] else { panic!("{name}") };
                let after = match graph.ids().find(|id| graph.node(*id).inputs == [sum]) {
                    Some(relu) if graph.node(relu).op == Op::Relu => relu,
                    _ => sum,
                };
                // A shortcut that ends in a norm may be fused with the residual add, without a separate result.
                if matches!(graph.node(shortcut).op, Op::BatchNorm(_)) {
                    continue;
                }
                let x = input(2).repeat((1, 1, 2, 2)).unwrap();
                let found = network.run(&x, &[after], true, Some(&plan)).unwrap();
                let shortcut = network.run(&x, &[shortcut], true, Some(&plan)).unwrap();
                let expected = if after == sum { shortcut[0].clone() } else { shortcut[0].relu().unwrap() };
                assert!(values(&found[0]) == values(&expected), "{name} {}", graph.node(sum).name);
            }
        }
    }

    #[test]
    fn dropout_keeps_the_mean() {
        let network = network(&zoo::arch("resnet20_cifar").unwrap());
        let plan = SOME.plan(network.graph()).unwrap().unwrap();
        let last = network.graph().residual_adds().last().unwrap();
        let ones = Tensor::ones((2000, 3, 2, 2), DType::F32, &Device::Cpu).unwrap();
        let dropped = plan.drop_branch(&ones, last).unwrap();
        // Each image is dropped or kept as a whole.
        let images: Vec<Vec<f32>> = dropped.flatten_from(1).unwrap().to_vec2().unwrap();
        assert!(images.iter().all(|image| image.iter().all(|v| *v == image[0] && (*v == 0.0 || *v == 2.0))));
        let mean = images.iter().map(|image| image[0]).sum::<f32>() / 2000.0;
        assert!((mean - 1.0).abs() < 0.05, "{mean}");
        let features = Tensor::ones((100, 64), DType::F32, &Device::Cpu).unwrap();
        let dropped = values(&plan.drop_features(&features, network.graph().output()).unwrap().unwrap());
        let mean = dropped.iter().sum::<f32>() / 6400.0;
        assert!((mean - 1.0).abs() < 0.05 && dropped.contains(&0.0), "{mean}");
    }

    #[test]
    fn gradients_reach_the_input() {
        let network = network(&zoo::arch("resnet20_cifar").unwrap());
        let x = Var::from_tensor(&input(2)).unwrap();
        let y = network.candle_train_forward(&x, SOME).unwrap();
        let gradients = y.sum_all().unwrap().backward().unwrap();
        assert!(values(gradients.get(&x).unwrap()).iter().any(|g| *g != 0.0));
    }

    #[test]
    fn inapplicable_options_are_rejected() {
        let check = |arch: &str, classes: usize, dropping: DropConfig, message: &str| {
            let graph = zoo::arch(arch).unwrap().with_classes(classes).graph().unwrap();
            let error = dropping.plan(&graph).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        check("plain20_cifar", 10, SOME, "drop_path is 0.5, but the network has no residual branches");
        check("seresnet18", 0, SOME, "dropout is 0.3, but the network has no fully connected last layer");
        check(
            "resnet18",
            10,
            DropConfig { dropout: 1.0, ..SOME },
            "invalid dropout: expected a probability in [0, 1), found 1",
        );
        check(
            "resnet18",
            10,
            DropConfig { drop_path: f64::NAN, ..SOME },
            "invalid drop_path: expected a probability in [0, 1), found NaN",
        );
        // Every family has a last layer; those with shortcuts have residual branches.
        for (name, branches) in [
            ("test_resnet", true),
            ("resnet20_cifar", true),
            ("resnetv2_18", true),
            ("resnetv2_50x1_bit", true),
            ("vgg11", false),
            ("inception_v3", false),
            ("inception_v4", false),
            ("inception_resnet_v2", true),
            ("resnet50_clip_gap", true),
        ] {
            let graph = zoo::arch(name).unwrap().with_classes(5).graph().unwrap();
            let plan = |dropping: DropConfig| dropping.plan(&graph).map(|plan| plan.is_some());
            assert!(plan(DropConfig { drop_path: 0.0, ..SOME }).unwrap(), "{name}");
            assert_eq!(plan(DropConfig { dropout: 0.0, ..SOME }).is_ok(), branches, "{name}");
        }
        // A single block is never dropped.
        let stage = Stage { block: Block::Basic, depth: 1, width: 8 };
        let net = ResNet {
            stem: Stem::Conv3 { width: 8 },
            stages: vec![stage],
            shortcut: Shortcut::Projection,
            ..ResNet::imagenet(Block::Basic, &[])
        };
        assert!(SOME.plan(&Arch::ResNet(net).graph().unwrap()).is_ok());
    }
}
