//! What every kernel's machine code must be like: of the planned tiles by formulas, of each other kernel in a
//! row of `OTHERS`. Exact counts of all of them: `docs/machine-code.md`, which `scripts/machine-code --check`
//! holds against what nvcc makes.

use lmhead_gpu::code::Code;

/// One kernel, on the architectures that it names.
#[derive(Debug, Clone)]
pub struct Expectation {
    pub kernel: &'static str,
    pub architectures: &'static [&'static str],
    /// Instructions and how many of them, as [`Code::count`] finds them: fewer means a loop that was not
    /// unrolled, more that code was doubled. Measured with nvcc 13.0.
    pub present: Vec<(&'static str, usize)>,
    /// Instructions that must not be there.
    pub absent: &'static [&'static str],
    /// Per thread, at most.
    pub registers: u32,
    /// Calls, at most, none of which needs a stack: ptxas' own subroutines for the rare cases of an IEEE
    /// division, one call for each division, and on sm_80 and sm_89 for lanes that vote, shuffle or leave a
    /// loop.
    pub calls: usize,
}

#[cfg(feature = "cuda")]
pub use tables::{Other, PORTABLE, expected};

#[cfg(feature = "cuda")]
mod tables {
    use super::Expectation;
    use lmhead::DType;
    use lmhead::backend::device::target_kernel;
    use lmhead::plan::{Precision, Tile};

    /// What a kernel whose file ends in `_sm80` has machine code for.
    pub const PORTABLE: &[&str] = &["sm_80", "sm_89", "sm_90", "sm_100", "sm_120"];
    const HOPPER: &[&str] = &["sm_90a"];

    /// Of every kernel.
    pub fn expected() -> Vec<Expectation> {
        let mut rows = OTHERS.map(|row| row.into()).to_vec();
        rows.extend(stagers());
        for (precision, registers) in REGISTERS {
            assert_eq!(
                precision.tiles().len(),
                registers.len(),
                "{precision}: wanted a number for each tile"
            );
            rows.extend(
                precision
                    .tiles()
                    .iter()
                    .zip(*registers)
                    .map(|(tile, registers)| matmul(*precision, tile, *registers)),
            );
        }
        rows.extend(TARGETS.iter().map(|(precision, registers)| targets(*precision, *registers)));
        for (precision, registers) in PACKED_REGISTERS {
            let tiles = precision.packed_tiles();
            assert_eq!(tiles.len(), registers.len(), "{precision}: wanted a number for each tile");
            rows.extend(tiles.iter().zip(*registers).map(|(tile, n)| packed_matmul(*precision, tile, *n)));
        }
        for (dtype, loads, registers) in [(DType::Bf16, 4, 64), (DType::F16, 4, 64), (DType::F32, 8, 48)] {
            rows.push(Expectation {
                kernel: Precision::W8a8(dtype).quantizer().expect("rows are quantised"),
                architectures: PORTABLE,
                // Rows in and int8 out by 16 bytes, in twice: for the largest and for the rest.
                present: vec![("LDG.128", loads), ("STG.128", 1)],
                absent: &["HMMA", "IMMA", "LDGSTS"],
                registers,
                calls: 18,
            });
        }
        rows
    }

    /// Of the kernels that stage rows for packed weights: with int8 the largest of a row is looked for first.
    fn stagers() -> [Expectation; 4] {
        [
            ("stage_rows", 1, 32, 0),
            ("stage_rows_int8_bf16", 4, 64, 18),
            ("stage_rows_int8_f16", 4, 64, 18),
            ("stage_rows_int8_f32", 8, 64, 18),
        ]
        .map(|(kernel, loads, registers, calls)| Expectation {
            kernel,
            architectures: HOPPER,
            present: vec![("LDG.128", loads), ("STG.128", 1)],
            absent: &["HMMA", "IMMA", "HGMMA", "IGMMA", "LDGSTS"],
            registers,
            calls,
        })
    }

