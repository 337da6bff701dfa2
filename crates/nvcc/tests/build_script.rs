//! The build script's decisions for feature `cuda`: which nvcc, which architectures, what is recompiled. Runs
//! without nvcc.

use lmhead_nvcc::architectures::{self, KernelFile};
use lmhead_nvcc::{compile, toolkit};
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Lets one test at a time write and start programs: a process started by another test meanwhile would
/// inherit the file open for writing, and such a file cannot be executed.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A folder with these empty files; those called `nvcc...` are programs that print version 13.0, in folders
/// called `old...` 12.6.
fn folder(files: &[&str]) -> tempfile::TempDir {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a temporary folder");
    for file in files {
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().expect("below the folder")).expect("a folder");
        let version =
            if file.starts_with("old") { "release 12.6, V12.6.85" } else { "release 13.0, V13.0.88" };
        let text = format!("#!/bin/sh\necho 'Cuda compilation tools, {version}'\n");
        let nvcc = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("nvcc"));
        fs::write(&path, if nvcc { text } else { String::new() }).expect("a file");
        #[cfg(unix)]
        if nvcc {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("permissions");
        }
    }
    folder
}

fn find(at: &Path, variables: &[(&str, &str)]) -> Result<PathBuf, String> {
    let variables: HashMap<_, _> = variables.iter().copied().collect();
    let variable = |name: &str| {
        // `@` is the folder.
        variables.get(name).map(|value| OsString::from(value.replace('@', &at.display().to_string())))
    };
    let _alone = alone();
    toolkit::find(variable, [at.join("target")]).map(|nvcc| nvcc.path.strip_prefix(at).expect("below").into())
}

#[test]
fn nvcc_is_looked_for_in_nvcc_cuda_home_path_and_the_scripts_folder_in_that_order() {
    let installed = "target/cuda-toolkit/nvidia/cu13/bin/nvcc";
    let at =
        folder(&["own/nvcc", "own/nvcc-13", "home/bin/nvcc", "path/nvcc", "old/nvcc", "empty/x", installed]);
    let all = [("NVCC", "@/own/nvcc"), ("CUDA_HOME", "@/home"), ("PATH", "@/empty:@/path")];
    for (set, wanted) in [
        (&all[..], "own/nvcc"),
        (&all[1..], "home/bin/nvcc"),
        (&all[2..], "path/nvcc"),
        (&[("PATH", "@/empty")][..], installed),
        (&[][..], installed),
        // An nvcc on PATH that is too old is skipped.
        (&[("PATH", "@/old:@/path")][..], installed),
        (&[("NVCC", ""), ("CUDA_HOME", ""), ("PATH", "@/path")][..], "path/nvcc"),
        (&[("NVCC", "nvcc-13"), ("PATH", "@/empty:@/own")][..], "own/nvcc-13"),
    ] {
        assert_eq!(find(at.path(), set), Ok(wanted.into()), "{set:?}");
    }
}

#[test]
fn without_nvcc_the_error_names_what_was_asked_and_the_script() {
    let at = folder(&["empty/x", "path/nvcc", "old/nvcc", "old-home/bin/nvcc"]);
    for (set, named) in [
        (&[("PATH", "@/empty")][..], "wanted nvcc 12.8 or newer"),
        (&[("PATH", "@/old")][..], "old/nvcc: wanted nvcc 12.8 or newer, got 12.6.85"),
        (
            &[("NVCC", "@/old/nvcc"), ("PATH", "@/path")][..],
            "old/nvcc: wanted nvcc 12.8 or newer, got 12.6.85",
        ),
        (
            &[("CUDA_HOME", "@/old-home"), ("PATH", "@/path")][..],
            "old-home/bin/nvcc: wanted nvcc 12.8 or newer",
        ),
        (&[("NVCC", "@/gone"), ("PATH", "@/path")][..], "NVCC: wanted the path of nvcc, got "),
        (&[("NVCC", "nvcc-13"), ("PATH", "@/path")][..], "got nvcc-13; "),
        (
            &[("CUDA_HOME", "@/gone"), ("PATH", "@/path")][..],
            "CUDA_HOME: wanted a CUDA toolkit with bin/nvcc, got ",
        ),
    ] {
        let error = find(at.path(), set).expect_err("no nvcc there");
        assert!(error.contains(named) && error.contains("scripts/cuda-toolkit"), "{set:?}: {error}");
    }
}

