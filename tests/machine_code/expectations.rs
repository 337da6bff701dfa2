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
    /// Calls, at most, none of which needs a stack: ptxas' own subroutines for the rare cases of an IEEE division, one call for each
    /// division, and on sm_80 and sm_89 for lanes that vote or shuffle.
    pub calls: usize,
}

/// A kernel of `kernels/matmul`: tensor-core instructions of one stage, loads of their operands, the stages' copies (a prologue and
/// the loop, unrolled), logits out by 16 bytes in either width.
#[cfg(feature = "cuda")]
macro_rules! matmul {
    ($kernel:literal, $mma:literal $count:literal, $ldsm:literal, $copies:literal, $registers:literal $(, $more:tt)*) => {
        Expectation {
            kernel: $kernel,
            architectures: &["sm_80", "sm_89", "sm_90"],
            present: &[
                ($mma, $count),
                ("LDSM.M88.4", $ldsm),
                ("LDGSTS.BYPASS.128", $copies),
                ("LDS.128", 3),
                ("STG.128", 2),
                $($more),*
            ],
            absent: &["HGMMA", "IGMMA", "LDG.128.CONSTANT"],
            registers: $registers,
            calls: 21,
        }
    };
}

/// `quantize_rows`: rows in and int8 out by 16 bytes, twice: for the largest and for the rest.
#[cfg(feature = "cuda")]
const fn quantize(
    kernel: &'static str,
    present: &'static [(&'static str, usize)],
    registers: u32,
) -> Expectation {
    let architectures = &["sm_80", "sm_89", "sm_90"];
    Expectation { kernel, architectures, present, absent: &["HMMA", "IMMA", "LDGSTS"], registers, calls: 18 }
}

#[cfg(feature = "cuda")]
pub const EXPECTED: &[Expectation] = &[
    Expectation {
        kernel: "carrier_mma_s8_sm80",
        architectures: &["sm_80", "sm_89", "sm_90"],
        present: &[("IMMA.16832.S8", 32), ("LDGSTS.BYPASS.128", 4), ("LDSM.M88.4", 16)],
        absent: &["HMMA"],
        registers: 112,
        calls: 0,
    },
    Expectation {
        kernel: "carrier_wgmma_s8_sm90a",
        architectures: &["sm_90a"],
        present: &[("IGMMA.64x64x32.S8", 4), ("UTMALDG.2D", 3), ("USETMAXREG", 2)],
        absent: &["HGMMA", "IMMA", "LDGSTS"],
        registers: 168,
        calls: 0,
    },
    Expectation {
        kernel: "carrier_wgmma_bf16_sm90a",
        architectures: &["sm_90a"],
        present: &[("HGMMA.64x64x16.BF16", 4), ("UTMALDG.2D", 3), ("USETMAXREG", 2)],
        absent: &["IGMMA", "HMMA", "LDGSTS"],
        registers: 168,
        calls: 0,
    },
    Expectation {
        kernel: "read_stream",
        architectures: &["sm_80", "sm_89", "sm_90"],
        present: &[("LDG.E.128", 8)],
        absent: &["HMMA"],
        registers: 64,
        calls: 0,
    },
    Expectation {
        kernel: "carrier_wgmma_registers_bf16_sm90a",
        architectures: &["sm_90a"],
        present: &[("HGMMA.64x64x16.BF16", 4), ("LDSM.M88.4", 4), ("UTMALDG.2D", 3), ("USETMAXREG", 2)],
        absent: &["IGMMA", "HMMA", "LDGSTS"],
        registers: 168,
        calls: 0,
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
        calls: 0,
    },
    matmul!("gather_matmul_bf16_8", "HMMA.16816.F32.BF16" 8, 8, 22, 87, ("LDSM.M88.2", 4)),
    matmul!("gather_matmul_bf16_16", "HMMA.16816.F32.BF16" 16, 12, 20, 82),
    matmul!("gather_matmul_bf16_32", "HMMA.16816.F32.BF16" 32, 16, 24, 113),
    matmul!("gather_matmul_bf16_64", "HMMA.16816.F32.BF16" 64, 24, 28, 168),
    matmul!("gather_matmul_bf16_128", "HMMA.16816.F32.BF16" 64, 24, 20, 146),
    matmul!("gather_matmul_f16_8", "HMMA.16816.F32" 8, 8, 22, 87, ("LDSM.M88.2", 4)),
    matmul!("gather_matmul_f16_16", "HMMA.16816.F32" 16, 12, 20, 82),
    matmul!("gather_matmul_f16_32", "HMMA.16816.F32" 32, 16, 24, 113),
    matmul!("gather_matmul_f16_64", "HMMA.16816.F32" 64, 24, 28, 168),
    matmul!("gather_matmul_f16_128", "HMMA.16816.F32" 64, 24, 20, 146),
    matmul!("quant_matmul_8", "IMMA.16832.S8" 8, 8, 22, 80, ("LDSM.M88.2", 4)),
    matmul!("quant_matmul_16", "IMMA.16832.S8" 16, 12, 20, 80),
    matmul!("quant_matmul_32", "IMMA.16832.S8" 32, 16, 24, 108),
    matmul!("quant_matmul_64", "IMMA.16832.S8" 64, 24, 28, 148),
    matmul!("quant_matmul_128", "IMMA.16832.S8" 64, 24, 26, 146),
    matmul!("w8a16_matmul_bf16_8", "HMMA.16816.F32.BF16" 16, 8, 20, 84, ("LDS.64", 8)),
    matmul!("w8a16_matmul_bf16_16", "HMMA.16816.F32.BF16" 32, 8, 24, 117, ("LDS.64", 16)),
    matmul!("w8a16_matmul_bf16_32", "HMMA.16816.F32.BF16" 64, 8, 28, 131, ("LDS.64", 32)),
    matmul!("w8a16_matmul_bf16_64", "HMMA.16816.F32.BF16" 128, 8, 36, 155, ("LDS.64", 64)),
    matmul!("w8a16_matmul_f16_8", "HMMA.16816.F32" 16, 8, 20, 70, ("LDS.64", 8)),
    matmul!("w8a16_matmul_f16_16", "HMMA.16816.F32" 32, 8, 24, 106, ("LDS.64", 16)),
    matmul!("w8a16_matmul_f16_32", "HMMA.16816.F32" 64, 8, 28, 125, ("LDS.64", 32)),
    matmul!("w8a16_matmul_f16_64", "HMMA.16816.F32" 128, 8, 36, 151, ("LDS.64", 64)),
    quantize("quantize_rows_bf16", &[("LDG.128", 4), ("STG.128", 1)], 64),
    quantize("quantize_rows_f16", &[("LDG.128", 4), ("STG.128", 1)], 64),
    quantize("quantize_rows_f32", &[("LDG.128", 8), ("STG.128", 1)], 40),
];

/// What is wrong with a kernel's code; one line each, empty where all is well. No kernel may spill registers, keep an array in
/// local memory or call a function that was not inlined, ptxas' own beside: each costs memory traffic that no kernel here is planned with.
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
    // ptxas' subroutines lie behind the kernel's own code; other functions have an address of their own.
    let (calls, far) = (code.count("CALL"), code.count("CALL") - code.count("CALL.REL.NOINC"));
    if calls > expected.calls || far != 0 {
        faults.push(format!(
            "wanted at most {} calls, all near, got {calls}, {far} of them far",
            expected.calls
        ));
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
