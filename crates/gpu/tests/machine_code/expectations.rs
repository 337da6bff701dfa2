//! What every kernel's machine code must be like. A new kernel is one row in `EXPECTED`.

use lmhead_gpu::code::Code;

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

/// A kernel of `kernels/matmul`: tensor-core instructions of one stage, loads of their operands, the stages' copies (the prologue's
/// and the loop's, each for whole stages and for the last), logits through shared memory and out by 16 bytes in each type.
#[cfg(feature = "cuda")]
macro_rules! matmul {
    (
        $kernel:literal, $mma:literal $count:literal, $ldsm:literal, $copies:literal, $logits:literal, $out:literal,
        $registers:literal $(, $more:tt)*
    ) => {
        Expectation {
            kernel: $kernel,
            architectures: &["sm_80", "sm_89", "sm_90"],
            present: &[
                ($mma, $count),
                ("LDSM.M88.4", $ldsm),
                ("LDGSTS.BYPASS.128", $copies),
                ("LDS.128", $logits),
                ("STG.128", $out),
                $($more),*
            ],
            absent: &["HGMMA", "IGMMA", "LDG.128.CONSTANT", "LDSM.M88.2"],
            registers: $registers,
            calls: 19,
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
    matmul!("gather_matmul_bf16_64x8", "HMMA.16816.F32.BF16" 4, 6, 20, 5, 3, 63),
    matmul!("gather_matmul_bf16_64x16", "HMMA.16816.F32.BF16" 8, 8, 20, 6, 4, 64),
    matmul!("gather_matmul_bf16_64x32", "HMMA.16816.F32.BF16" 16, 12, 24, 12, 8, 96),
    matmul!("gather_matmul_bf16_64x64", "HMMA.16816.F32.BF16" 32, 20, 32, 20, 12, 128),
    matmul!("gather_matmul_bf16_128x8", "HMMA.16816.F32.BF16" 8, 10, 36, 6, 4, 82),
    matmul!("gather_matmul_bf16_128x16", "HMMA.16816.F32.BF16" 16, 12, 36, 12, 8, 80),
    matmul!("gather_matmul_bf16_128x32", "HMMA.16816.F32.BF16" 32, 16, 40, 20, 12, 120),
    matmul!("gather_matmul_bf16_128x64", "HMMA.16816.F32.BF16" 64, 24, 48, 20, 12, 168),
    matmul!("gather_matmul_bf16_128x128", "HMMA.16816.F32.BF16" 64, 24, 32, 20, 12, 160),
    matmul!("gather_matmul_f16_64x8", "HMMA.16816.F32" 4, 6, 20, 5, 3, 63),
    matmul!("gather_matmul_f16_64x16", "HMMA.16816.F32" 8, 8, 20, 6, 4, 64),
    matmul!("gather_matmul_f16_64x32", "HMMA.16816.F32" 16, 12, 24, 12, 8, 96),
    matmul!("gather_matmul_f16_64x64", "HMMA.16816.F32" 32, 20, 32, 20, 12, 128),
    matmul!("gather_matmul_f16_128x8", "HMMA.16816.F32" 8, 10, 36, 6, 4, 82),
    matmul!("gather_matmul_f16_128x16", "HMMA.16816.F32" 16, 12, 36, 12, 8, 80),
    matmul!("gather_matmul_f16_128x32", "HMMA.16816.F32" 32, 16, 40, 20, 12, 120),
    matmul!("gather_matmul_f16_128x64", "HMMA.16816.F32" 64, 24, 48, 20, 12, 168),
    matmul!("gather_matmul_f16_128x128", "HMMA.16816.F32" 64, 24, 32, 20, 12, 160),
    matmul!("quant_matmul_64x8", "IMMA.16832.S8" 4, 6, 20, 5, 3, 48),
    matmul!("quant_matmul_64x16", "IMMA.16832.S8" 8, 8, 20, 6, 4, 53),
    matmul!("quant_matmul_64x32", "IMMA.16832.S8" 16, 12, 24, 12, 8, 77),
    matmul!("quant_matmul_64x64", "IMMA.16832.S8" 32, 20, 32, 20, 12, 115),
    matmul!("quant_matmul_128x8", "IMMA.16832.S8" 8, 10, 36, 6, 4, 70),
    matmul!("quant_matmul_128x16", "IMMA.16832.S8" 16, 12, 36, 12, 8, 80),
    matmul!("quant_matmul_128x32", "IMMA.16832.S8" 32, 16, 40, 20, 12, 110),
    matmul!("quant_matmul_128x64", "IMMA.16832.S8" 64, 24, 48, 20, 12, 164),
    matmul!("quant_matmul_128x128", "IMMA.16832.S8" 64, 24, 32, 20, 12, 156),
    matmul!("w8a16_matmul_bf16_64x8", "HMMA.16816.F32.BF16" 8, 4, 20, 5, 3, 63, ("LDS.64", 8)),
    matmul!("w8a16_matmul_bf16_64x16", "HMMA.16816.F32.BF16" 16, 4, 24, 6, 4, 62, ("LDS.64", 16)),
    matmul!("w8a16_matmul_bf16_64x32", "HMMA.16816.F32.BF16" 32, 4, 32, 12, 8, 80, ("LDS.64", 32)),
    matmul!("w8a16_matmul_bf16_64x64", "HMMA.16816.F32.BF16" 64, 4, 48, 20, 12, 125, ("LDS.64", 64)),
    matmul!("w8a16_matmul_bf16_128x8", "HMMA.16816.F32.BF16" 16, 8, 36, 6, 4, 121, ("LDS.64", 8)),
    matmul!("w8a16_matmul_bf16_128x16", "HMMA.16816.F32.BF16" 32, 8, 40, 12, 8, 102, ("LDS.64", 16)),
    matmul!("w8a16_matmul_bf16_128x32", "HMMA.16816.F32.BF16" 64, 8, 48, 20, 12, 123, ("LDS.64", 32)),
    matmul!("w8a16_matmul_bf16_128x64", "HMMA.16816.F32.BF16" 128, 8, 64, 20, 12, 190, ("LDS.64", 64)),
    matmul!("w8a16_matmul_f16_64x8", "HMMA.16816.F32" 8, 4, 20, 5, 3, 62, ("LDS.64", 8)),
    matmul!("w8a16_matmul_f16_64x16", "HMMA.16816.F32" 16, 4, 24, 6, 4, 62, ("LDS.64", 16)),
    matmul!("w8a16_matmul_f16_64x32", "HMMA.16816.F32" 32, 4, 32, 12, 8, 81, ("LDS.64", 32)),
    matmul!("w8a16_matmul_f16_64x64", "HMMA.16816.F32" 64, 4, 48, 20, 12, 127, ("LDS.64", 64)),
    matmul!("w8a16_matmul_f16_128x8", "HMMA.16816.F32" 16, 8, 36, 6, 4, 82, ("LDS.64", 8)),
    matmul!("w8a16_matmul_f16_128x16", "HMMA.16816.F32" 32, 8, 40, 12, 8, 86, ("LDS.64", 16)),
    matmul!("w8a16_matmul_f16_128x32", "HMMA.16816.F32" 64, 8, 48, 20, 12, 114, ("LDS.64", 32)),
    matmul!("w8a16_matmul_f16_128x64", "HMMA.16816.F32" 128, 8, 64, 20, 12, 183, ("LDS.64", 64)),
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
