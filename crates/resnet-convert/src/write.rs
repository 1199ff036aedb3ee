//! Output formats, and the PyTorch writer.

pub(crate) mod torch;
mod zip;

use std::path::Path;

/// Output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutputFormat {
    /// Self-describing safetensors.
    Safetensors,
    /// A state dict, as `torch.save` writes it.
    Torch,
    /// ONNX.
    Onnx,
}

impl OutputFormat {
    /// Returns the format that the extension selects; `None` for an unsupported one.
    pub(crate) fn from_path(path: &Path) -> Option<OutputFormat> {
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        Some(match extension.to_str()? {
            "pth" | "pt" | "bin" => OutputFormat::Torch,
            "onnx" => OutputFormat::Onnx,
            "safetensors" | "" => OutputFormat::Safetensors,
            _ => return None,
        })
    }
}