    /// At most so many registers a thread on any architecture, for each tile of a precision in the order of
    /// the plan. Measured with nvcc 13.0.
    const REGISTERS: &[(Precision, &[u32])] = &[
        (Precision::Bf16, &[74, 74, 100, 128, 82, 86, 120, 172, 247]),
        (Precision::F16, &[74, 74, 100, 128, 82, 86, 120, 172, 247]),
        (Precision::W8a8(DType::Bf16), &[72, 72, 80, 123, 80, 83, 117, 167, 246]),
        (Precision::W8a16(DType::Bf16), &[76, 75, 87, 128, 123, 102, 123, 190]),
        (Precision::W8a16(DType::F16), &[76, 75, 84, 134, 86, 87, 116, 183]),
        (Precision::Fp8(DType::Bf16), &[83, 76, 89, 130, 173, 168, 138, 176]),
        (Precision::Fp8(DType::F16), &[93, 100, 119, 128, 171, 188, 187, 179]),
    ];

    /// The same of the tiles for packed weights.
    const PACKED_REGISTERS: &[(Precision, &[u32])] = &[
        (Precision::Bf16, &[96, 128, 96, 153, 96, 158, 168]),
        (Precision::F16, &[96, 128, 96, 153, 96, 158, 168]),
        (Precision::W8a8(DType::Bf16), &[111, 128, 96, 154, 96, 158, 168]),
    ];

    /// A kernel of `kernels/hopper`.
    fn packed_matmul(precision: Precision, tile: &Tile, registers: u32) -> Expectation {
        let (instruction, types) = match precision {
            Precision::Bf16 => ("HGMMA", "x16.F32.BF16"),
            Precision::F16 => ("HGMMA", "x16.F32"),
            _ => ("IGMMA", "x32.S8.S8"),
        };
        // The only text that is not there as it is: a name for each tile, of which there are few.
        let products: &'static str = format!("{instruction}.64x{}{types}", tile.rows).leak();
        Expectation {
            kernel: tile.kernel,
            architectures: HOPPER,
            present: vec![
                // A column of 128 bytes of k, in one place.
                (products, 4),
                // Weights of each 64 ids and rows, before the ring is full and afterwards.
                ("UBLKCP.S.G", 2 * (tile.ids / 64 + 1)),
                ("USETMAXREG", if tile.rows > 64 { 2 } else { 0 }),
                ("DADD", 42),
                ("DMUL", 38),
                ("DFMA", 38),
            ],
            absent: &["HMMA", "IMMA", "LDSM", "LDGSTS", "UTMALDG"],
            registers,
            calls: 68,
        }
    }

    /// At most so many registers a thread of the kernels that make single logits.
    const TARGETS: &[(Precision, u32)] = &[
        (Precision::Bf16, 56),
        (Precision::F16, 56),
        (Precision::W8a8(DType::Bf16), 47),
        (Precision::W8a16(DType::Bf16), 64),
        (Precision::W8a16(DType::F16), 62),
        (Precision::Fp8(DType::Bf16), 88),
        (Precision::Fp8(DType::F16), 103),
    ];

    /// The instruction that a precision's products are made of, and whether weights are widened for it.
    fn multiplies(precision: Precision) -> (&'static str, bool) {
        let widened = matches!(precision, Precision::W8a16(_) | Precision::Fp8(_));
        let mma = match precision {
            Precision::Bf16 | Precision::W8a16(DType::Bf16) | Precision::Fp8(DType::Bf16) => {
                "HMMA.16816.F32.BF16"
            }
            Precision::W8a8(_) => "IMMA.16832.S8",
            _ => "HMMA.16816.F32",
        };
        (mma, widened)
    }

