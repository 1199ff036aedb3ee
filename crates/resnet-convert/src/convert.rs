//! Conversion of a file to a checkpoint and to a self-describing file.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use resnet_model::arch::Arch;
use resnet_model::file::Existing;
use resnet_model::{Checkpoint, Labels, Preprocess};

use crate::checkpoint::{self, Context};
use crate::error::{Error, Result};
use crate::non_finite::NonFiniteCounter;
use crate::report::Report;
use crate::source::{self, StateDict};
use crate::write::{self, OutputFormat};
use resnet_model::raw::Float;

/// Options of a conversion, and facts about the file that its bytes do not hold.
#[derive(Debug, Clone, Default)]
pub struct ConvertOptions {
    /// The architecture, instead of identifying it from the shapes. The numbers of classes and input channels are always
    /// those of the file.
    pub arch: Option<Arch>,
    /// The publisher's name for the architecture, e.g. `architecture` in timm's `config.json`. It decides between
    /// architectures with the same tensors and is ignored if the tensors contradict it.
    pub name: Option<String>,
    /// The class labels. By default 1000 classes are ImageNet's and others have no names.
    pub labels: Option<Labels>,
    /// The preprocessing. By default torchvision's, unless the dialect is known to differ.
    pub preprocess: Option<Preprocess>,
    /// The dtype to cast floating-point tensors to. By default every tensor keeps its bytes.
    pub dtype: Option<Float>,
    /// Omit unexpected tensors instead of returning an error.
    pub partial: bool,
    /// ONNX export options.
    pub onnx: resnet_onnx::Export,
    /// A flag that aborts [`convert`] when set, e.g. by a signal handler. No output is left behind.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl ConvertOptions {
    fn is_canceled(&self) -> bool {
        self.cancel.as_ref().is_some_and(|cancel| cancel.load(Ordering::Relaxed))
    }
}

/// One conversion.
#[derive(Debug, Clone, Copy)]
pub struct Conversion<'a> {
    /// The input file.
    pub input: &'a Path,
    /// The output file. Its extension selects the format: `.onnx` is ONNX, `.pth`, `.pt` and `.bin` are PyTorch,
    /// `.safetensors` and none are safetensors; others are an error.
    pub output: &'a Path,
    /// The policy for an existing output file.
    pub existing: Existing,
    /// Options for reading the input.
    pub options: &'a ConvertOptions,
}

/// Progress of a conversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Tensor bytes written.
    pub done: u64,
    /// Tensor bytes in total.
    pub total: u64,
}

/// Opens a file of any supported format. Tensors are read and verified on first access.
pub fn open(path: &Path, options: &ConvertOptions) -> Result<(Checkpoint, Report)> {
    build_checkpoint(source::read(path)?, path, options)
}

/// Builds a checkpoint from the state dict that [`source::read`] returned for the file at `path`.
pub fn build_checkpoint(
    state: StateDict,
    path: &Path,
    options: &ConvertOptions,
) -> Result<(Checkpoint, Report)> {
    checkpoint::build(state, Context { path, options, counter: None })
}

/// Converts a file. The output is written atomically: completely or not at all.
pub fn convert(conversion: Conversion, progress: &mut dyn FnMut(Progress)) -> Result<Report> {
    let Conversion { input, output, existing, options } = conversion;
    let format = OutputFormat::from_path(output).ok_or_else(|| Error::Extension(output.to_owned()))?;
    if format != OutputFormat::Onnx && options.onnx != resnet_onnx::Export::default() {
        return Err(Error::OnlyOnnx(output.to_owned()));
    }
    let counter = Arc::new(NonFiniteCounter::new(options.cancel.clone()));
    let context = Context { path: input, options, counter: Some(&counter) };
    let (checkpoint, report) = checkpoint::build(source::read(input)?, context)?;
    if is_same_file(input, output) {
        return Err(Error::SameFile(input.to_owned()));
    }
    let total = checkpoint.byte_len();
    let mut done = 0u64;
    let mut written = |bytes: u64| {
        // The output format may take more or fewer bytes than the checkpoint.
        done = done.saturating_add(bytes).min(total);
        progress(Progress { done, total });
    };
    let in_file = |e| Error::from_model(e, input);
    let result = match format {
        OutputFormat::Onnx => resnet_onnx::write(
            &checkpoint,
            conversion.output,
            conversion.existing,
            &options.onnx,
            &mut written,
        )
        .map_err(Error::from),
        OutputFormat::Torch => {
            write::torch::write(&checkpoint, output, existing, &mut written).map_err(in_file)
        }
        OutputFormat::Safetensors => checkpoint.save(output, existing, &mut written).map_err(in_file),
    };
    match result {
        Err(_) if options.is_canceled() => return Err(Error::Canceled(output.to_owned())),
        other => other?,
    }
    Ok(Report { non_finite: counter.counts(), output: Some(output.display().to_string()), ..report })
}

/// Returns `true` if both paths exist and lead to one file.
fn is_same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

#[cfg(test)]
mod tests;
