//! The dialect tables. A new dialect is a new row.

use resnet_image::preprocess::{CLIP_MEAN, CLIP_STD, Channels, Filter, Range};
use resnet_model::Preprocess;

/// A naming scheme.
#[derive(Debug)]
pub(crate) struct Dialect {
    pub(super) name: &'static str,
    /// Names that identify the dialect; their common prefix in the file is the network's root.
    pub(super) anchors: &'static [&'static str],
    /// Required suffix of the root.
    pub(super) root_ends: &'static str,
    /// Suffix replacements, applied before the rules.
    pub(super) ends: &'static [(&'static str, &'static str)],
    /// Rename rules for names under the root; the first match applies, other names are kept.
    pub(super) rules: &'static [(&'static str, &'static str)],
    /// Names under the root to drop: training heads.
    pub(super) drop: &'static [&'static str],
    /// Memory layout of weights.
    pub(super) layout: WeightLayout,
    /// Differences from PyTorch's networks with the same shapes.
    pub(super) traits: Traits,
    /// Input normalization in training.
    pub(super) norm: InputNorm,
}

/// Memory layout of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WeightLayout {
    /// `[out, in, height, width]` and `[out, in]`.
    Torch,
    /// `[height, width, in, out]` and `[in, out]`.
    Tensorflow,
}

/// Properties that the dialect implies and no tensor shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Traits {
    /// Batch norms have scale and bias only, without running statistics.
    pub(crate) affine: bool,
    /// Bottleneck blocks of one group have their stride in the first 1×1 convolution.
    pub(crate) stride_first: bool,
    /// Epsilon of the norms, unless it is the family's default.
    pub(crate) norm_eps: Option<f64>,
}

/// Input normalization in training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InputNorm {
    /// The default of the architecture.
    Default,
    /// SwAV's std, which differs by 0.001 in the red channel.
    Swav,
    /// Detectron's: BGR from 0 to 255, mean subtracted, std 1.
    Detectron,
    /// Keras' `caffe` mode: Detectron's with another mean.
    Keras,
    /// CLIP's mean and std.
    Clip,
}

impl InputNorm {
    /// Returns `default` with this normalization; `grouped` is `true` for networks with grouped convolutions.
    pub(super) fn preprocess(self, default: Preprocess, grouped: bool) -> Preprocess {
        let bytes = |mean: [f32; 3], std: [f32; 3]| Preprocess {
            channels: Channels::Bgr,
            range: Range::Byte,
            mean: mean.to_vec(),
            std: std.to_vec(),
            ..default.clone()
        };
        match self {
            InputNorm::Default => default,
            InputNorm::Swav => Preprocess { std: vec![0.228, 0.224, 0.225], ..default },
            // Detectron's ResNeXt weights have another origin and a std.
            InputNorm::Detectron if grouped => bytes([103.530, 116.280, 123.675], [57.375, 57.120, 58.395]),
            InputNorm::Detectron => bytes([103.530, 116.280, 123.675], [1.0; 3]),
            InputNorm::Keras => bytes([103.939, 116.779, 123.68], [1.0; 3]),
            InputNorm::Clip => Preprocess {
                filter: Filter::Bicubic,
                mean: CLIP_MEAN.to_vec(),
                std: CLIP_STD.to_vec(),
                ..default
            },
        }
    }
}

/// Traits of PyTorch's networks.
pub(super) const AS_TORCH: Traits = Traits { affine: false, stride_first: false, norm_eps: None };

const PLAIN: Dialect = Dialect {
    name: "torchvision",
    anchors: &[],
    root_ends: "",
    ends: &[],
    rules: &[],
    drop: &[],
    layout: WeightLayout::Torch,
    traits: AS_TORCH,
    norm: InputNorm::Default,
};

