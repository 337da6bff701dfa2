//! Expectations of every kernel's machine code: formulas for planned tiles, a row of `OTHERS` for each other
//! kernel. Exact counts of all kernels are in `docs/machine-code.md`, which `scripts/machine-code --check`
//! compares with what nvcc makes.

use lmhead_gpu::code::Code;

/// The expectations of one kernel on the architectures that it names.
#[derive(Debug, Clone)]
pub struct Expectation {
    pub kernel: &'static str,
    pub architectures: &'static [&'static str],
    /// Instructions and how many of them, as [`Code::count`] counts: fewer means that a loop was not
    /// unrolled, more that code was duplicated. Measured with nvcc 13.0.
    pub present: Vec<(&'static str, usize)>,
    /// Instructions that must not occur.
    pub absent: &'static [&'static str],
    /// At most so many registers per thread.
    pub registers: u32,
    /// At most so many calls, none of which needs a stack: subroutines of ptxas for the rare cases of an IEEE
    /// division, one call for each division; and on sm_80 and sm_89 for lanes that vote, shuffle or leave a
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

    /// Architectures with machine code for a kernel whose file ends in `_sm80`.
    pub const PORTABLE: &[&str] = &["sm_80", "sm_89", "sm_90", "sm_100", "sm_120"];
    const HOPPER: &[&str] = &["sm_90a"];

    /// The expectations of every kernel.
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
                // Rows are loaded and int8 values stored as 16 bytes; rows twice, for the largest value and
                // for the rest.
                present: vec![("LDG.128", loads), ("STG.128", 1)],
                absent: &["HMMA", "IMMA", "LDGSTS"],
                registers,
                calls: 18,
            });
        }
        rows
    }

    /// Of the kernels that stage rows for packed weights: with int8 the largest of a row is looked for first.
    fn stagers() -> [Expectation; 5] {
        [
            ("stage_rows", 1, 1, 32, 0),
            ("stage_rows_interleaved", 2, 2, 40, 0),
            ("stage_rows_int8_bf16", 4, 1, 64, 18),
            ("stage_rows_int8_f16", 4, 1, 64, 18),
            ("stage_rows_int8_f32", 8, 1, 64, 18),
        ]
        .map(|(kernel, loads, stores, registers, calls)| Expectation {
            kernel,
            architectures: HOPPER,
            present: vec![("LDG.128", loads), ("STG.128", stores)],
            absent: &["HMMA", "IMMA", "HGMMA", "IGMMA", "LDGSTS"],
            registers,
            calls,
        })
    }

    /// At most so many registers per thread on any architecture, for each tile of a precision in the plan's
    /// order. Measured with nvcc 13.0.
    const REGISTERS: &[(Precision, &[u32])] = &[
        (Precision::Bf16, &[74, 75, 100, 128, 82, 86, 120, 172, 247]),
        (Precision::F16, &[74, 75, 100, 128, 82, 86, 120, 172, 247]),
        (Precision::W8a8(DType::Bf16), &[72, 75, 80, 124, 82, 83, 118, 167, 246]),
        (Precision::W8a16(DType::Bf16), &[76, 76, 87, 128, 123, 102, 123, 190]),
        (Precision::W8a16(DType::F16), &[76, 76, 84, 134, 86, 87, 116, 183]),
        (Precision::Fp8(DType::Bf16), &[83, 77, 89, 130, 173, 168, 140, 176]),
        (Precision::Fp8(DType::F16), &[93, 100, 119, 128, 171, 188, 188, 179]),
    ];

    /// The same for the tiles for packed weights.
    const PACKED_REGISTERS: &[(Precision, &[u32])] = &[
        (Precision::Bf16, &[117, 121, 91, 141, 96, 145, 168, 168]),
        (Precision::F16, &[117, 121, 91, 141, 96, 145, 168, 168]),
        (Precision::W8a8(DType::Bf16), &[115, 119, 91, 143, 96, 146, 168, 168]),
        (Precision::W8a16(DType::Bf16), &[109, 150, 113, 115, 157, 168]),
        (Precision::W8a16(DType::F16), &[109, 150, 113, 115, 157, 168]),
        (Precision::Fp8(DType::Bf16), &[109, 150, 113, 115, 157, 168]),
        (Precision::Fp8(DType::F16), &[109, 150, 113, 115, 157, 168]),
    ];

    /// A kernel of `kernels/hopper`.
    fn packed_matmul(precision: Precision, tile: &Tile, registers: u32) -> Expectation {
        let (instruction, types) = match precision {
            Precision::W8a8(_) => ("IGMMA", "x32.S8.S8"),
            _ if precision.rows() == DType::Bf16 => ("HGMMA", "x16.F32.BF16"),
            _ => ("HGMMA", "x16.F32"),
        };
        // A column of 128 bytes of k, in one place: widened, an instruction has 16 bytes of the weights.
        let widened = multiplies(precision).1;
        // Of the weights, by 64 ids; one of two blocks of 256 ids copies half of them.
        let copied = (tile.block_n / 64).min(2);
        let shared = match (tile.cluster(), tile.block_n) {
            (1, _) => 0,
            (_, 256) => copied,
            _ => 1,
        };
        // The only text that is not there as it is: a name for each tile, of which there are few.
        let products: &'static str = format!("{instruction}.64x{}{types}", tile.block_m).leak();
        Expectation {
            kernel: tile.kernel,
            architectures: HOPPER,
            present: vec![
                (products, if widened { 8 } else { 4 * tile.block_n.div_ceil(128) }),
                ("LDSM.M88.4", if widened { 4 } else { 0 }),
                // The block's part of the weights and rows, before the ring is full and afterwards, and the
                // runs of a piece; what is shared goes to both blocks of a cluster, which have no pieces.
                ("UBLKCP.S.G", 2 * (copied + 1 + usize::from(shared == 0))),
                ("UBLKCP.S.G.MULTICAST", 2 * shared),
                // At the beginning and the end of a cluster, and nowhere else: it waits for the whole device.
                ("MEMBAR.ALL.GPU", if shared > 0 { 2 } else { 0 }),
                ("USETMAXREG", if tile.block_m > 64 { 2 } else { 0 }),
                ("DADD", 42),
                ("DMUL", 38),
                ("DFMA", 38),
            ],
            absent: &["HMMA", "IMMA", "LDGSTS", "UTMALDG"],
            registers,
            calls: 68,
        }
    }

    /// At most so many registers per thread of the kernels that compute single logits.
    const TARGETS: &[(Precision, u32)] = &[
        (Precision::Bf16, 56),
        (Precision::F16, 56),
        (Precision::W8a8(DType::Bf16), 47),
        (Precision::W8a16(DType::Bf16), 64),
        (Precision::W8a16(DType::F16), 62),
        (Precision::Fp8(DType::Bf16), 88),
        (Precision::Fp8(DType::F16), 103),
    ];

    /// The instruction that multiplies in a precision, and whether weights are widened for it.
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
                // The matmul's own, for 128 bytes of k.
                (mma, if widened { 8 } else { 4 }),
                ("LDSM.M88.4", if widened { 4 } else { 6 }),
                // Four 16-byte vectors of weights and one of rows, the latter for complete stages and for the
                // last; in the prologue and in the loop.
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
        // A warp's 16-id fragments and rows.
        let (ids, rows) = (tile.warp().0 / 16, tile.warp().1);
        let (mma, widened) = multiplies(precision);
        // A stage is 128 bytes of k: four instructions for 16-bit or int8 operands, eight for int8 weights as
        // 16 bits, for each 16 ids x 8 rows.
        let steps = if widened { 8 } else { 4 };
        // 16 bytes a thread at a time, at four places: the prologue and the loop, each for complete stages
        // and for the last.
        let vectors = |bytes: usize| bytes.div_ceil(16 * threads);
        let (of_weights, of_rows) =
            (4 * vectors(tile.block_n * 128), 4 * vectors(tile.block_m * tile.row_bytes));
        // Logits pass through shared memory and are stored as 16-byte vectors in each type; f32 at two
        // places, one of them without adjustments. Sums of exponentials read them once, eight at a time;
        // draws four at a time.
        let (from_shared, out) = match tile.block_n * tile.block_m / threads {
            4 => (9, 4),
            8 => (11, 6),
            16 => (19, 12),
            _ => (27, 16),
        };
        let mut present = vec![
            (mma, ids * rows / 8 * steps),
            // Both operands for `mma`; rows beside widened weights are read as words.
            ("LDSM.M88.4", 4 * ids + if widened { 0 } else { rows / 4 }),
            ("LDGSTS.BYPASS.128", of_weights + of_rows),
            ("LDGSTS.BYPASS.LTC256B.128", of_weights),
            ("LDS.128", from_shared),
            ("STG.128", out),
            // Scores of drawn ids that their f32 bounds do not separate: one copy of that code.
            ("DADD", 42),
            ("DMUL", 38),
            ("DFMA", 38),
        ];
        // Also the candidates of the answers.
        let candidates = if tile.block_n == 64 { 25 } else { 37 };
        present.push(("LDS.64", if widened { rows } else { 0 } + candidates));
        Expectation {
            kernel: tile.kernel,
            architectures: PORTABLE,
            present,
            absent: &["HGMMA", "IGMMA", "LDG.128.CONSTANT", "LDSM.M88.2"],
            registers,
            calls: 75,
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
        // Answer kernels. f64 occurs where a row is finished, and in draws for the few candidates that their
        // bounds leave.
        Other {
            kernel: "merge_partials",
            architectures: PORTABLE,
            present: &[],
            absent: &["HMMA", "IMMA", "DADD", "DMUL", "DFMA"],
            registers: 62,
            calls: 38,
        },
        Other {
            kernel: "finish_best",
            architectures: PORTABLE,
            present: &[],
            absent: &["HMMA", "IMMA"],
            registers: 59,
            calls: 34,
        },
        Other {
            kernel: "finish_logprobs",
            architectures: PORTABLE,
            present: &[],
            absent: &["HMMA", "IMMA"],
            registers: 60,
            calls: 40,
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
            kernel: "finish_logits",
            architectures: PORTABLE,
            present: &[("LDG.128", 1), ("STG.128", 1)],
            absent: &["HMMA", "IMMA", "DADD", "DMUL", "DFMA"],
            registers: 40,
            calls: 0,
        },
        Other {
            kernel: "summarise_held",
            architectures: PORTABLE,
            present: &[("LDG.128", 2)],
            absent: &["HMMA", "IMMA", "DADD", "DMUL", "DFMA"],
            registers: 60,
            calls: 57,
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
            calls: 71,
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
            kernel: "microkernel_mma_s8_sm80",
            architectures: PORTABLE,
            present: &[("IMMA.16832.S8", 32), ("LDGSTS.BYPASS.128", 4), ("LDSM.M88.4", 16)],
            absent: &["HMMA"],
            registers: 112,
            calls: 0,
        },
        Other {
            kernel: "microkernel_wgmma_s8_sm90a",
            architectures: HOPPER,
            present: &[("IGMMA.64x64x32.S8", 4), ("UTMALDG.2D", 3), ("USETMAXREG", 2)],
            absent: &["HGMMA", "IMMA", "LDGSTS"],
            registers: 168,
            calls: 0,
        },
        Other {
            kernel: "microkernel_wgmma_bf16_sm90a",
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
            kernel: "microkernel_wgmma_registers_bf16_sm90a",
            architectures: HOPPER,
            present: &[("HGMMA.64x64x16.BF16", 4), ("LDSM.M88.4", 4), ("UTMALDG.2D", 3), ("USETMAXREG", 2)],
            absent: &["IGMMA", "HMMA", "LDGSTS"],
            registers: 168,
            calls: 0,
        },
        Other {
            kernel: "microkernel_gather_bf16_sm90a",
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
