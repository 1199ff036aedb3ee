//! Which worker a process is, from the variables that launchers set.

use super::Part;
use crate::{Error, Result};

/// What a launcher tells a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// Which launcher.
    pub launcher: Launcher,
    /// The process among all.
    pub part: Part,
    /// The process among those of its machine, if that is told.
    pub local: Option<Part>,
}

/// Who starts processes, by the variables that they find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// OpenMPI's `mpirun`.
    OpenMpi,
    /// MPICH and its kin (PMI).
    Pmi,
    /// PyTorch's `torchrun`.
    Torchrun,
    /// Slurm's `srun`.
    Slurm,
}

/// The names of a launcher's variables.
struct Names {
    launcher: Launcher,
    rank: &'static str,
    /// The first that is set counts.
    count: &'static [&'static str],
    local_rank: &'static [&'static str],
    local_count: &'static [&'static str],
}

/// Those closest to the process first: `mpirun` may be started by Slurm, whose variables are then those of the step that
/// it runs in.
const LAUNCHERS: [Names; 4] = [
    Names {
        launcher: Launcher::OpenMpi,
        rank: "OMPI_COMM_WORLD_RANK",
        count: &["OMPI_COMM_WORLD_SIZE"],
        local_rank: &["OMPI_COMM_WORLD_LOCAL_RANK"],
        local_count: &["OMPI_COMM_WORLD_LOCAL_SIZE"],
    },
    Names {
        launcher: Launcher::Pmi,
        rank: "PMI_RANK",
        count: &["PMI_SIZE"],
        local_rank: &["MPI_LOCALRANKID", "PMI_LOCAL_RANK"],
        local_count: &["MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"],
    },
    Names {
        launcher: Launcher::Torchrun,
        rank: "RANK",
        count: &["WORLD_SIZE"],
        local_rank: &["LOCAL_RANK"],
        local_count: &["LOCAL_WORLD_SIZE"],
    },
    Names {
        launcher: Launcher::Slurm,
        rank: "SLURM_PROCID",
        // `SLURM_NTASKS` is what was asked for, if it was.
        count: &["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"],
        local_rank: &["SLURM_LOCALID"],
        local_count: &["SLURM_NTASKS_PER_NODE"],
    },
];

/// More processes than any launcher starts.
const MOST: usize = 1 << 20;

impl Launch {
    /// What the variables that `lookup` finds say; `None` if no launcher started the process.
    ///
    /// Errors name the variable and its value: no number, a rank without a count or not below it, two launchers of which
    /// neither runs within the other and that disagree.
    ///
    /// ```
    /// use resnet_train::workers::launch::Launch;
    /// let lookup = |name: &str| match name {
    ///     "RANK" => Some("1".to_owned()),
    ///     "WORLD_SIZE" => Some("4".to_owned()),
    ///     _ => None,
    /// };
    /// let launch = Launch::find(lookup)?.unwrap();
    /// assert_eq!((launch.part.rank, launch.part.count, launch.local), (1, 4, None));
    /// # Ok::<(), resnet_train::Error>(())
    /// ```
    pub fn find(lookup: impl Fn(&str) -> Option<String>) -> Result<Option<Launch>> {
        let number = |name: &'static str| -> Result<Option<(usize, &'static str)>> {
            let Some(text) = lookup(name).filter(|text| !text.is_empty()) else { return Ok(None) };
            match text.trim().parse() {
                Ok(number) if number <= MOST => Ok(Some((number, name))),
                _ => Err(launch_error(name, text, format!("a number up to {MOST}"))),
            }
        };
        let first = |names: &'static [&'static str]| -> Result<Option<(usize, &'static str)>> {
            for name in names {
                if let Some(found) = number(name)? {
                    return Ok(Some(found));
                }
            }
            Ok(None)
        };
        let mut found: Option<(Launch, &Names)> = None;
        for names in &LAUNCHERS {
            // What Slurm says matters only if it is the launcher.
            if names.launcher == Launcher::Slurm && found.is_some() {
                break;
            }
            let Some((rank, _)) = number(names.rank)? else {
                // A count alone is no launch: Slurm sets it for the whole allocation.
                continue;
            };
            let Some((count, count_name)) = first(names.count)? else {
                let expected = format!("to come with {}", names.count.join(" or "));
                return Err(launch_error(names.rank, rank, expected));
            };
            if count == 0 {
                return Err(launch_error(count_name, count, "at least 1".into()));
            }
            if rank >= count {
                return Err(launch_error(names.rank, rank, format!("less than {count_name}, {count}")));
            }
            let local = match (first(names.local_rank)?, first(names.local_count)?) {
                (Some((rank, rank_name)), Some((count, count_name))) => {
                    if rank >= count {
                        return Err(launch_error(
                            rank_name,
                            rank,
                            format!("less than {count_name}, {count}"),
                        ));
                    }
                    Some(Part { rank, count })
                }
                _ => None,
            };
            if let Some(local) = local.filter(|local| local.count > count) {
                let name = names.local_count.iter().find(|name| lookup(name).is_some());
                let name = name.copied().unwrap_or(names.rank);
                // Slurm's is what was allowed, not what there is.
                if names.launcher != Launcher::Slurm {
                    return Err(launch_error(name, local.count, format!("at most {count_name}, {count}")));
                }
            }
            let launch = Launch { launcher: names.launcher, part: Part { rank, count }, local };
            match &found {
                Some((other, others)) if other.part != launch.part => {
                    let (name, value, expected) = match other.part.count == count {
                        true => (names.rank, rank, format!("{}, as {} says", other.part.rank, others.rank)),
                        false => {
                            (count_name, count, format!("{}, as {} says", other.part.count, others.count[0]))
                        }
                    };
                    return Err(launch_error(name, value, expected));
                }
                Some(_) => {}
                None => found = Some((launch, names)),
            }
        }
        Ok(found.map(|(launch, _)| launch))
    }

    /// The threads of this process, if its machine's processes share `cores` equally; all, if their number is not known.
    pub fn threads(&self, cores: usize) -> usize {
        (cores / self.local.map_or(1, |local| local.count)).max(1)
    }
}

