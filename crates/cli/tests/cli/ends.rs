//! How the program ends when something goes wrong: no files left behind, no panic, no signal without a
//! message.

use super::*;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

fn start(args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lmhead"));
    command.args(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// A shell that sends the signal once it is told to: it is there when it is needed, also on a busy machine.
fn sender(child: &Child, signal: &str) -> Child {
    let mut shell = Command::new("sh");
    let script = ["-c", "read _; kill \"$0\" \"$1\"", signal, &child.id().to_string()];
    shell.args(script).stdin(Stdio::piped()).spawn().unwrap()
}

/// Whether there was a process that the signal could be sent to.
fn tell(mut sender: Child) -> bool {
    sender.stdin.take().expect("a pipe").write_all(b"\n").unwrap();
    sender.wait().unwrap().success()
}

/// Names of the program's temporary files in the folder, which are hidden files.
fn temporaries(files: &Files) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(files.path("")).unwrap().flatten();
    entries.map(|e| e.path()).filter(|p| p.file_name().unwrap().to_string_lossy().starts_with('.')).collect()
}

/// A head and rows whose logits, 160 MB, take a while to write.
fn large_answer(files: &Files) -> [String; 3] {
    write(&files.path("wide"), &[f32_tensor("lm_head.weight", &[200_000, 4], 1)]);
    write(&files.path("rows"), &[f32_tensor("hidden_states", &[200, 4], 2)]);
    ["wide", "rows", "out"].map(|name| files.name(name))
}

#[test]
fn a_signal_leaves_no_temporary_file() {
    let files = Files::new();
    let [head, rows, out] = large_answer(&files);
    let args = ["run", "--head", &head, "--hidden", &rows, "--out", &out, "--steps", "1"];
    for (name, number) in [("-INT", 2), ("-TERM", 15), ("-HUP", 1), ("-QUIT", 3), ("-XCPU", 24)] {
        // If the answer is written before the signal arrives, as on a busy machine, try again.
        let interrupted = (0..200).find_map(|_| {
            let mut child = start(&args);
            let sender = sender(&child, name);
            let written = |path: &PathBuf| path.metadata().is_ok_and(|about| about.len() > 0);
            while child.try_wait().unwrap().is_none() && !temporaries(&files).iter().any(written) {
                std::thread::sleep(Duration::from_micros(200));
            }
            tell(sender);
            let status = child.wait().unwrap();
            assert_eq!(temporaries(&files), [] as [PathBuf; 0], "{name}");
            let whole = files.path("out").exists();
            let _ = std::fs::remove_file(files.path("out"));
            (!whole).then_some(status)
        });
        assert_eq!(interrupted.expect("one of 200 is interrupted").signal(), Some(number), "{name}");
    }
}

/// Ignored as `nohup` sets it.
#[test]
fn a_signal_that_was_ignored_stays_ignored() {
    let files = Files::new();
    let (head, out) = (files.name("head.safetensors"), files.name("out"));
    let program = env!("CARGO_BIN_EXE_lmhead");
    let script = format!(
        "trap '' HUP; exec '{program}' quantize --head '{head}' --out '{out}' --rows 1024 --threads 1"
    );
    let mut child = Command::new("bash").args(["-c", &script]).stdout(Stdio::null()).spawn().unwrap();
    while temporaries(&files).is_empty() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_micros(200));
    }
    assert!(tell(sender(&child, "-HUP")));
    assert!(child.wait().unwrap().success());
    assert!(files.path("out").exists());
}

