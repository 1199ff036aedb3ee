//! The processes that train together: who started them, how they are connected, which cores are whose.

use std::time::Duration;

use anyhow::bail;
use candle_core::Device;
use resnet_model::network::SingleProcess;
use resnet_train::workers::launch::{Launch, Launcher};
use resnet_train::workers::{Joint, Limits, Team};

/// How long workers that end together wait for each other.
const FAREWELL: Duration = Duration::from_secs(5);

/// What the launcher of this process says; `None` if it is the only one. Error: variables that make no sense.
pub fn launched() -> anyhow::Result<Option<Launch>> {
    let launch = Launch::find(|name| std::env::var(name).ok())?;
    Ok(launch.filter(|launch| launch.part.count > 1))
}

/// The workers of a training.
#[derive(Debug)]
pub enum Crew {
    /// One process.
    SingleProcess(SingleProcess),
    /// Several.
    Joint(Joint),
}

impl Crew {
    /// Connects to the other processes that `launch` tells of, if any. Errors: this build cannot, they do not answer.
    pub fn connect(launch: Option<&Launch>, device: &Device, limits: Limits) -> anyhow::Result<Crew> {
        match launch {
            None => Ok(Crew::SingleProcess(SingleProcess)),
            Some(launch) => connect(launch, device, limits),
        }
    }

    /// What training needs of them.
    pub fn team(&self) -> &dyn Team {
        match self {
            Crew::SingleProcess(alone) => alone,
            Crew::Joint(joint) => joint,
        }
    }

    /// Takes leave of the others.
    pub fn close(self) {
        if let Crew::Joint(joint) = self {
            joint.close(FAREWELL);
        }
    }
}

fn connect(launch: &Launch, device: &Device, limits: Limits) -> anyhow::Result<Crew> {
    match device {
        Device::Cpu if launch.launcher == Launcher::Torchrun => {
            bail!(
                "torchrun started {} processes; on the CPU, workers are started by mpirun or srun",
                launch.part.count
            )
        }
        Device::Cpu => over_mpi(launch, limits),
        Device::Cuda(_) => over_nccl(launch, device, limits),
        Device::Metal(_) => {
            bail!("several workers train on the CPU or on CUDA devices; --device cpu chooses the CPU")
        }
    }
}

#[cfg(feature = "mpi")]
fn over_mpi(launch: &Launch, limits: Limits) -> anyhow::Result<Crew> {
    Ok(Crew::Joint(Joint::new(launch.part, resnet_train::workers::Mpi::open, limits)?))
}

#[cfg(not(feature = "mpi"))]
fn over_mpi(launch: &Launch, _: Limits) -> anyhow::Result<Crew> {
    Err(lacking(launch, "mpi"))
}

/// The workers meet at the port after `MASTER_PORT`, at which torchrun itself listens.
#[cfg(feature = "nccl")]
fn over_nccl(launch: &Launch, device: &Device, limits: Limits) -> anyhow::Result<Crew> {
    use anyhow::Context;
    let variable = |name: &str| std::env::var(name).with_context(|| format!("NCCL's workers need {name}"));
    let (host, port) = (variable("MASTER_ADDR")?, variable("MASTER_PORT")?);
    let port = port.parse::<u16>().ok().and_then(|port| port.checked_add(1));
    let port = port.with_context(|| "variable `MASTER_PORT` is no port below 65535")?;
    let (part, device, timeout) = (launch.part, device.clone(), limits.timeout);
    let open = move || resnet_train::workers::Nccl::open(part, &format!("{host}:{port}"), &device, timeout);
    Ok(Crew::Joint(Joint::new(part, open, limits)?))
}

#[cfg(not(feature = "nccl"))]
fn over_nccl(launch: &Launch, _: &Device, _: Limits) -> anyhow::Result<Crew> {
    Err(lacking(launch, "nccl"))
}

#[cfg(not(all(feature = "mpi", feature = "nccl")))]
fn lacking(launch: &Launch, feature: &str) -> anyhow::Error {
    let launcher = match launch.launcher {
        Launcher::OpenMpi | Launcher::Pmi => "mpirun",
        Launcher::Torchrun => "torchrun",
        Launcher::Slurm => "srun",
    };
    anyhow::anyhow!(
        "{launcher} started {} processes to train together, but this build lacks the feature {feature}, which connects \
         them (cargo build --release --features {feature}); one process trains by itself",
        launch.part.count
    )
}

/// Whether another worker of the run says this error.
pub fn is_told_by_others(error: &anyhow::Error) -> bool {
    use resnet_train::Error::{Diverged, OtherWorker, Unreadable};
    matches!(error.downcast_ref(), Some(OtherWorker | Diverged { .. } | Unreadable { .. }))
}

/// Whether other workers were lost; their loss tells who noticed it.
pub fn is_lost(error: &anyhow::Error) -> bool {
    use resnet_train::Error::Model;
    matches!(error.downcast_ref(), Some(Model(resnet_model::Error::ProcessGroup { .. })))
}

/// This process's share of the machine's cores: those that its launcher bound it to, else an equal part of all.
pub fn threads(launch: &Launch) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if is_bound() { cores } else { launch.threads(cores) }
}

/// Whether this process may run on fewer cores than the one that started it.
#[cfg(target_os = "linux")]
fn is_bound() -> bool {
    let allowed = |process: &str| {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed:"))?;
        Some(line.trim().to_owned())
    };
    let parent = allowed(&std::os::unix::process::parent_id().to_string());
    parent.is_some() && parent != allowed("self")
}

#[cfg(not(target_os = "linux"))]
fn is_bound() -> bool {
    false
}