    /// A kernel of `kernels/target_logits_sm80.cu`: a tile of 64 ids x 8 rows.
    fn targets(precision: Precision, registers: u32) -> Expectation {
        let (mma, widened) = multiplies(precision);
        Expectation {
            kernel: target_kernel(precision),
            architectures: PORTABLE,
            present: vec![
                // The product's own, of 128 bytes of k.
                (mma, if widened { 8 } else { 4 }),
                ("LDSM.M88.4", if widened { 4 } else { 6 }),
                // Four pieces of weights and one of rows, these for whole stages and for the last; in the
                // prologue and in the loop.
                ("LDGSTS.BYPASS.128", 12),
            ],
            absent: &["HGMMA", "IGMMA", "LDSM.M88.2", "DADD", "DMUL", "DFMA"],
            registers,
            calls: 12,
        }
    }

    /// A kernel of `kernels/matmul`.
    fn matmul(precision: Precision, tile: &Tile, registers: u32) -> Expectation {
        let threads = tile.threads() as usize;
        // A warp's, in the 16 ids of an instruction.
        let (ids, rows) = (tile.warp().0 / 16, tile.warp().1);
        let (mma, widened) = multiplies(precision);
        // A stage is 128 bytes of k: four instructions of 16-bit or of int8 operands, eight of int8 weights
        // as 16 bits, over 16 ids x 8 rows.
        let steps = if widened { 8 } else { 4 };
        // 16 bytes a thread at a time, in four places: the prologue and the loop, each for whole stages and
        // for the last.
        let pieces = |bytes: usize| bytes.div_ceil(16 * threads);
        let (of_weights, of_rows) = (4 * pieces(tile.ids * 128), 4 * pieces(tile.rows * tile.row_bytes));
        // Logits pass through shared memory, and leave by 16 bytes in each type. f32 ones twice: without
        // adjustments, too. Sums of exponentials read them eight at a time, once; draws four.
        let (from_shared, out) = match tile.ids * tile.rows / threads {
            4 => (9, 4),
            8 => (11, 6),
            16 => (19, 12),
            _ => (27, 16),
        };
        let mut present = vec![
            (mma, ids * rows / 8 * steps),
            // Both operands for `mma`; rows beside widened weights are read by words.
            ("LDSM.M88.4", 4 * ids + if widened { 0 } else { rows / 4 }),
            ("LDGSTS.BYPASS.128", of_weights + of_rows),
            ("LDGSTS.BYPASS.LTC256B.128", of_weights),
            ("LDS.128", from_shared),
            ("STG.128", out),
            // Scores of the ids of a draw that their f32 bounds do not tell apart: one copy of that code.
            ("DADD", 42),
            ("DMUL", 38),
            ("DFMA", 38),
        ];
        // Candidates of the answers, besides.
        let candidates = if tile.ids == 64 { 24 } else { 36 };
        present.push(("LDS.64", if widened { rows } else { 0 } + candidates));
        Expectation {
            kernel: tile.kernel,
            architectures: PORTABLE,
            present,
            absent: &["HGMMA", "IGMMA", "LDG.128.CONSTANT", "LDSM.M88.2"],
            registers,
            calls: 72,
        }
    }

