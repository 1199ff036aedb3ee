//! `--device`: the device to compute on.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, bail};
use candle_core::Device;
use candle_core::utils::{cuda_is_available, metal_is_available};
use resnet_train::distributed::launch::Launch;

/// A device by name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Choice {
    /// The first that works of CUDA, Metal and CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device with this index.
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
                .ok_or_else(|| "expected auto, cpu, cuda, cuda:INDEX or metal".to_owned()),
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
    /// Returns the device of a process in distributed training: the CUDA device with its local rank, unless `--device`
    /// names another.
    pub fn of_worker(self, launch: Option<&Launch>) -> Choice {
        let number = launch.map_or(0, Launch::device_index);
        match self {
            Choice::Auto | Choice::Cuda(0) if number > 0 && cuda_is_available() => Choice::Cuda(number),
            choice => choice,
        }
    }

    /// Opens the device.
    ///
    /// # Errors
    ///
    /// This build or machine does not support the device.
    pub fn open(self) -> anyhow::Result<Device> {
        match self {
            Choice::Auto => Ok(first_available(&[Choice::Cuda(0), Choice::Metal], Choice::open)),
            Choice::Cpu => Ok(Device::Cpu),
            Choice::Cuda(_) if !cuda_is_available() => {
                bail!("--device {self}: this build does not support CUDA; build it with `--features cuda`")
            }
            Choice::Metal if !metal_is_available() => {
                bail!("--device metal: this build does not support Metal; build it with `--features metal`")
            }
            // The crate's error type omits the backtrace that candle puts into its messages.
            Choice::Cuda(index) => Device::new_cuda(index)
                .map_err(resnet_model::Error::from)
                .with_context(|| format!("--device {self}")),
            Choice::Metal => new_metal().context("--device metal"),
        }
    }
}

/// Describes an open device.
pub(crate) fn describe(device: &Device, threads: usize) -> String {
    match device.location() {
        candle_core::DeviceLocation::Cpu => format!("cpu, {threads} threads"),
        candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        candle_core::DeviceLocation::Metal { .. } => "metal".into(),
    }
}

/// Opens the first choice that works, else the CPU: a build with GPU support also runs where there is no GPU.
fn first_available(choices: &[Choice], open: impl Fn(Choice) -> anyhow::Result<Device>) -> Device {
    choices.iter().find_map(|&choice| open(choice).ok()).unwrap_or(Device::Cpu)
}

/// Opens the Metal device. candle panics on a Mac without one, which is turned into an error here.
fn new_metal() -> anyhow::Result<Device> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let device = std::panic::catch_unwind(|| Device::new_metal(0));
    std::panic::set_hook(hook);
    match device {
        Ok(device) => Ok(device.map_err(resnet_model::Error::from)?),
        Err(_) => bail!("no Metal device found"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed() {
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

    #[test]
    fn auto_falls_back_to_the_cpu() {
        let tried = std::cell::RefCell::new(Vec::new());
        let device = first_available(&[Choice::Cuda(0), Choice::Metal], |choice| {
            tried.borrow_mut().push(choice);
            bail!("no driver")
        });
        assert!(device.is_cpu());
        assert_eq!(tried.into_inner(), [Choice::Cuda(0), Choice::Metal]);
        assert!(Choice::Auto.open().is_ok());
    }
}
