//! What is left out at random while a network is trained.

use candle_core::{DType, Tensor};

use crate::graph::{Graph, NodeId, Op};
use crate::{Error, Result, random};

/// What is left out at random in training; see [`Network::forward_dropping`](super::Network::forward_dropping).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct DropConfig {
    /// The probability that a feature that the last layer sees is 0 (dropout, arXiv 1207.0580).
    pub dropout: f64,
    /// The probability that the last block's sum is its shortcut alone, for each image by itself; that of blocks before
    /// it is smaller in proportion to their number, the first block's is 0 (stochastic depth, arXiv 1603.09382).
    pub drop_path: f64,
    /// Chooses what is left out: the same seed leaves out the same.
    pub seed: u64,
}

/// [`DropConfig`] for one graph.
#[derive(Debug)]
pub(super) struct Plan {
    /// By operation: the probability that a sum's branch is left out.
    branches: Vec<f64>,
    /// The last layer, and the probability that one of its inputs is left out.
    head: Option<(NodeId, f64)>,
    seed: u64,
}

impl DropConfig {
    /// Whether anything is left out.
    fn is_any(&self) -> bool {
        self.dropout != 0.0 || self.drop_path != 0.0
    }

    /// `None` if nothing is left out. Errors: a probability that is none, a graph without what is to be left out.
    pub(super) fn plan(&self, graph: &Graph) -> Result<Option<Plan>> {
        if !self.is_any() {
            return Ok(None);
        }
        for (name, value) in [("dropout", self.dropout), ("drop_path", self.drop_path)] {
            if !(0.0..1.0).contains(&value) {
                return Err(Error::Arch(format!("{name} is {value}, expected 0 to less than 1")));
            }
        }
        let mut branches = vec![0.0; graph.nodes().len()];
        let sums: Vec<NodeId> = graph.residual_sums().collect();
        if self.drop_path > 0.0 && sums.is_empty() {
            return Err(Error::Arch(format!(
                "drop_path is {}, but the network has no residual branches to leave out",
                self.drop_path
            )));
        }
        for (i, sum) in sums.iter().enumerate() {
            branches[sum.index()] = self.drop_path * i as f64 / (sums.len() - 1).max(1) as f64;
        }
        let last = graph.output();
        let head = match graph.node(last).op {
            _ if self.dropout == 0.0 => None,
            Op::Linear(_) => Some((last, self.dropout)),
            _ => {
                let what = "but the network has no last layer before which features could be left out";
                return Err(Error::Arch(format!("dropout is {}, {what}", self.dropout)));
            }
        };
        Ok(Some(Plan { branches, head, seed: self.seed }))
    }
}

impl Plan {
    /// The probability that the branch of the sum `id` is left out.
    pub(super) fn branch(&self, id: NodeId) -> f64 {
        self.branches[id.index()]
    }

    /// A sum's branch `[N, C, H, W]`: zeros for some images, more for the others, so that the mean stays.
    pub(super) fn drop_branch(&self, x: &Tensor, id: NodeId) -> Result<Tensor> {
        let mut shape = vec![1; x.rank()];
        shape[0] = x.dim(0)?;
        Ok(x.broadcast_mul(&mask(self.kept(id, shape[0]), &shape, x)?)?)
    }

    /// What the branch of the sum `id` is multiplied by, for each of `images`.
    pub(super) fn kept(&self, id: NodeId, images: usize) -> Vec<f32> {
        self.random(id, self.branch(id), images)
    }

    /// The features `[N, C]` for the operation `id`, if it is the last layer.
    pub(super) fn drop_features(&self, x: &Tensor, id: NodeId) -> Result<Option<Tensor>> {
        match self.head {
            Some((head, rate)) if head == id => {
                Ok(Some((x * mask(self.random(id, rate, x.elem_count()), x.dims(), x)?)?))
            }
            _ => Ok(None),
        }
    }

    /// Zeros with probability `rate`, else `1 / (1 - rate)`.
    fn random(&self, id: NodeId, rate: f64, count: usize) -> Vec<f32> {
        let random = random::sequence(&format!("drop/{}/{}", self.seed, id.index()));
        let kept = (1.0 / (1.0 - rate)) as f32;
        (0..count).map(|i| if random(i) < rate { 0.0 } else { kept }).collect()
    }
}

