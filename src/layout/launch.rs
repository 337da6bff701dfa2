//! Rank and world size of this process, from the environment variables of the launcher that started it.

use crate::error::{Error, Result};
use std::fmt;

/// Who started the ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Launcher {
    /// Open MPI's `mpirun`.
    OpenMpi,
    /// MPICH's or Intel's `mpirun`, and others that speak PMI.
    Pmi,
    /// PyTorch's `torchrun`, and others that set the same variables.
    Torchrun,
    /// `srun`.
    Slurm,
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Launcher::OpenMpi => "Open MPI's mpirun",
            Launcher::Pmi => "an mpirun that speaks PMI",
            Launcher::Torchrun => "torchrun",
            Launcher::Slurm => "Slurm",
        })
    }
}

/// One of the processes that a launcher started together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// Global rank, `0..world_size`.
    pub rank: usize,
    pub world_size: usize,
    /// Ranks on this machine, where the launcher says.
    pub local_size: Option<usize>,
    pub launcher: Launcher,
}

/// The variables of one launcher.
struct Variables {
    launcher: Launcher,
    rank: &'static str,
    size: &'static str,
    local_size: &'static str,
}

/// Launchers, but for Slurm. Where the variables of several are set, they must agree.
const LAUNCHERS: [Variables; 3] = [
    Variables {
        launcher: Launcher::OpenMpi,
        rank: "OMPI_COMM_WORLD_RANK",
        size: "OMPI_COMM_WORLD_SIZE",
        local_size: "OMPI_COMM_WORLD_LOCAL_SIZE",
    },
    Variables { launcher: Launcher::Pmi, rank: "PMI_RANK", size: "PMI_SIZE", local_size: "MPI_LOCALNRANKS" },
    Variables {
        launcher: Launcher::Torchrun,
        rank: "RANK",
        size: "WORLD_SIZE",
        local_size: "LOCAL_WORLD_SIZE",
    },
];

/// Slurm's variables are only read where no other launcher's are set: in a Slurm job that runs `mpirun` or
/// `torchrun` they describe the tasks that started these, not the ranks.
const SLURM: Variables = Variables {
    launcher: Launcher::Slurm,
    rank: "SLURM_PROCID",
    size: "SLURM_NTASKS",
    local_size: "SLURM_NTASKS_PER_NODE",
};

