//! Rank and world size from the environment variables of a launcher.

use crate::{Error, Result};

/// The place of a process among those that a launcher started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// Launcher.
    pub launcher: Launcher,
    /// Rank of this process, from 0.
    pub rank: usize,
    /// Number of processes.
    pub world_size: usize,
    /// Rank among the processes of this machine, if the launcher sets it.
    pub local_rank: Option<usize>,
    /// Number of processes on this machine, if the launcher sets it.
    pub local_world_size: Option<usize>,
    /// Number of devices in `CUDA_VISIBLE_DEVICES`, if that is set.
    pub visible_devices: Option<usize>,
}

/// Launchers, recognized by the variables they set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// OpenMPI's `mpirun`.
    OpenMpi,
    /// MPICH and other PMI launchers.
    Pmi,
    /// PyTorch's `torchrun`.
    Torchrun,
    /// Slurm's `srun`.
    Slurm,
}

/// Variables of a launcher.
struct Variables {
    launcher: Launcher,
    rank: &'static str,
    world_size: &'static str,
    /// The first one that is set counts; the same for `local_world_size`.
    local_rank: &'static [&'static str],
    local_world_size: &'static [&'static str],
}

/// The innermost launcher comes first: `mpirun` in a Slurm job sees Slurm's variables, too.
const LAUNCHERS: [Variables; 4] = [
    Variables {
        launcher: Launcher::OpenMpi,
        rank: "OMPI_COMM_WORLD_RANK",
        world_size: "OMPI_COMM_WORLD_SIZE",
        local_rank: &["OMPI_COMM_WORLD_LOCAL_RANK"],
        local_world_size: &["OMPI_COMM_WORLD_LOCAL_SIZE"],
    },
    Variables {
        launcher: Launcher::Pmi,
        rank: "PMI_RANK",
        world_size: "PMI_SIZE",
        local_rank: &["MPI_LOCALRANKID", "PMI_LOCAL_RANK"],
        local_world_size: &["MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"],
    },
    Variables {
        launcher: Launcher::Torchrun,
        rank: "RANK",
        world_size: "WORLD_SIZE",
        local_rank: &["LOCAL_RANK"],
        local_world_size: &["LOCAL_WORLD_SIZE"],
    },
    Variables {
        launcher: Launcher::Slurm,
        rank: "SLURM_PROCID",
        // Not SLURM_NTASKS, which an sbatch script has without srun.
        world_size: "SLURM_STEP_NUM_TASKS",
        local_rank: &["SLURM_LOCALID"],
        local_world_size: &["SLURM_NTASKS_PER_NODE"],
    },
];

impl Launch {
    /// Reads the launcher's variables through `lookup`; `None` if no launcher started this process.
    ///
    /// # Errors
    /// A variable that is not a number, a rank without a world size or not below it.
    ///
    /// ```
    /// use resnet_train::distributed::launch::Launch;
    /// let lookup = |name: &str| match name {
    ///     "PMI_RANK" => Some("1".to_owned()),
    ///     "PMI_SIZE" => Some("4".to_owned()),
    ///     _ => None,
    /// };
    /// let launch = Launch::from_vars(lookup)?.unwrap();
    /// assert_eq!((launch.rank, launch.world_size, launch.local_rank), (1, 4, None));
    /// # Ok::<(), resnet_train::Error>(())
    /// ```
    pub fn from_vars(lookup: impl Fn(&str) -> Option<String>) -> Result<Option<Launch>> {
        let text = |name: &str| lookup(name).filter(|text| !text.is_empty());
        let number = |name: &'static str| -> Result<Option<usize>> {
            let Some(text) = text(name) else { return Ok(None) };
            let number = text.trim().parse::<u32>().map(|number| Some(number as usize));
            number.map_err(|_| error(name, text, "a number".into()))
        };
        let first = |names: &[&'static str]| match names.iter().find(|name| text(name).is_some()) {
            Some(name) => number(name),
            None => Ok(None),
        };
        // An sbatch script without srun has a rank, but is a single process.
        let started = |v: &&Variables| {
            text(v.rank).is_some() && (v.launcher != Launcher::Slurm || text(v.world_size).is_some())
        };
        let Some(variables) = LAUNCHERS.iter().find(started) else { return Ok(None) };
        let rank = number(variables.rank)?.unwrap_or(0);
        let name = variables.world_size;
        let world_size = number(name)?.ok_or_else(|| error(name, "not set", "a number".into()))?;
        if rank >= world_size {
            return Err(error(variables.rank, rank, format!("less than {name}, {world_size}")));
        }
        Ok(Some(Launch {
            launcher: variables.launcher,
            rank,
            world_size,
            local_rank: first(variables.local_rank)?,
            local_world_size: first(variables.local_world_size)?,
            visible_devices: text("CUDA_VISIBLE_DEVICES").map(|list| list.split(',').count()),
        }))
    }

    /// Returns the index of this process's CUDA device: its local rank among the visible devices.
    pub fn device_index(&self) -> usize {
        self.local_rank.unwrap_or(0) % self.visible_devices.unwrap_or(usize::MAX)
    }

    /// Returns the number of threads if the processes of this machine divide `cores` equally; all if their number is
    /// unknown.
    pub fn threads(&self, cores: usize) -> usize {
        (cores / self.local_world_size.unwrap_or(1).max(1)).max(1)
    }
}

