//! `--device`: where to compute.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, bail};
use candle_core::Device;
use resnet_train::distributed::launch::Launch;

/// A device by name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Choice {
    /// CUDA where this build and machine have it, else Metal, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of this number.
    Cuda(usize),
    /// The Metal device.
    Metal,
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(s: &str) -> Result<Choice, String> {
        match s {
            "auto" => Ok(Choice::Auto),
            "cpu" => Ok(Choice::Cpu),
            "cuda" => Ok(Choice::Cuda(0)),
            "metal" => Ok(Choice::Metal),
            _ => s
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(Choice::Cuda)
                .ok_or_else(|| "expected auto, cpu, cuda, cuda:NUMBER or metal".to_owned()),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Choice::Auto => f.write_str("auto"),
            Choice::Cpu => f.write_str("cpu"),
            Choice::Cuda(index) => write!(f, "cuda:{index}"),
            Choice::Metal => f.write_str("metal"),
        }
    }
}

impl Choice {
    /// The device of a worker: the CUDA device of its number among its machine's, unless one was named.
    pub fn of_worker(self, launch: Option<&Launch>) -> Choice {
        let number = launch.map_or(0, Launch::device_index);
        match self {
            Choice::Auto | Choice::Cuda(0) if number > 0 && candle_core::utils::cuda_is_available() => {
                Choice::Cuda(number)
            }
            choice => choice,
        }
    }

    /// Opens the device, or says why this build or machine cannot.
    pub fn open(self) -> anyhow::Result<Device> {
        use candle_core::utils::{cuda_is_available, metal_is_available};
        match self {
            Choice::Cpu => Ok(Device::Cpu),
            Choice::Auto if cuda_is_available() => Choice::Cuda(0).open(),
            Choice::Auto if metal_is_available() => Choice::Metal.open(),
            Choice::Auto => Ok(Device::Cpu),
            Choice::Cuda(_) if !cuda_is_available() => {
                bail!("--device {self}: this build has no CUDA support; build it with `--features cuda`")
            }
            Choice::Cuda(index) => Device::new_cuda(index).with_context(|| format!("--device {self}")),
            Choice::Metal if !metal_is_available() => {
                bail!("--device metal: this build has no Metal support; build it with `--features metal`")
            }
            Choice::Metal => Device::new_metal(0).context("--device metal"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names() {
        for (name, expected) in [
            ("auto", Choice::Auto),
            ("cpu", Choice::Cpu),
            ("cuda", Choice::Cuda(0)),
            ("cuda:3", Choice::Cuda(3)),
        ] {
            assert_eq!(name.parse(), Ok(expected));
        }
        for name in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert!(name.parse::<Choice>().is_err(), "{name}");
        }
    }
}