/// Factors, of the type and on the device of `like`.
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
        values(&network.forward_dropping(x, dropping).unwrap())
    }

    const SOME: DropConfig = DropConfig { dropout: 0.3, drop_path: 0.5, seed: 1 };

    #[test]
    fn seeds_choose_and_nothing_else_does() {
        let network = network(&zoo::arch("resnet20_cifar").unwrap());
        let x = input(4);
        let with = |seed| forward(&network, &x, DropConfig { seed, ..SOME });
        assert_eq!(with(1), with(1));
        assert_ne!(with(1), with(2));
        let whole = values(&network.forward(&x).unwrap());
        assert_eq!(forward(&network, &x, DropConfig { seed: 1, ..DropConfig::default() }), whole);
        assert_ne!(with(1), whole);
        // In evaluation mode nothing is left out.
        assert_eq!(values(&network.forward(&x).unwrap()), whole);
    }

    /// With a last branch that is always left out, the last block is its shortcut; the first is never left out. Norms
    /// that are computed with the sum, sums behind gates, and pre-activation are all met.
    #[test]
    fn a_block_without_its_branch_is_its_shortcut() {
        for name in ["resnet20_cifar", "seresnet18", "resnet18d", "resnetv2_18", "resnet50_clip"] {
            let network = network(&zoo::arch(name).unwrap());
            let graph = network.graph();
            let sums: Vec<NodeId> = graph.residual_sums().collect();
            let mut plan =
                DropConfig { drop_path: 0.5, ..DropConfig::default() }.plan(graph).unwrap().unwrap();
            assert_eq!((plan.branch(sums[0]), plan.branch(*sums.last().unwrap())), (0.0, 0.5), "{name}");
            for &sum in [&sums[1], &sums[sums.len() / 2], sums.last().unwrap()] {
                plan.branches.fill(0.0);
                // The uniform numbers are all less.
                plan.branches[sum.index()] = 1.0 - 1e-12;
                let [_, shortcut] = graph.node(sum).inputs[..] else { panic!("{name}") };
                let after = match graph.ids().find(|id| graph.node(*id).inputs == [sum]) {
                    Some(relu) if graph.node(relu).op == Op::Relu => relu,
                    _ => sum,
                };
                // A shortcut that is a norm may be computed with the sum and be no result of its own.
                if matches!(graph.node(shortcut).op, Op::BatchNorm(_)) {
                    continue;
                }
                let x = input(2).repeat((1, 1, 2, 2)).unwrap();
                let found = network.pass(&x, &[after], true, Some(&plan)).unwrap();
                let shortcut = network.pass(&x, &[shortcut], true, Some(&plan)).unwrap();
                let expected = if after == sum { shortcut[0].clone() } else { shortcut[0].relu().unwrap() };
                assert!(values(&found[0]) == values(&expected), "{name} {}", graph.node(sum).name);
            }
        }
    }

    #[test]
    fn means_stay() {
        let network = network(&zoo::arch("resnet20_cifar").unwrap());
        let plan = SOME.plan(network.graph()).unwrap().unwrap();
        let last = network.graph().residual_sums().last().unwrap();
        let ones = Tensor::ones((2000, 3, 2, 2), DType::F32, &Device::Cpu).unwrap();
        let dropped = plan.drop_branch(&ones, last).unwrap();
        // Whole images, and two kinds of them.
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
    fn gradients_flow_where_nothing_is_left_out() {
        let network = network(&zoo::arch("resnet20_cifar").unwrap());
        let x = Var::from_tensor(&input(2)).unwrap();
        let y = network.forward_dropping(&x, SOME).unwrap();
        let gradients = y.sum_all().unwrap().backward().unwrap();
        assert!(values(gradients.get(&x).unwrap()).iter().any(|g| *g != 0.0));
    }

    #[test]
    fn what_a_network_lacks_cannot_be_left_out() {
        let check = |arch: &str, classes: usize, dropping: DropConfig, message: &str| {
            let graph = zoo::arch(arch).unwrap().with_classes(classes).graph().unwrap();
            let error = dropping.plan(&graph).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        check("plain20_cifar", 10, SOME, "drop_path is 0.5, but the network has no residual branches");
        check("seresnet18", 0, SOME, "dropout is 0.3, but the network has no last layer");
        check("resnet18", 10, DropConfig { dropout: 1.0, ..SOME }, "dropout is 1, expected 0 to less than 1");
        check("resnet18", 10, DropConfig { drop_path: f64::NAN, ..SOME }, "drop_path is NaN");
        // Every family has a last layer, and those with shortcuts have branches.
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
        // One block alone is never left out.
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