impl Launch {
    /// Reads this process's environment: Open MPI's `OMPI_COMM_WORLD_RANK` and `_SIZE`, `PMI_RANK` and
    /// `PMI_SIZE`, torchrun's `RANK` and `WORLD_SIZE`, or Slurm's `SLURM_PROCID` and `SLURM_NTASKS`; `None`
    /// where no launcher started it.
    ///
    /// # Errors
    /// `Config` naming the variables where one of a pair is missing, a value is not a number, the rank is not
    /// below the size, or two launchers contradict each other.
    pub fn from_env() -> Result<Option<Self>> {
        Self::from_variables(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    /// As `Launch::from_env`, but `variable` returns the value of an environment variable.
    ///
    /// # Errors
    /// As [`Launch::from_env`].
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let mut found: Option<(&Variables, Launch)> = None;
        for variables in &LAUNCHERS {
            let Some(launch) = variables.read(&variable)? else { continue };
            match &found {
                None => found = Some((variables, launch)),
                Some((first, other)) => {
                    if (launch.rank, launch.world_size) != (other.rank, other.world_size) {
                        return Err(contradiction(first, other, variables, &launch));
                    }
                }
            }
        }
        match found {
            Some((_, launch)) => Ok(Some(launch)),
            None => SLURM.read(&variable),
        }
    }
}

fn contradiction(first: &Variables, one: &Launch, second: &Variables, other: &Launch) -> Error {
    let place = |launch: &Launch| format!("rank {} of {}", launch.rank, launch.world_size);
    Error::config(
        format!("{}, {} and {}, {}", first.rank, first.size, second.rank, second.size),
        "the same rank and number of ranks",
        format!("{} by {}, {} by {}", place(one), first.launcher, place(other), second.launcher),
        "start the ranks with one launcher, and unset the variables of the other",
    )
}

impl Variables {
    fn read(&self, variable: &impl Fn(&str) -> Option<String>) -> Result<Option<Launch>> {
        let half = |missing: &str, set: &str| {
            let got = format!("{set} alone");
            let fix = format!("set {missing} too, or unset {set}");
            Error::config(missing, format!("it beside {set}, as {} sets both", self.launcher), got, fix)
        };
        let (rank, size) = match (variable(self.rank), variable(self.size)) {
            (None, None) => return Ok(None),
            (Some(_), None) => return Err(half(self.size, self.rank)),
            (None, Some(_)) => return Err(half(self.rank, self.size)),
            (Some(rank), Some(size)) => (rank, size),
        };
        let number = |name: &str, text: &str| {
            text.trim().parse::<usize>().map_err(|_| {
                let fix = format!("leave it as {} sets it, or unset it", self.launcher);
                Error::config(name, "a whole number", format!("`{text}`"), fix)
            })
        };
        let (rank, world_size) = (number(self.rank, &rank)?, number(self.size, &size)?);
        if rank >= world_size {
            let wanted = format!("a rank below {} = {world_size}", self.size);
            let fix = "start every rank with the same launcher, and leave its variables alone";
            return Err(Error::config(self.rank, wanted, rank, fix));
        }
        // Only a hint: a form that is not a number is ignored (Slurm: `4(x2)`).
        let local_size = variable(self.local_size).and_then(|text| text.trim().parse().ok());
        let local_size = local_size.filter(|local| (1..=world_size).contains(local));
        Ok(Some(Launch { rank, world_size, local_size, launcher: self.launcher }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(set: &[(&str, &str)]) -> Result<Option<Launch>> {
        Launch::from_variables(|name| {
            set.iter().find(|(own, _)| *own == name).map(|(_, value)| (*value).into())
        })
    }

    fn launch(rank: usize, world_size: usize, local_size: Option<usize>, launcher: Launcher) -> Launch {
        Launch { rank, world_size, local_size, launcher }
    }

    #[test]
    fn each_launcher_is_understood() {
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&[("HOME", "/root"), ("RANKS", "3")]), Ok(None));
        let table: [(&[(&str, &str)], Launch); 5] = [
            (
                &[
                    ("OMPI_COMM_WORLD_RANK", "3"),
                    ("OMPI_COMM_WORLD_SIZE", "8"),
                    ("OMPI_COMM_WORLD_LOCAL_SIZE", "4"),
                ],
                launch(3, 8, Some(4), Launcher::OpenMpi),
            ),
            (&[("PMI_RANK", "0"), ("PMI_SIZE", "1")], launch(0, 1, None, Launcher::Pmi)),
            (
                &[("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2")],
                launch(1, 2, Some(2), Launcher::Torchrun),
            ),
            (&[("SLURM_PROCID", "5"), ("SLURM_NTASKS", "6")], launch(5, 6, None, Launcher::Slurm)),
            (
                &[("SLURM_PROCID", "5"), ("SLURM_NTASKS", "6"), ("SLURM_NTASKS_PER_NODE", "3(x2)")],
                launch(5, 6, None, Launcher::Slurm),
            ),
        ];
        for (set, want) in table {
            assert_eq!(of(set), Ok(Some(want)), "{set:?}");
        }
    }

    #[test]
    fn the_inner_launcher_of_a_slurm_job_counts() {
        let slurm = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "2")];
        let inner = [("OMPI_COMM_WORLD_RANK", "9"), ("OMPI_COMM_WORLD_SIZE", "16")];
        let both: Vec<_> = slurm.into_iter().chain(inner).collect();
        assert_eq!(of(&both), Ok(Some(launch(9, 16, None, Launcher::OpenMpi))));
        // Also where Slurm only sets the size, as in a shell without a rank.
        let shell = [("SLURM_NTASKS", "2"), ("RANK", "1"), ("WORLD_SIZE", "4")];
        assert_eq!(of(&shell), Ok(Some(launch(1, 4, None, Launcher::Torchrun))));
    }

    #[test]
    fn what_is_half_set_or_no_rank_is_refused_by_name() {
        for variables in LAUNCHERS.iter().chain([&SLURM]) {
            let (rank, size) = (variables.rank, variables.size);
            let table: [(&[(&str, &str)], String); 6] = [
                (&[(rank, "1")], format!("{size}: wanted it beside {rank}")),
                (&[(size, "2")], format!("{rank}: wanted it beside {size}")),
                (&[(rank, "x"), (size, "2")], format!("{rank}: wanted a whole number, got `x`")),
                (&[(rank, "0"), (size, "")], format!("{size}: wanted a whole number, got ``")),
                (&[(rank, "2"), (size, "2")], format!("{rank}: wanted a rank below {size} = 2, got 2")),
                (&[(rank, "0"), (size, "0")], format!("{rank}: wanted a rank below {size} = 0, got 0")),
            ];
            for (set, words) in table {
                let error = of(set).unwrap_err();
                assert!(matches!(error, Error::Config { .. }), "{error}");
                assert!(error.to_string().starts_with(&words), "{error}\nwanted {words}");
            }
        }
    }

    #[test]
    fn launchers_that_contradict_each_other_are_refused_by_name() {
        let ompi = [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "4")];
        let with = |rank: &'static str, size: &'static str| {
            of(&[ompi[0], ompi[1], ("RANK", rank), ("WORLD_SIZE", size)])
        };
        // As in a script that sets torchrun's variables from mpirun's.
        assert_eq!(with("1", "4"), Ok(Some(launch(1, 4, None, Launcher::OpenMpi))));
        for (rank, size) in [("2", "4"), ("1", "8")] {
            let text = with(rank, size).unwrap_err().to_string();
            assert!(text.starts_with("OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_SIZE and RANK, WORLD_SIZE: "));
            let got = format!("rank 1 of 4 by Open MPI's mpirun, rank {rank} of {size} by torchrun");
            assert!(text.contains(&got), "{text}");
        }
    }
}