fn launch_error(name: &'static str, found: impl ToString, expected: String) -> Error {
    Error::Launch { name, found: found.to_string(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(variables: &[(&str, &str)]) -> Result<Option<Launch>> {
        let of = |name: &str| variables.iter().find(|v| v.0 == name).map(|v| v.1.to_owned());
        Launch::find(of)
    }

    #[test]
    fn every_launcher_is_known() {
        let check = |variables: &[(&str, &str)], launcher, part: [usize; 2], local: Option<[usize; 2]>| {
            let of = |[rank, count]: [usize; 2]| Part { rank, count };
            let expected = Launch { launcher, part: of(part), local: local.map(of) };
            assert_eq!(find(variables).unwrap(), Some(expected), "{variables:?}");
        };
        let open = [
            ("OMPI_COMM_WORLD_RANK", "3"),
            ("OMPI_COMM_WORLD_SIZE", "4"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ];
        check(&open, Launcher::OpenMpi, [3, 4], Some([1, 2]));
        check(&[("PMI_RANK", "0"), ("PMI_SIZE", "2")], Launcher::Pmi, [0, 2], None);
        let torch = [("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")];
        check(&torch, Launcher::Torchrun, [1, 2], Some([1, 2]));
        let slurm = [("SLURM_PROCID", "5"), ("SLURM_NTASKS", "8"), ("SLURM_LOCALID", "1")];
        check(&slurm, Launcher::Slurm, [5, 8], None);
        let step = [("SLURM_STEP_NUM_TASKS", "6"), ("SLURM_NTASKS_PER_NODE", "2")];
        check(&[&slurm[..], &step].concat(), Launcher::Slurm, [5, 6], Some([1, 2]));
        // mpirun in a step of Slurm, and torchrun in one.
        let outer = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "1")];
        check(&[&open[..], &outer].concat(), Launcher::OpenMpi, [3, 4], Some([1, 2]));
        check(&[&torch[..], &outer].concat(), Launcher::Torchrun, [1, 2], Some([1, 2]));
        // Two that agree.
        let same = [("PMI_RANK", "3"), ("PMI_SIZE", "4")];
        check(&[&open[..], &same].concat(), Launcher::OpenMpi, [3, 4], Some([1, 2]));
    }

    #[test]
    fn a_process_may_be_alone() {
        for variables in [&[][..], &[("SLURM_NTASKS", "4")], &[("WORLD_SIZE", "2")], &[("RANK", "")]] {
            assert_eq!(find(variables).unwrap(), None, "{variables:?}");
        }
    }

    #[test]
    fn contradictions_name_the_variable() {
        let check = |variables: &[(&str, &str)], message: &str| {
            let error = find(variables).unwrap_err().to_string();
            assert!(error.contains(message), "{variables:?}: {error}");
        };
        check(&[("RANK", "one"), ("WORLD_SIZE", "2")], "`RANK` is `one`, expected a number");
        check(&[("RANK", "-1"), ("WORLD_SIZE", "2")], "`RANK` is `-1`, expected a number");
        check(&[("RANK", "0"), ("WORLD_SIZE", "2 x")], "`WORLD_SIZE` is `2 x`");
        check(&[("PMI_RANK", "0"), ("PMI_SIZE", "99999999999999999999")], "`PMI_SIZE` is `999");
        check(&[("PMI_RANK", "2"), ("PMI_SIZE", "2")], "`PMI_RANK` is `2`, expected less than PMI_SIZE, 2");
        check(&[("PMI_RANK", "0"), ("PMI_SIZE", "0")], "`PMI_SIZE` is `0`, expected at least 1");
        check(&[("SLURM_PROCID", "1")], "`SLURM_PROCID` is `1`, expected to come with SLURM_STEP_NUM_TASKS");
        let torch = [("RANK", "0"), ("WORLD_SIZE", "2")];
        let local = |rank, count| [&torch[..], &[("LOCAL_RANK", rank), ("LOCAL_WORLD_SIZE", count)]].concat();
        check(&local("2", "2"), "`LOCAL_RANK` is `2`, expected less than LOCAL_WORLD_SIZE, 2");
        check(&local("2", "3"), "`LOCAL_WORLD_SIZE` is `3`, expected at most WORLD_SIZE, 2");
        let open = |rank, count| {
            [&torch[..], &[("OMPI_COMM_WORLD_RANK", rank), ("OMPI_COMM_WORLD_SIZE", count)]].concat()
        };
        check(&open("0", "4"), "`WORLD_SIZE` is `2`, expected 4, as OMPI_COMM_WORLD_SIZE says");
        check(&open("1", "2"), "`RANK` is `0`, expected 1, as OMPI_COMM_WORLD_RANK says");
    }

    #[test]
    fn processes_share_the_cores() {
        let with = |local| Launch { launcher: Launcher::Pmi, part: Part { rank: 0, count: 4 }, local };
        let local = Some(Part { rank: 0, count: 3 });
        assert_eq!([with(None).threads(8), with(local).threads(8), with(local).threads(2)], [8, 2, 1]);
    }
}