#[test]
fn an_old_nvcc_and_a_program_that_is_none_are_refused_by_version() {
    let said = |release: &str| {
        format!(
            "nvcc: NVIDIA (R) Cuda compiler driver\nCopyright (c) 2005-2025\nCuda compilation tools, {release}\nBuild x\n"
        )
    };
    let version = |said: &str| toolkit::version(Path::new("/opt/nvcc"), said);
    assert_eq!(version(&said("release 13.0, V13.0.88")), Ok(((13, 0), "V13.0.88".into())));
    assert_eq!(version(&said("release 12.8, V12.8.61")), Ok(((12, 8), "V12.8.61".into())));
    for (said, got) in [
        (said("release 12.6, V12.6.85"), "got 12.6.85"),
        (said("release 9.1, V9.1.85"), "got 9.1.85"),
        ("GNU Make 4.3\n".into(), "got a program that says \"GNU Make 4.3\""),
        (String::new(), "got a program that says \"nothing\""),
        ("Various V words".into(), "says \"Various V words\""),
    ] {
        let error = version(&said).expect_err("not good enough");
        for part in ["/opt/nvcc: wanted nvcc 12.8 or newer", got, "scripts/cuda-toolkit --home"] {
            assert!(error.contains(part), "{error}");
        }
    }
}

#[test]
fn the_architectures_are_those_of_the_name_narrowed_by_the_variable() {
    let [portable_file, hopper_file] =
        ["a_sm80", "folder/b_sm90a"].map(|name| KernelFile::new(name).expect("a good name"));
    for (text, portable, hopper) in [
        (
            None,
            &["sm_80", "sm_89", "sm_90", "sm_100", "sm_120", "compute_80", "compute_90"][..],
            &["sm_90a"][..],
        ),
        (Some("sm_120 sm_100"), &["sm_100", "sm_120"][..], &[]),
        (Some("sm_90a,sm_80"), &["sm_80"][..], &["sm_90a"][..]),
        (Some("sm_90a"), &[], &["sm_90a"][..]),
        (Some("sm_80"), &["sm_80"][..], &[]),
        (Some(" compute_80  sm_90a;sm_80, "), &["sm_80", "compute_80"][..], &["sm_90a"][..]),
    ] {
        let wanted = architectures::parse(text).expect("known architectures");
        assert_eq!(architectures::narrow(&portable_file, &wanted), portable, "{text:?}");
        assert_eq!(architectures::narrow(&hopper_file, &wanted), hopper, "{text:?}");
    }
}

#[test]
fn an_unknown_architecture_is_refused() {
    for (text, got) in [("sm_75", "got \"sm_75\""), ("sm_80,90a", "got \"90a\""), (" , ", "got \" , \"")] {
        let error = architectures::parse(Some(text)).expect_err("unknown");
        assert!(error.starts_with("LMHEAD_CUDA_ARCHS: wanted a list of sm_80, "), "{error}");
        assert!(error.contains(got), "{error}");
    }
}

#[test]
fn machine_code_and_ptx_are_asked_for_by_nvccs_words_from_one_ptx_before_9_0_and_one_since() {
    for (name, wanted) in [
        ("sm_90a", "-gencode=arch=compute_90a,code=sm_90a"),
        ("sm_80", "-gencode=arch=compute_80,code=sm_80"),
        ("compute_80", "-gencode=arch=compute_80,code=compute_80"),
        ("sm_89", "-gencode=arch=compute_80,code=sm_89"),
        ("sm_90", "-gencode=arch=compute_90,code=sm_90"),
        ("sm_100", "-gencode=arch=compute_90,code=sm_100"),
        ("sm_120", "-gencode=arch=compute_90,code=sm_120"),
        ("compute_90", "-gencode=arch=compute_90,code=compute_90"),
    ] {
        assert_eq!(architectures::gencode(name), wanted);
    }
}

#[test]
fn a_kernel_file_whose_name_says_nothing_of_architectures_is_refused() {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels");
    let (mut sources, headers) = lmhead_nvcc::files(&kernels).expect("the kernels' folder");
    assert!(!sources.is_empty() && !headers.is_empty());
    let files = lmhead_nvcc::kernel_files(&kernels, &sources).expect("good names");
    assert!(
        files.iter().any(|file| file.name == "microkernels/wgmma_sm90a" && file.architectures == ["sm_90a"])
    );
    sources.push(kernels.join("stray.cu"));
    let error = lmhead_nvcc::kernel_files(&kernels, &sources).expect_err("no architecture");
    assert!(
        error.starts_with("kernels/stray.cu: wanted a name that ends in _sm80 (compiled for sm_80, "),
        "{error}"
    );
}

