//! What every kernel's machine code must be like. A new kernel is one row in `EXPECTED`.

use crate::code::Code;

/// One kernel, on the architectures that it names.
#[derive(Debug, Clone, Copy)]
pub struct Expectation {
    pub kernel: &'static str,
    pub architectures: &'static [&'static str],
    /// Instructions and how many of them, as [`Code::count`] finds them: fewer means a loop that was not unrolled, more that
    /// code was doubled. Measured with nvcc 13.0.
    pub present: &'static [(&'static str, usize)],
    /// Instructions that must not be there.
    pub absent: &'static [&'static str],
    /// Per thread, at most.
    pub registers: u32,
}

#[cfg(feature = "cuda")]
pub const EXPECTED: &[Expectation] = &[
    Expectation {
        kernel: "carrier_mma_s8_sm80",
        architectures: &["sm_80", "sm_89", "sm_90"],
        present: &[("IMMA.16832.S8", 32), ("LDGSTS.BYPASS.128", 4), ("LDSM.M88.4", 16)],
        absent: &["HMMA"],
        registers: 112,
    },
    Expectation {
        kernel: "carrier_wgmma_s8_sm90a",
        architectures: &["sm_90a"],
        present: &[("IGMMA.64x64x32.S8", 4), ("UTMALDG.2D", 3), ("USETMAXREG", 2)],
        absent: &["HGMMA", "IMMA", "LDGSTS"],
        registers: 168,
    },
    Expectation {
        kernel: "carrier_wgmma_bf16_sm90a",
        architectures: &["sm_90a"],
        present: &[("HGMMA.64x64x16.BF16", 4), ("UTMALDG.2D", 3), ("USETMAXREG", 2)],
        absent: &["IGMMA", "HMMA", "LDGSTS"],
        registers: 168,
    },
    // Two steps by turns, and the fragments of the first stage before them.
    Expectation {
        kernel: "carrier_wgmma_registers_bf16_sm90a",
        architectures: &["sm_90a"],
        present: &[
            ("HGMMA.64x64x16.F32.BF16", 8),
            ("LDSM.M88.4", 12),
            ("WARPGROUP.DEPBAR", 2),
            ("UTMALDG.2D", 3),
            ("USETMAXREG", 2),
        ],
        absent: &["IGMMA", "HMMA", "LDGSTS"],
        registers: 168,
    },
    Expectation {
        kernel: "carrier_gather_bf16_sm90a",
        architectures: &["sm_90a"],
        present: &[
            ("HGMMA.64x32x16.BF16", 4),
            ("UTMALDG.2D", 2),
            ("LDGSTS.BYPASS.128", 2),
            ("FENCE.VIEW.ASYNC", 2),
            ("USETMAXREG", 2),
        ],
        absent: &["IGMMA", "HMMA"],
        registers: 168,
    },
];

/// What is wrong with a kernel's code; one line each, empty where all is well. No kernel may spill registers, keep an array in
/// local memory or call a function that was not inlined: each costs memory traffic that no kernel here is planned with.
pub fn faults(code: &Code, expected: &Expectation) -> Vec<String> {
    let mut faults = Vec::new();
    for (what, bytes) in [("stack frame", code.stack), ("local memory", code.local)] {
        if bytes != 0 {
            faults.push(format!("wanted no {what}, got {bytes} bytes per thread"));
        }
    }
    for (what, pattern) in [("local loads", "LDL"), ("local stores", "STL"), ("calls", "CALL")] {
        let count = code.count(pattern);
        if count != 0 {
            faults.push(format!("wanted no {what} ({pattern}), got {count}"));
        }
    }
    if code.registers > expected.registers {
        faults.push(format!("wanted at most {} registers, got {}", expected.registers, code.registers));
    }
    for (pattern, wanted) in expected.present {
        let count = code.count(pattern);
        if count != *wanted {
            faults.push(format!("wanted {wanted} {pattern}, got {count}"));
        }
    }
    for pattern in expected.absent.iter().filter(|pattern| code.count(pattern) != 0) {
        faults.push(format!("wanted no {pattern}, got {}", code.count(pattern)));
    }
    let name = |fault| format!("{} {} {}: {fault}", code.file, code.kernel, code.architecture);
    faults.into_iter().map(name).collect()
}

/// The faults of all kernels, those without a row and rows without a kernel among them. `architectures` are the ones that this
/// build has.
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
                "{} {} {}: wanted one row in tests/machine_code/expectations.rs, got {}",
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
