//! Expectations of every kernel's machine code: formulas for planned tiles (`products.rs`), the registers of
//! each (`registers.rs`), and a row of `OTHERS` for each other kernel. Exact counts of all kernels are in
//! `docs/machine-code.md`, which a test compares with what nvcc makes.

#[cfg(feature = "cuda")]
mod products;
#[cfg(feature = "cuda")]
mod registers;

/// The expectations of one kernel on the architectures that it names.
#[derive(Debug, Clone)]
pub struct Expectation {
    pub kernel: &'static str,
    pub architectures: &'static [&'static str],
    /// Instructions and how many of them, as `Code::count` of `lmhead_gpu::code` counts: fewer means that a
    /// loop was not unrolled, more that code was duplicated. Measured with nvcc 13.0.
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
pub use others::{Other, expected};

/// Architectures with machine code for a kernel whose file ends in `_sm80`.
#[cfg(feature = "cuda")]
pub const PORTABLE: &[&str] = &["sm_80", "sm_89", "sm_90", "sm_100", "sm_120"];
#[cfg(feature = "cuda")]
const HOPPER: &[&str] = &["sm_90a"];

#[cfg(feature = "cuda")]
mod others {
    use super::{Expectation, HOPPER, PORTABLE, products};

    /// The expectations of every kernel.
    pub fn expected() -> Vec<Expectation> {
        let mut rows = OTHERS.map(|row| row.into()).to_vec();
        rows.extend(products::expected());
        rows
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
    const OTHERS: [Other; 49] = [
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
        // Vectors from the rank itself, to a window and out of one, eight at a time.
        Other {
            kernel: "exchange_peers",
            architectures: PORTABLE,
            present: &[("LDG.128", 24), ("STG.128", 24), ("LDG.STRONG.SYS", 6), ("MEMBAR.ALL.SYS", 8)],
            absent: &["HMMA", "IMMA", "DADD", "DMUL", "DFMA"],
            registers: 109,
            calls: 2,
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