#[test]
fn the_emulated_devices_headers_are_not_nvccs() {
    let at =
        folder(&["b.cu", "sub/a.cu", "x.cuh", "params.h", "emulated/own.h", "emulated/own.cu", "notes.md"]);
    let names = |files: &[PathBuf]| -> Vec<String> {
        let below = |file: &PathBuf| file.strip_prefix(at.path()).expect("below").display().to_string();
        files.iter().map(below).collect()
    };
    let (sources, headers) = lmhead_nvcc::files(at.path()).expect("a folder");
    assert_eq!(names(&sources), ["b.cu", "sub/a.cu"]);
    assert_eq!(names(&headers), ["params.h", "x.cuh"]);
}

#[test]
fn whatever_changes_the_result_changes_the_hash_of_the_inputs() {
    let at = folder(&["a.cu", "x.cuh"]);
    let [source, header] = ["a.cu", "x.cuh"].map(|name| at.path().join(name));
    let hash = |architectures: &[&str], compiler: &str| {
        compile::inputs(&source, std::slice::from_ref(&header), architectures, compiler).expect("readable")
    };
    let first = hash(&["sm_80"], "V13.0.88");
    assert_eq!(hash(&["sm_80"], "V13.0.88"), first);
    assert_ne!(hash(&["sm_80", "sm_90"], "V13.0.88"), first, "architectures");
    assert_ne!(hash(&["sm_80"], "V13.0.89"), first, "compiler");
    fs::write(&header, "// new").expect("a file");
    let with_header = hash(&["sm_80"], "V13.0.88");
    assert_ne!(with_header, first, "header");
    fs::write(&source, "// new").expect("a file");
    assert_ne!(hash(&["sm_80"], "V13.0.88"), with_header, "source");
}

#[test]
fn entry_points_are_read_from_ptx() {
    let ptx = "//\n// Generated by NVIDIA NVVM Compiler\n\t// .globl\tquantize_rows\n.visible .entry quantize_rows(\n\
               .param .align 8 .b8 quantize_rows_param_0[24]\n)\n.entry _Z1fPf(\n\
               .weak .entry last()\n{\n// see .entry none\n}\n\
               .func (.param .b32 r) helper(\n";
    assert_eq!(compile::ptx_entries(ptx), ["quantize_rows", "_Z1fPf", "last"]);
}

/// A stand-in for nvcc: writes PTX with one entry point, counts its runs, fails where the source says so.
#[cfg(unix)]
fn stand_in(at: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let _alone = alone();
    let nvcc = at.join("nvcc");
    let script = r#"#!/bin/sh
echo run >> "$(dirname "$0")/runs"
while [ $# -gt 0 ]; do
  case $1 in --keep-dir) keep=$2; shift ;; -o) out=$2; shift ;; *) last=$1 ;; esac
  shift
done
if grep -q broken "$last"; then echo "error: broken" >&2; exit 2; fi
echo "ptxas info: a remark"
grep -q empty "$last" || echo ".visible .entry kernel(" > "$keep/a.compute_80.ptx"
echo code > "$out"
"#;
    fs::write(&nvcc, script).expect("a file");
    fs::set_permissions(&nvcc, fs::Permissions::from_mode(0o755)).expect("permissions");
    nvcc
}

#[cfg(unix)]
#[test]
fn an_unchanged_file_is_not_compiled_again_and_a_failure_is_told_in_nvccs_words() {
    let at = folder(&["a.cu"]);
    let nvcc = stand_in(at.path());
    let source = at.path().join("a.cu");
    let run = || {
        let architectures = vec!["sm_80"];
        let inputs = compile::inputs(&source, &[], &architectures, "V13.0.88").expect("readable");
        let (include, output) = (at.path().to_path_buf(), at.path().join("out"));
        let job =
            compile::Job { name: "a".into(), source: source.clone(), include, architectures, output, inputs };
        let _alone = alone();
        compile::run(&nvcc, 1, &job)
    };
    let runs = || fs::read_to_string(at.path().join("runs")).expect("a file").lines().count();
    for _ in 0..2 {
        let compiled = run().expect("compiles");
        assert_eq!(
            (compiled.kernels, compiled.warnings.as_str()),
            (vec!["kernel".into()], "ptxas info: a remark")
        );
        assert_eq!(runs(), 1);
    }
    for (text, wanted) in
        [("broken", "error: broken"), ("empty", "wanted at least one __global__ function, got none")]
    {
        fs::write(&source, text).expect("a file");
        let error = run().expect_err("does not compile");
        assert!(error.contains(wanted) && error.contains("a.cu"), "{error}");
    }
    // A failure leaves no file that could be taken for a result.
    fs::write(&source, "").expect("a file");
    assert_eq!(run().expect("compiles").kernels, ["kernel"]);
    assert_eq!(runs(), 4);
}