const HUGGING_FACE: &[(&str, &str)] = &[
    ("resnet.embedder.embedder.convolution.*", "conv1.*"),
    ("resnet.embedder.embedder.normalization.*", "bn1.*"),
    ("resnet.encoder.stages.{s}.layers.{b}.layer.{i}.convolution.*", "layer{s+1}.{b}.conv{i+1}.*"),
    ("resnet.encoder.stages.{s}.layers.{b}.layer.{i}.normalization.*", "layer{s+1}.{b}.bn{i+1}.*"),
    ("resnet.encoder.stages.{s}.layers.{b}.shortcut.convolution.*", "layer{s+1}.{b}.downsample.0.*"),
    ("resnet.encoder.stages.{s}.layers.{b}.shortcut.normalization.*", "layer{s+1}.{b}.downsample.1.*"),
    ("classifier.1.*", "fc.*"),
    ("embedder.embedder.convolution.*", "conv1.*"),
    ("embedder.embedder.normalization.*", "bn1.*"),
    ("encoder.stages.{s}.layers.{b}.layer.{i}.convolution.*", "layer{s+1}.{b}.conv{i+1}.*"),
    ("encoder.stages.{s}.layers.{b}.layer.{i}.normalization.*", "layer{s+1}.{b}.bn{i+1}.*"),
    ("encoder.stages.{s}.layers.{b}.shortcut.convolution.*", "layer{s+1}.{b}.downsample.0.*"),
    ("encoder.stages.{s}.layers.{b}.shortcut.normalization.*", "layer{s+1}.{b}.downsample.1.*"),
];

/// Detectron2's names. Its ImageNet weights come from Caffe2, unless the file names another author.
const DETECTRON: &[(&str, &str)] = &[
    ("stem.conv1.norm.*", "bn1.*"),
    ("stem.conv1.*", "conv1.*"),
    ("res{s}.{b}.shortcut.norm.*", "layer{s-1}.{b}.downsample.1.*"),
    ("res{s}.{b}.shortcut.*", "layer{s-1}.{b}.downsample.0.*"),
    ("res{s}.{b}.conv{i}.norm.*", "layer{s-1}.{b}.bn{i}.*"),
    ("res{s}.{b}.conv{i}.*", "layer{s-1}.{b}.conv{i}.*"),
    ("linear.*", "fc.*"),
];

const CAFFE2: &[(&str, &str)] = &[
    ("conv1.*", "conv1.*"),
    ("res_conv1_bn.*", "bn1.*"),
    ("res{s}_{b}_branch1_bn.*", "layer{s-1}.{b}.downsample.1.*"),
    ("res{s}_{b}_branch1.*", "layer{s-1}.{b}.downsample.0.*"),
    ("res{s}_{b}_branch2a_bn.*", "layer{s-1}.{b}.bn1.*"),
    ("res{s}_{b}_branch2a.*", "layer{s-1}.{b}.conv1.*"),
    ("res{s}_{b}_branch2b_bn.*", "layer{s-1}.{b}.bn2.*"),
    ("res{s}_{b}_branch2b.*", "layer{s-1}.{b}.conv2.*"),
    ("res{s}_{b}_branch2c_bn.*", "layer{s-1}.{b}.bn3.*"),
    ("res{s}_{b}_branch2c.*", "layer{s-1}.{b}.conv3.*"),
    ("pred.*", "fc.*"),
    ("fc1000.*", "fc.*"),
    ("last_out_L1000.*", "fc.*"),
];

const KERAS: &[(&str, &str)] = &[
    ("conv1_conv.*", "conv1.*"),
    ("conv1_bn.*", "bn1.*"),
    ("conv{s}_block{b}_0_conv.*", "layer{s-1}.{b-1}.downsample.0.*"),
    ("conv{s}_block{b}_0_bn.*", "layer{s-1}.{b-1}.downsample.1.*"),
    ("conv{s}_block{b}_{i}_conv.*", "layer{s-1}.{b-1}.conv{i}.*"),
    ("conv{s}_block{b}_{i}_bn.*", "layer{s-1}.{b-1}.bn{i}.*"),
    ("predictions.*", "fc.*"),
    ("probs.*", "fc.*"),
];

