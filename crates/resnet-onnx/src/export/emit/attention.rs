//! Attention pooling of CLIP with operator set 17: the query is the mean of all pixels.

use resnet_model::graph::{AttentionPool, Node};

use super::super::message::Attribute;
use super::{Emitter, InitializerSource, ints};
use crate::error::{Error, Result};

impl Emitter<'_> {
    pub(super) fn attention_pool(&mut self, node: &Node, pool: &AttentionPool, x: &str) -> Result<String> {
        let name = node.name.as_str();
        let pixels = self.pixels(node)?;
        if pixels != pool.grid {
            let detail = format!(
                "`{name}`: expected a feature map of {}×{} from its positional embedding, found {}×{}",
                pool.grid[0], pool.grid[1], pixels[0], pixels[1]
            );
            return Err(Error::Export(detail));
        }
        let scoped = |suffix: &str| format!("{name}.{suffix}");
        // [N, C, P] and its mean: [N, 1 + P, C].
        let shape = self.list(scoped("rows"), &[0, 0, -1]);
        let rows = self.push(&scoped("pixels"), "Reshape", &[x, &shape], vec![]);
        let axes = vec![Attribute::ints("axes", &[2]), Attribute::int("keepdims", 1)];
        let mean = self.push(&scoped("mean"), "ReduceMean", &[&rows], axes);
        let all = self.push(&scoped("all"), "Concat", &[&mean, &rows], vec![Attribute::int("axis", 2)]);
        let order = vec![Attribute::ints("perm", &[0, 2, 1])];
        let tokens = self.push(&scoped("tokens"), "Transpose", &[&all], order);
        let position = self.stored(node, "pos_embed", &pool.position_shape(node.channels));
        let tokens = self.push(&scoped("placed"), "Add", &[&tokens, &position], vec![]);
        // Only the mean is a query.
        let (start, end, axis) = (
            self.list(scoped("start"), &[0]),
            self.list(scoped("end"), &[1]),
            self.list(scoped("axis"), &[1]),
        );
        let first = self.push(&scoped("first"), "Slice", &[&tokens, &start, &end, &axis], vec![]);
        let per_head = node.channels.checked_div(pool.heads).unwrap_or(0);
        let [heads, width] = ints([pool.heads, per_head]);
        let split = self.list(scoped("heads"), &[0, -1, heads, width]);
        let mut project = |which: &str, tokens: &str, order: [i64; 4]| {
            let weight = self.stored(node, &format!("{which}.weight"), &[node.channels; 2]);
            let bias = self.stored(node, &format!("{which}.bias"), &[node.channels]);
            let transposed =
                self.push(&scoped(&format!("{which}.transposed")), "Transpose", &[&weight], vec![]);
            let product =
                self.push(&scoped(&format!("{which}.product")), "MatMul", &[tokens, &transposed], vec![]);
            let sum = self.push(&scoped(&format!("{which}.sum")), "Add", &[&product, &bias], vec![]);
            let parts = self.push(&scoped(&format!("{which}.parts")), "Reshape", &[&sum, &split], vec![]);
            let order = vec![Attribute::ints("perm", &order)];
            self.push(&scoped(&format!("{which}.heads")), "Transpose", &[&parts], order)
        };
        let query = project("q", &first, [0, 2, 1, 3]);
        let key = project("k", &tokens, [0, 2, 3, 1]);
        let value = project("v", &tokens, [0, 2, 1, 3]);
        let scale = InitializerSource::Values(vec![(1.0 / (per_head as f64).sqrt()) as f32]);
        let scale = self.initializer(scoped("scale"), vec![], scale);
        let query = self.push(&scoped("scaled"), "Mul", &[&query, &scale], vec![]);
        let scores = self.push(&scoped("scores"), "MatMul", &[&query, &key], vec![]);
        let weights = self.push(&scoped("weights"), "Softmax", &[&scores], vec![Attribute::int("axis", -1)]);
        let mixed = self.push(&scoped("mixed"), "MatMul", &[&weights, &value], vec![]);
        let [channels, _] = ints([node.channels, 0]);
        let shape = self.list(scoped("channels"), &[0, channels]);
        Ok(self.push(name, "Reshape", &[&mixed, &shape], vec![]))
    }
}