/// bash's limit of a file's size, 100 KiB. With the default action the signal XFSZ would end the program.
#[test]
fn a_file_that_would_be_too_large_is_an_error_of_every_subcommand() {
    let files = Files::new();
    let [head, rows, out] = large_answer(&files);
    let (program, before) = (env!("CARGO_BIN_EXE_lmhead"), files.entries());
    for command in [
        format!("run --head '{head}' --hidden '{rows}' --steps 1 --out '{out}'"),
        format!("quantize --head '{head}' --out '{out}'"),
    ] {
        let script = format!("ulimit -f 100; exec '{program}' {command}");
        let ended = Command::new("bash").args(["-c", &script]).output().unwrap();
        let said = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(2), "{command}: {:?} {said}", ended.status);
        assert!(
            said.contains("out: cannot be written: File too large") && said.contains("make room"),
            "{said}"
        );
        assert_eq!(files.entries(), before, "{command}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn nothing_panics_where_nothing_can_be_said() {
    let files = Files::new();
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let (head, out) = (files.name("head.safetensors"), files.name("out"));
    // An error, a warning, an option that clap refuses, and both outputs full.
    write(&files.path("nan"), &[("hidden_states".into(), Dtype::BF16, vec![1, 20], vec![0xff; 40])]);
    let nan = files.name("nan");
    let table: [(&[&str], bool, i32); 7] = [
        (&["run", "--preset", "tiny", "--request", "nonsense"], false, 2),
        (&["run", "--head", &head, "--hidden", &nan, "--out", &out], false, 0),
        (&["run", "--no-such-option"], false, 2),
        (&["run", "--preset", "tiny"], true, 2),
        (&["doctor"], true, 2),
        (&["run", "--help"], true, 2),
        (&["--version"], true, 2),
    ];
    for (args, both, code) in table {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lmhead"));
        command.args(args).stderr(full()).stdout(Stdio::null());
        if both {
            command.stdout(full());
        }
        assert_eq!(command.status().unwrap().code(), Some(code), "{args:?}");
    }
}

/// A head of zeros as a sparse file: its header, then a hole.
fn sparse_head(path: &Path, rows: usize, columns: usize) {
    let bytes = rows * columns * 4;
    let mut header = format!(
        r#"{{"lm_head.weight":{{"dtype":"F32","shape":[{rows},{columns}],"data_offsets":[0,{bytes}]}}}}"#
    );
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let file = std::fs::File::create(path).unwrap();
    std::io::Write::write_all(&mut &file, &(header.len() as u64).to_le_bytes()).unwrap();
    std::io::Write::write_all(&mut &file, header.as_bytes()).unwrap();
    file.set_len((8 + header.len() + bytes) as u64).unwrap();
}

/// Waits until the program has mapped `path`, and a little longer.
#[cfg(target_os = "linux")]
fn wait_for_mapping(child: &mut Child, path: &Path) {
    let maps = format!("/proc/{}/maps", child.id());
    let began = Instant::now();
    while !std::fs::read_to_string(&maps).unwrap_or_default().contains(path.to_str().unwrap()) {
        assert!(child.try_wait().unwrap().is_none() && began.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(300));
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_that_is_shortened_is_named_and_a_copy_does_not_care() {
    let files = Files::new();
    let (path, head, out) = (files.path("zeros"), files.name("zeros"), files.name("out"));
    let wait = |mut child: Child| {
        std::fs::File::options().write(true).open(&path).unwrap().set_len(1000).unwrap();
        let status = child.wait().unwrap();
        let mut said = String::new();
        std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
        (status, said)
    };
    // More steps than the test waits for: the run ends only because the file does. Likewise `quantize`, which
    // has a temporary file by then.
    for args in [
        &["run", "--head", &head, "--rows", "64", "--steps", "100000", "--threads", "2"][..],
        &["quantize", "--head", &head, "--out", &out, "--rows", "1024", "--threads", "1"],
    ] {
        sparse_head(&path, 64_000, 256);
        let mut child = start(args);
        wait_for_mapping(&mut child, &path);
        let (status, said) = wait(child);
        assert_eq!(status.code(), Some(2), "{args:?}: {status} {said}");
        assert!(said.starts_with(&format!("error: {head}: was shortened while it was being read")), "{said}");
        assert!(said.contains("got 1000 bytes; fetch or write it again"), "{said}");
        assert_eq!(temporaries(&files), [] as [PathBuf; 0]);
        assert!(!files.path("out").exists());
    }
    sparse_head(&path, 64_000, 256);
    let mut child = start(&["run", "--head", &head, "--copy", "--rows", "16", "--steps", "150", "--check"]);
    // The threads of ranks start once everything is loaded.
    let computes = |child: &Child| {
        let threads = std::fs::read_dir(format!("/proc/{}/task", child.id())).into_iter().flatten().flatten();
        let names =
            threads.map(|thread| std::fs::read_to_string(thread.path().join("comm")).unwrap_or_default());
        names.into_iter().any(|name| name.trim() == "rank 0")
    };
    while !computes(&child) && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(child.try_wait().unwrap().is_none(), "it computes still");
    let (status, said) = wait(child);
    assert_eq!((status.code(), said.as_str()), (Some(0), ""), "loaded before, it needs the file no more");
}

/// Steps that mixed old and new weights have no valid answer, and a check against the new weights would prove
/// nothing.
#[cfg(target_os = "linux")]
#[test]
fn weights_that_change_under_a_run_are_no_pass_and_no_answer() {
    use std::os::unix::fs::FileExt;
    let files = Files::new();
    let (path, head, out) = (files.path("zeros"), files.name("zeros"), files.name("out"));
    write(&files.path("rows"), &[f32_tensor("hidden_states", &[64, 256], 2)]);
    let rows = files.name("rows");
    for check in [&["--check"][..], &[]] {
        sparse_head(&path, 64_000, 256);
        let base = [
            "run",
            "--head",
            &head,
            "--hidden",
            &rows,
            "--request",
            "argmax",
            "--out",
            &out,
            "--steps",
            "30",
        ];
        let mut child = start(&[&base, check].concat());
        wait_for_mapping(&mut child, &path);
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(&0.5f32.to_le_bytes(), 4096).unwrap();
        let status = child.wait().unwrap();
        let mut said = String::new();
        std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
        assert_eq!(status.code(), Some(2), "{said}");
        assert!(said.starts_with(&format!("error: {head}: was written to while it was in use")), "{said}");
        assert!(!files.path("out").exists() && temporaries(&files).is_empty());
    }
}

#[test]
fn a_check_compares_rows_that_are_not_finite_and_fails_where_there_are_no_rows() {
    let files = Files::new();
    let head = files.name("head.safetensors");
    write(&files.path("nan"), &[("hidden_states".into(), Dtype::BF16, vec![3, 20], vec![0xff; 120])]);
    write(&files.path("none"), &[("hidden_states".into(), Dtype::BF16, vec![0, 20], vec![])]);
    let run = |rows: &str, request: &str| {
        let rows = files.name(rows);
        lmhead(&["run", "--head", &head, "--hidden", &rows, "--request", request, "--check", "--json"])
    };
    for (request, values) in [("logits", 450), ("argmax", 3), ("topk:4", 15)] {
        let out = run("nan", request);
        let json: serde_json::Value = serde_json::from_str(&text(&out.stdout)).unwrap();
        assert_eq!(out.status.code(), Some(0), "{request}");
        assert_eq!(
            (&json["check"]["values"], &json["check"]["not_finite"]),
            (&values.into(), &values.into())
        );
        let out = run("none", request);
        let json: serde_json::Value = serde_json::from_str(&text(&out.stdout)).unwrap();
        assert_eq!(out.status.code(), Some(1), "{request}: nothing is compared");
        assert_eq!(json["check"]["passed"], false);
        assert_eq!(json["check"]["mistakes"][0], "nothing was compared: there are 0 output rows");
    }
}
