//! The emulated CUDA device and, for it, every kernel, compiled by g++ into static libraries.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// No library of C++ is linked, hence neither exceptions, run-time types nor guarded statics.
/// `-ffp-contract=off`: every f32 operation of a kernel is rounded on its own, as on the device.
const FLAGS: &[&str] = &[
    "-ffp-contract=off",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-threadsafe-statics",
    // One program holds all of it: functions of a file may be inlined though they are called from others too.
    "-fvisibility=hidden",
    // The running thread is looked up at each instruction: without a call, also in the tests' libcuda. Memory
    // for such variables is scarce in a library: there is that pointer alone.
    "-ftls-model=initial-exec",
    // Wide vectors are passed between inlined functions only.
    "-Wno-psabi",
    "-Wno-unknown-pragmas",
    "-Wextra",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let mut device = Vec::new();
    let [mut kernels, mut test_kernels] = [const { Vec::new() }; 2];
    watch(Path::new("kernels"), &mut device, &mut kernels);
    // Always: they take two seconds, and a feature that only this package's tests need is one that they
    // cannot switch on.
    watch(Path::new("tests/emulated/kernels"), &mut device, &mut test_kernels);
    let target = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let switch = PathBuf::from(format!("kernels/emulated/switch_{target}.S"));
    if !switch.exists() {
        fail(&format!(
            "the emulated device runs on x86_64 and aarch64, and this target is {target}; build without it \
             (--package lmhead-cli), or add {}",
            switch.display()
        ));
    }

    write_table(&kernels);
    // Docs and lints link nothing.
    println!("cargo::rerun-if-env-changed=DOCS_RS");
    if env::var_os("DOCS_RS").is_some() {
        return;
    }
    compiler_is_there();
    // The kernels first: a linker that reads archives once finds the device behind them.
    for (files, name) in
        [(test_kernels, "lmhead_emulated_test_kernels"), (kernels, "lmhead_emulated_kernels")]
    {
        compile(cpp().flag("-x").flag("c++").files(files), name);
    }
    compile(cpp().files(device), "lmhead_emulated_device");
    compile(cc::Build::new().file(switch), "lmhead_emulated_switch");
    if address_sanitizer() {
        link_address_sanitizer();
    }
}

/// `kernels.rs`, which `src/backend.rs` includes: the name of every kernel and what the macro KERNEL of
/// `ptx/core.cuh` makes of it.
fn write_table(sources: &[PathBuf]) {
    let mut names = Vec::new();
    for source in sources {
        let text = fs::read_to_string(source).unwrap_or_else(|e| fail(&format!("{}: {e}", source.display())));
        // `KERNEL(name, ...)`, or a macro whose name ends so, at the beginning of a line.
        let starts = text.lines().filter_map(|line| line.split_once("KERNEL("));
        let starts = starts.filter(|(before, _)| before.chars().all(|c| c.is_ascii_uppercase() || c == '_'));
        names.extend(starts.map(|(_, name)| match name.split_once(',') {
            Some((name, _)) => name.to_string(),
            None => fail(&format!("{}: wanted `KERNEL(name, ` on one line, got `{name}`", source.display())),
        }));
    }
    let externs = names.iter().map(|name| {
        format!("#[link_name = \"lmhead_kernel_{name}\"] static {}: RawKernel;\n", name.to_uppercase())
    });
    let rows = names.iter().map(|name| format!("({name:?}, &raw const {}),\n", name.to_uppercase()));
    let (externs, rows): (String, String) = (externs.collect(), rows.collect());
    let text = format!("{{\nunsafe extern \"C\" {{\n{externs}}}\nvec![\n{rows}]\n}}\n");
    let file = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("kernels.rs");
    fs::write(&file, text).unwrap_or_else(|e| fail(&format!("{}: {e}", file.display())));
}

fn cpp() -> cc::Build {
    let mut build = cc::Build::new();
    // -O2 always: the device is arithmetic, and a kernel's tests would take minutes without.
    build.cpp(true).std("c++17").opt_level(2).warnings(true).include("kernels").cpp_link_stdlib(None);
    // Debuggers unwind by tables; each frame that is smaller is so for every thread of a block.
    build.force_frame_pointer(false);
    for flag in FLAGS {
        build.flag(flag);
    }
    if address_sanitizer() {
        build.flag("-fsanitize=address").flag("-fno-omit-frame-pointer");
    }
    build
}

fn address_sanitizer() -> bool {
    env::var_os("CARGO_FEATURE_ASAN").is_some()
}

/// Where g++ keeps the sanitizer's library; Rust's linker would not look there.
fn link_address_sanitizer() {
    let compiler = cpp().get_compiler();
    let answer = compiler.to_command().arg("-print-file-name=libasan.so").output();
    let library =
        answer.map(|o| PathBuf::from(String::from_utf8_lossy(&o.stdout).trim())).unwrap_or_default();
    match library.parent().filter(|folder| folder.is_absolute()) {
        Some(folder) => println!("cargo::rustc-link-search=native={}", folder.display()),
        None => fail("no libasan.so beside the C++ compiler; install it (Debian: with g++; Fedora: libasan)"),
    }
    println!("cargo::rustc-link-lib=dylib=asan");
}

fn compile(build: &cc::Build, name: &str) {
    if let Err(error) = build.try_compile(name) {
        fail(&format!("{name}: {error}"));
    }
}

fn compiler_is_there() {
    let compiler = match cpp().try_get_compiler() {
        Ok(compiler) => compiler,
        Err(error) => fail(&no_compiler(&error.to_string())),
    };
    if let Err(error) = compiler.to_command().arg("--version").output() {
        fail(&no_compiler(&format!("{}: {error}", compiler.path().display())));
    }
    match cpp().is_flag_supported("-std=c++17") {
        Ok(true) => {}
        _ => fail(&no_compiler(&format!("{} does not take -std=c++17", compiler.path().display()))),
    }
}

fn no_compiler(problem: &str) -> String {
    format!(
        "the emulated device wants a C++17 compiler, and got none ({problem}); install g++ 12 or newer \
         (Debian, Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++), name one in CXX, or build without it (--package lmhead-cli)"
    )
}

/// Sources of a folder and those below it, sorted; each of its files, and the folder itself, makes the build
/// run again when it changes.
fn watch(folder: &Path, device: &mut Vec<PathBuf>, kernels: &mut Vec<PathBuf>) {
    println!("cargo::rerun-if-changed={}", folder.display());
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => {
            fail(&format!("{}: {error}; the package is incomplete: fetch it again", folder.display()))
        }
    };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            watch(&path, device, kernels);
            continue;
        }
        println!("cargo::rerun-if-changed={}", path.display());
        match path.extension().and_then(|e| e.to_str()) {
            Some("cpp") if folder.ends_with("emulated") => device.push(path),
            Some("cu") => kernels.push(path),
            _ => {}
        }
    }
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    std::process::exit(1)
}