    /// A kernel that no plan names.
    #[derive(Clone, Copy)]
    pub struct Other {
        pub kernel: &'static str,
        pub architectures: &'static [&'static str],
        pub present: &'static [(&'static str, usize)],
        pub absent: &'static [&'static str],
        pub registers: u32,
        pub calls: usize,
    }

    impl From<Other> for Expectation {
        fn from(row: Other) -> Expectation {
            let Other { kernel, architectures, present, absent, registers, calls } = row;
            Expectation { kernel, architectures, present: present.to_vec(), absent, registers, calls }
        }
    }

    /// Every kernel that no plan names.
    const OTHERS: [Other; 48] = [
        // Answers. f64 is in finishes, once a row, and in draws, for the few candidates that their bounds
        // leave.
        Other {
            kernel: "merge_partials",
            architectures: PORTABLE,
            present: &[],
            absent: &["HMMA", "IMMA", "DADD", "DMUL", "DFMA"],
            registers: 62,
            calls: 34,
        },
        Other {
            kernel: "finish_best",
            architectures: PORTABLE,
            present: &[],
            absent: &["HMMA", "IMMA"],
            registers: 59,
            calls: 31,
        },
        Other {
            kernel: "finish_logprobs",
            architectures: PORTABLE,
            present: &[],
            absent: &["HMMA", "IMMA"],
            registers: 59,
            calls: 36,
        },
        Other {
            kernel: "finish_draw",
            architectures: PORTABLE,
            present: &[("LDG.128", 3)],
            absent: &["HMMA", "IMMA"],
            registers: 103,
            calls: 52,
        },
        Other {
            kernel: "merge_draws",
            architectures: PORTABLE,
            present: &[("LDG.128", 2)],
            absent: &["HMMA", "IMMA"],
            registers: 60,
            calls: 16,
        },
        Other {
            kernel: "finish_status",
            architectures: PORTABLE,
            present: &[],
            absent: &["HMMA", "IMMA", "DADD", "DMUL", "DFMA"],
            registers: 28,
            calls: 0,
        },
        Other {
            kernel: "summarise_held",
            architectures: PORTABLE,
            present: &[("LDG.128", 2)],
            absent: &["HMMA", "IMMA", "DADD", "DMUL", "DFMA"],
            registers: 56,
            calls: 46,
        },
        Other {
            kernel: "held_targets",
            architectures: PORTABLE,
            present: &[],
            absent: &["HMMA", "IMMA", "DADD", "DMUL", "DFMA"],
            registers: 20,
            calls: 1,
        },
        Other {
            kernel: "held_maxima",
            architectures: PORTABLE,
            present: &[("LDG.128", 1)],
            absent: &["HMMA", "IMMA", "DADD", "DMUL", "DFMA"],
            registers: 20,
            calls: 0,
        },
        Other {
            kernel: "held_histograms",
            architectures: PORTABLE,
            present: &[("LDG.128", 1)],
            absent: &["HMMA", "IMMA", "DADD", "DMUL", "DFMA"],
            registers: 40,
            calls: 61,
        },
        Other {
            kernel: "held_ties",
            architectures: PORTABLE,
            present: &[("LDG.128", 1)],
            absent: &["HMMA", "IMMA", "DADD", "DMUL", "DFMA"],
            registers: 36,
            calls: 4,
        },
        Other {
            kernel: "held_candidates",
            architectures: PORTABLE,
            present: &[("LDG.128", 2)],
            absent: &["HMMA", "IMMA"],
            registers: 99,
            calls: 64,
        },
        Other {
            kernel: "select_bins",
            architectures: PORTABLE,
            present: &[("LDG.128", 4), ("ATOMS.POPC.INC.32", 4)],
            absent: &["HMMA", "IMMA", "DADD", "DMUL", "DFMA"],
            registers: 37,
            calls: 1,
        },
        Other {
            kernel: "select_keys",
            architectures: PORTABLE,
            present: &[("LDG.128", 4)],
            absent: &["HMMA", "IMMA", "DADD", "DMUL", "DFMA"],
            registers: 48,
            calls: 6,
        },
        Other {
            kernel: "select_sort",
            architectures: PORTABLE,
            present: &[],
            absent: &["HMMA", "IMMA", "DADD", "DMUL", "DFMA"],
            registers: 36,
            calls: 0,
        },
        Other {
            kernel: "select_merge",
            architectures: PORTABLE,
            present: &[],
            absent: &["HMMA", "IMMA", "DADD", "DMUL", "DFMA"],
            registers: 22,
            calls: 0,
        },
        Other {
            kernel: "finish_lists",
            architectures: PORTABLE,
            present: &[],
            absent: &["HMMA", "IMMA"],
            registers: 56,
            calls: 28,
        },
        Other {
            kernel: "finish_lists_logprobs",
            architectures: PORTABLE,
            present: &[],
            absent: &["HMMA", "IMMA"],
            registers: 58,
            calls: 34,
        },
        Other {
            kernel: "place_lists",
            architectures: PORTABLE,
            present: &[],
            absent: &["HMMA", "IMMA"],
            registers: 48,
            calls: 16,
        },
        Other {
            kernel: "begin_cuts",
            architectures: PORTABLE,
            present: &[("LDG.128", 2)],
            absent: &["HMMA", "IMMA"],
            registers: 40,
            calls: 1,
        },
        Other {
            kernel: "next_cuts",
            architectures: PORTABLE,
            present: &[("LDG.128", 1)],
            absent: &["HMMA", "IMMA", "DADD", "DMUL", "DFMA"],
            registers: 24,
            calls: 0,
        },
        Other {
            kernel: "end_cuts",
            architectures: PORTABLE,
            present: &[("LDG.128", 1)],
            absent: &["HMMA", "IMMA", "DADD", "DMUL", "DFMA"],
            registers: 28,
            calls: 0,
        },
        Other {
            kernel: "learn_cuts",
            architectures: PORTABLE,
            present: &[("LDS.128", 2)],
            absent: &["HMMA", "IMMA", "DADD", "DMUL", "DFMA"],
            registers: 40,
            calls: 31,
        },
        Other {
            kernel: "pack_capacity",
            architectures: PORTABLE,
            present: &[("LDG.128", 1), ("STG.128", 1)],
            absent: &["HMMA", "IMMA", "DADD", "DMUL", "DFMA"],
            registers: 40,
            calls: 0,
        },
        Other {
            kernel: "open_capacity",
            architectures: PORTABLE,
            present: &[("SHFL.BFLY", 15)],
            absent: &["HMMA", "IMMA", "DADD", "DMUL", "DFMA"],
            registers: 40,
            calls: 0,
        },
        Other {
            kernel: "check_capacity",
            architectures: PORTABLE,
            present: &[("SHFL.BFLY", 5)],
            absent: &["HMMA", "IMMA", "DADD", "DMUL", "DFMA"],
            registers: 30,
            calls: 0,
        },
        Other {
            kernel: "pack_rows",
            architectures: PORTABLE,
            present: &[("LDG.128", 1), ("STG.128", 1)],
            absent: &["HMMA", "IMMA", "DADD", "DMUL", "DFMA"],
            registers: 18,
            calls: 0,
        },
        Other {
            kernel: "set_words",
            architectures: PORTABLE,
            present: &[],
            absent: &["LDG", "HMMA", "IMMA", "DADD", "DMUL", "DFMA"],
            registers: 18,
            calls: 0,
        },
        Other {
            kernel: "encode_targets",
            architectures: PORTABLE,
            present: &[],
            absent: &["HMMA", "IMMA", "DADD", "DMUL", "DFMA"],
            registers: 16,
            calls: 1,
        },
        Other {
            kernel: "pick_targets",
            architectures: PORTABLE,
            present: &[],
            absent: &["HMMA", "IMMA", "DADD", "DMUL", "DFMA"],
            registers: 16,
            calls: 1,
        },
        Other {
            kernel: "or_status",
            architectures: PORTABLE,
            present: &[],
            absent: &["HMMA", "IMMA", "DADD", "DMUL", "DFMA"],
            registers: 10,
            calls: 0,
        },
        Other {
            kernel: "sampling_rows",
            architectures: PORTABLE,
            present: &[],
            absent: &["HMMA", "IMMA", "DADD", "DMUL", "DFMA"],
            registers: 26,
            calls: 0,
        },
        Other {
            kernel: "pack_adjustments",
            architectures: PORTABLE,
            present: &[],
            absent: &["HMMA", "IMMA", "DADD", "DMUL", "DFMA"],
            registers: 40,
            calls: 2,
        },
        Other {
            kernel: "digest_adjustments",
            architectures: PORTABLE,
            present: &[],
            absent: &["HMMA", "IMMA", "DADD", "DMUL", "DFMA"],
            registers: 36,
            calls: 0,
        },
        Other {
            kernel: "unpack_adjustments",
            architectures: PORTABLE,
            present: &[],
            absent: &["HMMA", "IMMA", "DADD", "DMUL", "DFMA"],
            registers: 20,
            calls: 0,
        },
        Other {
            kernel: "carrier_mma_s8_sm80",
            architectures: PORTABLE,
            present: &[("IMMA.16832.S8", 32), ("LDGSTS.BYPASS.128", 4), ("LDSM.M88.4", 16)],
            absent: &["HMMA"],
            registers: 112,
            calls: 0,
        },
        Other {
            kernel: "carrier_wgmma_s8_sm90a",
            architectures: HOPPER,
            present: &[("IGMMA.64x64x32.S8", 4), ("UTMALDG.2D", 3), ("USETMAXREG", 2)],
            absent: &["HGMMA", "IMMA", "LDGSTS"],
            registers: 168,
            calls: 0,
        },
        Other {
            kernel: "carrier_wgmma_bf16_sm90a",
            architectures: HOPPER,
            present: &[("HGMMA.64x64x16.BF16", 4), ("UTMALDG.2D", 3), ("USETMAXREG", 2)],
            absent: &["IGMMA", "HMMA", "LDGSTS"],
            registers: 168,
            calls: 0,
        },
        Other {
            kernel: "read_stream",
            architectures: PORTABLE,
            present: &[("LDG.E.128", 8)],
            absent: &["HMMA"],
            registers: 64,
            calls: 0,
        },
        Other {
            kernel: "read_bulk",
            architectures: HOPPER,
            present: &[("UBLKCP.S.G", 1), ("LDS.128", 7), ("SYNCS.PHASECHK.TRYWAIT", 4)],
            absent: &["LDG.128", "HMMA"],
            registers: 40,
            calls: 0,
        },
        Other {
            kernel: "read_boxes",
            architectures: HOPPER,
            present: &[("UTMALDG.2D", 1), ("LDS.128", 4), ("SYNCS.PHASECHK.TRYWAIT", 4)],
            absent: &["LDG.128", "HMMA"],
            registers: 40,
            calls: 0,
        },
        Other {
            kernel: "fill",
            architectures: PORTABLE,
            present: &[("STG.128", 1)],
            absent: &["LDG", "HMMA"],
            registers: 48,
            calls: 1,
        },
        Other {
            kernel: "count_mismatches",
            architectures: PORTABLE,
            present: &[("STG.128", 1)],
            absent: &["HMMA"],
            registers: 32,
            calls: 0,
        },
        Other {
            kernel: "pack_weights",
            architectures: PORTABLE,
            present: &[("LDG.128", 1), ("STG.128", 1)],
            absent: &["HMMA"],
            registers: 40,
            calls: 2,
        },
        Other {
            kernel: "project_weights",
            architectures: PORTABLE,
            present: &[("LDG.128", 2)],
            absent: &["HMMA"],
            registers: 64,
            calls: 2,
        },
        Other {
            kernel: "project_rows",
            architectures: PORTABLE,
            present: &[("LDG.64", 2)],
            absent: &["HMMA", "DFMA"],
            registers: 40,
            calls: 0,
        },
        Other {
            kernel: "carrier_wgmma_registers_bf16_sm90a",
            architectures: HOPPER,
            present: &[("HGMMA.64x64x16.BF16", 4), ("LDSM.M88.4", 4), ("UTMALDG.2D", 3), ("USETMAXREG", 2)],
            absent: &["IGMMA", "HMMA", "LDGSTS"],
            registers: 168,
            calls: 0,
        },
        Other {
            kernel: "carrier_gather_bf16_sm90a",
            architectures: HOPPER,
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
    ];
}

/// What is wrong with a kernel's code; one line each, empty where all is well. No kernel may spill registers,
/// keep an array in local memory or call a function that was not inlined, ptxas' own beside: each costs
/// memory traffic that no kernel here is planned with.
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
    for (pattern, wanted) in &expected.present {
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

/// The faults of all kernels, those without a row and rows without a kernel among them. `architectures` are
/// the ones that this build has.
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
