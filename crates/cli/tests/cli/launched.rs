//! The environment variables of launchers.

use super::*;

fn with(variables: &[(&str, &str)], args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lmhead"))
        .args(args)
        .envs(variables.iter().copied())
        .output()
        .expect("the program starts")
}

const RUN: [&str; 3] = ["run", "--preset", "tiny"];

#[test]
fn an_environment_that_is_half_set_is_refused_by_name() {
    let table: [(&[(&str, &str)], &str); 3] = [
        (&[("OMPI_COMM_WORLD_SIZE", "4")], "OMPI_COMM_WORLD_RANK: wanted it beside OMPI_COMM_WORLD_SIZE"),
        (&[("PMI_RANK", "4"), ("PMI_SIZE", "4")], "PMI_RANK: wanted a rank below PMI_SIZE = 4, got 4"),
        (
            &[("PMI_RANK", "1"), ("PMI_SIZE", "4"), ("RANK", "1"), ("WORLD_SIZE", "8")],
            "PMI_RANK, PMI_SIZE and RANK, WORLD_SIZE: wanted the same rank and number of ranks",
        ),
    ];
    for (variables, words) in table {
        let out = with(variables, &RUN);
        let said = text(&out.stderr);
        assert_eq!((out.status.code(), text(&out.stdout)), (Some(2), String::new()), "{said}");
        assert!(said.starts_with(&format!("error: {words}")), "{said}\nwanted {words}");
    }
}

/// A job of one process, and variables of launchers that are also set around programs that run once.
#[test]
fn a_process_alone_runs_all_ranks() {
    for variables in [
        [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")],
        [("SLURM_NTASKS", "4"), ("RANK", "1")],
        [("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "1")],
    ] {
        let out = with(&variables, &[&RUN[..], &["--dp", "2", "--json"]].concat());
        assert!(out.status.success(), "{variables:?}: {}", text(&out.stderr));
        assert!(text(&out.stdout).contains(r#""exchange": "local""#), "{variables:?}");
    }
    // With `--exchange local` each process of a job runs all ranks.
    let job = [("PMI_RANK", "0"), ("PMI_SIZE", "2")];
    assert!(with(&job, &[&RUN[..], &["--exchange", "local"]].concat()).status.success());
}

#[test]
fn mpi_without_a_launcher_is_refused_by_name() {
    let out = lmhead(&[&RUN[..], &["--exchange", "mpi"]].concat());
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{said}");
    assert!(said.contains("--exchange mpi: wanted a process that mpirun or srun has started"), "{said}");
}

#[test]
fn several_processes_are_refused_where_only_one_makes_sense_and_the_first_says_so() {
    let job = |rank| [("PMI_RANK", rank), ("PMI_SIZE", "4")];
    let mut commands: Vec<(Vec<&str>, &str)> = vec![
        (vec!["bench", "--preset", "tiny"], "lmhead bench: wanted one process, got rank 0 of 4"),
        (vec!["plan", "--preset", "tiny"], "lmhead plan: wanted one process"),
        (vec!["quantize", "--head", "x", "--out", "y"], "lmhead quantize: wanted one process"),
    ];
    if cfg!(not(feature = "mpi")) {
        commands.push((RUN.to_vec(), "--exchange: wanted a build that knows MPI, got rank 0 of 4"));
    }
    for (args, words) in commands {
        let first = with(&job("0"), &args);
        let said = text(&first.stderr);
        assert_eq!(first.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.starts_with(&format!("error: rank 0: {words}")), "{args:?}: {said}");
        let other = with(&job("3"), &args);
        assert_eq!((other.status.code(), text(&other.stderr)), (Some(2), String::new()), "{args:?}");
    }
}
