//! The C interface with a GPU's memory and streams: on the project's own libcuda, which runs kernels on the
//! emulated device, and only once something waits for them.
#![allow(unsafe_code, reason = "functions of the C interface")]
#![cfg(target_os = "linux")]

#[path = "capi/rig.rs"]
mod rig;

use lmhead::DType;
use lmhead::backend::cuda::CudaDevice;
use lmhead::backend::device::KernelDevice;
use lmhead_capi::sys::*;
use rig::{backend_of, fails, good, init};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;

const VOCAB: usize = 200;
const HIDDEN: usize = 48;
const ROWS: usize = 3;

/// The folders of the fake libraries, as the dynamic loader takes them.
fn fakes() -> String {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folders = [lmhead_gpu::fake_driver::folder(place), lmhead_gpu::fake_nccl::folder(place)];
    folders.map(|folder| folder.display().to_string()).join(":")
}

/// Runs the program; returns whether it succeeded, and its output.
fn run(command: &mut Command) -> (bool, String) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    (output.status.success(), text.concat())
}

/// This program again, on the fake libraries.
fn child(test: &str) {
    let mut command = Command::new(std::env::current_exe().expect("a program"));
    command.args(["--exact", test, "--ignored", "--nocapture"]);
    let (good, text) = run(command.env("LD_LIBRARY_PATH", fakes()).env("FAKE_DEVICES", "2"));
    assert!(good && text.contains("1 passed"), "{text}");
}

