//! What nvcc made of a kernel, read from the text that cuobjdump prints.

use serde::Serialize;
use std::collections::BTreeMap;

/// One kernel's machine code for one architecture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Code {
    /// The kernel file, as in the build script's table.
    pub file: String,
    pub kernel: String,
    pub architecture: String,
    /// Per thread.
    pub registers: u32,
    /// Bytes per thread: spilled registers, local arrays, calls.
    pub stack: u32,
    /// Bytes per thread of local memory beside the stack.
    pub local: u32,
    /// Bytes per block that the kernel declares itself; what a launch adds is not part of it. Since sm_90,
    /// 1024 of the system's are counted where there are any.
    pub shared: u32,
    /// How often each operation stands in the code, by its full name with modifiers (`LDG.E.128`).
    pub operations: Operations,
    /// Addresses and instructions, as cuobjdump writes them: `@!P0 BRA 0x9b0`.
    #[serde(skip)]
    pub listing: Vec<(u32, String)>,
}

impl Code {
    /// How many instructions match `pattern`: the operation, then modifiers that must be there in any order
    /// (`LDG.128` finds `LDG.E.128.CONSTANT`).
    pub fn count(&self, pattern: &str) -> usize {
        let matches = |operation: &str| {
            let mut wanted = pattern.split('.');
            let mut parts = operation.split('.');
            wanted.next() == parts.next() && {
                let modifiers: Vec<_> = parts.collect();
                wanted.all(|modifier| modifiers.contains(&modifier))
            }
        };
        self.operations.iter().filter(|(name, _)| matches(name)).map(|(_, count)| count).sum()
    }

    /// Instructions, without the padding behind the end.
    pub fn instructions(&self) -> usize {
        self.operations.iter().filter(|(name, _)| *name != "NOP").map(|(_, count)| count).sum()
    }
}

/// `(architecture, kernel)`.
type Key = (String, String);
/// Counts by full name.
type Operations = BTreeMap<String, usize>;
type Listing = Vec<(u32, String)>;

/// An instruction's operation with its modifiers, without the predicate before it.
pub fn operation(instruction: &str) -> &str {
    instruction.split_whitespace().find(|word| !word.starts_with(['@', '{'])).unwrap_or_default()
}

/// Joins `cuobjdump -res-usage` and `cuobjdump -sass` of one fatbin, in the order of the architectures there.
///
/// # Errors
/// Text of another form, or two listings of different kernels.
pub fn parse(file: &str, resources: &str, sass: &str) -> Result<Vec<Code>, String> {
    let mut listings: BTreeMap<Key, Listing> = listings(sass)?.into_iter().collect();
    let mut codes = Vec::new();
    for ((architecture, kernel), [registers, stack, shared, local]) in self::resources(resources)? {
        let key = (architecture, kernel);
        let listing = listings
            .remove(&key)
            .ok_or_else(|| format!("{file}: cuobjdump -sass has no code of {} for {}", key.1, key.0))?;
        let (architecture, kernel) = key;
        let file = file.to_string();
        let mut operations = Operations::new();
        for (_, instruction) in &listing {
            *operations.entry(operation(instruction).to_string()).or_default() += 1;
        }
        codes.push(Code { file, kernel, architecture, registers, stack, local, shared, operations, listing });
    }
    match listings.keys().next() {
        Some((architecture, kernel)) => {
            Err(format!("{file}: cuobjdump -res-usage has no line of {kernel} for {architecture}"))
        }
        None if codes.is_empty() => Err(format!("{file}: cuobjdump found no machine code")),
        None => Ok(codes),
    }
}

/// The architecture that the following lines are about.
fn architecture(line: &str) -> Option<&str> {
    line.trim().strip_prefix("arch = ")
}

/// Registers, stack, shared and local memory by kernel.
fn resources(text: &str) -> Result<Vec<(Key, [u32; 4])>, String> {
    let mut found = Vec::new();
    let (mut here, mut kernel) = (None, None);
    for line in text.lines() {
        if let Some(name) = architecture(line) {
            here = Some(name);
        } else if let Some(name) =
            line.trim().strip_prefix("Function ").and_then(|rest| rest.strip_suffix(':'))
        {
            kernel = Some(name.trim());
        } else if line.trim().starts_with("REG:") {
            let numbers = ["REG:", "STACK:", "SHARED:", "LOCAL:"].map(|name| {
                line.split_whitespace().find_map(|word| word.strip_prefix(name)?.parse::<u32>().ok())
            });
            let (Some(here), Some(kernel), [Some(r), Some(stack), Some(shared), Some(local)]) =
                (here, kernel.take(), numbers)
            else {
                return Err(format!("cuobjdump -res-usage: not understood: {line}"));
            };
            found.push(((here.to_string(), kernel.to_string()), [r, stack, shared, local]));
        }
    }
    Ok(found)
}

/// Instructions by kernel. A line is `/*0050*/  @!P0 LDG.E.128 R8, [R2.64] ;  /* encoding */`; a line of
/// encoding alone has a space behind its first `/*`.
fn listings(text: &str) -> Result<Vec<(Key, Listing)>, String> {
    let mut found: Vec<(Key, Listing)> = Vec::new();
    let mut here = None;
    for line in text.lines().map(str::trim) {
        if let Some(name) = architecture(line) {
            here = Some(name);
        } else if let Some(kernel) = line.strip_prefix("Function : ") {
            let here = here.ok_or_else(|| format!("cuobjdump -sass: no architecture before {kernel}"))?;
            found.push(((here.to_string(), kernel.to_string()), Listing::new()));
        } else if let Some((address, rest)) = line.strip_prefix("/*").and_then(|line| line.split_once("*/"))
            && let Ok(address) = u32::from_str_radix(address, 16)
        {
            let instruction = rest.split(';').next().unwrap_or_default().trim();
            let Some((_, listing)) = found.last_mut().filter(|_| !operation(instruction).is_empty()) else {
                return Err(format!("cuobjdump -sass: not understood: {line}"));
            };
            listing.push((address, instruction.to_string()));
        }
    }
    Ok(found)
}
