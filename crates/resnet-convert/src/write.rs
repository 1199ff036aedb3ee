//! Which file is written, and PyTorch's.

pub(crate) mod torch;
mod zip;

use std::path::Path;

/// The kind of file that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Safetensors that describe themselves.
    Safetensors,
    /// A state dict, as `torch.save` writes it.
    Torch,
    /// ONNX.
    Onnx,
}

impl Format {
    /// What a file of this name is expected to be.
    pub(crate) fn of(path: &Path) -> Format {
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        match extension.to_str() {
            Some("pth" | "pt" | "bin") => Format::Torch,
            Some("onnx") => Format::Onnx,
            _ => Format::Safetensors,
        }
    }
}
