//! Which kernel file is compiled for which architectures: its name says so.

/// The environment variable that narrows the choice, for quicker builds and smaller programs: `sm_90,sm_90a`
/// for an H100, `sm_80` for an A100. A file that has none of its names is left out.
pub const VARIABLE: &str = "LMHEAD_CUDA_ARCHS";

/// `sm_*` is machine code for that architecture and later ones of its generation (with an `a`: for no other).
/// `compute_*` is PTX, which a driver translates for any later one; for the largest file that takes seconds.
///
/// PTX for 9.0 is for the generations without code of their own: it waits for the kernel before it
/// (kernels/step.cuh), as PTX for 8.0 cannot.
const PORTABLE: &[&str] = &["sm_80", "sm_89", "sm_90", "sm_100", "sm_120", "compute_80", "compute_90"];
/// wgmma and setmaxnreg exist on compute capability 9.0 only.
const HOPPER: &[&str] = &["sm_90a"];

/// The architectures that a file is compiled for, by the end of its name.
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
    /// A name with any other end.
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

/// The architectures of `wanted` that the kernel file is compiled for, in the file's own order. None: the
/// file is left out of this build.
pub fn narrow(file: &KernelFile, wanted: &[&str]) -> Vec<&'static str> {
    file.architectures.iter().copied().filter(|name| wanted.contains(name)).collect()
}

/// The PTX that code for this architecture is made of. The source differs only before and since 9.0
/// (kernels/ptx/control.cuh), so these two serve all: nvcc makes each once, and that takes it longer than
/// machine code does. With an `a` it is of that architecture alone.
pub fn ptx(name: &str) -> String {
    let number = name.split_once('_').map_or(name, |(_, number)| number);
    let base = match number.parse::<u32>() {
        Ok(..90) => "80",
        Ok(_) => "90",
        Err(_) => number,
    };
    format!("compute_{base}")
}

/// nvcc's argument for one architecture.
pub fn gencode(name: &str) -> String {
    format!("-gencode=arch={},code={name}", ptx(name))
}
