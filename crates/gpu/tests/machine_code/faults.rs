//! What is wrong with the machine code of kernels, by their rows of the tables.

use crate::expectations::Expectation;
use lmhead_gpu::code::Code;

/// The faults of a kernel's code, one line each; empty if there are none. No kernel may spill registers, keep
/// an array in local memory or call a function that was not inlined, except ptxas' own: each costs memory
/// traffic that no kernel here is planned with.
pub fn faults(code: &Code, expected: &Expectation) -> Vec<String> {
    let mut faults = Vec::new();
    for (what, bytes) in [("stack frame", code.stack), ("local memory", code.local)] {
        if bytes != 0 {
            faults.push(format!("wanted no {what}, got {bytes} bytes per thread"));
        }
    }
    for (what, pattern) in [("local loads", "LDL"), ("local stores", "STL")] {
        let count = code.count(pattern);
        if count != 0 {
            faults.push(format!("wanted no {what} ({pattern}), got {count}"));
        }
    }
    // ptxas' subroutines follow the kernel's own code; other functions have addresses of their own.
    let (calls, far) = (code.count("CALL"), code.count("CALL") - code.count("CALL.REL.NOINC"));
    if calls > expected.calls || far != 0 {
        faults.push(format!(
            "wanted at most {} calls, all near, got {calls}, {far} of them far",
            expected.calls
        ));
    }
    // With fewer than planned, setmaxnreg would wait for ever for those that another warpgroup gives away.
    let exactly = code.count("USETMAXREG") > 0;
    if code.registers > expected.registers || exactly && code.registers < expected.registers {
        let wanted = if exactly { "exactly" } else { "at most" };
        faults.push(format!("wanted {wanted} {} registers, got {}", expected.registers, code.registers));
    }
    for (pattern, wanted) in &expected.present {
        let count = code.count(pattern);
        // One of the reads of a list of candidates is there twice on some architectures.
        let more = usize::from(*pattern == "LDS.64");
        if !(*wanted..=wanted + more).contains(&count) {
            faults.push(format!("wanted {wanted} {pattern}, got {count}"));
        }
    }
    for pattern in expected.absent.iter().filter(|pattern| code.count(pattern) != 0) {
        faults.push(format!("wanted no {pattern}, got {}", code.count(pattern)));
    }
    let name = |fault| format!("{} {} {}: {fault}", code.file, code.kernel, code.architecture);
    faults.into_iter().map(name).collect()
}

/// The faults of all kernels, including kernels without a row and rows without a kernel. `architectures` are
/// those of this build.
pub fn all_faults(codes: &[Code], table: &[Expectation], architectures: &[&str]) -> Vec<String> {
    let applies = |row: &Expectation, code: &Code| {
        row.kernel == code.kernel && row.architectures.contains(&code.architecture.as_str())
    };
    let mut found = Vec::new();
    for code in codes {
        let rows: Vec<_> = table.iter().filter(|row| applies(row, code)).collect();
        match rows[..] {
            [row] => found.extend(faults(code, row)),
            _ => found.push(format!(
                "{} {} {}: wanted one row in crates/gpu/tests/machine_code/expectations.rs, got {}",
                code.file,
                code.kernel,
                code.architecture,
                rows.len()
            )),
        }
    }
    for row in table {
        for architecture in row.architectures.iter().filter(|name| architectures.contains(name)) {
            if !codes.iter().any(|code| code.kernel == row.kernel && code.architecture == *architecture) {
                found.push(format!(
                    "{} {architecture}: the table has a row, the fatbins have no code",
                    row.kernel
                ));
            }
        }
    }
    found
}
