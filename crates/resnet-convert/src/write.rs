//! Which file is written, and PyTorch's.

pub(crate) mod torch;
mod zip;

use std::path::Path;

/// The kind of file that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutputFormat {
    /// Safetensors that describe themselves.
    Safetensors,
    /// A state dict, as `torch.save` writes it.
    Torch,
    /// ONNX.
    Onnx,
}

impl OutputFormat {
    /// What a file of this name is expected to be; `None` for an ending of other files.
    pub(crate) fn of(path: &Path) -> Option<OutputFormat> {
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        Some(match extension.to_str()? {
            "pth" | "pt" | "bin" => OutputFormat::Torch,
            "onnx" => OutputFormat::Onnx,
            "safetensors" | "" => OutputFormat::Safetensors,
            _ => return None,
        })
    }
}
