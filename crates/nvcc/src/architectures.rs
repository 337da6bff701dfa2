//! Which kernel file is compiled for which architectures.

/// The environment variable that narrows the choice, for quicker builds and smaller programs: `sm_90a` for an H100, `sm_80`
/// for an A100. A file that has none of its names is left out.
pub const VARIABLE: &str = "LMHEAD_CUDA_ARCHS";

/// `sm_*` is machine code for that architecture (with an `a`: for no other), `compute_*` is PTX, which a driver
/// translates for any later one.
const PORTABLE: &[&str] = &["sm_80", "sm_89", "sm_90", "compute_80"];
/// wgmma and setmaxnreg exist on compute capability 9.0 only.
const HOPPER: &[&str] = &["sm_90a"];

/// One `.cu` file: a fatbin of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelFile {
    /// Below `kernels/`, without `.cu`.
    pub name: &'static str,
    pub architectures: &'static [&'static str],
}

/// Every kernel file. A new one is a row here.
pub const FILES: &[KernelFile] = &[
    KernelFile { name: "carriers/gather_bf16_sm90a", architectures: HOPPER },
    KernelFile { name: "carriers/mma_s8_sm80", architectures: PORTABLE },
    KernelFile { name: "carriers/wgmma_registers_sm90a", architectures: HOPPER },
    KernelFile { name: "carriers/wgmma_sm90a", architectures: HOPPER },
    KernelFile { name: "gather_matmul_sm80", architectures: PORTABLE },
    KernelFile { name: "quant_matmul_sm80", architectures: PORTABLE },
    KernelFile { name: "quantize_rows_sm80", architectures: PORTABLE },
    KernelFile { name: "read_stream_sm80", architectures: PORTABLE },
    KernelFile { name: "w8a16_matmul_sm80", architectures: PORTABLE },
];

/// The architectures that [`VARIABLE`] asks for; all of them where it is unset.
///
/// # Errors
/// A name that no kernel file is compiled for, or no name at all.
pub fn parse(text: Option<&str>) -> Result<Vec<&'static str>, String> {
    let mut known: Vec<_> = PORTABLE.to_vec();
    known.extend(HOPPER);
    let Some(text) = text else { return Ok(known) };
    let names: Vec<_> = text.split([',', ' ', ';']).filter(|name| !name.is_empty()).collect();
    let wanted = format!("a list of {}", known.join(", "));
    if names.is_empty() {
        return Err(format!("{VARIABLE}: wanted {wanted}, got \"{text}\"; unset it to compile for all"));
    }
    if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
        return Err(format!(
            "{VARIABLE}: wanted {wanted}, got \"{unknown}\"; unset it to compile for all, or add the architecture to \
             crates/nvcc/src/architectures.rs"
        ));
    }
    Ok(known.into_iter().filter(|name| names.contains(name)).collect())
}

/// What of `wanted` the kernel file is compiled for, in the table's order. Nothing: the file is left out of this build.
pub fn narrow(file: &KernelFile, wanted: &[&str]) -> Vec<&'static str> {
    file.architectures.iter().copied().filter(|name| wanted.contains(name)).collect()
}

/// nvcc's argument for one architecture.
pub fn gencode(name: &str) -> String {
    let number = name.split_once('_').map_or(name, |(_, number)| number);
    format!("-gencode=arch=compute_{number},code={name}")
}