/// The folder where cargo has built this package's libraries, beside this program.
fn libraries() -> PathBuf {
    std::env::current_exe().expect("a program").parent().expect("a folder").to_path_buf()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Asserts that the file needs no library of CUDA, NCCL, C++ or MPI to start.
fn needs_none(file: &Path) {
    let (good, text) = run(Command::new("readelf").arg("-d").arg(file));
    let needed: Vec<_> = text.lines().filter(|line| line.contains("(NEEDED)")).collect();
    let has_none_of =
        |words: &[&str]| !words.iter().any(|word| needed.iter().any(|line| line.contains(word)));
    assert!(
        good && !needed.is_empty() && has_none_of(&["cuda", "nccl", "stdc++", "mpi"]),
        "{file:?}: {text}"
    );
}

/// A program in C, linked with the shared library and with the archive, needs nothing of CUDA or NCCL to
/// link. Without a driver the CPU backend works and the GPU is refused with a message; on the fake driver
/// both answer.
#[test]
fn programs_in_c_link_without_cuda_and_find_it_at_run_time() {
    let (place, folder) = (Path::new(env!("CARGO_TARGET_TMPDIR")), libraries());
    let source = root().join("tests/c/consumer.c");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    // The loader looks for the soname.
    let soname = place.join(format!("liblmhead.so.{LMHEAD_ABI}"));
    let _ = std::fs::remove_file(&soname);
    needs_none(&folder.join("liblmhead_capi.so"));
    std::os::unix::fs::symlink(folder.join("liblmhead_capi.so"), &soname).expect("a link");
    for kind in ["shared", "static"] {
        let program = place.join(format!("consumer-{kind}"));
        let mut cc = Command::new(&compiler);
        cc.arg(&source).arg("-I").arg(root().join("include")).arg("-o").arg(&program);
        if kind == "shared" {
            cc.arg("-L").arg(&folder).arg("-llmhead_capi");
        } else {
            // The libraries that rustc names for a static link, a list that scripts/check-c verifies. Without
            // what no function of the C interface calls: MPI, where another package of the workspace has it.
            cc.arg(folder.join("liblmhead_capi.a")).arg("-Wl,--gc-sections");
            cc.args(["-lgcc_s", "-lutil", "-lrt", "-lpthread", "-lm", "-ldl", "-lc"]);
        }
        assert_eq!(run(&mut cc), (true, String::new()), "{cc:?}");
        needs_none(&program);
        let consume = |arguments: &[&str], path: &str| {
            let path = format!("{}:{path}", place.display());
            run(Command::new(&program).args(arguments).env("LD_LIBRARY_PATH", path))
        };
        for path in ["/nowhere", &fakes()] {
            let (good, text) = consume(&[], path);
            assert!(good && text.starts_with("64 0; request: wanted"), "{kind}: {text}");
        }
        let (good, text) = consume(&["cuda"], &fakes());
        assert!(good && text.starts_with("64 0; request: wanted"), "{kind}: {text}");
        if !has_driver() {
            let (good, text) = consume(&["cuda"], "/nowhere");
            assert!(
                !good && text.contains("CUDA driver: wanted libcuda of a driver for CUDA"),
                "{kind}: {text}"
            );
        }
    }
}

/// Whether this machine has a real libcuda.
fn has_driver() -> bool {
    lmhead::backend::cuda::driver().is_ok()
}

/// The cases are in python/tests/device_memory.py.
#[test]
fn python_answers_the_same_in_device_memory() {
    let (good, text) = run(Command::new("python3")
        .arg(root().join("python/tests/device_memory.py"))
        .env("PYTHONPATH", root().join("python"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("LMHEAD_LIBRARY", libraries().join("liblmhead_capi.so"))
        .env("LD_LIBRARY_PATH", fakes())
        .env("FAKE_DEVICES", "2"));
    assert!(good && text.contains("device memory: the host's bits"), "{text}");
}

#[test]
fn steps_in_host_and_device_memory_answer_the_same() {
    child("in_child");
}

/// Two ranks with a device each give the answer of one rank with the whole head.
#[cfg(feature = "nccl")]
#[test]
fn ranks_over_nccl_answer_what_one_does_alone() {
    child("in_child_nccl");
}

fn bf16_values(n: usize, seed: u64) -> Vec<u8> {
    let values = lmhead_testkit::Random(seed).normals(n);
    let mut bytes = vec![0; 2 * n];
    DType::Bf16.round_into(&values, &mut bytes);
    bytes
}

fn tensor(address: u64, device_type: u32, rows: usize) -> lmhead_tensor {
    lmhead_tensor {
        data: ptr::with_exposed_provenance_mut(address as usize),
        device_type: device_type as i32,
        device_id: 0,
        dtype: LMHEAD_BF16,
        reserved: 0,
        rows: rows as i64,
        columns: HIDDEN as i64,
        stride: 0,
    }
}

/// A head of the group, or alone.
fn head_on(
    backend: *const lmhead_backend,
    weights: &[u8],
    (first, count): (usize, usize),
    group: Option<&lmhead_group>,
    exchange: *const lmhead_exchange,
) -> *mut lmhead_head {
    let own = weights[2 * HIDDEN * first..].as_ptr().expose_provenance() as u64;
    let wrapped = lmhead_weights_config {
        vocab_size: VOCAB as i64,
        first: first as i64,
        matrix: tensor(own, LMHEAD_HOST, count),
        ..init!(lmhead_weights_config)
    };
    let config =
        lmhead_config { vocab_size: VOCAB as i64, hidden_size: HIDDEN as i64, ..init!(lmhead_config) };
    let (mut shard, mut head) = (ptr::null_mut(), ptr::null_mut());
    let group = group.map_or(ptr::null(), ptr::from_ref);
    // SAFETY: all pointers are valid.
    unsafe {
        good(lmhead_weights_wrap(&raw const wrapped, &raw mut shard));
        good(lmhead_create(&raw const config, group, shard, exchange, backend, &raw mut head));
        lmhead_weights_free(shard);
    }
    head
}

#[test]
#[ignore = "needs the project's own libcuda: steps_in_host_and_device_memory_answer_the_same runs it"]
fn in_child() {
    let backend = backend_of(LMHEAD_CUDA, 1);
    let weights = bf16_values(VOCAB * HIDDEN, 1);
    let host = |bytes: &[u8]| bytes.as_ptr().expose_provenance() as u64;
    let head = head_on(backend, &weights, (0, VOCAB), None, ptr::null());

    let rows = bf16_values(ROWS * HIDDEN, 2);
    let in_host = lmhead_step {
        request: LMHEAD_LOGITS as i32,
        logits_dtype: LMHEAD_F32,
        rows: ROWS as i64,
        hidden: tensor(host(&rows), LMHEAD_HOST, ROWS),
        ..init!(lmhead_step)
    };
    let (mut want, mut status) = (vec![0f32; ROWS * VOCAB], [9u8; ROWS]);
    let logits = |address: u64, device_type: u32| lmhead_tensor {
        dtype: LMHEAD_F32,
        columns: VOCAB as i64,
        ..tensor(address, device_type, ROWS)
    };
    let address = want.as_mut_ptr().expose_provenance() as u64;
    let mut answer = lmhead_answer {
        row_status: status.as_mut_ptr(),
        logits: logits(address, LMHEAD_HOST),
        ..init!(lmhead_answer)
    };
    // SAFETY: all pointers are valid.
    good(unsafe { lmhead_run(head, &raw const in_host, &raw mut answer) });
    assert!(status == [0; ROWS] && want.iter().all(|l| l.is_finite()) && want.iter().any(|l| *l != 0.0));

    // The same rows and the answer in device memory, on a stream of the engine.
    let device = CudaDevice::open(0).expect("a device");
    let own = device.open_stream().expect("a stream");
    let stream = device.on(&own);
    let place = |bytes: usize| device.alloc(bytes).expect("memory");
    let (hidden, out, bytes) = (place(rows.len()), place(4 * want.len()), place(ROWS));
    device.write_on(stream, &hidden, 0, &rows).expect("a copy");
    let on_device = lmhead_step {
        hidden: tensor(device.address(&hidden), LMHEAD_CUDA, ROWS),
        stream: ptr::without_provenance_mut(device.handle(stream).raw() as usize),
        ..in_host
    };
    let mut needs = init!(lmhead_needs);
    // SAFETY: all pointers are valid.
    good(unsafe { lmhead_plan(head, &raw const on_device, &raw mut needs) });
    assert!(needs.workspace_bytes > 0 && needs.rows == ROWS as i64, "{needs:?}");
    let workspace = place(needs.workspace_bytes);
    let with_workspace = |address: u64, bytes: usize| lmhead_step {
        workspace: ptr::without_provenance_mut(address as usize),
        workspace_bytes: bytes,
        ..on_device
    };
    let mut answer = lmhead_answer {
        row_status: ptr::without_provenance_mut(device.address(&bytes) as usize),
        logits: logits(device.address(&out), LMHEAD_CUDA),
        ..init!(lmhead_answer)
    };
    // SAFETY: all pointers are valid.
    unsafe {
        good(lmhead_prepare(head, &raw const on_device, 1));
        for step in [on_device, with_workspace(device.address(&workspace), needs.workspace_bytes)] {
            good(lmhead_run(head, &raw const step, &raw mut answer));
            let mut got = vec![0f32; want.len()];
            device.read_on(stream, &out, 0, bytemuck_bytes(&mut got)).expect("a copy");
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&got), bits(&want));
        }
        let short = with_workspace(device.address(&workspace), 1);
        fails(lmhead_run(head, &raw const short, &raw mut answer), LMHEAD_ERROR_SHAPE, "workspace");
        let odd = with_workspace(device.address(&workspace) + 8, needs.workspace_bytes);
        fails(lmhead_run(head, &raw const odd, &raw mut answer), LMHEAD_ERROR_SHAPE, "a multiple of 256");
        lmhead_free(head);
        lmhead_backend_free(backend);
    }
}

#[cfg(feature = "nccl")]
#[test]
#[ignore = "needs the project's own libnccl: ranks_over_nccl_answer_what_one_does_alone runs it"]
fn in_child_nccl() {
    const RANKS: usize = 2;
    let weights = bf16_values(VOCAB * HIDDEN, 1);
    let step = |rows: &[u8]| lmhead_step {
        request: LMHEAD_ARGMAX as i32,
        rows: (rows.len() / (2 * HIDDEN)) as i64,
        hidden: tensor(rows.as_ptr().expose_provenance() as u64, LMHEAD_HOST, rows.len() / (2 * HIDDEN)),
        ..init!(lmhead_step)
    };
    // Rank 0 passes three rows, rank 1 none.
    let rows = bf16_values(ROWS * HIDDEN, 2);
    let (mut want, mut status) = ([0i64; ROWS], [9u8; ROWS]);
    let mut answer =
        lmhead_answer { ids: want.as_mut_ptr(), row_status: status.as_mut_ptr(), ..init!(lmhead_answer) };
    let backend = backend_of(LMHEAD_CUDA, 1);
    let alone = head_on(backend, &weights, (0, VOCAB), None, ptr::null());
    let in_host = step(&rows);
    // SAFETY: all pointers are valid.
    good(unsafe { lmhead_run(alone, &raw const in_host, &raw mut answer) });

    let mut controls = [ptr::null_mut(); RANKS];
    // SAFETY: there is room for that many.
    good(unsafe { lmhead_exchange_local(RANKS as i64, controls.as_mut_ptr()) });
    let controls = controls.map(|control| control.addr());
    std::thread::scope(|scope| {
        for (me, control) in controls.into_iter().enumerate() {
            let (weights, rows, want) = (&weights, &rows, &want);
            scope.spawn(move || {
                let control: *mut lmhead_exchange = ptr::without_provenance_mut(control);
                let config = lmhead_backend_config {
                    device_type: LMHEAD_CUDA as i32,
                    device_id: me as i32,
                    threads: 1,
                    ..init!(lmhead_backend_config)
                };
                let (mut backend, mut exchange) = (ptr::null_mut(), ptr::null_mut());
                let (mut first, mut count) = (0, 0);
                // SAFETY: all pointers are valid.
                unsafe {
                    good(lmhead_backend_open(&raw const config, &raw mut backend));
                    good(lmhead_exchange_nccl(backend, ptr::null_mut(), control, &raw mut exchange));
                    let n = RANKS as i64;
                    good(lmhead_shard_range(VOCAB as i64, n, me as i64, &raw mut first, &raw mut count));
                }
                let group =
                    lmhead_group { ranks: [0i64, 1].as_ptr(), n: 2, rank: me as i64, tp: 1, tp_index: 0 };
                let range = (first as usize, count as usize);
                let head = head_on(backend, weights, range, Some(&group), exchange);
                let device = CudaDevice::open(me).expect("a device");
                let own = device.open_stream().expect("a stream");
                let stream = device.on(&own);
                let mine = if me == 0 { ROWS } else { 0 };
                let place = |bytes: usize| device.alloc(bytes.max(1)).expect("memory");
                let (hidden, ids, bytes) = (place(rows.len()), place(8 * mine), place(mine));
                device.write_on(stream, &hidden, 0, rows).expect("a copy");
                let counts = [ROWS as i64, 0];
                let on_device = lmhead_step {
                    counts: counts.as_ptr(),
                    rows: mine as i64,
                    hidden: tensor(device.address(&hidden), LMHEAD_CUDA, mine),
                    stream: ptr::without_provenance_mut(device.handle(stream).raw() as usize),
                    ..step(rows)
                };
                let on_device = lmhead_step {
                    hidden: lmhead_tensor { device_id: me as i32, ..on_device.hidden },
                    ..on_device
                };
                let mut answer = lmhead_answer {
                    ids: ptr::without_provenance_mut(device.address(&ids) as usize),
                    row_status: ptr::without_provenance_mut(device.address(&bytes) as usize),
                    ..init!(lmhead_answer)
                };
                // SAFETY: all pointers are valid.
                unsafe {
                    good(lmhead_run(head, &raw const on_device, &raw mut answer));
                    if me == 0 {
                        let mut got = [0u8; 8 * ROWS];
                        device.read_on(stream, &ids, 0, &mut got).expect("a copy");
                        let got = got.chunks(8).map(|id| i64::from_le_bytes(id.try_into().expect("eight")));
                        assert!(got.eq(want.iter().copied()), "other ids than one rank alone: {want:?}");
                    }
                    lmhead_free(head);
                    lmhead_exchange_free(exchange);
                    lmhead_exchange_free(control);
                    lmhead_backend_free(backend);
                }
            });
        }
    });
    // SAFETY: made above.
    unsafe {
        lmhead_free(alone);
        lmhead_backend_free(backend);
    }
}

fn bytemuck_bytes(values: &mut [f32]) -> &mut [u8] {
    // SAFETY: any bytes are a float.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}