const KERAS_ENDS: &[(&str, &str)] = &[
    ("/kernel", ".weight"),
    ("/bias", ".bias"),
    ("/gamma", ".weight"),
    ("/beta", ".bias"),
    ("/moving_mean", ".running_mean"),
    ("/moving_variance", ".running_var"),
];

const BIT: &[(&str, &str)] = &[
    ("root_block/standardized_conv2d.*", "stem.conv.*"),
    ("block{s}/unit{b}/a/group_norm.*", "stages.{s-1}.blocks.{b-1}.norm1.*"),
    ("block{s}/unit{b}/b/group_norm.*", "stages.{s-1}.blocks.{b-1}.norm2.*"),
    ("block{s}/unit{b}/c/group_norm.*", "stages.{s-1}.blocks.{b-1}.norm3.*"),
    ("block{s}/unit{b}/a/standardized_conv2d.*", "stages.{s-1}.blocks.{b-1}.conv1.*"),
    ("block{s}/unit{b}/b/standardized_conv2d.*", "stages.{s-1}.blocks.{b-1}.conv2.*"),
    ("block{s}/unit{b}/c/standardized_conv2d.*", "stages.{s-1}.blocks.{b-1}.conv3.*"),
    ("block{s}/unit{b}/a/proj/standardized_conv2d.*", "stages.{s-1}.blocks.{b-1}.downsample.conv.*"),
    ("group_norm.*", "norm.*"),
    ("head/conv2d.*", "head.fc.*"),
];

/// `nn.Sequential(*resnet.children())` of a torchvision ResNet.
const CHILDREN: &[(&str, &str)] = &[
    ("0.*", "conv1.*"),
    ("1.*", "bn1.*"),
    ("4.*", "layer1.*"),
    ("5.*", "layer2.*"),
    ("6.*", "layer3.*"),
    ("7.*", "layer4.*"),
    ("9.*", "fc.*"),
    ("10.*", "fc.*"),
];

const OPENAI_CLIP: &[(&str, &str)] = &[
    ("conv{i}.*", "stem.conv{i}.conv.*"),
    ("bn{i}.*", "stem.conv{i}.bn.*"),
    ("layer{s}.{b}.conv1.*", "stages.{s-1}.{b}.conv1_1x1.conv.*"),
    ("layer{s}.{b}.bn1.*", "stages.{s-1}.{b}.conv1_1x1.bn.*"),
    ("layer{s}.{b}.conv2.*", "stages.{s-1}.{b}.conv2_kxk.conv.*"),
    ("layer{s}.{b}.bn2.*", "stages.{s-1}.{b}.conv2_kxk.bn.*"),
    ("layer{s}.{b}.conv3.*", "stages.{s-1}.{b}.conv3_1x1.conv.*"),
    ("layer{s}.{b}.bn3.*", "stages.{s-1}.{b}.conv3_1x1.bn.*"),
    ("layer{s}.{b}.downsample.0.*", "stages.{s-1}.{b}.shortcut.conv.conv.*"),
    ("layer{s}.{b}.downsample.1.*", "stages.{s-1}.{b}.shortcut.conv.bn.*"),
    ("attnpool.positional_embedding", "head.pos_embed"),
    ("attnpool.q_proj.*", "head.q.*"),
    ("attnpool.k_proj.*", "head.k.*"),
    ("attnpool.v_proj.*", "head.v.*"),
    ("attnpool.c_proj.*", "head.proj.*"),
];

