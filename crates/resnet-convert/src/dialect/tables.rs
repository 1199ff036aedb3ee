//! The tables. A dialect is added by a row.

/// A naming scheme.
#[derive(Debug)]
pub(super) struct Dialect {
    pub(super) name: &'static str,
    /// Names that prove the dialect; where they are found is the network's root.
    pub(super) anchors: &'static [&'static str],
    /// What the root must end with.
    pub(super) root_ends: &'static str,
    /// Names under the root and what they become; the first match counts, names without one stay.
    pub(super) rules: &'static [(&'static str, &'static str)],
    /// Names under the root that are no part of the network: heads of self-supervised training.
    pub(super) drop: &'static [&'static str],
    /// What the images were normalised with.
    pub(super) norm: Norm,
}

/// What images were normalised with in training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Norm {
    /// ImageNet's usual mean and deviation.
    ImageNet,
    /// SwAV's deviation, which differs by 0.001 in its first channel.
    Swav,
}

const PLAIN: Dialect =
    Dialect { name: "torchvision", anchors: &[], root_ends: "", rules: &[], drop: &[], norm: Norm::ImageNet };

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

/// The first row that is proved counts: rows that need more come before rows that need less.
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
    // MoCo v1 and v2: the head projects for the contrastive loss.
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
        norm: Norm::Swav,
        ..PLAIN
    },
    // The CIFAR-10 networks that circulate: projections are called shortcut, the head linear.
    Dialect {
        name: "CIFAR",
        anchors: &["conv1.weight", "layer1.0.conv1.weight", "linear.weight"],
        rules: &[("linear.*", "fc.*"), ("layer{s}.{b}.shortcut.*", "layer{s}.{b}.downsample.*")],
        ..PLAIN
    },
    // torchvision and timm call the parts of the plain family alike; the deep stem is timm's.
    Dialect { anchors: &["conv1.weight", "layer1.0.conv1.weight"], ..PLAIN },
    Dialect { name: "timm", anchors: &["conv1.0.weight", "layer1.0.conv1.weight"], ..PLAIN },
    Dialect { name: "timm", anchors: &["stem.conv.weight", "stages.0.blocks.0.norm1.weight"], ..PLAIN },
    Dialect { name: "timm", anchors: &["stem.conv1.weight", "stages.0.blocks.0.norm1.weight"], ..PLAIN },
    // torchvision and timm again. The auxiliary head is for training.
    Dialect {
        anchors: &["Conv2d_1a_3x3.conv.weight", "Mixed_5b.branch1x1.conv.weight"],
        drop: &["AuxLogits.*"],
        ..PLAIN
    },
    Dialect { name: "timm", anchors: &["features.0.conv.weight", "features.3.conv.conv.weight"], ..PLAIN },
    // timm's head was called otherwise before; so it was in the collection that the network comes from.
    Dialect {
        name: "timm",
        anchors: &["conv2d_1a.conv.weight", "mixed_5b.branch0.conv.weight"],
        rules: &[("last_linear.*", "classif.*")],
        ..PLAIN
    },
    Dialect { anchors: &["features.0.weight", "classifier.0.weight"], ..PLAIN },
    // timm's VGG keeps its first fully connected layers as convolutions.
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

/// Keys that wrap a state dict and are never the name of a module: what lies beside them is not the network.
pub(super) static WRAPPERS: &[&str] = &[
    "state_dict",
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

/// Keys under which training scripts keep what is not the network.
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

/// Heads of self-supervised training that lie beside the backbone.
pub(super) static SIBLINGS: &[&str] = &[
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