fn error(name: &'static str, found: impl ToString, expected: String) -> Error {
    Error::Launch { name, found: found.to_string(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(variables: &[(&str, &str)]) -> Result<Option<Launch>> {
        let lookup = |name: &str| variables.iter().find(|v| v.0 == name).map(|v| v.1.to_owned());
        Launch::from_vars(lookup)
    }

    const OPEN_MPI: [(&str, &str); 4] = [
        ("OMPI_COMM_WORLD_RANK", "3"),
        ("OMPI_COMM_WORLD_SIZE", "4"),
        ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
        ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
    ];
    const TORCHRUN: [(&str, &str); 4] =
        [("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")];
    const SLURM: [(&str, &str); 3] =
        [("SLURM_PROCID", "5"), ("SLURM_STEP_NUM_TASKS", "6"), ("SLURM_LOCALID", "1")];

    #[test]
    fn launchers_are_recognized() {
        let check = |variables: &[(&str, &str)], launcher, place: [usize; 2], local: [Option<usize>; 2]| {
            let launch = find(variables).unwrap().unwrap();
            assert_eq!(launch.launcher, launcher, "{variables:?}");
            assert_eq!([launch.rank, launch.world_size], place, "{variables:?}");
            assert_eq!([launch.local_rank, launch.local_world_size], local, "{variables:?}");
        };
        check(&OPEN_MPI, Launcher::OpenMpi, [3, 4], [Some(1), Some(2)]);
        check(&[("PMI_RANK", "0"), ("PMI_SIZE", "2")], Launcher::Pmi, [0, 2], [None; 2]);
        check(&TORCHRUN, Launcher::Torchrun, [1, 2], [Some(1), Some(2)]);
        // The local rank counts without the number of processes per node.
        check(&SLURM, Launcher::Slurm, [5, 6], [Some(1), None]);
        check(
            &[&SLURM[..], &[("SLURM_NTASKS_PER_NODE", "2")]].concat(),
            Launcher::Slurm,
            [5, 6],
            [Some(1), Some(2)],
        );
        // mpirun and torchrun within a job step of Slurm.
        check(&[&SLURM[..], &OPEN_MPI].concat(), Launcher::OpenMpi, [3, 4], [Some(1), Some(2)]);
        check(&[&SLURM[..], &TORCHRUN].concat(), Launcher::Torchrun, [1, 2], [Some(1), Some(2)]);
    }

    #[test]
    fn a_process_without_launcher_is_single() {
        let script = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4"), ("SLURM_LOCALID", "0")];
        for variables in [&[][..], &script, &[("WORLD_SIZE", "2")], &[("RANK", "")]] {
            assert_eq!(find(variables).unwrap(), None, "{variables:?}");
        }
    }

    #[test]
    fn errors_name_the_variable() {
        let check = |variables: &[(&str, &str)], message: &str| {
            let error = find(variables).unwrap_err().to_string();
            assert!(error.contains(message), "{variables:?}: {error}");
        };
        check(&[("RANK", "one"), ("WORLD_SIZE", "2")], "`RANK` is `one`, expected a number");
        check(&[("RANK", "-1"), ("WORLD_SIZE", "2")], "`RANK` is `-1`, expected a number");
        check(&[("RANK", "0"), ("WORLD_SIZE", "2 x")], "`WORLD_SIZE` is `2 x`");
        check(&[("PMI_RANK", "0"), ("PMI_SIZE", "99999999999999999999")], "`PMI_SIZE` is `999");
        check(&[("PMI_RANK", "2"), ("PMI_SIZE", "2")], "`PMI_RANK` is `2`, expected less than PMI_SIZE, 2");
        check(&[("PMI_RANK", "0"), ("PMI_SIZE", "0")], "`PMI_RANK` is `0`, expected less than PMI_SIZE, 0");
        check(&[("PMI_RANK", "0")], "`PMI_SIZE` is `not set`, expected a number");
    }

    #[test]
    fn processes_divide_cores_and_devices() {
        let launch = find(&OPEN_MPI).unwrap().unwrap();
        let with = |local_world_size| Launch { local_world_size, ..launch };
        assert_eq!([with(None).threads(8), with(Some(3)).threads(8), with(Some(3)).threads(2)], [8, 2, 1]);
        // A launcher that masks GPUs leaves one device to each process.
        let masked = find(&[&OPEN_MPI[..], &[("CUDA_VISIBLE_DEVICES", "7")]].concat()).unwrap().unwrap();
        assert_eq!([launch.device_index(), masked.device_index()], [1, 0]);
    }
}