/// The dialects. The first row whose anchors exist applies: rows with more anchors come first.
pub(super) static DIALECTS: &[Dialect] = &[
    // transformers' ResNetForImageClassification, then a bare ResNetModel.
    Dialect {
        name: "Hugging Face transformers",
        anchors: &["resnet.embedder.embedder.convolution.weight"],
        rules: HUGGING_FACE,
        ..PLAIN
    },
    Dialect {
        name: "Hugging Face transformers",
        anchors: &["embedder.embedder.convolution.weight"],
        rules: HUGGING_FACE,
        ..PLAIN
    },
    Dialect {
        name: "OpenAI CLIP",
        anchors: &["conv3.weight", "layer1.0.conv1.weight", "attnpool.positional_embedding"],
        rules: OPENAI_CLIP,
        norm: InputNorm::Clip,
        ..PLAIN
    },
    Dialect {
        name: "timm",
        anchors: &["stem.conv1.conv.weight", "stages.0.0.conv1_1x1.conv.weight"],
        norm: InputNorm::Clip,
        ..PLAIN
    },
    Dialect {
        name: "Detectron2",
        anchors: &["stem.conv1.weight", "res2.0.conv1.weight"],
        rules: DETECTRON,
        traits: Traits { stride_first: true, ..AS_TORCH },
        norm: InputNorm::Detectron,
        ..PLAIN
    },
    Dialect {
        name: "Caffe2",
        anchors: &["conv1_w", "res2_0_branch2a_w"],
        ends: &[
            ("_bn_s", "_bn.weight"),
            ("_bn_b", "_bn.bias"),
            ("_bn_rm", "_bn.running_mean"),
            ("_bn_riv", "_bn.running_var"),
            ("_w", ".weight"),
            ("_b", ".bias"),
        ],
        rules: CAFFE2,
        drop: &["*_momentum", "lr", "model_iter"],
        traits: Traits { affine: true, stride_first: true, ..AS_TORCH },
        norm: InputNorm::Detectron,
        ..PLAIN
    },
    Dialect {
        name: "Keras",
        anchors: &["conv1_conv/kernel", "conv1_bn/gamma"],
        ends: KERAS_ENDS,
        rules: KERAS,
        layout: WeightLayout::Tensorflow,
        traits: Traits { stride_first: true, norm_eps: Some(1.001e-5), ..AS_TORCH },
        norm: InputNorm::Keras,
        ..PLAIN
    },
    // Google's own files of BiT.
    Dialect {
        name: "BiT",
        anchors: &["root_block/standardized_conv2d/kernel", "block1/unit01/a/standardized_conv2d/kernel"],
        ends: KERAS_ENDS,
        rules: BIT,
        layout: WeightLayout::Tensorflow,
        ..PLAIN
    },
    // OpenMMLab keeps the head outside the backbone.
    Dialect {
        name: "OpenMMLab",
        anchors: &["backbone.conv1.weight", "backbone.layer1.0.conv1.weight", "head.fc.weight"],
        rules: &[("backbone.*", "*"), ("head.fc.*", "fc.*")],
        ..PLAIN
    },
    Dialect {
        name: "torchvision, nn.Sequential of children",
        anchors: &["0.weight", "1.running_mean", "4.0.conv1.weight"],
        rules: CHILDREN,
        ..PLAIN
    },
    // MoCo v1 and v2: the head is the projection of the contrastive loss.
    Dialect {
        name: "MoCo",
        anchors: &["conv1.weight", "layer1.0.conv1.weight"],
        root_ends: "encoder_q.",
        drop: &["fc.*"],
        ..PLAIN
    },
    Dialect {
        name: "MoCo v3",
        anchors: &["conv1.weight", "layer1.0.conv1.weight"],
        root_ends: "base_encoder.",
        drop: &["fc.*"],
        ..PLAIN
    },
    Dialect {
        name: "SwAV",
        anchors: &["conv1.weight", "layer1.0.conv1.weight", "projection_head.0.weight"],
        drop: &["projection_head.*", "prototypes.*"],
        norm: InputNorm::Swav,
        ..PLAIN
    },
    // kuangliu/pytorch-cifar and its descendants: `shortcut` projections and a `linear` head.
    Dialect {
        name: "CIFAR",
        anchors: &["conv1.weight", "layer1.0.conv1.weight", "linear.weight"],
        rules: &[("linear.*", "fc.*"), ("layer{s}.{b}.shortcut.*", "layer{s}.{b}.downsample.*")],
        ..PLAIN
    },
    // torchvision and timm share names; the deep stem is timm's.
    Dialect { anchors: &["conv1.weight", "layer1.0.conv1.weight"], ..PLAIN },
    Dialect { name: "timm", anchors: &["conv1.0.weight", "layer1.0.conv1.weight"], ..PLAIN },
    Dialect { name: "timm", anchors: &["stem.conv.weight", "stages.0.blocks.0.norm1.weight"], ..PLAIN },
    Dialect { name: "timm", anchors: &["stem.conv1.weight", "stages.0.blocks.0.norm1.weight"], ..PLAIN },
    // torchvision and timm. The auxiliary head is for training.
    Dialect {
        anchors: &["Conv2d_1a_3x3.conv.weight", "Mixed_5b.branch1x1.conv.weight"],
        drop: &["AuxLogits.*"],
        ..PLAIN
    },
    Dialect { name: "timm", anchors: &["features.0.conv.weight", "features.3.conv.conv.weight"], ..PLAIN },
    // `last_linear` is the head's name in older timm and in pretrained-models.pytorch.
    Dialect {
        name: "timm",
        anchors: &["conv2d_1a.conv.weight", "mixed_5b.branch0.conv.weight"],
        rules: &[("last_linear.*", "classif.*")],
        ..PLAIN
    },
    Dialect { anchors: &["features.0.weight", "classifier.0.weight"], ..PLAIN },
    // timm's VGG stores its first linear layers as convolutions.
    Dialect {
        name: "timm",
        anchors: &["features.0.weight", "pre_logits.fc1.weight"],
        rules: &[
            ("pre_logits.fc1.*", "classifier.0.*"),
            ("pre_logits.fc2.*", "classifier.3.*"),
            ("head.fc.*", "classifier.6.*"),
        ],
        ..PLAIN
    },
];

