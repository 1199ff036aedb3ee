//! The processes that train together: who started them, how they are connected, which cores are whose.

use std::time::Duration;

use anyhow::bail;
use candle_core::Device;
use resnet_model::network::Alone;
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
    Alone(Alone),
    /// Several.
    Joint(Joint),
}

impl Crew {
    /// Connects to the other processes that `launch` tells of, if any. Errors: this build cannot, they do not answer.
    pub fn connect(launch: Option<&Launch>, device: &Device, limits: Limits) -> anyhow::Result<Crew> {
        match launch {
            None => Ok(Crew::Alone(Alone)),
            Some(launch) => connect(launch, device, limits),
        }
    }

    /// What training needs of them.
    pub fn team(&self) -> &dyn Team {
        match self {
            Crew::Alone(alone) => alone,
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

#[cfg(feature = "mpi")]
fn connect(launch: &Launch, device: &Device, limits: Limits) -> anyhow::Result<Crew> {
    if launch.launcher == Launcher::Torchrun {
        bail!("torchrun started {} processes, but MPI connects those of mpirun or srun", launch.part.count);
    }
    if !device.is_cpu() {
        bail!("workers over MPI train on the CPU; --device cpu chooses it");
    }
    Ok(Crew::Joint(Joint::new(launch.part, resnet_train::workers::Mpi::open, limits)?))
}

#[cfg(not(feature = "mpi"))]
fn connect(launch: &Launch, _: &Device, _: Limits) -> anyhow::Result<Crew> {
    bail!(
        "{} started {} processes to train together, but this build cannot connect them: it lacks the feature mpi \
         (cargo build --release --features mpi). One process trains by itself",
        name(launch.launcher),
        launch.part.count
    )
}

/// The launcher's program.
#[cfg_attr(
    feature = "mpi",
    allow(dead_code, reason = "only builds without MPI refuse all launchers by name")
)]
fn name(launcher: Launcher) -> &'static str {
    match launcher {
        Launcher::OpenMpi | Launcher::Pmi => "mpirun",
        Launcher::Torchrun => "torchrun",
        Launcher::Slurm => "srun",
    }
}

/// Whether another worker of the run says this error.
pub fn is_told_by_others(error: &anyhow::Error) -> bool {
    use resnet_train::Error::{Diverged, OtherWorker, Unreadable};
    matches!(error.downcast_ref(), Some(OtherWorker | Diverged { .. } | Unreadable { .. }))
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
