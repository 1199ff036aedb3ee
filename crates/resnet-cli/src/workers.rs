//! Connection to the other processes of a distributed training run.

use std::time::Duration;

use anyhow::bail;
use candle_core::Device;
use resnet_train::distributed::launch::{Launch, Launcher};
use resnet_train::distributed::{Limits, TransportGroup};

/// Time that ranks wait for each other at the end.
pub const SHUTDOWN: Duration = Duration::from_secs(5);

/// Reads the launcher's variables; `None` for a single process.
pub fn launched() -> anyhow::Result<Option<Launch>> {
    let launch = Launch::from_vars(|name| std::env::var(name).ok())?;
    Ok(launch.filter(|launch| launch.world_size > 1))
}

/// Connects to the other processes of `launch`.
pub fn connect(launch: &Launch, device: &Device, limits: Limits) -> anyhow::Result<TransportGroup> {
    if launch.launcher == Launcher::Torchrun {
        bail!(
            "torchrun started {} processes, but they connect over MPI; start them with mpirun or srun",
            launch.world_size
        );
    }
    match device {
        Device::Cpu => over_mpi(launch, limits),
        Device::Cuda(_) => over_nccl(launch, device, limits),
        Device::Metal(_) => {
            bail!("distributed training is not supported on Metal; choose the CPU with --device cpu")
        }
    }
}

#[cfg(feature = "mpi")]
fn over_mpi(launch: &Launch, limits: Limits) -> anyhow::Result<TransportGroup> {
    let open = resnet_train::distributed::Mpi::open;
    Ok(TransportGroup::new(launch.rank, launch.world_size, open, limits)?)
}

#[cfg(not(feature = "mpi"))]
fn over_mpi(launch: &Launch, _: Limits) -> anyhow::Result<TransportGroup> {
    Err(missing_feature(launch, "mpi"))
}

#[cfg(feature = "nccl")]
fn over_nccl(launch: &Launch, device: &Device, limits: Limits) -> anyhow::Result<TransportGroup> {
    let device = device.clone();
    let open = move || resnet_train::distributed::Nccl::open(&device);
    Ok(TransportGroup::new(launch.rank, launch.world_size, open, limits)?)
}

#[cfg(not(feature = "nccl"))]
fn over_nccl(launch: &Launch, _: &Device, _: Limits) -> anyhow::Result<TransportGroup> {
    Err(missing_feature(launch, "nccl"))
}

#[cfg(not(all(feature = "mpi", feature = "nccl")))]
fn missing_feature(launch: &Launch, feature: &str) -> anyhow::Error {
    let launcher = if launch.launcher == Launcher::Slurm { "srun" } else { "mpirun" };
    anyhow::anyhow!(
        "{launcher} started {} processes, but this build lacks the feature {feature}, which connects them; build it with \
         `cargo build --release --features {feature}`, or start a single process",
        launch.world_size
    )
}

/// Returns `true` for an error that all ranks find or that another rank reports.
pub fn is_reported_elsewhere(error: &anyhow::Error) -> bool {
    use resnet_train::Error::{Diverged, PeerFailed, Unreadable};
    matches!(error.downcast_ref(), Some(PeerFailed | Diverged { .. } | Unreadable { .. }))
}

/// Returns `true` if the error is a lost rank.
pub fn is_lost_rank(error: &anyhow::Error) -> bool {
    use resnet_train::Error::Model;
    matches!(error.downcast_ref(), Some(Model(resnet_model::Error::ProcessGroup { .. })))
}

/// Returns the number of threads of this process: the cores that its launcher bound it to, else an equal number of all.
pub fn threads(launch: &Launch) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if is_bound() { cores } else { launch.threads(cores) }
}

/// Returns `true` if this process may run on fewer cores than its parent.
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