/// Keys that wrap a state dict and never name a module: their siblings are not the network.
pub(super) static WRAPPERS: &[&str] = &[
    "state_dict",
    "blobs",
    "online_network_state_dict",
    "state_dict_ema",
    "ema_state_dict",
    "model_ema",
    "model_state_dict",
    "model_state",
    "net_state_dict",
    "teacher",
    "student",
    "weights",
];

/// Top-level keys of training state.
pub(super) static TRAINING: &[&str] = &[
    "optimizer",
    "optimizer_state",
    "optimizer_states",
    "optimizer_state_dict",
    "optim",
    "optimizers",
    "lr_scheduler",
    "lr_schedulers",
    "scheduler",
    "scheduler_state_dict",
    "scaler",
    "amp",
    "amp_scaler",
    "callbacks",
    "loops",
    "criterion",
    "loss",
    "ema",
    "ema_state",
    "hyper_parameters",
    "hparams",
    "args",
    "config",
    "rng_state",
    "swav_loss",
    "dino_loss",
    "native_amp_scaling_state",
    "MixedPrecisionPlugin",
];

/// Modules next to the backbone that are not part of it: heads of self-supervised training and detection.
pub(super) static SIBLINGS: &[&str] = &[
    "transformer.*",
    "token_embedding.*",
    "positional_embedding",
    "text_projection",
    "ln_final.*",
    "logit_scale",
    "input_resolution",
    "context_length",
    "vocab_size",
    "target_network_state_dict.*",
    "momentum_backbone.*",
    "momentum_projector.*",
    "online_encoder.projector.*",
    "target_encoder.projector.*",
    "projetion.*",
    "projection.*",
    "proposal_generator.*",
    "roi_heads.*",
    "roi_head.*",
    "rpn_head.*",
    "rpn.*",
    "fpn.*",
    "neck.lateral_convs.*",
    "neck.fpn_convs.*",
    "backbone.fpn_*",
    "fpn_lateral{i}.*",
    "fpn_output{i}.*",
    "sem_seg_head.*",
    "pixel_mean",
    "pixel_std",
    "encoder_k.*",
    "momentum_encoder.*",
    "target_encoder.*",
    "queue",
    "queue_ptr",
    "projector.*",
    "projection_head.*",
    "prototypes.*",
    "predictor.*",
    "online_predictor.*",
    "bn.running_mean",
    "bn.running_var",
    "bn.num_batches_tracked",
    "head.mlp.*",
    "head.last_layer.*",
    "n_averaged",
];
