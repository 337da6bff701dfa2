//! NCCL without a GPU: how it is found and refused, its version and its ids. Communication is tested in
//! `crates/gpu/tests/cuda_driver`.
#![cfg(target_os = "linux")]

use lmhead::Error;
use lmhead::exchange::nccl::{LMHEAD_NCCL, Nccl, UniqueId};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A folder with a `libnccl.so.2` of these definitions.
fn library(folder: &Path, definitions: &[&str]) -> PathBuf {
    std::fs::create_dir_all(folder).expect("a folder");
    let file = folder.join("libnccl.so.2");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nccl/stub.c");
    let mut compile = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".into()));
    compile.args(["-shared", "-fPIC", "-Wall", "-Werror"]).args(definitions).arg(source).arg("-o").arg(&file);
    assert!(compile.status().expect("a C compiler").success());
    file
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn refused(path: &Path) -> String {
    let error = Nccl::load(Some(path)).expect_err("a library that is refused");
    assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
    error.to_string()
}

#[test]
fn a_library_is_loaded_by_its_file_or_its_folder_once() {
    let folder = folder();
    let file = library(folder.path(), &["-DVERSION=23007"]);
    let nccl = Nccl::load(Some(&file)).expect("a library");
    assert_eq!((nccl.version().to_string().as_str(), nccl.path()), ("2.30.7", &*file));
    let again = Nccl::load(Some(folder.path())).expect("a library");
    assert_eq!(again.path(), nccl.path());
    assert_eq!(nccl.unique_id().expect("an id"), UniqueId::from_bytes(&[7; 128]).expect("an id"));
}

#[test]
fn what_is_missing_or_too_old_is_refused_with_the_remedy() {
    let folder = folder();
    let nowhere = refused(&folder.path().join("nowhere/libnccl.so.2"));
    assert!(nowhere.starts_with("NCCL: wanted libnccl.so.2, got "), "{nowhere}");
    let wanted =
        ["nowhere/libnccl.so.2: cannot open shared object", "pip install nvidia-nccl-cu13", LMHEAD_NCCL];
    wanted.iter().for_each(|words| assert!(nowhere.contains(words), "{nowhere}"));

    let old = library(&folder.path().join("old"), &["-DVERSION=21003"]);
    let text = refused(&old);
    let wanted = format!("NCCL at {}: wanted version 2.18.1 or newer, got 2.10.3; install", old.display());
    assert!(text.starts_with(&wanted), "{text}");

    let part = library(&folder.path().join("part"), &["-DVERSION=22707", "-DWITHOUT_SPLIT"]);
    let text = refused(&part);
    let wanted = "got version 2.27.7 without ncclCommSplit; install";
    assert!(text.contains(wanted) && text.contains(part.to_str().expect("text")), "{text}");

    let other = folder.path().join("other.so");
    let mut compile = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".into()));
    compile.args(["-shared", "-fPIC", "-x", "c", "/dev/null", "-o"]).arg(&other);
    assert!(compile.status().expect("a C compiler").success());
    let text = refused(&other);
    assert!(text.contains("other.so: wanted NVIDIA's NCCL, got a library without ncclGetVersion"), "{text}");
}

#[test]
fn an_id_that_cannot_be_made_is_told_in_nccls_words() {
    let folder = folder();
    let file = library(folder.path(), &["-DVERSION=22707", "-DNO_ID"]);
    let error = Nccl::load(Some(&file)).expect("a library").unique_id().expect_err("no id").to_string();
    let wanted = "making of an id for NCCL: ncclGetUniqueId of NCCL 2.27.7: unhandled system error (code 2): \
                  no socket interface found; look at NCCL's network settings";
    assert!(error.starts_with(wanted), "{error}");
}

/// Runs this program again with only these variables, where `in_child_load` prints what it has loaded.
fn child(variables: &[(&str, &Path)]) -> String {
    let mut command = Command::new(std::env::current_exe().expect("a program"));
    command.args(["--exact", "in_child_load", "--ignored", "--nocapture"]).env_clear();
    let output = command.envs(variables.iter().copied()).output().expect("the program runs");
    let text =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    text
}

#[test]
#[ignore = "says what it loads: the_library_is_looked_for_in_order runs it"]
fn in_child_load() {
    match Nccl::load(None) {
        Ok(nccl) => println!("loaded {}", nccl.path().display()),
        Err(error) => println!("refused {error}"),
    }
}

#[test]
fn the_library_is_looked_for_in_order() {
    let folder = folder();
    let place = |name: &str| folder.path().join(name);
    let packages = "lib/python3.12/site-packages/nvidia/nccl/lib";
    let named = library(&place("named"), &["-DVERSION=23007"]);
    let found = library(&place("found"), &["-DVERSION=23007"]);
    let wheel = library(&place("venv").join(packages), &["-DVERSION=23007"]);
    let of_python = library(&place("prefix").join(packages), &["-DVERSION=23007"]);
    std::fs::create_dir_all(place("prefix/bin")).expect("a folder");
    std::fs::write(place("prefix/bin/python3"), "").expect("a file");

    let (found_in, venv, bin) = (place("found"), place("venv"), place("prefix/bin"));
    let all =
        [(LMHEAD_NCCL, &*named), ("LD_LIBRARY_PATH", &*found_in), ("VIRTUAL_ENV", &*venv), ("PATH", &*bin)];
    for (from, wanted) in [&named, &found, &wheel, &of_python].into_iter().enumerate() {
        let text = child(&all[from..]);
        assert!(text.contains(&format!("loaded {}", wanted.display())), "from {}: {text}", all[from].0);
    }
    // A path that leads nowhere is an error, not skipped.
    let text = child(&[&[(LMHEAD_NCCL, &*place("nowhere"))], &all[1..]].concat());
    assert!(text.contains("refused NCCL: wanted libnccl.so.2, got ") && text.contains("nowhere: "), "{text}");
}

#[test]
#[ignore = "needs NVIDIA's NCCL: LMHEAD_NCCL=$(scripts/nccl), and --ignored the_real"]
fn the_real_library_is_loaded_and_makes_ids() {
    let nccl = Nccl::load(None).expect("NCCL");
    println!("{nccl:?}");
    let (one, other) = (nccl.unique_id().expect("an id"), nccl.unique_id().expect("an id"));
    assert!(one != other, "each id is another");
    assert_ne!(one.as_bytes(), &[0; UniqueId::BYTES]);
}
