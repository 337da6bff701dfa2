//! Which kernel file is compiled for which architectures: its name says so.

/// The environment variable that narrows the choice, for quicker builds and smaller programs: `sm_90,sm_90a` for an H100,
/// `sm_80` for an A100. A file that has none of its names is left out.
pub const VARIABLE: &str = "LMHEAD_CUDA_ARCHS";

/// `sm_*` is machine code for that architecture (with an `a`: for no other), `compute_*` is PTX, which a driver
/// translates for any later one.
///
/// PTX for 9.0 is for the generations behind it: it waits for the kernel before it (kernels/step.cuh), as PTX for 8.0 cannot.
const PORTABLE: &[&str] = &["sm_80", "sm_89", "sm_90", "compute_80", "compute_90"];
/// wgmma and setmaxnreg exist on compute capability 9.0 only.
const HOPPER: &[&str] = &["sm_90a"];

/// What a file whose name ends in this is compiled for.
const BY_SUFFIX: [(&str, &[&str]); 2] = [("_sm80", PORTABLE), ("_sm90a", HOPPER)];

/// One `.cu` file: a fatbin of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelFile {
    /// Below `kernels/`, without `.cu`.
    pub name: String,
    pub architectures: &'static [&'static str],
}

impl KernelFile {
    /// The file of this name, which ends with the least architecture that its kernels need.
    ///
    /// # Errors
    /// Any other end.
    pub fn new(name: &str) -> Result<KernelFile, String> {
        let found = BY_SUFFIX.iter().find(|(suffix, _)| name.ends_with(suffix));
        let Some((_, architectures)) = found else {
            return Err(format!(
                "kernels/{name}.cu: wanted a name that ends in _sm80 (compiled for {}) or _sm90a (for {}), got none of them; \
                 rename it",
                PORTABLE.join(", "),
                HOPPER.join(", ")
            ));
        };
        Ok(KernelFile { name: name.into(), architectures })
    }
}

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

/// What of `wanted` the kernel file is compiled for, in the order of its own. Nothing: the file is left out of this build.
pub fn narrow(file: &KernelFile, wanted: &[&str]) -> Vec<&'static str> {
    file.architectures.iter().copied().filter(|name| wanted.contains(name)).collect()
}

/// nvcc's argument for one architecture.
pub fn gencode(name: &str) -> String {
    let number = name.split_once('_').map_or(name, |(_, number)| number);
    format!("-gencode=arch=compute_{number},code={name}")
}
