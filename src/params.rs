//! The structs that cross from host to device. Written by scripts/bindings from kernels/params.h: change that.
#![allow(rustdoc::broken_intra_doc_links, clippy::doc_markdown)]

pub const LMHEAD_EXP_LOG2E: u32 = 1069066811;
pub const LMHEAD_EXP_SHIFT: u32 = 1262485504;
pub const LMHEAD_EXP_LN2_HI: u32 = 1060205080;
pub const LMHEAD_EXP_LN2_LO: u32 = 2969756424;
pub const LMHEAD_EXP_C2: u32 = 1056964601;
pub const LMHEAD_EXP_C3: u32 = 1042983385;
pub const LMHEAD_EXP_C4: u32 = 1026207380;
pub const LMHEAD_EXP_C5: u32 = 1007247843;
pub const LMHEAD_EXP_C6: u32 = 984914664;
pub const LMHEAD_EXP_LIMIT: u32 = 1241513984;
pub const LMHEAD_LN2_HI64: u64 = 4604418534311723008;
pub const LMHEAD_LN2_LO64: u64 = 4461442080421002358;
pub const LMHEAD_LSE_LIMIT: u32 = 1233125376;
#[doc = " How TMA reads or writes a matrix; opaque. The driver encodes it (a CUtensorMap); the emulated device has\n an encoding of its own."]
#[repr(C)]
#[repr(align(64))]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct TensorMap {
    pub opaque: [u8; 128usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of TensorMap"][::core::mem::size_of::<TensorMap>() - 128usize];
    ["Alignment of TensorMap"][::core::mem::align_of::<TensorMap>() - 64usize];
    ["Offset of field: TensorMap::opaque"][::core::mem::offset_of!(TensorMap, opaque) - 0usize];
};
#[doc = " int8 through cp.async and mma.sync. hidden is a multiple of 16."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct MmaMicrokernelParams {
    #[doc = " [vocab, hidden]"]
    pub weights: *const i8,
    #[doc = " [row_count, hidden]"]
    pub rows: *const i8,
    #[doc = " [row_count, vocab]"]
    pub out: *mut i32,
    pub vocab: u32,
    pub row_count: u32,
    pub hidden: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MmaMicrokernelParams"][::core::mem::size_of::<MmaMicrokernelParams>() - 40usize];
    ["Alignment of MmaMicrokernelParams"][::core::mem::align_of::<MmaMicrokernelParams>() - 8usize];
    ["Offset of field: MmaMicrokernelParams::weights"]
        [::core::mem::offset_of!(MmaMicrokernelParams, weights) - 0usize];
    ["Offset of field: MmaMicrokernelParams::rows"]
        [::core::mem::offset_of!(MmaMicrokernelParams, rows) - 8usize];
    ["Offset of field: MmaMicrokernelParams::out"]
        [::core::mem::offset_of!(MmaMicrokernelParams, out) - 16usize];
    ["Offset of field: MmaMicrokernelParams::vocab"]
        [::core::mem::offset_of!(MmaMicrokernelParams, vocab) - 24usize];
    ["Offset of field: MmaMicrokernelParams::row_count"]
        [::core::mem::offset_of!(MmaMicrokernelParams, row_count) - 28usize];
    ["Offset of field: MmaMicrokernelParams::hidden"]
        [::core::mem::offset_of!(MmaMicrokernelParams, hidden) - 32usize];
};
#[doc = " 16-bit or int8 through TMA and wgmma."]
#[repr(C)]
#[repr(align(64))]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct WgmmaMicrokernelParams {
    #[doc = " [vocab, hidden], boxes of 64 rows x 128 bytes, 128-byte swizzle"]
    pub weights: TensorMap,
    #[doc = " [row_count, hidden], boxes of the kernel's row tile x 128 bytes, 128-byte swizzle"]
    pub rows: TensorMap,
    #[doc = " [row_count, vocab], f32 or int32"]
    pub out: *mut ::core::ffi::c_void,
    pub vocab: u32,
    pub row_count: u32,
    pub hidden: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of WgmmaMicrokernelParams"][::core::mem::size_of::<WgmmaMicrokernelParams>() - 320usize];
    ["Alignment of WgmmaMicrokernelParams"][::core::mem::align_of::<WgmmaMicrokernelParams>() - 64usize];
    ["Offset of field: WgmmaMicrokernelParams::weights"]
        [::core::mem::offset_of!(WgmmaMicrokernelParams, weights) - 0usize];
    ["Offset of field: WgmmaMicrokernelParams::rows"]
        [::core::mem::offset_of!(WgmmaMicrokernelParams, rows) - 128usize];
    ["Offset of field: WgmmaMicrokernelParams::out"]
        [::core::mem::offset_of!(WgmmaMicrokernelParams, out) - 256usize];
    ["Offset of field: WgmmaMicrokernelParams::vocab"]
        [::core::mem::offset_of!(WgmmaMicrokernelParams, vocab) - 264usize];
    ["Offset of field: WgmmaMicrokernelParams::row_count"]
        [::core::mem::offset_of!(WgmmaMicrokernelParams, row_count) - 268usize];
    ["Offset of field: WgmmaMicrokernelParams::hidden"]
        [::core::mem::offset_of!(WgmmaMicrokernelParams, hidden) - 272usize];
};
#[doc = " bf16: TMA for the weights, cp.async for rows that are picked by index."]
#[repr(C)]
#[repr(align(64))]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct GatherMicrokernelParams {
    #[doc = " [vocab, hidden], boxes of 64 rows x 128 bytes, 128-byte swizzle"]
    pub weights: TensorMap,
    #[doc = " [source_rows, hidden] bf16"]
    pub rows: *const u16,
    #[doc = " [row_count] row numbers; out of range: a row of zeros"]
    pub indices: *const i32,
    #[doc = " [row_count, vocab]"]
    pub out: *mut f32,
    pub vocab: u32,
    pub row_count: u32,
    pub source_rows: u32,
    pub hidden: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of GatherMicrokernelParams"][::core::mem::size_of::<GatherMicrokernelParams>() - 192usize];
    ["Alignment of GatherMicrokernelParams"][::core::mem::align_of::<GatherMicrokernelParams>() - 64usize];
    ["Offset of field: GatherMicrokernelParams::weights"]
        [::core::mem::offset_of!(GatherMicrokernelParams, weights) - 0usize];
    ["Offset of field: GatherMicrokernelParams::rows"]
        [::core::mem::offset_of!(GatherMicrokernelParams, rows) - 128usize];
    ["Offset of field: GatherMicrokernelParams::indices"]
        [::core::mem::offset_of!(GatherMicrokernelParams, indices) - 136usize];
    ["Offset of field: GatherMicrokernelParams::out"]
        [::core::mem::offset_of!(GatherMicrokernelParams, out) - 144usize];
    ["Offset of field: GatherMicrokernelParams::vocab"]
        [::core::mem::offset_of!(GatherMicrokernelParams, vocab) - 152usize];
    ["Offset of field: GatherMicrokernelParams::row_count"]
        [::core::mem::offset_of!(GatherMicrokernelParams, row_count) - 156usize];
    ["Offset of field: GatherMicrokernelParams::source_rows"]
        [::core::mem::offset_of!(GatherMicrokernelParams, source_rows) - 160usize];
    ["Offset of field: GatherMicrokernelParams::hidden"]
        [::core::mem::offset_of!(GatherMicrokernelParams, hidden) - 164usize];
};
#[doc = " a logit, as it is delivered, is NaN or infinite; minus infinity from an adjustment is legal"]
pub const LMHEAD_STATUS_NONFINITE: LmheadStatus = 1;
#[doc = " a logit is above minus infinity"]
pub const LMHEAD_STATUS_ALLOWED: LmheadStatus = 2;
#[doc = " the row's index is out of range: the row was computed as zeros"]
pub const LMHEAD_STATUS_BAD_INDEX: LmheadStatus = 4;
#[doc = " where raw and adjusted logits are both stored: only adjustments made a logit NaN or infinite"]
pub const LMHEAD_STATUS_ADJUSTED: LmheadStatus = 8;
#[doc = " What kernels find out about a row: flags that they or into its status word."]
pub type LmheadStatus = ::core::ffi::c_uint;
pub const LMHEAD_DTYPE_F32: LmheadDtype = 0;
pub const LMHEAD_DTYPE_F16: LmheadDtype = 1;
pub const LMHEAD_DTYPE_BF16: LmheadDtype = 2;
#[doc = " Types of logits, and of rows before they are quantised."]
pub type LmheadDtype = ::core::ffi::c_uint;
#[doc = " Row-major; or packed, for wgmma_matmul: [blocks of 64 ids][pitch / 128 columns of 128 bytes of k][64\n ids][128 bytes], each 64 x 128 bytes swizzled as in shared memory (kernels/swizzle.cuh). The number of\n blocks is even. Ids after the last one repeat it, and bytes after the end of k are zeros."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct WeightMatrix {
    #[doc = " [vocab, hidden], 16-byte aligned"]
    pub data: *const ::core::ffi::c_void,
    #[doc = " row-major: bytes from row to row, a multiple of 16; packed: bytes of all columns of a row, a multiple of\n 128"]
    pub pitch: u64,
    #[doc = " [vocab], for int8 weights"]
    pub scales: *const f32,
    #[doc = " [vocab], may be null"]
    pub bias: *const f32,
    #[doc = " 1: packed; 0: row-major"]
    pub packed: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of WeightMatrix"][::core::mem::size_of::<WeightMatrix>() - 40usize];
    ["Alignment of WeightMatrix"][::core::mem::align_of::<WeightMatrix>() - 8usize];
    ["Offset of field: WeightMatrix::data"][::core::mem::offset_of!(WeightMatrix, data) - 0usize];
    ["Offset of field: WeightMatrix::pitch"][::core::mem::offset_of!(WeightMatrix, pitch) - 8usize];
    ["Offset of field: WeightMatrix::scales"][::core::mem::offset_of!(WeightMatrix, scales) - 16usize];
    ["Offset of field: WeightMatrix::bias"][::core::mem::offset_of!(WeightMatrix, bias) - 24usize];
    ["Offset of field: WeightMatrix::packed"][::core::mem::offset_of!(WeightMatrix, packed) - 32usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct RowMatrix {
    #[doc = " [source_rows, hidden], aligned to its elements; read faster if aligned to 16"]
    pub data: *const ::core::ffi::c_void,
    #[doc = " bytes from row to row, a multiple of the element size"]
    pub pitch: u64,
    #[doc = " [row_count] row numbers, int32 or int64; may be null: row i is row i of data"]
    pub indices: *const ::core::ffi::c_void,
    #[doc = " 4 or 8"]
    pub index_bytes: u32,
    pub source_rows: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of RowMatrix"][::core::mem::size_of::<RowMatrix>() - 32usize];
    ["Alignment of RowMatrix"][::core::mem::align_of::<RowMatrix>() - 8usize];
    ["Offset of field: RowMatrix::data"][::core::mem::offset_of!(RowMatrix, data) - 0usize];
    ["Offset of field: RowMatrix::pitch"][::core::mem::offset_of!(RowMatrix, pitch) - 8usize];
    ["Offset of field: RowMatrix::indices"][::core::mem::offset_of!(RowMatrix, indices) - 16usize];
    ["Offset of field: RowMatrix::index_bytes"][::core::mem::offset_of!(RowMatrix, index_bytes) - 24usize];
    ["Offset of field: RowMatrix::source_rows"][::core::mem::offset_of!(RowMatrix, source_rows) - 28usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct LogitMatrix {
    #[doc = " [row_count, vocab], aligned to its elements; written faster if aligned to 16"]
    pub data: *mut ::core::ffi::c_void,
    #[doc = " bytes from row to row, a multiple of the element size. A shard may write its columns of a wider matrix"]
    pub pitch: u64,
    #[doc = " [row_count]; flags LMHEAD_STATUS_* are or'ed into it. The caller sets it before: to 0 if there are\n adjustments, else to LMHEAD_STATUS_ALLOWED"]
    pub status: *mut u32,
    #[doc = " LMHEAD_DTYPE_*"]
    pub dtype: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LogitMatrix"][::core::mem::size_of::<LogitMatrix>() - 32usize];
    ["Alignment of LogitMatrix"][::core::mem::align_of::<LogitMatrix>() - 8usize];
    ["Offset of field: LogitMatrix::data"][::core::mem::offset_of!(LogitMatrix, data) - 0usize];
    ["Offset of field: LogitMatrix::pitch"][::core::mem::offset_of!(LogitMatrix, pitch) - 8usize];
    ["Offset of field: LogitMatrix::status"][::core::mem::offset_of!(LogitMatrix, status) - 16usize];
    ["Offset of field: LogitMatrix::dtype"][::core::mem::offset_of!(LogitMatrix, dtype) - 24usize];
};
#[doc = " Changes to the logits after bias, softcap and scale, in this order. Ids are counted from the shard's\n first."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct LogitAdjustments {
    #[doc = " [row_count + 1], may be null; row i has the entries offsets[i]..offsets[i + 1]"]
    pub logit_bias_offsets: *const u32,
    #[doc = " [entries], ascending within a row; values of equal ids are added in\norder"]
    pub logit_bias_ids: *const u32,
    #[doc = " [entries]"]
    pub logit_bias_values: *const f32,
    #[doc = " [row_count + 1], may be null: no penalties"]
    pub count_offsets: *const u32,
    #[doc = " [entries], ascending within a row, each once"]
    pub count_ids: *const u32,
    #[doc = " [entries]: 2·(times in the output) + (in the prompt)"]
    pub counts: *const u32,
    #[doc = " [row_count]"]
    pub repetition: *const f32,
    #[doc = " [row_count]"]
    pub frequency: *const f32,
    #[doc = " [row_count]"]
    pub presence: *const f32,
    #[doc = " [row_count, allowed_pitch] words, may be null; an id is allowed if bit id % 32 of word id / 32 is 1"]
    pub allowed: *const u32,
    #[doc = " words from row to row"]
    pub allowed_pitch: u64,
    #[doc = " [row_count], may be null; divide the rows' logits, unless 0"]
    pub temperatures: *const f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LogitAdjustments"][::core::mem::size_of::<LogitAdjustments>() - 96usize];
    ["Alignment of LogitAdjustments"][::core::mem::align_of::<LogitAdjustments>() - 8usize];
    ["Offset of field: LogitAdjustments::logit_bias_offsets"]
        [::core::mem::offset_of!(LogitAdjustments, logit_bias_offsets) - 0usize];
    ["Offset of field: LogitAdjustments::logit_bias_ids"]
        [::core::mem::offset_of!(LogitAdjustments, logit_bias_ids) - 8usize];
    ["Offset of field: LogitAdjustments::logit_bias_values"]
        [::core::mem::offset_of!(LogitAdjustments, logit_bias_values) - 16usize];
    ["Offset of field: LogitAdjustments::count_offsets"]
        [::core::mem::offset_of!(LogitAdjustments, count_offsets) - 24usize];
    ["Offset of field: LogitAdjustments::count_ids"]
        [::core::mem::offset_of!(LogitAdjustments, count_ids) - 32usize];
    ["Offset of field: LogitAdjustments::counts"]
        [::core::mem::offset_of!(LogitAdjustments, counts) - 40usize];
    ["Offset of field: LogitAdjustments::repetition"]
        [::core::mem::offset_of!(LogitAdjustments, repetition) - 48usize];
    ["Offset of field: LogitAdjustments::frequency"]
        [::core::mem::offset_of!(LogitAdjustments, frequency) - 56usize];
    ["Offset of field: LogitAdjustments::presence"]
        [::core::mem::offset_of!(LogitAdjustments, presence) - 64usize];
    ["Offset of field: LogitAdjustments::allowed"]
        [::core::mem::offset_of!(LogitAdjustments, allowed) - 72usize];
    ["Offset of field: LogitAdjustments::allowed_pitch"]
        [::core::mem::offset_of!(LogitAdjustments, allowed_pitch) - 80usize];
    ["Offset of field: LogitAdjustments::temperatures"]
        [::core::mem::offset_of!(LogitAdjustments, temperatures) - 88usize];
};
#[doc = " A vocabulary id and its f32 logit."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct Candidate {
    pub value: f32,
    pub id: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of Candidate"][::core::mem::size_of::<Candidate>() - 8usize];
    ["Alignment of Candidate"][::core::mem::align_of::<Candidate>() - 4usize];
    ["Offset of field: Candidate::value"][::core::mem::offset_of!(Candidate, value) - 0usize];
    ["Offset of field: Candidate::id"][::core::mem::offset_of!(Candidate, id) - 4usize];
};
#[doc = " A partial answer: what one part of the vocabulary (a tile or a shard) contributes to one row. Flat bytes:\n kernels write them, ranks exchange them, the host merges them. In a matrix, each row has this struct, then\n `k` places for Candidates, then `targets` counts (uint32_t) of the ids that beat each target, then zeros up\n to a multiple of 8 bytes. A part of fewer than k ids has one place for each id. Kernels that read shards'\n partials expect the best candidate first; the candidates of tiles are in any order, and so may be those\n that the host merges."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct PartialRow {
    #[doc = " sum of exponentials: digits top - 2, top - 1 and top, without carries"]
    pub digits: [u64; 3usize],
    #[doc = " the highest digit's number; INT32_MIN if no logit has a term or no sum is wanted"]
    pub top: i32,
    #[doc = " LMHEAD_STATUS_*"]
    pub status: u32,
    #[doc = " number of places in use; the contents of the others have no meaning"]
    pub candidates: u32,
    #[doc = " 0"]
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of PartialRow"][::core::mem::size_of::<PartialRow>() - 40usize];
    ["Alignment of PartialRow"][::core::mem::align_of::<PartialRow>() - 8usize];
    ["Offset of field: PartialRow::digits"][::core::mem::offset_of!(PartialRow, digits) - 0usize];
    ["Offset of field: PartialRow::top"][::core::mem::offset_of!(PartialRow, top) - 24usize];
    ["Offset of field: PartialRow::status"][::core::mem::offset_of!(PartialRow, status) - 28usize];
    ["Offset of field: PartialRow::candidates"][::core::mem::offset_of!(PartialRow, candidates) - 32usize];
    ["Offset of field: PartialRow::reserved"][::core::mem::offset_of!(PartialRow, reserved) - 36usize];
};
pub const LMHEAD_BEST: LmheadBest = 64;
#[doc = " The most candidates that kernels find in a row."]
pub type LmheadBest = ::core::ffi::c_uint;
#[doc = " How one row is sampled. A row with an illegal parameter gets the status of bad input."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct SamplingRow {
    pub seed: u64,
    pub position: u64,
    #[doc = " 0: take the largest logit; else finite and above 0"]
    pub temperature: f32,
    #[doc = " keep only the k largest; 0, or at least the vocabulary size: keep all"]
    pub top_k: u32,
    #[doc = " keep only the smallest set with this mass; above 0 and at most 1"]
    pub top_p: f32,
    #[doc = " keep only ids at least this probable relative to the best; 0 to 1"]
    pub min_p: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of SamplingRow"][::core::mem::size_of::<SamplingRow>() - 32usize];
    ["Alignment of SamplingRow"][::core::mem::align_of::<SamplingRow>() - 8usize];
    ["Offset of field: SamplingRow::seed"][::core::mem::offset_of!(SamplingRow, seed) - 0usize];
    ["Offset of field: SamplingRow::position"][::core::mem::offset_of!(SamplingRow, position) - 8usize];
    ["Offset of field: SamplingRow::temperature"]
        [::core::mem::offset_of!(SamplingRow, temperature) - 16usize];
    ["Offset of field: SamplingRow::top_k"][::core::mem::offset_of!(SamplingRow, top_k) - 20usize];
    ["Offset of field: SamplingRow::top_p"][::core::mem::offset_of!(SamplingRow, top_p) - 24usize];
    ["Offset of field: SamplingRow::min_p"][::core::mem::offset_of!(SamplingRow, min_p) - 28usize];
};
#[doc = " What a matmul writes for each tile of ids instead of logits: PartialRows without status, [tiles,\n row_count]. A tile leaves out candidates that it saw beaten by other tiles."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct TilePartials {
    #[doc = " aligned to 8; null: logits are stored"]
    pub data: *mut u8,
    #[doc = " [row_count], zeros before the launch. Each is a bound in the order of answers::ordered: the row's k-th\n best logit is at least this; with draws: the score of the drawn id is at least this"]
    pub bars: *mut u32,
    #[doc = " [row_count], may be null. If given, `data` has one Candidate for each row and tile instead, [row_count,\n tiles]: the id that is drawn among the tile's without filters, in the whole vocabulary's numbers; minus\n infinity if the tile saw that another one wins"]
    pub draws: *const SamplingRow,
    #[doc = " [row_count, target_count], in the whole vocabulary's numbers. Each tile counts how many of its ids beat\n the target; for the id UINT32_MAX it counts none"]
    pub targets: *const Candidate,
    #[doc = " 1 to LMHEAD_BEST"]
    pub k: u32,
    #[doc = " 0: no sums"]
    pub sum: u32,
    #[doc = " first vocabulary id of the shard; added to the ids of draws and targets"]
    pub first_id: u32,
    #[doc = " targets of each row; 0: no targets"]
    pub target_count: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of TilePartials"][::core::mem::size_of::<TilePartials>() - 48usize];
    ["Alignment of TilePartials"][::core::mem::align_of::<TilePartials>() - 8usize];
    ["Offset of field: TilePartials::data"][::core::mem::offset_of!(TilePartials, data) - 0usize];
    ["Offset of field: TilePartials::bars"][::core::mem::offset_of!(TilePartials, bars) - 8usize];
    ["Offset of field: TilePartials::draws"][::core::mem::offset_of!(TilePartials, draws) - 16usize];
    ["Offset of field: TilePartials::targets"][::core::mem::offset_of!(TilePartials, targets) - 24usize];
    ["Offset of field: TilePartials::k"][::core::mem::offset_of!(TilePartials, k) - 32usize];
    ["Offset of field: TilePartials::sum"][::core::mem::offset_of!(TilePartials, sum) - 36usize];
    ["Offset of field: TilePartials::first_id"][::core::mem::offset_of!(TilePartials, first_id) - 40usize];
    ["Offset of field: TilePartials::target_count"]
        [::core::mem::offset_of!(TilePartials, target_count) - 44usize];
};
pub const LMHEAD_MIN_STAGES: LmheadStages = 3;
pub const LMHEAD_MAX_STAGES: LmheadStages = 16;
pub const LMHEAD_WGMMA_MIN_STAGES: LmheadStages = 2;
pub const LMHEAD_WGMMA_MAX_STAGES: LmheadStages = 16;
#[doc = " Fewest and most stages of k in shared memory, first for rings that cp.async fills, then for wgmma_matmul.\n No device has room for more."]
pub type LmheadStages = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct MatmulParams {
    pub weights: WeightMatrix,
    #[doc = " address and pitch are multiples of 16"]
    pub rows: RowMatrix,
    #[doc = " [row_count], for quantised rows"]
    pub row_scales: *const f32,
    #[doc = " where partials are asked for, only `status` is used"]
    pub logits: LogitMatrix,
    pub adjustments: LogitAdjustments,
    #[doc = " [row_count, vocab] at logits.pitch, may be null: also store the f32 logits\nwithout adjustments here"]
    pub raw: *mut f32,
    pub partials: TilePartials,
    #[doc = " final_logit_softcapping; 0: no softcap"]
    pub softcap: f32,
    #[doc = " multiplies the logit after the softcap"]
    pub scale: f32,
    pub vocab: u32,
    pub row_count: u32,
    pub hidden: u32,
    #[doc = " within LmheadStages; the launch has shared memory for them"]
    pub stages: u32,
    #[doc = " wgmma_matmul, if tail_ids > 0: tiles before this number have block_n ids, later ones tail_ids (the last\n may have fewer). One tile then holds all rows"]
    pub whole_tiles: u32,
    #[doc = " a multiple of 8, below block_n; 0: all tiles have block_n ids"]
    pub tail_ids: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MatmulParams"][::core::mem::size_of::<MatmulParams>() - 296usize];
    ["Alignment of MatmulParams"][::core::mem::align_of::<MatmulParams>() - 8usize];
    ["Offset of field: MatmulParams::weights"][::core::mem::offset_of!(MatmulParams, weights) - 0usize];
    ["Offset of field: MatmulParams::rows"][::core::mem::offset_of!(MatmulParams, rows) - 40usize];
    ["Offset of field: MatmulParams::row_scales"]
        [::core::mem::offset_of!(MatmulParams, row_scales) - 72usize];
    ["Offset of field: MatmulParams::logits"][::core::mem::offset_of!(MatmulParams, logits) - 80usize];
    ["Offset of field: MatmulParams::adjustments"]
        [::core::mem::offset_of!(MatmulParams, adjustments) - 112usize];
    ["Offset of field: MatmulParams::raw"][::core::mem::offset_of!(MatmulParams, raw) - 208usize];
    ["Offset of field: MatmulParams::partials"][::core::mem::offset_of!(MatmulParams, partials) - 216usize];
    ["Offset of field: MatmulParams::softcap"][::core::mem::offset_of!(MatmulParams, softcap) - 264usize];
    ["Offset of field: MatmulParams::scale"][::core::mem::offset_of!(MatmulParams, scale) - 268usize];
    ["Offset of field: MatmulParams::vocab"][::core::mem::offset_of!(MatmulParams, vocab) - 272usize];
    ["Offset of field: MatmulParams::row_count"][::core::mem::offset_of!(MatmulParams, row_count) - 276usize];
    ["Offset of field: MatmulParams::hidden"][::core::mem::offset_of!(MatmulParams, hidden) - 280usize];
    ["Offset of field: MatmulParams::stages"][::core::mem::offset_of!(MatmulParams, stages) - 284usize];
    ["Offset of field: MatmulParams::whole_tiles"]
        [::core::mem::offset_of!(MatmulParams, whole_tiles) - 288usize];
    ["Offset of field: MatmulParams::tail_ids"][::core::mem::offset_of!(MatmulParams, tail_ids) - 292usize];
};
#[doc = " kernels/target_logits_sm80.cu: the logits of a few ids of each row, with the same bits as the matmul's. It\n runs before the matmul, whose tiles compare their own logits with these."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct TargetLogitsParams {
    #[doc = " the matmul; its logits, raw and partials are ignored, and its stages are\nLMHEAD_TARGET_STAGES"]
    pub product: MatmulParams,
    #[doc = " [row_count, per_row] vocabulary ids"]
    pub targets: *const u32,
    #[doc = " [row_count, per_row]; NaN for an id of another shard"]
    pub out: *mut f32,
    #[doc = " at least 1"]
    pub per_row: u32,
    #[doc = " first vocabulary id of the shard"]
    pub first_id: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of TargetLogitsParams"][::core::mem::size_of::<TargetLogitsParams>() - 320usize];
    ["Alignment of TargetLogitsParams"][::core::mem::align_of::<TargetLogitsParams>() - 8usize];
    ["Offset of field: TargetLogitsParams::product"]
        [::core::mem::offset_of!(TargetLogitsParams, product) - 0usize];
    ["Offset of field: TargetLogitsParams::targets"]
        [::core::mem::offset_of!(TargetLogitsParams, targets) - 296usize];
    ["Offset of field: TargetLogitsParams::out"][::core::mem::offset_of!(TargetLogitsParams, out) - 304usize];
    ["Offset of field: TargetLogitsParams::per_row"]
        [::core::mem::offset_of!(TargetLogitsParams, per_row) - 312usize];
    ["Offset of field: TargetLogitsParams::first_id"]
        [::core::mem::offset_of!(TargetLogitsParams, first_id) - 316usize];
};
pub const LMHEAD_TARGET_ROWS: LmheadTargetTile = 8;
pub const LMHEAD_TARGETS: LmheadTargetTile = 8;
pub const LMHEAD_TARGET_STAGES: LmheadTargetTile = 4;
#[doc = " Rows of a block, targets of each row that it takes at once, and stages of k."]
pub type LmheadTargetTile = ::core::ffi::c_uint;
#[doc = " kernels/stage_rows_sm90a.cu: picks rows by index and lays them out as wgmma_matmul copies them to shared\n memory. One block for each row, also for those that pad the last tile."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct StageRowsParams {
    pub rows: RowMatrix,
    #[doc = " [tiles of block_m rows][columns of 128 bytes of k][block_m][128 bytes], aligned to 16, each block_m x\n 128 bytes swizzled; zeros after the last row and after the end of k. For 8-bit weights and 16-bit rows\n the number of columns is even, and each 16 elements are in the order 0, 1, 4, 5, 8, 9, 12, 13, then the\n other eight"]
    pub out: *mut u8,
    #[doc = " [row_count], written for quantised rows"]
    pub scales: *mut f32,
    #[doc = " [row_count], overwritten: status_before and the flags that are found"]
    pub status: *mut u32,
    #[doc = " [row_count], set to 0; may be null"]
    pub bars: *mut u32,
    pub row_count: u32,
    pub hidden: u32,
    #[doc = " a multiple of 8"]
    pub block_m: u32,
    #[doc = " LMHEAD_STATUS_*"]
    pub status_before: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of StageRowsParams"][::core::mem::size_of::<StageRowsParams>() - 80usize];
    ["Alignment of StageRowsParams"][::core::mem::align_of::<StageRowsParams>() - 8usize];
    ["Offset of field: StageRowsParams::rows"][::core::mem::offset_of!(StageRowsParams, rows) - 0usize];
    ["Offset of field: StageRowsParams::out"][::core::mem::offset_of!(StageRowsParams, out) - 32usize];
    ["Offset of field: StageRowsParams::scales"][::core::mem::offset_of!(StageRowsParams, scales) - 40usize];
    ["Offset of field: StageRowsParams::status"][::core::mem::offset_of!(StageRowsParams, status) - 48usize];
    ["Offset of field: StageRowsParams::bars"][::core::mem::offset_of!(StageRowsParams, bars) - 56usize];
    ["Offset of field: StageRowsParams::row_count"]
        [::core::mem::offset_of!(StageRowsParams, row_count) - 64usize];
    ["Offset of field: StageRowsParams::hidden"][::core::mem::offset_of!(StageRowsParams, hidden) - 68usize];
    ["Offset of field: StageRowsParams::block_m"]
        [::core::mem::offset_of!(StageRowsParams, block_m) - 72usize];
    ["Offset of field: StageRowsParams::status_before"]
        [::core::mem::offset_of!(StageRowsParams, status_before) - 76usize];
};
#[doc = " Partials of all parts that have ids, one part after another: `gap` bytes, then [rows] PartialRows. Part i\n begins where it would if every part before it had k places. A part is a tile (part_ids > 0) or a shard."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct PartialParts {
    #[doc = " aligned to 8"]
    pub data: *const u8,
    #[doc = " [rows] further LMHEAD_STATUS_*, or'ed to those of the parts; may be null"]
    pub status: *const u32,
    #[doc = " a multiple of 8"]
    pub gap: u64,
    #[doc = " LMHEAD_STATUS_* that leave a row without an answer"]
    pub nonfinite: u32,
    pub rows: u32,
    #[doc = " 1 to LMHEAD_BEST; any in kernels/lists_sm80.cu"]
    pub k: u32,
    #[doc = " targets of each row"]
    pub targets: u32,
    #[doc = " ids of all parts"]
    pub vocab: u32,
    #[doc = " parts that have ids"]
    pub parts: u32,
    #[doc = " ids of a part (the last may have fewer). 0: parts are shards, of whole blocks of\n64 ids that are spread evenly"]
    pub part_ids: u32,
    #[doc = " if part_ids and tail_ids are not 0: parts from this number on have tail_ids"]
    pub whole_parts: u32,
    #[doc = " ids of such a part (the last may have fewer)"]
    pub tail_ids: u32,
    #[doc = " if part_ids is 0: number of shards, also those without ids"]
    pub shards: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of PartialParts"][::core::mem::size_of::<PartialParts>() - 64usize];
    ["Alignment of PartialParts"][::core::mem::align_of::<PartialParts>() - 8usize];
    ["Offset of field: PartialParts::data"][::core::mem::offset_of!(PartialParts, data) - 0usize];
    ["Offset of field: PartialParts::status"][::core::mem::offset_of!(PartialParts, status) - 8usize];
    ["Offset of field: PartialParts::gap"][::core::mem::offset_of!(PartialParts, gap) - 16usize];
    ["Offset of field: PartialParts::nonfinite"][::core::mem::offset_of!(PartialParts, nonfinite) - 24usize];
    ["Offset of field: PartialParts::rows"][::core::mem::offset_of!(PartialParts, rows) - 28usize];
    ["Offset of field: PartialParts::k"][::core::mem::offset_of!(PartialParts, k) - 32usize];
    ["Offset of field: PartialParts::targets"][::core::mem::offset_of!(PartialParts, targets) - 36usize];
    ["Offset of field: PartialParts::vocab"][::core::mem::offset_of!(PartialParts, vocab) - 40usize];
    ["Offset of field: PartialParts::parts"][::core::mem::offset_of!(PartialParts, parts) - 44usize];
    ["Offset of field: PartialParts::part_ids"][::core::mem::offset_of!(PartialParts, part_ids) - 48usize];
    ["Offset of field: PartialParts::whole_parts"]
        [::core::mem::offset_of!(PartialParts, whole_parts) - 52usize];
    ["Offset of field: PartialParts::tail_ids"][::core::mem::offset_of!(PartialParts, tail_ids) - 56usize];
    ["Offset of field: PartialParts::shards"][::core::mem::offset_of!(PartialParts, shards) - 60usize];
};
#[doc = " Joins all parts into one."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct MergePartialsParams {
    pub from: PartialParts,
    #[doc = " [rows] PartialRows of all ids, aligned to 8"]
    pub out: *mut u8,
    #[doc = " added to each id"]
    pub first_id: u32,
    #[doc = " candidate places of a row of `out`; those after from.k are not written"]
    pub places: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MergePartialsParams"][::core::mem::size_of::<MergePartialsParams>() - 80usize];
    ["Alignment of MergePartialsParams"][::core::mem::align_of::<MergePartialsParams>() - 8usize];
    ["Offset of field: MergePartialsParams::from"]
        [::core::mem::offset_of!(MergePartialsParams, from) - 0usize];
    ["Offset of field: MergePartialsParams::out"]
        [::core::mem::offset_of!(MergePartialsParams, out) - 64usize];
    ["Offset of field: MergePartialsParams::first_id"]
        [::core::mem::offset_of!(MergePartialsParams, first_id) - 72usize];
    ["Offset of field: MergePartialsParams::places"]
        [::core::mem::offset_of!(MergePartialsParams, places) - 76usize];
};
#[doc = " Makes answers from partials. A message that no shard can have sent gives its row status 3."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FinishParams {
    pub from: PartialParts,
    #[doc = " [rows, k], best first; -1 in places without an id"]
    pub ids: *mut i64,
    #[doc = " [rows, k], minus infinity in places without an id; null: not wanted"]
    pub values: *mut f32,
    #[doc = " [rows], written if values are wanted"]
    pub logsumexp: *mut f32,
    #[doc = " [rows] 0 good, 1 not finite, 2 nothing allowed, 3 bad input"]
    pub row_status: *mut u8,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FinishParams"][::core::mem::size_of::<FinishParams>() - 96usize];
    ["Alignment of FinishParams"][::core::mem::align_of::<FinishParams>() - 8usize];
    ["Offset of field: FinishParams::from"][::core::mem::offset_of!(FinishParams, from) - 0usize];
    ["Offset of field: FinishParams::ids"][::core::mem::offset_of!(FinishParams, ids) - 64usize];
    ["Offset of field: FinishParams::values"][::core::mem::offset_of!(FinishParams, values) - 72usize];
    ["Offset of field: FinishParams::logsumexp"][::core::mem::offset_of!(FinishParams, logsumexp) - 80usize];
    ["Offset of field: FinishParams::row_status"]
        [::core::mem::offset_of!(FinishParams, row_status) - 88usize];
};
#[doc = " Makes the answers of logprobs from partials."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FinishLogprobsParams {
    pub from: PartialParts,
    #[doc = " [rows, from.targets]; id UINT32_MAX: no target"]
    pub targets: *const Candidate,
    #[doc = " [rows, from.targets] of the targets; NaN without a target"]
    pub logprobs: *mut f32,
    #[doc = " [rows, from.targets] of the targets, from 1; -1 without a target"]
    pub ranks: *mut i64,
    #[doc = " [rows, top_n] as FinishParams.ids"]
    pub top_ids: *mut i64,
    #[doc = " [rows, top_n]"]
    pub top_logprobs: *mut f32,
    #[doc = " [rows] as FinishParams"]
    pub row_status: *mut u8,
    #[doc = " 0 to from.k"]
    pub top_n: u32,
    #[doc = " 1: a row whose row_status is not 0 before the launch keeps it"]
    pub drawn: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FinishLogprobsParams"][::core::mem::size_of::<FinishLogprobsParams>() - 120usize];
    ["Alignment of FinishLogprobsParams"][::core::mem::align_of::<FinishLogprobsParams>() - 8usize];
    ["Offset of field: FinishLogprobsParams::from"]
        [::core::mem::offset_of!(FinishLogprobsParams, from) - 0usize];
    ["Offset of field: FinishLogprobsParams::targets"]
        [::core::mem::offset_of!(FinishLogprobsParams, targets) - 64usize];
    ["Offset of field: FinishLogprobsParams::logprobs"]
        [::core::mem::offset_of!(FinishLogprobsParams, logprobs) - 72usize];
    ["Offset of field: FinishLogprobsParams::ranks"]
        [::core::mem::offset_of!(FinishLogprobsParams, ranks) - 80usize];
    ["Offset of field: FinishLogprobsParams::top_ids"]
        [::core::mem::offset_of!(FinishLogprobsParams, top_ids) - 88usize];
    ["Offset of field: FinishLogprobsParams::top_logprobs"]
        [::core::mem::offset_of!(FinishLogprobsParams, top_logprobs) - 96usize];
    ["Offset of field: FinishLogprobsParams::row_status"]
        [::core::mem::offset_of!(FinishLogprobsParams, row_status) - 104usize];
    ["Offset of field: FinishLogprobsParams::top_n"]
        [::core::mem::offset_of!(FinishLogprobsParams, top_n) - 112usize];
    ["Offset of field: FinishLogprobsParams::drawn"]
        [::core::mem::offset_of!(FinishLogprobsParams, drawn) - 116usize];
};
#[doc = " kernels/lists_sm80.cu: the same answers from lists of any length that shards sent, sorted with the best\n first. One kernel takes FinishParams or FinishLogprobsParams and writes everything but the best ids. Then\n this one puts the best ids in their places, with several blocks for each row."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct PlaceListsParams {
    pub from: PartialParts,
    #[doc = " [rows]"]
    pub row_status: *const u8,
    #[doc = " [rows, n] as FinishParams.ids"]
    pub ids: *mut i64,
    #[doc = " [rows, n]: logits, or logprobs"]
    pub values: *mut f32,
    pub n: u32,
    #[doc = " blocks of a row, a multiple of from.parts"]
    pub blocks: u32,
    #[doc = " 1: values are logprobs; 0: logits"]
    pub logprobs: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of PlaceListsParams"][::core::mem::size_of::<PlaceListsParams>() - 104usize];
    ["Alignment of PlaceListsParams"][::core::mem::align_of::<PlaceListsParams>() - 8usize];
    ["Offset of field: PlaceListsParams::from"][::core::mem::offset_of!(PlaceListsParams, from) - 0usize];
    ["Offset of field: PlaceListsParams::row_status"]
        [::core::mem::offset_of!(PlaceListsParams, row_status) - 64usize];
    ["Offset of field: PlaceListsParams::ids"][::core::mem::offset_of!(PlaceListsParams, ids) - 72usize];
    ["Offset of field: PlaceListsParams::values"]
        [::core::mem::offset_of!(PlaceListsParams, values) - 80usize];
    ["Offset of field: PlaceListsParams::n"][::core::mem::offset_of!(PlaceListsParams, n) - 88usize];
    ["Offset of field: PlaceListsParams::blocks"]
        [::core::mem::offset_of!(PlaceListsParams, blocks) - 92usize];
    ["Offset of field: PlaceListsParams::logprobs"]
        [::core::mem::offset_of!(PlaceListsParams, logprobs) - 96usize];
};
pub const LMHEAD_LISTED: LmheadListed = 1024;
#[doc = " Up to this top_k, candidates are exchanged; above it, ranks search for the k-th largest logit."]
pub type LmheadListed = ::core::ffi::c_uint;
#[doc = " Joins what the tiles of a matmul drew into the shard's candidate of each row."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct MergeDrawsParams {
    #[doc = " [rows, tiles]"]
    pub candidates: *const Candidate,
    #[doc = " [rows] LMHEAD_STATUS_*; null: 0"]
    pub status: *const u32,
    #[doc = " [rows]"]
    pub sampling: *const SamplingRow,
    #[doc = " [rows]; the value is minus infinity if nothing is allowed, NaN for a row without an answer, and infinity\n if the row is bad input or its parameters ask for more than one candidate"]
    pub out: *mut Candidate,
    #[doc = " LMHEAD_STATUS_* that leave a row without an answer"]
    pub nonfinite: u32,
    pub tiles: u32,
    #[doc = " ids of all shards"]
    pub vocab: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MergeDrawsParams"][::core::mem::size_of::<MergeDrawsParams>() - 48usize];
    ["Alignment of MergeDrawsParams"][::core::mem::align_of::<MergeDrawsParams>() - 8usize];
    ["Offset of field: MergeDrawsParams::candidates"]
        [::core::mem::offset_of!(MergeDrawsParams, candidates) - 0usize];
    ["Offset of field: MergeDrawsParams::status"][::core::mem::offset_of!(MergeDrawsParams, status) - 8usize];
    ["Offset of field: MergeDrawsParams::sampling"]
        [::core::mem::offset_of!(MergeDrawsParams, sampling) - 16usize];
    ["Offset of field: MergeDrawsParams::out"][::core::mem::offset_of!(MergeDrawsParams, out) - 24usize];
    ["Offset of field: MergeDrawsParams::nonfinite"]
        [::core::mem::offset_of!(MergeDrawsParams, nonfinite) - 32usize];
    ["Offset of field: MergeDrawsParams::tiles"][::core::mem::offset_of!(MergeDrawsParams, tiles) - 36usize];
    ["Offset of field: MergeDrawsParams::vocab"][::core::mem::offset_of!(MergeDrawsParams, vocab) - 40usize];
};
#[doc = " Draws one id for each row from the candidates of all shards, which lie one shard after another. Each row of\n a shard has `places` candidates. With places = 0 it has as many as its parameters ask for (one, or top_k),\n at most the shard's ids."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FinishDrawParams {
    #[doc = " in any order within a row and shard; minus infinity in unused places"]
    pub candidates: *const Candidate,
    #[doc = " length of `candidates`: a row with places beyond it is bad input"]
    pub count: u64,
    #[doc = " [rows] further LMHEAD_STATUS_*, may be null"]
    pub status: *const u32,
    #[doc = " [rows]"]
    pub sampling: *const SamplingRow,
    #[doc = " [rows]; -1 for a row without an answer"]
    pub ids: *mut i64,
    #[doc = " [rows] the same ids; UINT32_MAX without an answer; may be null"]
    pub tokens: *mut u32,
    #[doc = " [rows] as FinishParams"]
    pub row_status: *mut u8,
    pub rows: u32,
    #[doc = " ids of all shards"]
    pub vocab: u32,
    #[doc = " shards as PartialParts has them if part_ids is 0"]
    pub shards: u32,
    pub places: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FinishDrawParams"][::core::mem::size_of::<FinishDrawParams>() - 72usize];
    ["Alignment of FinishDrawParams"][::core::mem::align_of::<FinishDrawParams>() - 8usize];
    ["Offset of field: FinishDrawParams::candidates"]
        [::core::mem::offset_of!(FinishDrawParams, candidates) - 0usize];
    ["Offset of field: FinishDrawParams::count"][::core::mem::offset_of!(FinishDrawParams, count) - 8usize];
    ["Offset of field: FinishDrawParams::status"]
        [::core::mem::offset_of!(FinishDrawParams, status) - 16usize];
    ["Offset of field: FinishDrawParams::sampling"]
        [::core::mem::offset_of!(FinishDrawParams, sampling) - 24usize];
    ["Offset of field: FinishDrawParams::ids"][::core::mem::offset_of!(FinishDrawParams, ids) - 32usize];
    ["Offset of field: FinishDrawParams::tokens"]
        [::core::mem::offset_of!(FinishDrawParams, tokens) - 40usize];
    ["Offset of field: FinishDrawParams::row_status"]
        [::core::mem::offset_of!(FinishDrawParams, row_status) - 48usize];
    ["Offset of field: FinishDrawParams::rows"][::core::mem::offset_of!(FinishDrawParams, rows) - 56usize];
    ["Offset of field: FinishDrawParams::vocab"][::core::mem::offset_of!(FinishDrawParams, vocab) - 60usize];
    ["Offset of field: FinishDrawParams::shards"]
        [::core::mem::offset_of!(FinishDrawParams, shards) - 64usize];
    ["Offset of field: FinishDrawParams::places"]
        [::core::mem::offset_of!(FinishDrawParams, places) - 68usize];
};
#[doc = " Makes rows of whole logits, and their status, from the shards' messages. Without shards it writes only the\n status."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FinishLogitsParams {
    #[doc = " Messages of the shards. Each: `gap` bytes, then [rows] of the shard's logits and a status word, which is\n the last 4 bytes of the row padded to 16"]
    pub data: *const u8,
    #[doc = " [answered] further LMHEAD_STATUS_*, may be null"]
    pub words: *const u32,
    #[doc = " [answered, vocab] at logits_pitch, aligned to an element"]
    pub logits: *mut u8,
    #[doc = " bytes from row to row, a multiple of the element size"]
    pub logits_pitch: u64,
    #[doc = " [answered] as FinishParams"]
    pub row_status: *mut u8,
    pub gap: u64,
    #[doc = " rows of each message"]
    pub rows: u32,
    #[doc = " only the first `answered` rows are written. A row takes max(1, ceil(vocab /\npart_ids)) blocks"]
    pub answered: u32,
    #[doc = " ids of all shards"]
    pub vocab: u32,
    #[doc = " shards as PartialParts has them if part_ids is 0"]
    pub shards: u32,
    #[doc = " size of a logit: 2 or 4"]
    pub element_bytes: u32,
    #[doc = " ids of a block, a multiple of 64"]
    pub part_ids: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FinishLogitsParams"][::core::mem::size_of::<FinishLogitsParams>() - 72usize];
    ["Alignment of FinishLogitsParams"][::core::mem::align_of::<FinishLogitsParams>() - 8usize];
    ["Offset of field: FinishLogitsParams::data"][::core::mem::offset_of!(FinishLogitsParams, data) - 0usize];
    ["Offset of field: FinishLogitsParams::words"]
        [::core::mem::offset_of!(FinishLogitsParams, words) - 8usize];
    ["Offset of field: FinishLogitsParams::logits"]
        [::core::mem::offset_of!(FinishLogitsParams, logits) - 16usize];
    ["Offset of field: FinishLogitsParams::logits_pitch"]
        [::core::mem::offset_of!(FinishLogitsParams, logits_pitch) - 24usize];
    ["Offset of field: FinishLogitsParams::row_status"]
        [::core::mem::offset_of!(FinishLogitsParams, row_status) - 32usize];
    ["Offset of field: FinishLogitsParams::gap"][::core::mem::offset_of!(FinishLogitsParams, gap) - 40usize];
    ["Offset of field: FinishLogitsParams::rows"]
        [::core::mem::offset_of!(FinishLogitsParams, rows) - 48usize];
    ["Offset of field: FinishLogitsParams::answered"]
        [::core::mem::offset_of!(FinishLogitsParams, answered) - 52usize];
    ["Offset of field: FinishLogitsParams::vocab"]
        [::core::mem::offset_of!(FinishLogitsParams, vocab) - 56usize];
    ["Offset of field: FinishLogitsParams::shards"]
        [::core::mem::offset_of!(FinishLogitsParams, shards) - 60usize];
    ["Offset of field: FinishLogitsParams::element_bytes"]
        [::core::mem::offset_of!(FinishLogitsParams, element_bytes) - 64usize];
    ["Offset of field: FinishLogitsParams::part_ids"]
        [::core::mem::offset_of!(FinishLogitsParams, part_ids) - 68usize];
};
#[doc = " kernels/pack_rows_sm80.cu: copies rows picked by index into a matrix."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct PackRowsParams {
    pub rows: RowMatrix,
    #[doc = " [row_count, row_bytes] at out_pitch, aligned to 2 bytes. If address and pitch are multiples of 16, it is\n written faster, and each row is padded with zeros to a multiple of 16"]
    pub out: *mut u8,
    #[doc = " bytes from row to row: at least row_bytes, a multiple of 2"]
    pub out_pitch: u64,
    #[doc = " [row_count], overwritten: status_before, with LMHEAD_STATUS_BAD_INDEX if the\nindex is out of range; that row is zeros"]
    pub status: *mut u32,
    pub row_count: u32,
    #[doc = " a multiple of 2"]
    pub row_bytes: u32,
    #[doc = " LMHEAD_STATUS_*"]
    pub status_before: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of PackRowsParams"][::core::mem::size_of::<PackRowsParams>() - 72usize];
    ["Alignment of PackRowsParams"][::core::mem::align_of::<PackRowsParams>() - 8usize];
    ["Offset of field: PackRowsParams::rows"][::core::mem::offset_of!(PackRowsParams, rows) - 0usize];
    ["Offset of field: PackRowsParams::out"][::core::mem::offset_of!(PackRowsParams, out) - 32usize];
    ["Offset of field: PackRowsParams::out_pitch"]
        [::core::mem::offset_of!(PackRowsParams, out_pitch) - 40usize];
    ["Offset of field: PackRowsParams::status"][::core::mem::offset_of!(PackRowsParams, status) - 48usize];
    ["Offset of field: PackRowsParams::row_count"]
        [::core::mem::offset_of!(PackRowsParams, row_count) - 56usize];
    ["Offset of field: PackRowsParams::row_bytes"]
        [::core::mem::offset_of!(PackRowsParams, row_bytes) - 60usize];
    ["Offset of field: PackRowsParams::status_before"]
        [::core::mem::offset_of!(PackRowsParams, status_before) - 64usize];
};
pub const LMHEAD_HEADER_HALVES: LmheadHeader = 48;
#[doc = " 4 words: the step's number"]
pub const LMHEAD_HEADER_SEQUENCE: LmheadHeader = 12;
#[doc = " 4 words: rows of the replica"]
pub const LMHEAD_HEADER_ROWS: LmheadHeader = 20;
#[doc = " 4 words: the digest of what a replica's ranks share"]
pub const LMHEAD_HEADER_INPUTS: LmheadHeader = 36;
#[doc = " A header (src/step.rs) as 16-bit words: their number, and the first word of each field that may differ\n between ranks."]
pub type LmheadHeader = ::core::ffi::c_uint;
#[doc = " The state of a head's capacity steps, in device memory."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct CapacityState {
    #[doc = " number of steps that have begun"]
    pub sequence: u64,
    #[doc = " the first step whose headers differed, counted from 1; 0: none differed"]
    pub mismatched: u64,
    #[doc = " the lowest member whose header differed from this rank's in that step"]
    pub member: u32,
    #[doc = " rows of this rank in the last step whose index was out of range"]
    pub bad_rows: u32,
    #[doc = " this rank's header in the step that differed"]
    pub own: [u16; 48usize],
    #[doc = " that member's"]
    pub other: [u16; 48usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of CapacityState"][::core::mem::size_of::<CapacityState>() - 216usize];
    ["Alignment of CapacityState"][::core::mem::align_of::<CapacityState>() - 8usize];
    ["Offset of field: CapacityState::sequence"][::core::mem::offset_of!(CapacityState, sequence) - 0usize];
    ["Offset of field: CapacityState::mismatched"]
        [::core::mem::offset_of!(CapacityState, mismatched) - 8usize];
    ["Offset of field: CapacityState::member"][::core::mem::offset_of!(CapacityState, member) - 16usize];
    ["Offset of field: CapacityState::bad_rows"][::core::mem::offset_of!(CapacityState, bad_rows) - 20usize];
    ["Offset of field: CapacityState::own"][::core::mem::offset_of!(CapacityState, own) - 24usize];
    ["Offset of field: CapacityState::other"][::core::mem::offset_of!(CapacityState, other) - 120usize];
};
#[doc = " Copies this rank's rows, picked by index, and pads them with rows of zeros. One block for each row."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct PackCapacityParams {
    pub rows: RowMatrix,
    #[doc = " [capacity, row_bytes], aligned to 2 bytes; written faster if aligned to 16"]
    pub out: *mut u8,
    #[doc = " [capacity] as PackRowsParams.status; 0 after the last row"]
    pub status: *mut u32,
    #[doc = " [capacity] digests of the rows' bits; null: not wanted"]
    pub digests: *mut u64,
    #[doc = " at most capacity"]
    pub row_count: u32,
    #[doc = " a multiple of 2"]
    pub row_bytes: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of PackCapacityParams"][::core::mem::size_of::<PackCapacityParams>() - 64usize];
    ["Alignment of PackCapacityParams"][::core::mem::align_of::<PackCapacityParams>() - 8usize];
    ["Offset of field: PackCapacityParams::rows"][::core::mem::offset_of!(PackCapacityParams, rows) - 0usize];
    ["Offset of field: PackCapacityParams::out"][::core::mem::offset_of!(PackCapacityParams, out) - 32usize];
    ["Offset of field: PackCapacityParams::status"]
        [::core::mem::offset_of!(PackCapacityParams, status) - 40usize];
    ["Offset of field: PackCapacityParams::digests"]
        [::core::mem::offset_of!(PackCapacityParams, digests) - 48usize];
    ["Offset of field: PackCapacityParams::row_count"]
        [::core::mem::offset_of!(PackCapacityParams, row_count) - 56usize];
    ["Offset of field: PackCapacityParams::row_bytes"]
        [::core::mem::offset_of!(PackCapacityParams, row_bytes) - 60usize];
};
#[doc = " Counts the step and writes this rank's header. One block."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct OpenCapacityParams {
    #[doc = " without the step's number and, if `digests` is given, the digest"]
    pub header: [u16; 48usize],
    pub state: *mut CapacityState,
    #[doc = " [LMHEAD_HEADER_HALVES]"]
    pub out: *mut u16,
    #[doc = " [row_count] digests of the rows; null: the header has no digest"]
    pub digests: *const u64,
    #[doc = " [row_count] digests of the rows' adjustments; null: no adjustments"]
    pub adjusted: *const u64,
    #[doc = " [row_count]"]
    pub status: *const u32,
    #[doc = " [input_words] other inputs that a replica's ranks share; part of the digest"]
    pub inputs: *const u32,
    pub input_words: u32,
    pub row_count: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of OpenCapacityParams"][::core::mem::size_of::<OpenCapacityParams>() - 152usize];
    ["Alignment of OpenCapacityParams"][::core::mem::align_of::<OpenCapacityParams>() - 8usize];
    ["Offset of field: OpenCapacityParams::header"]
        [::core::mem::offset_of!(OpenCapacityParams, header) - 0usize];
    ["Offset of field: OpenCapacityParams::state"]
        [::core::mem::offset_of!(OpenCapacityParams, state) - 96usize];
    ["Offset of field: OpenCapacityParams::out"][::core::mem::offset_of!(OpenCapacityParams, out) - 104usize];
    ["Offset of field: OpenCapacityParams::digests"]
        [::core::mem::offset_of!(OpenCapacityParams, digests) - 112usize];
    ["Offset of field: OpenCapacityParams::adjusted"]
        [::core::mem::offset_of!(OpenCapacityParams, adjusted) - 120usize];
    ["Offset of field: OpenCapacityParams::status"]
        [::core::mem::offset_of!(OpenCapacityParams, status) - 128usize];
    ["Offset of field: OpenCapacityParams::inputs"]
        [::core::mem::offset_of!(OpenCapacityParams, inputs) - 136usize];
    ["Offset of field: OpenCapacityParams::input_words"]
        [::core::mem::offset_of!(OpenCapacityParams, input_words) - 144usize];
    ["Offset of field: OpenCapacityParams::row_count"]
        [::core::mem::offset_of!(OpenCapacityParams, row_count) - 148usize];
};
#[doc = " Compares the headers that arrived, and writes where the rows of all replicas are. One block. If headers\n differ, or a replica has more rows than the capacity, every row gets an index out of range."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct CheckCapacityParams {
    #[doc = " [LMHEAD_HEADER_HALVES] this rank's header"]
    pub own: *const u16,
    #[doc = " [members] headers, aligned to 2 bytes"]
    pub headers: *const u8,
    #[doc = " bytes from header to header"]
    pub header_pitch: u64,
    pub state: *mut CapacityState,
    #[doc = " [members / ranks, parts, part_rows] row numbers; -1 after the last row"]
    pub positions: *mut i32,
    pub members: u32,
    #[doc = " members of each replica; their headers are side by side"]
    pub ranks: u32,
    #[doc = " this rank's number among the members"]
    pub me: u32,
    #[doc = " rows of a replica, at most"]
    pub capacity: u32,
    #[doc = " a replica's rows are answered in this number of parts of nearly equal size"]
    pub parts: u32,
    #[doc = " rows of the largest part if a replica has `capacity` rows"]
    pub part_rows: u32,
    #[doc = " number of the first replica's first row"]
    pub first_row: u32,
    #[doc = " distance between the first rows of neighbouring replicas"]
    pub replica_rows: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of CheckCapacityParams"][::core::mem::size_of::<CheckCapacityParams>() - 72usize];
    ["Alignment of CheckCapacityParams"][::core::mem::align_of::<CheckCapacityParams>() - 8usize];
    ["Offset of field: CheckCapacityParams::own"][::core::mem::offset_of!(CheckCapacityParams, own) - 0usize];
    ["Offset of field: CheckCapacityParams::headers"]
        [::core::mem::offset_of!(CheckCapacityParams, headers) - 8usize];
    ["Offset of field: CheckCapacityParams::header_pitch"]
        [::core::mem::offset_of!(CheckCapacityParams, header_pitch) - 16usize];
    ["Offset of field: CheckCapacityParams::state"]
        [::core::mem::offset_of!(CheckCapacityParams, state) - 24usize];
    ["Offset of field: CheckCapacityParams::positions"]
        [::core::mem::offset_of!(CheckCapacityParams, positions) - 32usize];
    ["Offset of field: CheckCapacityParams::members"]
        [::core::mem::offset_of!(CheckCapacityParams, members) - 40usize];
    ["Offset of field: CheckCapacityParams::ranks"]
        [::core::mem::offset_of!(CheckCapacityParams, ranks) - 44usize];
    ["Offset of field: CheckCapacityParams::me"][::core::mem::offset_of!(CheckCapacityParams, me) - 48usize];
    ["Offset of field: CheckCapacityParams::capacity"]
        [::core::mem::offset_of!(CheckCapacityParams, capacity) - 52usize];
    ["Offset of field: CheckCapacityParams::parts"]
        [::core::mem::offset_of!(CheckCapacityParams, parts) - 56usize];
    ["Offset of field: CheckCapacityParams::part_rows"]
        [::core::mem::offset_of!(CheckCapacityParams, part_rows) - 60usize];
    ["Offset of field: CheckCapacityParams::first_row"]
        [::core::mem::offset_of!(CheckCapacityParams, first_row) - 64usize];
    ["Offset of field: CheckCapacityParams::replica_rows"]
        [::core::mem::offset_of!(CheckCapacityParams, replica_rows) - 68usize];
};
#[doc = " kernels/held_sm80.cu: passes over logits that a matmul stored."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct HeldMatrix {
    #[doc = " [rows, ids], 16-byte aligned"]
    pub data: *const f32,
    #[doc = " [rows] LMHEAD_STATUS_*; null for a shard without ids"]
    pub status: *const u32,
    #[doc = " bytes from row to row, a multiple of 16"]
    pub pitch: u64,
    #[doc = " LMHEAD_STATUS_* that leave a row without an answer"]
    pub nonfinite: u32,
    pub rows: u32,
    #[doc = " ids of the shard"]
    pub ids: u32,
    #[doc = " first vocabulary id of the shard"]
    pub first_id: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of HeldMatrix"][::core::mem::size_of::<HeldMatrix>() - 40usize];
    ["Alignment of HeldMatrix"][::core::mem::align_of::<HeldMatrix>() - 8usize];
    ["Offset of field: HeldMatrix::data"][::core::mem::offset_of!(HeldMatrix, data) - 0usize];
    ["Offset of field: HeldMatrix::status"][::core::mem::offset_of!(HeldMatrix, status) - 8usize];
    ["Offset of field: HeldMatrix::pitch"][::core::mem::offset_of!(HeldMatrix, pitch) - 16usize];
    ["Offset of field: HeldMatrix::nonfinite"][::core::mem::offset_of!(HeldMatrix, nonfinite) - 24usize];
    ["Offset of field: HeldMatrix::rows"][::core::mem::offset_of!(HeldMatrix, rows) - 28usize];
    ["Offset of field: HeldMatrix::ids"][::core::mem::offset_of!(HeldMatrix, ids) - 32usize];
    ["Offset of field: HeldMatrix::first_id"][::core::mem::offset_of!(HeldMatrix, first_id) - 36usize];
};
#[doc = " Makes the partials of each part of the held rows, like those of tiles: without status."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct SummariseHeldParams {
    pub held: HeldMatrix,
    #[doc = " [parts, rows] PartialRows, with ids counted from the shard's first"]
    pub data: *mut u8,
    #[doc = " [rows, target_count]: counts the ids that beat each; none for id UINT32_MAX"]
    pub targets: *const Candidate,
    #[doc = " 1 to LMHEAD_BEST, at most part_ids"]
    pub k: u32,
    #[doc = " 0: no sums"]
    pub sum: u32,
    #[doc = " targets of each row"]
    pub target_count: u32,
    #[doc = " ids of a part (the last may have fewer), a multiple of 64"]
    pub part_ids: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of SummariseHeldParams"][::core::mem::size_of::<SummariseHeldParams>() - 72usize];
    ["Alignment of SummariseHeldParams"][::core::mem::align_of::<SummariseHeldParams>() - 8usize];
    ["Offset of field: SummariseHeldParams::held"]
        [::core::mem::offset_of!(SummariseHeldParams, held) - 0usize];
    ["Offset of field: SummariseHeldParams::data"]
        [::core::mem::offset_of!(SummariseHeldParams, data) - 40usize];
    ["Offset of field: SummariseHeldParams::targets"]
        [::core::mem::offset_of!(SummariseHeldParams, targets) - 48usize];
    ["Offset of field: SummariseHeldParams::k"][::core::mem::offset_of!(SummariseHeldParams, k) - 56usize];
    ["Offset of field: SummariseHeldParams::sum"]
        [::core::mem::offset_of!(SummariseHeldParams, sum) - 60usize];
    ["Offset of field: SummariseHeldParams::target_count"]
        [::core::mem::offset_of!(SummariseHeldParams, target_count) - 64usize];
    ["Offset of field: SummariseHeldParams::part_ids"]
        [::core::mem::offset_of!(SummariseHeldParams, part_ids) - 68usize];
};
#[doc = " Reads the logits of targets."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct HeldTargetsParams {
    pub held: HeldMatrix,
    #[doc = " [rows, per_row] vocabulary ids"]
    pub targets: *const u32,
    #[doc = " [rows, per_row]; NaN for an id of another shard"]
    pub out: *mut f32,
    pub per_row: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of HeldTargetsParams"][::core::mem::size_of::<HeldTargetsParams>() - 64usize];
    ["Alignment of HeldTargetsParams"][::core::mem::align_of::<HeldTargetsParams>() - 8usize];
    ["Offset of field: HeldTargetsParams::held"][::core::mem::offset_of!(HeldTargetsParams, held) - 0usize];
    ["Offset of field: HeldTargetsParams::targets"]
        [::core::mem::offset_of!(HeldTargetsParams, targets) - 40usize];
    ["Offset of field: HeldTargetsParams::out"][::core::mem::offset_of!(HeldTargetsParams, out) - 48usize];
    ["Offset of field: HeldTargetsParams::per_row"]
        [::core::mem::offset_of!(HeldTargetsParams, per_row) - 56usize];
};
#[doc = " Which logits of a row a draw or a search keeps: those above `cut`, and those equal to it with an id below\n `ties_end`, if (logit - max) / temperature >= `least`."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct KeptLogits {
    pub max: f32,
    pub temperature: f32,
    pub least: f32,
    pub cut: f32,
    #[doc = " a vocabulary id"]
    pub ties_end: u32,
    #[doc = " number of the held row"]
    pub row: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of KeptLogits"][::core::mem::size_of::<KeptLogits>() - 24usize];
    ["Alignment of KeptLogits"][::core::mem::align_of::<KeptLogits>() - 4usize];
    ["Offset of field: KeptLogits::max"][::core::mem::offset_of!(KeptLogits, max) - 0usize];
    ["Offset of field: KeptLogits::temperature"][::core::mem::offset_of!(KeptLogits, temperature) - 4usize];
    ["Offset of field: KeptLogits::least"][::core::mem::offset_of!(KeptLogits, least) - 8usize];
    ["Offset of field: KeptLogits::cut"][::core::mem::offset_of!(KeptLogits, cut) - 12usize];
    ["Offset of field: KeptLogits::ties_end"][::core::mem::offset_of!(KeptLogits, ties_end) - 16usize];
    ["Offset of field: KeptLogits::row"][::core::mem::offset_of!(KeptLogits, row) - 20usize];
};
#[doc = " Finds the largest logit of rows."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct HeldMaximaParams {
    pub held: HeldMatrix,
    #[doc = " [count] row numbers; null: all held rows"]
    pub rows: *const u32,
    #[doc = " [count]; minus infinity: nothing is allowed; NaN: a row without an answer"]
    pub out: *mut f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of HeldMaximaParams"][::core::mem::size_of::<HeldMaximaParams>() - 56usize];
    ["Alignment of HeldMaximaParams"][::core::mem::align_of::<HeldMaximaParams>() - 8usize];
    ["Offset of field: HeldMaximaParams::held"][::core::mem::offset_of!(HeldMaximaParams, held) - 0usize];
    ["Offset of field: HeldMaximaParams::rows"][::core::mem::offset_of!(HeldMaximaParams, rows) - 40usize];
    ["Offset of field: HeldMaximaParams::out"][::core::mem::offset_of!(HeldMaximaParams, out) - 48usize];
};
#[doc = " A query for a histogram: of the kept logits whose order keys have the known digits, how many (or what mass)\n have each value of the next digit."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct HeldHistogram {
    pub kept: KeptLogits,
    #[doc = " 1: add masses; 0: count ids"]
    pub masses: u32,
    #[doc = " mask of the bits above the digit; there a logit's key must equal `key`"]
    pub known: u32,
    pub key: u32,
    #[doc = " number of bits below the digit"]
    pub shift: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of HeldHistogram"][::core::mem::size_of::<HeldHistogram>() - 40usize];
    ["Alignment of HeldHistogram"][::core::mem::align_of::<HeldHistogram>() - 4usize];
    ["Offset of field: HeldHistogram::kept"][::core::mem::offset_of!(HeldHistogram, kept) - 0usize];
    ["Offset of field: HeldHistogram::masses"][::core::mem::offset_of!(HeldHistogram, masses) - 24usize];
    ["Offset of field: HeldHistogram::known"][::core::mem::offset_of!(HeldHistogram, known) - 28usize];
    ["Offset of field: HeldHistogram::key"][::core::mem::offset_of!(HeldHistogram, key) - 32usize];
    ["Offset of field: HeldHistogram::shift"][::core::mem::offset_of!(HeldHistogram, shift) - 36usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct HeldHistogramsParams {
    pub held: HeldMatrix,
    #[doc = " [count]"]
    pub queries: *const HeldHistogram,
    #[doc = " [count, bins]"]
    pub out: *mut u64,
    #[doc = " 2 to 256, a power of two"]
    pub bins: u32,
    #[doc = " the largest mass is 2 to this power"]
    pub unit: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of HeldHistogramsParams"][::core::mem::size_of::<HeldHistogramsParams>() - 64usize];
    ["Alignment of HeldHistogramsParams"][::core::mem::align_of::<HeldHistogramsParams>() - 8usize];
    ["Offset of field: HeldHistogramsParams::held"]
        [::core::mem::offset_of!(HeldHistogramsParams, held) - 0usize];
    ["Offset of field: HeldHistogramsParams::queries"]
        [::core::mem::offset_of!(HeldHistogramsParams, queries) - 40usize];
    ["Offset of field: HeldHistogramsParams::out"]
        [::core::mem::offset_of!(HeldHistogramsParams, out) - 48usize];
    ["Offset of field: HeldHistogramsParams::bins"]
        [::core::mem::offset_of!(HeldHistogramsParams, bins) - 56usize];
    ["Offset of field: HeldHistogramsParams::unit"]
        [::core::mem::offset_of!(HeldHistogramsParams, unit) - 60usize];
};
#[doc = " A query for the end of ties: where the `allowance`th kept id with this logit is."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct HeldTies {
    pub kept: KeptLogits,
    pub logit: f32,
    pub allowance: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of HeldTies"][::core::mem::size_of::<HeldTies>() - 32usize];
    ["Alignment of HeldTies"][::core::mem::align_of::<HeldTies>() - 4usize];
    ["Offset of field: HeldTies::kept"][::core::mem::offset_of!(HeldTies, kept) - 0usize];
    ["Offset of field: HeldTies::logit"][::core::mem::offset_of!(HeldTies, logit) - 24usize];
    ["Offset of field: HeldTies::allowance"][::core::mem::offset_of!(HeldTies, allowance) - 28usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct HeldTiesParams {
    pub held: HeldMatrix,
    #[doc = " [count]"]
    pub queries: *const HeldTies,
    #[doc = " [count] that id plus 1; 0 if the allowance is 0 or there are fewer ids"]
    pub out: *mut u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of HeldTiesParams"][::core::mem::size_of::<HeldTiesParams>() - 56usize];
    ["Alignment of HeldTiesParams"][::core::mem::align_of::<HeldTiesParams>() - 8usize];
    ["Offset of field: HeldTiesParams::held"][::core::mem::offset_of!(HeldTiesParams, held) - 0usize];
    ["Offset of field: HeldTiesParams::queries"][::core::mem::offset_of!(HeldTiesParams, queries) - 40usize];
    ["Offset of field: HeldTiesParams::out"][::core::mem::offset_of!(HeldTiesParams, out) - 48usize];
};
pub const LMHEAD_DAMAGED: LmheadDamaged = 2;
#[doc = " HeldWanted.filtered of a row with bad input: its candidate is infinity, which no draw accepts."]
pub type LmheadDamaged = ::core::ffi::c_uint;
#[doc = " A query for candidates of a row: the k best, or the one that is drawn."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct HeldWanted {
    #[doc = " kept logits, for a draw with filters"]
    pub kept: KeptLogits,
    #[doc = " 1: a draw with filters; 0: without; or LMHEAD_DAMAGED"]
    pub filtered: u32,
    #[doc = " 0: draw one"]
    pub k: u32,
    pub seed: u64,
    pub position: u64,
    #[doc = " index in `out` of the first candidate"]
    pub place: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of HeldWanted"][::core::mem::size_of::<HeldWanted>() - 56usize];
    ["Alignment of HeldWanted"][::core::mem::align_of::<HeldWanted>() - 8usize];
    ["Offset of field: HeldWanted::kept"][::core::mem::offset_of!(HeldWanted, kept) - 0usize];
    ["Offset of field: HeldWanted::filtered"][::core::mem::offset_of!(HeldWanted, filtered) - 24usize];
    ["Offset of field: HeldWanted::k"][::core::mem::offset_of!(HeldWanted, k) - 28usize];
    ["Offset of field: HeldWanted::seed"][::core::mem::offset_of!(HeldWanted, seed) - 32usize];
    ["Offset of field: HeldWanted::position"][::core::mem::offset_of!(HeldWanted, position) - 40usize];
    ["Offset of field: HeldWanted::place"][::core::mem::offset_of!(HeldWanted, place) - 48usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct HeldCandidatesParams {
    pub held: HeldMatrix,
    #[doc = " [count]"]
    pub queries: *const HeldWanted,
    #[doc = " minus infinity in unused places; for a row without an answer, first a NaN"]
    pub out: *mut Candidate,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of HeldCandidatesParams"][::core::mem::size_of::<HeldCandidatesParams>() - 56usize];
    ["Alignment of HeldCandidatesParams"][::core::mem::align_of::<HeldCandidatesParams>() - 8usize];
    ["Offset of field: HeldCandidatesParams::held"]
        [::core::mem::offset_of!(HeldCandidatesParams, held) - 0usize];
    ["Offset of field: HeldCandidatesParams::queries"]
        [::core::mem::offset_of!(HeldCandidatesParams, queries) - 40usize];
    ["Offset of field: HeldCandidatesParams::out"]
        [::core::mem::offset_of!(HeldCandidatesParams, out) - 48usize];
};
#[doc = " What a row's owner has found for one shard: the order key of the last kept logit, as many digits as are\n known. After the last digit also how many of the shard's ids with this logit are kept, the lowest first."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct CutFound {
    pub key: u32,
    #[doc = " UINT32_MAX: the row got messages that no shard can have sent"]
    pub allowance: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of CutFound"][::core::mem::size_of::<CutFound>() - 8usize];
    ["Alignment of CutFound"][::core::mem::align_of::<CutFound>() - 4usize];
    ["Offset of field: CutFound::key"][::core::mem::offset_of!(CutFound, key) - 0usize];
    ["Offset of field: CutFound::allowance"][::core::mem::offset_of!(CutFound, allowance) - 4usize];
};
#[doc = " State of the searches of all held rows, which kernels hand on from one to the next. One thread for each\n row."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct CutRowsParams {
    #[doc = " [rows]"]
    pub sampling: *const SamplingRow,
    #[doc = " [rows] of the held logits"]
    pub status: *const u32,
    #[doc = " [shards, rows] largest logit of each shard and row"]
    pub maxima: *const f32,
    #[doc = " [rows]"]
    pub found: *const CutFound,
    #[doc = " [rows] what HeldTiesParams.out has"]
    pub ends: *const u32,
    #[doc = " [rows] parameters without filters, because the shards apply the filters"]
    pub bare: *mut SamplingRow,
    #[doc = " [rows] what is kept so far, and the draw"]
    pub wanted: *mut HeldWanted,
    #[doc = " [rows]"]
    pub histograms: *mut HeldHistogram,
    #[doc = " [rows]"]
    pub ties: *mut HeldTies,
    pub rows: u32,
    #[doc = " ids of all shards"]
    pub vocab: u32,
    pub shards: u32,
    #[doc = " ids of this rank's shard"]
    pub ids: u32,
    #[doc = " 1: search for the end of the nucleus; 0: for the last of top_k"]
    pub masses: u32,
    #[doc = " HeldHistogram.known and shift of the next digit"]
    pub known: u32,
    pub shift: u32,
    #[doc = " 0"]
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of CutRowsParams"][::core::mem::size_of::<CutRowsParams>() - 104usize];
    ["Alignment of CutRowsParams"][::core::mem::align_of::<CutRowsParams>() - 8usize];
    ["Offset of field: CutRowsParams::sampling"][::core::mem::offset_of!(CutRowsParams, sampling) - 0usize];
    ["Offset of field: CutRowsParams::status"][::core::mem::offset_of!(CutRowsParams, status) - 8usize];
    ["Offset of field: CutRowsParams::maxima"][::core::mem::offset_of!(CutRowsParams, maxima) - 16usize];
    ["Offset of field: CutRowsParams::found"][::core::mem::offset_of!(CutRowsParams, found) - 24usize];
    ["Offset of field: CutRowsParams::ends"][::core::mem::offset_of!(CutRowsParams, ends) - 32usize];
    ["Offset of field: CutRowsParams::bare"][::core::mem::offset_of!(CutRowsParams, bare) - 40usize];
    ["Offset of field: CutRowsParams::wanted"][::core::mem::offset_of!(CutRowsParams, wanted) - 48usize];
    ["Offset of field: CutRowsParams::histograms"]
        [::core::mem::offset_of!(CutRowsParams, histograms) - 56usize];
    ["Offset of field: CutRowsParams::ties"][::core::mem::offset_of!(CutRowsParams, ties) - 64usize];
    ["Offset of field: CutRowsParams::rows"][::core::mem::offset_of!(CutRowsParams, rows) - 72usize];
    ["Offset of field: CutRowsParams::vocab"][::core::mem::offset_of!(CutRowsParams, vocab) - 76usize];
    ["Offset of field: CutRowsParams::shards"][::core::mem::offset_of!(CutRowsParams, shards) - 80usize];
    ["Offset of field: CutRowsParams::ids"][::core::mem::offset_of!(CutRowsParams, ids) - 84usize];
    ["Offset of field: CutRowsParams::masses"][::core::mem::offset_of!(CutRowsParams, masses) - 88usize];
    ["Offset of field: CutRowsParams::known"][::core::mem::offset_of!(CutRowsParams, known) - 92usize];
    ["Offset of field: CutRowsParams::shift"][::core::mem::offset_of!(CutRowsParams, shift) - 96usize];
    ["Offset of field: CutRowsParams::reserved"][::core::mem::offset_of!(CutRowsParams, reserved) - 100usize];
};
#[doc = " The search of a row, as its owner keeps it."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct CutSearch {
    #[doc = " how much of the goal is left among logits with the known digits"]
    pub left: u64,
    #[doc = " the known digits"]
    pub key: u32,
    #[doc = " 1: a message that no shard can have sent"]
    pub damaged: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of CutSearch"][::core::mem::size_of::<CutSearch>() - 16usize];
    ["Alignment of CutSearch"][::core::mem::align_of::<CutSearch>() - 8usize];
    ["Offset of field: CutSearch::left"][::core::mem::offset_of!(CutSearch, left) - 0usize];
    ["Offset of field: CutSearch::key"][::core::mem::offset_of!(CutSearch, key) - 8usize];
    ["Offset of field: CutSearch::damaged"][::core::mem::offset_of!(CutSearch, damaged) - 12usize];
};
#[doc = " Finds the next digit of the rows that this rank owns from the histograms of all shards. One block for each\n row."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct LearnCutsParams {
    #[doc = " [shards, count, bins]"]
    pub histograms: *const u64,
    #[doc = " [count]"]
    pub sampling: *const SamplingRow,
    #[doc = " [count]"]
    pub wanted: *const HeldWanted,
    #[doc = " [count]; the first digit overwrites it"]
    pub searches: *mut CutSearch,
    #[doc = " [shards, count]"]
    pub found: *mut CutFound,
    #[doc = " rows"]
    pub count: u32,
    #[doc = " ids of all shards"]
    pub vocab: u32,
    pub shards: u32,
    #[doc = " 2 to 256"]
    pub bins: u32,
    #[doc = " as in CutRowsParams"]
    pub masses: u32,
    #[doc = " HeldHistogram.known and shift of this digit"]
    pub known: u32,
    pub shift: u32,
    #[doc = " 0"]
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of LearnCutsParams"][::core::mem::size_of::<LearnCutsParams>() - 72usize];
    ["Alignment of LearnCutsParams"][::core::mem::align_of::<LearnCutsParams>() - 8usize];
    ["Offset of field: LearnCutsParams::histograms"]
        [::core::mem::offset_of!(LearnCutsParams, histograms) - 0usize];
    ["Offset of field: LearnCutsParams::sampling"]
        [::core::mem::offset_of!(LearnCutsParams, sampling) - 8usize];
    ["Offset of field: LearnCutsParams::wanted"][::core::mem::offset_of!(LearnCutsParams, wanted) - 16usize];
    ["Offset of field: LearnCutsParams::searches"]
        [::core::mem::offset_of!(LearnCutsParams, searches) - 24usize];
    ["Offset of field: LearnCutsParams::found"][::core::mem::offset_of!(LearnCutsParams, found) - 32usize];
    ["Offset of field: LearnCutsParams::count"][::core::mem::offset_of!(LearnCutsParams, count) - 40usize];
    ["Offset of field: LearnCutsParams::vocab"][::core::mem::offset_of!(LearnCutsParams, vocab) - 44usize];
    ["Offset of field: LearnCutsParams::shards"][::core::mem::offset_of!(LearnCutsParams, shards) - 48usize];
    ["Offset of field: LearnCutsParams::bins"][::core::mem::offset_of!(LearnCutsParams, bins) - 52usize];
    ["Offset of field: LearnCutsParams::masses"][::core::mem::offset_of!(LearnCutsParams, masses) - 56usize];
    ["Offset of field: LearnCutsParams::known"][::core::mem::offset_of!(LearnCutsParams, known) - 60usize];
    ["Offset of field: LearnCutsParams::shift"][::core::mem::offset_of!(LearnCutsParams, shift) - 64usize];
    ["Offset of field: LearnCutsParams::reserved"]
        [::core::mem::offset_of!(LearnCutsParams, reserved) - 68usize];
};
pub const LMHEAD_SELECT_DIGIT: LmheadSelect = 11;
pub const LMHEAD_SELECT_CHUNK: LmheadSelect = 2048;
#[doc = " Bits of one digit of the keys that the selection looks at, and how many keys are sorted at once."]
pub type LmheadSelect = ::core::ffi::c_uint;
#[doc = " What is known of a query's k-th largest key."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct SelectState {
    #[doc = " its known digits, followed by zeros"]
    pub least: u64,
    #[doc = " keys with these digits that are still wanted"]
    pub wanted: u32,
    #[doc = " 1: all keys with these digits are wanted, so every key >= `least` is"]
    pub known: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of SelectState"][::core::mem::size_of::<SelectState>() - 16usize];
    ["Alignment of SelectState"][::core::mem::align_of::<SelectState>() - 8usize];
    ["Offset of field: SelectState::least"][::core::mem::offset_of!(SelectState, least) - 0usize];
    ["Offset of field: SelectState::wanted"][::core::mem::offset_of!(SelectState, wanted) - 8usize];
    ["Offset of field: SelectState::known"][::core::mem::offset_of!(SelectState, known) - 12usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct SelectParams {
    pub held: HeldMatrix,
    #[doc = " [count], each with k > 0; null: the k best of each held row"]
    pub queries: *const HeldWanted,
    #[doc = " Candidates for `queries`; PartialRows for held rows, with candidates set"]
    pub out: *mut u8,
    #[doc = " for held rows: bytes from row to row of `out`"]
    pub out_pitch: u64,
    #[doc = " [rounds, count, 2^LMHEAD_SELECT_DIGIT], zeros before the launch"]
    pub bins: *mut u32,
    #[doc = " [rounds, count]"]
    pub states: *mut SelectState,
    #[doc = " [count] number of keys in `keys`; zeros before the launch"]
    pub found: *mut u32,
    #[doc = " [count, k]"]
    pub keys: *mut u64,
    #[doc = " queries, or held rows"]
    pub count: u32,
    #[doc = " at most held.ids; for `queries`: the smaller of the largest k and held.ids"]
    pub k: u32,
    #[doc = " ids of a part of a row, a multiple of 64"]
    pub part_ids: u32,
    #[doc = " bits of the largest id, counted from the shard's first"]
    pub id_bits: u32,
    #[doc = " digits of a key; 0 if all ids are wanted"]
    pub rounds: u32,
    pub round: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of SelectParams"][::core::mem::size_of::<SelectParams>() - 120usize];
    ["Alignment of SelectParams"][::core::mem::align_of::<SelectParams>() - 8usize];
    ["Offset of field: SelectParams::held"][::core::mem::offset_of!(SelectParams, held) - 0usize];
    ["Offset of field: SelectParams::queries"][::core::mem::offset_of!(SelectParams, queries) - 40usize];
    ["Offset of field: SelectParams::out"][::core::mem::offset_of!(SelectParams, out) - 48usize];
    ["Offset of field: SelectParams::out_pitch"][::core::mem::offset_of!(SelectParams, out_pitch) - 56usize];
    ["Offset of field: SelectParams::bins"][::core::mem::offset_of!(SelectParams, bins) - 64usize];
    ["Offset of field: SelectParams::states"][::core::mem::offset_of!(SelectParams, states) - 72usize];
    ["Offset of field: SelectParams::found"][::core::mem::offset_of!(SelectParams, found) - 80usize];
    ["Offset of field: SelectParams::keys"][::core::mem::offset_of!(SelectParams, keys) - 88usize];
    ["Offset of field: SelectParams::count"][::core::mem::offset_of!(SelectParams, count) - 96usize];
    ["Offset of field: SelectParams::k"][::core::mem::offset_of!(SelectParams, k) - 100usize];
    ["Offset of field: SelectParams::part_ids"][::core::mem::offset_of!(SelectParams, part_ids) - 104usize];
    ["Offset of field: SelectParams::id_bits"][::core::mem::offset_of!(SelectParams, id_bits) - 108usize];
    ["Offset of field: SelectParams::rounds"][::core::mem::offset_of!(SelectParams, rounds) - 112usize];
    ["Offset of field: SelectParams::round"][::core::mem::offset_of!(SelectParams, round) - 116usize];
};
#[doc = " Writes targets as ranks exchange them. One thread for each."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct EncodeTargetsParams {
    #[doc = " [count], per_row for each row; -100: no target"]
    pub ids: *const i64,
    #[doc = " [count]; UINT32_MAX: no target, or an id outside the vocabulary"]
    pub out: *mut u32,
    #[doc = " [rows]"]
    pub status: *mut u32,
    pub count: u64,
    pub per_row: u32,
    pub vocab: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of EncodeTargetsParams"][::core::mem::size_of::<EncodeTargetsParams>() - 40usize];
    ["Alignment of EncodeTargetsParams"][::core::mem::align_of::<EncodeTargetsParams>() - 8usize];
    ["Offset of field: EncodeTargetsParams::ids"][::core::mem::offset_of!(EncodeTargetsParams, ids) - 0usize];
    ["Offset of field: EncodeTargetsParams::out"][::core::mem::offset_of!(EncodeTargetsParams, out) - 8usize];
    ["Offset of field: EncodeTargetsParams::status"]
        [::core::mem::offset_of!(EncodeTargetsParams, status) - 16usize];
    ["Offset of field: EncodeTargetsParams::count"]
        [::core::mem::offset_of!(EncodeTargetsParams, count) - 24usize];
    ["Offset of field: EncodeTargetsParams::per_row"]
        [::core::mem::offset_of!(EncodeTargetsParams, per_row) - 32usize];
    ["Offset of field: EncodeTargetsParams::vocab"]
        [::core::mem::offset_of!(EncodeTargetsParams, vocab) - 36usize];
};
#[doc = " Joins targets with their logits, each from the shard that has the id. One thread for each."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct PickTargetsParams {
    #[doc = " [count]"]
    pub targets: *const u32,
    #[doc = " [shards, count]"]
    pub logits: *const f32,
    #[doc = " [count]; NaN and UINT32_MAX without a target"]
    pub out: *mut Candidate,
    pub count: u64,
    #[doc = " ids of all shards"]
    pub vocab: u32,
    #[doc = " shards as PartialParts has them if part_ids is 0"]
    pub shards: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of PickTargetsParams"][::core::mem::size_of::<PickTargetsParams>() - 40usize];
    ["Alignment of PickTargetsParams"][::core::mem::align_of::<PickTargetsParams>() - 8usize];
    ["Offset of field: PickTargetsParams::targets"]
        [::core::mem::offset_of!(PickTargetsParams, targets) - 0usize];
    ["Offset of field: PickTargetsParams::logits"]
        [::core::mem::offset_of!(PickTargetsParams, logits) - 8usize];
    ["Offset of field: PickTargetsParams::out"][::core::mem::offset_of!(PickTargetsParams, out) - 16usize];
    ["Offset of field: PickTargetsParams::count"]
        [::core::mem::offset_of!(PickTargetsParams, count) - 24usize];
    ["Offset of field: PickTargetsParams::vocab"]
        [::core::mem::offset_of!(PickTargetsParams, vocab) - 32usize];
    ["Offset of field: PickTargetsParams::shards"]
        [::core::mem::offset_of!(PickTargetsParams, shards) - 36usize];
};
#[doc = " into[row] |= from[row]."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct OrStatusParams {
    #[doc = " [rows]"]
    pub from: *const u32,
    #[doc = " [rows]"]
    pub into: *mut u32,
    pub rows: u32,
    #[doc = " 0"]
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of OrStatusParams"][::core::mem::size_of::<OrStatusParams>() - 24usize];
    ["Alignment of OrStatusParams"][::core::mem::align_of::<OrStatusParams>() - 8usize];
    ["Offset of field: OrStatusParams::from"][::core::mem::offset_of!(OrStatusParams, from) - 0usize];
    ["Offset of field: OrStatusParams::into"][::core::mem::offset_of!(OrStatusParams, into) - 8usize];
    ["Offset of field: OrStatusParams::rows"][::core::mem::offset_of!(OrStatusParams, rows) - 16usize];
    ["Offset of field: OrStatusParams::reserved"]
        [::core::mem::offset_of!(OrStatusParams, reserved) - 20usize];
};
#[doc = " Makes SamplingRows from arrays [rows]. For a null array every row has the value that stands first in its\n comment. A row with an illegal value becomes greedy."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct SamplingRowsParams {
    #[doc = " 0"]
    pub seeds: *const u64,
    #[doc = " 0; not negative"]
    pub positions: *const i64,
    #[doc = " 1; finite, not negative"]
    pub temperatures: *const f32,
    #[doc = " 0; not negative"]
    pub top_k: *const i32,
    #[doc = " 1; above 0 and at most 1"]
    pub top_p: *const f32,
    #[doc = " 0; from 0 to 1"]
    pub min_p: *const f32,
    #[doc = " [rows]"]
    pub out: *mut SamplingRow,
    #[doc = " [rows]"]
    pub status: *mut u32,
    pub rows: u32,
    #[doc = " a top_k of at least this becomes 0: keep all"]
    pub vocab: u32,
    #[doc = " 1: a filter is illegal, unless the row is greedy"]
    pub unfiltered: u32,
    #[doc = " 0"]
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of SamplingRowsParams"][::core::mem::size_of::<SamplingRowsParams>() - 80usize];
    ["Alignment of SamplingRowsParams"][::core::mem::align_of::<SamplingRowsParams>() - 8usize];
    ["Offset of field: SamplingRowsParams::seeds"]
        [::core::mem::offset_of!(SamplingRowsParams, seeds) - 0usize];
    ["Offset of field: SamplingRowsParams::positions"]
        [::core::mem::offset_of!(SamplingRowsParams, positions) - 8usize];
    ["Offset of field: SamplingRowsParams::temperatures"]
        [::core::mem::offset_of!(SamplingRowsParams, temperatures) - 16usize];
    ["Offset of field: SamplingRowsParams::top_k"]
        [::core::mem::offset_of!(SamplingRowsParams, top_k) - 24usize];
    ["Offset of field: SamplingRowsParams::top_p"]
        [::core::mem::offset_of!(SamplingRowsParams, top_p) - 32usize];
    ["Offset of field: SamplingRowsParams::min_p"]
        [::core::mem::offset_of!(SamplingRowsParams, min_p) - 40usize];
    ["Offset of field: SamplingRowsParams::out"][::core::mem::offset_of!(SamplingRowsParams, out) - 48usize];
    ["Offset of field: SamplingRowsParams::status"]
        [::core::mem::offset_of!(SamplingRowsParams, status) - 56usize];
    ["Offset of field: SamplingRowsParams::rows"]
        [::core::mem::offset_of!(SamplingRowsParams, rows) - 64usize];
    ["Offset of field: SamplingRowsParams::vocab"]
        [::core::mem::offset_of!(SamplingRowsParams, vocab) - 68usize];
    ["Offset of field: SamplingRowsParams::unfiltered"]
        [::core::mem::offset_of!(SamplingRowsParams, unfiltered) - 72usize];
    ["Offset of field: SamplingRowsParams::reserved"]
        [::core::mem::offset_of!(SamplingRowsParams, reserved) - 76usize];
};
#[doc = " What a row's message to a shard contains, in this order. A shard without ids gets nothing.\n   masks: a bit for each id, in an even number of words\n   logit_bias: this number of places for {id in the shard, f32}, ascending by id; unused places have the id\n   UINT32_MAX\n   counts: repetition, frequency, presence, 0; then this number of places for {id in the shard, 2·count + in\n   the prompt}"]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct AdjustmentPlaces {
    #[doc = " 1: the message has a mask"]
    pub masks: u32,
    #[doc = " places of a row; 0: no logit bias"]
    pub logit_bias: u32,
    #[doc = " places of a row; 0: no penalties"]
    pub counts: u32,
    #[doc = " 0"]
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of AdjustmentPlaces"][::core::mem::size_of::<AdjustmentPlaces>() - 16usize];
    ["Alignment of AdjustmentPlaces"][::core::mem::align_of::<AdjustmentPlaces>() - 4usize];
    ["Offset of field: AdjustmentPlaces::masks"][::core::mem::offset_of!(AdjustmentPlaces, masks) - 0usize];
    ["Offset of field: AdjustmentPlaces::logit_bias"]
        [::core::mem::offset_of!(AdjustmentPlaces, logit_bias) - 4usize];
    ["Offset of field: AdjustmentPlaces::counts"][::core::mem::offset_of!(AdjustmentPlaces, counts) - 8usize];
    ["Offset of field: AdjustmentPlaces::reserved"]
        [::core::mem::offset_of!(AdjustmentPlaces, reserved) - 12usize];
};
#[doc = " Writes the messages with the adjustments of this rank's rows to some shards: [destinations][parts]\n [part_rows]. The rows are divided into `parts` parts of nearly equal size, each with room for `part_rows`\n rows. In unused places all ids are allowed and there are no entries. One block for each row and shard.\n\n For digest_adjustments `out` is [rows] digests of 64 bits, and there is one block for each row."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct PackAdjustmentsParams {
    #[doc = " [rows, ceil(vocab / 32)], may be null: all ids are allowed"]
    pub allowed: *const u32,
    #[doc = " [rows + 1], may be null: no logit bias; row i has the entries offsets[i]..offsets[i + 1]"]
    pub logit_bias_offsets: *const i64,
    #[doc = " [logit_bias_entries], in any order, ascending is fastest; entries of the same id keep their order"]
    pub logit_bias_ids: *const i64,
    #[doc = " [logit_bias_entries]; finite, or minus infinity"]
    pub logit_bias_values: *const f32,
    #[doc = " [rows + 1], may be null: no counts"]
    pub count_offsets: *const i64,
    #[doc = " [count_entries], each id once in a row; ascending is fastest"]
    pub count_ids: *const i64,
    #[doc = " [count_entries], below 2^31"]
    pub counts: *const u32,
    #[doc = " [count_entries], 0 or 1"]
    pub in_prompt: *const u8,
    #[doc = " [rows], may be null: 1; above 0 and finite"]
    pub repetition: *const f32,
    #[doc = " [rows], may be null: 0; finite"]
    pub frequency: *const f32,
    #[doc = " [rows], may be null: 0; finite"]
    pub presence: *const f32,
    pub logit_bias_entries: u64,
    pub count_entries: u64,
    #[doc = " aligned to 8"]
    pub out: *mut u8,
    #[doc = " [rows]"]
    pub status: *mut u32,
    #[doc = " more entries than places are illegal"]
    pub places: AdjustmentPlaces,
    #[doc = " this rank's rows"]
    pub rows: u32,
    pub parts: u32,
    pub part_rows: u32,
    #[doc = " ids of all shards"]
    pub vocab: u32,
    #[doc = " shards as PartialParts has them if part_ids is 0"]
    pub shards: u32,
    #[doc = " destination j is shard first_shard + j·shard_step"]
    pub first_shard: u32,
    pub shard_step: u32,
    #[doc = " 0"]
    pub reserved: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of PackAdjustmentsParams"][::core::mem::size_of::<PackAdjustmentsParams>() - 168usize];
    ["Alignment of PackAdjustmentsParams"][::core::mem::align_of::<PackAdjustmentsParams>() - 8usize];
    ["Offset of field: PackAdjustmentsParams::allowed"]
        [::core::mem::offset_of!(PackAdjustmentsParams, allowed) - 0usize];
    ["Offset of field: PackAdjustmentsParams::logit_bias_offsets"]
        [::core::mem::offset_of!(PackAdjustmentsParams, logit_bias_offsets) - 8usize];
    ["Offset of field: PackAdjustmentsParams::logit_bias_ids"]
        [::core::mem::offset_of!(PackAdjustmentsParams, logit_bias_ids) - 16usize];
    ["Offset of field: PackAdjustmentsParams::logit_bias_values"]
        [::core::mem::offset_of!(PackAdjustmentsParams, logit_bias_values) - 24usize];
    ["Offset of field: PackAdjustmentsParams::count_offsets"]
        [::core::mem::offset_of!(PackAdjustmentsParams, count_offsets) - 32usize];
    ["Offset of field: PackAdjustmentsParams::count_ids"]
        [::core::mem::offset_of!(PackAdjustmentsParams, count_ids) - 40usize];
    ["Offset of field: PackAdjustmentsParams::counts"]
        [::core::mem::offset_of!(PackAdjustmentsParams, counts) - 48usize];
    ["Offset of field: PackAdjustmentsParams::in_prompt"]
        [::core::mem::offset_of!(PackAdjustmentsParams, in_prompt) - 56usize];
    ["Offset of field: PackAdjustmentsParams::repetition"]
        [::core::mem::offset_of!(PackAdjustmentsParams, repetition) - 64usize];
    ["Offset of field: PackAdjustmentsParams::frequency"]
        [::core::mem::offset_of!(PackAdjustmentsParams, frequency) - 72usize];
    ["Offset of field: PackAdjustmentsParams::presence"]
        [::core::mem::offset_of!(PackAdjustmentsParams, presence) - 80usize];
    ["Offset of field: PackAdjustmentsParams::logit_bias_entries"]
        [::core::mem::offset_of!(PackAdjustmentsParams, logit_bias_entries) - 88usize];
    ["Offset of field: PackAdjustmentsParams::count_entries"]
        [::core::mem::offset_of!(PackAdjustmentsParams, count_entries) - 96usize];
    ["Offset of field: PackAdjustmentsParams::out"]
        [::core::mem::offset_of!(PackAdjustmentsParams, out) - 104usize];
    ["Offset of field: PackAdjustmentsParams::status"]
        [::core::mem::offset_of!(PackAdjustmentsParams, status) - 112usize];
    ["Offset of field: PackAdjustmentsParams::places"]
        [::core::mem::offset_of!(PackAdjustmentsParams, places) - 120usize];
    ["Offset of field: PackAdjustmentsParams::rows"]
        [::core::mem::offset_of!(PackAdjustmentsParams, rows) - 136usize];
    ["Offset of field: PackAdjustmentsParams::parts"]
        [::core::mem::offset_of!(PackAdjustmentsParams, parts) - 140usize];
    ["Offset of field: PackAdjustmentsParams::part_rows"]
        [::core::mem::offset_of!(PackAdjustmentsParams, part_rows) - 144usize];
    ["Offset of field: PackAdjustmentsParams::vocab"]
        [::core::mem::offset_of!(PackAdjustmentsParams, vocab) - 148usize];
    ["Offset of field: PackAdjustmentsParams::shards"]
        [::core::mem::offset_of!(PackAdjustmentsParams, shards) - 152usize];
    ["Offset of field: PackAdjustmentsParams::first_shard"]
        [::core::mem::offset_of!(PackAdjustmentsParams, first_shard) - 156usize];
    ["Offset of field: PackAdjustmentsParams::shard_step"]
        [::core::mem::offset_of!(PackAdjustmentsParams, shard_step) - 160usize];
    ["Offset of field: PackAdjustmentsParams::reserved"]
        [::core::mem::offset_of!(PackAdjustmentsParams, reserved) - 164usize];
};
#[doc = " Makes LogitAdjustments from the messages to one shard. The masks are used where they are. One block for\n each row."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct UnpackAdjustmentsParams {
    #[doc = " [rows] messages, aligned to 8"]
    pub data: *const u8,
    #[doc = " [rows + 1]"]
    pub logit_bias_offsets: *mut u32,
    #[doc = " [rows, places.logit_bias]"]
    pub logit_bias_ids: *mut u32,
    #[doc = " [rows, places.logit_bias]"]
    pub logit_bias_values: *mut f32,
    #[doc = " [rows + 1]"]
    pub count_offsets: *mut u32,
    #[doc = " [rows, places.counts]"]
    pub count_ids: *mut u32,
    #[doc = " [rows, places.counts]"]
    pub counts: *mut u32,
    #[doc = " [rows]"]
    pub repetition: *mut f32,
    #[doc = " [rows]"]
    pub frequency: *mut f32,
    #[doc = " [rows]"]
    pub presence: *mut f32,
    pub places: AdjustmentPlaces,
    pub rows: u32,
    #[doc = " ids of the shard"]
    pub ids: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of UnpackAdjustmentsParams"][::core::mem::size_of::<UnpackAdjustmentsParams>() - 104usize];
    ["Alignment of UnpackAdjustmentsParams"][::core::mem::align_of::<UnpackAdjustmentsParams>() - 8usize];
    ["Offset of field: UnpackAdjustmentsParams::data"]
        [::core::mem::offset_of!(UnpackAdjustmentsParams, data) - 0usize];
    ["Offset of field: UnpackAdjustmentsParams::logit_bias_offsets"]
        [::core::mem::offset_of!(UnpackAdjustmentsParams, logit_bias_offsets) - 8usize];
    ["Offset of field: UnpackAdjustmentsParams::logit_bias_ids"]
        [::core::mem::offset_of!(UnpackAdjustmentsParams, logit_bias_ids) - 16usize];
    ["Offset of field: UnpackAdjustmentsParams::logit_bias_values"]
        [::core::mem::offset_of!(UnpackAdjustmentsParams, logit_bias_values) - 24usize];
    ["Offset of field: UnpackAdjustmentsParams::count_offsets"]
        [::core::mem::offset_of!(UnpackAdjustmentsParams, count_offsets) - 32usize];
    ["Offset of field: UnpackAdjustmentsParams::count_ids"]
        [::core::mem::offset_of!(UnpackAdjustmentsParams, count_ids) - 40usize];
    ["Offset of field: UnpackAdjustmentsParams::counts"]
        [::core::mem::offset_of!(UnpackAdjustmentsParams, counts) - 48usize];
    ["Offset of field: UnpackAdjustmentsParams::repetition"]
        [::core::mem::offset_of!(UnpackAdjustmentsParams, repetition) - 56usize];
    ["Offset of field: UnpackAdjustmentsParams::frequency"]
        [::core::mem::offset_of!(UnpackAdjustmentsParams, frequency) - 64usize];
    ["Offset of field: UnpackAdjustmentsParams::presence"]
        [::core::mem::offset_of!(UnpackAdjustmentsParams, presence) - 72usize];
    ["Offset of field: UnpackAdjustmentsParams::places"]
        [::core::mem::offset_of!(UnpackAdjustmentsParams, places) - 80usize];
    ["Offset of field: UnpackAdjustmentsParams::rows"]
        [::core::mem::offset_of!(UnpackAdjustmentsParams, rows) - 96usize];
    ["Offset of field: UnpackAdjustmentsParams::ids"]
        [::core::mem::offset_of!(UnpackAdjustmentsParams, ids) - 100usize];
};
#[doc = " `count` words that get the same value."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct WordsToSet {
    #[doc = " aligned to 4; may be null if count is 0"]
    pub to: *mut u8,
    #[doc = " bytes from word to word, a multiple of 4"]
    pub pitch: u64,
    pub count: u64,
    pub value: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of WordsToSet"][::core::mem::size_of::<WordsToSet>() - 32usize];
    ["Alignment of WordsToSet"][::core::mem::align_of::<WordsToSet>() - 8usize];
    ["Offset of field: WordsToSet::to"][::core::mem::offset_of!(WordsToSet, to) - 0usize];
    ["Offset of field: WordsToSet::pitch"][::core::mem::offset_of!(WordsToSet, pitch) - 8usize];
    ["Offset of field: WordsToSet::count"][::core::mem::offset_of!(WordsToSet, count) - 16usize];
    ["Offset of field: WordsToSet::value"][::core::mem::offset_of!(WordsToSet, value) - 24usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct SetWordsParams {
    pub words: [WordsToSet; 2usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of SetWordsParams"][::core::mem::size_of::<SetWordsParams>() - 64usize];
    ["Alignment of SetWordsParams"][::core::mem::align_of::<SetWordsParams>() - 8usize];
    ["Offset of field: SetWordsParams::words"][::core::mem::offset_of!(SetWordsParams, words) - 0usize];
};
#[doc = " members of a group"]
pub const LMHEAD_MAX_PEERS: LmheadPeers = 64;
#[doc = " between two members, in each direction"]
pub const LMHEAD_PEER_LANES: LmheadPeers = 8;
#[doc = " slots of a lane: one is filled while the other is emptied"]
pub const LMHEAD_PEER_SLOTS: LmheadPeers = 2;
pub const LMHEAD_PEER_SLOT_BYTES: LmheadPeers = 32768;
#[doc = " most threads of a block"]
pub const LMHEAD_PEER_THREADS: LmheadPeers = 64;
#[doc = " kernels/exchange_peers_sm80.cu: a collective by stores into the peers' windows."]
pub type LmheadPeers = ::core::ffi::c_uint;
#[doc = " What a peer says of one lane; it alone stores here. Lines of 128 bytes do not disturb each other."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct PeerFlags {
    #[doc = " chunks that it has stored into this window's slots, modulo 2^32"]
    pub arrived: u32,
    #[doc = " chunks that it has copied from the slots of its own window"]
    pub taken: u32,
    #[doc = " of the piece whose chunk is in the slot, modulo 2^32"]
    pub lengths: [u32; 2usize],
    pub unused: [u32; 28usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of PeerFlags"][::core::mem::size_of::<PeerFlags>() - 128usize];
    ["Alignment of PeerFlags"][::core::mem::align_of::<PeerFlags>() - 4usize];
    ["Offset of field: PeerFlags::arrived"][::core::mem::offset_of!(PeerFlags, arrived) - 0usize];
    ["Offset of field: PeerFlags::taken"][::core::mem::offset_of!(PeerFlags, taken) - 4usize];
    ["Offset of field: PeerFlags::lengths"][::core::mem::offset_of!(PeerFlags, lengths) - 8usize];
    ["Offset of field: PeerFlags::unused"][::core::mem::offset_of!(PeerFlags, unused) - 16usize];
};
#[doc = " How many chunks a lane has passed on, modulo 2^32: in the rank's own memory, zeros at first."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct PeerCounts {
    pub pushed: u32,
    pub taken: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of PeerCounts"][::core::mem::size_of::<PeerCounts>() - 8usize];
    ["Alignment of PeerCounts"][::core::mem::align_of::<PeerCounts>() - 4usize];
    ["Offset of field: PeerCounts::pushed"][::core::mem::offset_of!(PeerCounts, pushed) - 0usize];
    ["Offset of field: PeerCounts::taken"][::core::mem::offset_of!(PeerCounts, taken) - 4usize];
};
#[doc = " In the host's pinned memory; zeros at first."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct PeerStatus {
    #[doc = " not 0: no kernel waits any longer. The host sets it, or a kernel giving up"]
    pub ended: u32,
    #[doc = " 1 + the member for which a kernel has waited in vain; 0: none"]
    pub missing: u32,
    #[doc = " 1 + the member whose piece has another length than is wanted; 0: none"]
    pub mismatched: u32,
    #[doc = " the two lengths, modulo 2^32"]
    pub wanted: u32,
    pub got: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of PeerStatus"][::core::mem::size_of::<PeerStatus>() - 20usize];
    ["Alignment of PeerStatus"][::core::mem::align_of::<PeerStatus>() - 4usize];
    ["Offset of field: PeerStatus::ended"][::core::mem::offset_of!(PeerStatus, ended) - 0usize];
    ["Offset of field: PeerStatus::missing"][::core::mem::offset_of!(PeerStatus, missing) - 4usize];
    ["Offset of field: PeerStatus::mismatched"][::core::mem::offset_of!(PeerStatus, mismatched) - 8usize];
    ["Offset of field: PeerStatus::wanted"][::core::mem::offset_of!(PeerStatus, wanted) - 12usize];
    ["Offset of field: PeerStatus::got"][::core::mem::offset_of!(PeerStatus, got) - 16usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct PeerPieces {
    #[doc = " [send_bytes]"]
    pub send: *const u8,
    #[doc = " [recv_bytes]; if the member is the rank itself, `send` is copied here"]
    pub recv: *mut u8,
    #[doc = " as the member's recv_bytes for this rank"]
    pub send_bytes: u64,
    pub recv_bytes: u64,
    #[doc = " the member's, as this rank reaches it; aligned to 128 bytes"]
    pub window: *mut u8,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of PeerPieces"][::core::mem::size_of::<PeerPieces>() - 40usize];
    ["Alignment of PeerPieces"][::core::mem::align_of::<PeerPieces>() - 8usize];
    ["Offset of field: PeerPieces::send"][::core::mem::offset_of!(PeerPieces, send) - 0usize];
    ["Offset of field: PeerPieces::recv"][::core::mem::offset_of!(PeerPieces, recv) - 8usize];
    ["Offset of field: PeerPieces::send_bytes"][::core::mem::offset_of!(PeerPieces, send_bytes) - 16usize];
    ["Offset of field: PeerPieces::recv_bytes"][::core::mem::offset_of!(PeerPieces, recv_bytes) - 24usize];
    ["Offset of field: PeerPieces::window"][::core::mem::offset_of!(PeerPieces, window) - 32usize];
};
#[doc = " Blocks: [pushes, takes][size][lanes]."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct ExchangePeersParams {
    pub members: [PeerPieces; 64usize],
    #[doc = " [size, LMHEAD_PEER_LANES]"]
    pub counts: *mut PeerCounts,
    pub status: *mut PeerStatus,
    #[doc = " in this rank's own memory, 0 at first. Not 0: an exchange was given up, and\nkernels push nothing more: it may be made of what did not arrive"]
    pub cut: *mut u32,
    #[doc = " longest wait of a kernel"]
    pub timeout_ns: u64,
    #[doc = " a multiple of 128, the same on all members: pieces are cut into chunks of this\nsize"]
    pub slot_bytes: u32,
    #[doc = " members"]
    pub size: u32,
    pub me: u32,
    #[doc = " lanes 0 to lanes - 1 are used: LMHEAD_PEER_LANES, or one for each chunk of the\nlongest piece if it has fewer"]
    pub lanes: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ExchangePeersParams"][::core::mem::size_of::<ExchangePeersParams>() - 2608usize];
    ["Alignment of ExchangePeersParams"][::core::mem::align_of::<ExchangePeersParams>() - 8usize];
    ["Offset of field: ExchangePeersParams::members"]
        [::core::mem::offset_of!(ExchangePeersParams, members) - 0usize];
    ["Offset of field: ExchangePeersParams::counts"]
        [::core::mem::offset_of!(ExchangePeersParams, counts) - 2560usize];
    ["Offset of field: ExchangePeersParams::status"]
        [::core::mem::offset_of!(ExchangePeersParams, status) - 2568usize];
    ["Offset of field: ExchangePeersParams::cut"]
        [::core::mem::offset_of!(ExchangePeersParams, cut) - 2576usize];
    ["Offset of field: ExchangePeersParams::timeout_ns"]
        [::core::mem::offset_of!(ExchangePeersParams, timeout_ns) - 2584usize];
    ["Offset of field: ExchangePeersParams::slot_bytes"]
        [::core::mem::offset_of!(ExchangePeersParams, slot_bytes) - 2592usize];
    ["Offset of field: ExchangePeersParams::size"]
        [::core::mem::offset_of!(ExchangePeersParams, size) - 2596usize];
    ["Offset of field: ExchangePeersParams::me"]
        [::core::mem::offset_of!(ExchangePeersParams, me) - 2600usize];
    ["Offset of field: ExchangePeersParams::lanes"]
        [::core::mem::offset_of!(ExchangePeersParams, lanes) - 2604usize];
};
#[doc = " kernels/quantize_rows_sm80.cu: picks rows by index and quantises each to int8 with one scale."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct QuantizeRowsParams {
    pub rows: RowMatrix,
    #[doc = " [row_count, hidden], 16-byte aligned"]
    pub out: *mut i8,
    #[doc = " bytes from row to row, a multiple of 16; bytes after `hidden` are set to 0"]
    pub out_pitch: u64,
    #[doc = " [row_count]"]
    pub scales: *mut f32,
    #[doc = " [row_count], overwritten: status_before, with LMHEAD_STATUS_BAD_INDEX if the index\nis out of range"]
    pub status: *mut u32,
    #[doc = " [row_count] TilePartials.bars, set to 0; may be null"]
    pub bars: *mut u32,
    pub row_count: u32,
    pub hidden: u32,
    #[doc = " LMHEAD_STATUS_ALLOWED if there are no adjustments, else 0"]
    pub status_before: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of QuantizeRowsParams"][::core::mem::size_of::<QuantizeRowsParams>() - 88usize];
    ["Alignment of QuantizeRowsParams"][::core::mem::align_of::<QuantizeRowsParams>() - 8usize];
    ["Offset of field: QuantizeRowsParams::rows"][::core::mem::offset_of!(QuantizeRowsParams, rows) - 0usize];
    ["Offset of field: QuantizeRowsParams::out"][::core::mem::offset_of!(QuantizeRowsParams, out) - 32usize];
    ["Offset of field: QuantizeRowsParams::out_pitch"]
        [::core::mem::offset_of!(QuantizeRowsParams, out_pitch) - 40usize];
    ["Offset of field: QuantizeRowsParams::scales"]
        [::core::mem::offset_of!(QuantizeRowsParams, scales) - 48usize];
    ["Offset of field: QuantizeRowsParams::status"]
        [::core::mem::offset_of!(QuantizeRowsParams, status) - 56usize];
    ["Offset of field: QuantizeRowsParams::bars"]
        [::core::mem::offset_of!(QuantizeRowsParams, bars) - 64usize];
    ["Offset of field: QuantizeRowsParams::row_count"]
        [::core::mem::offset_of!(QuantizeRowsParams, row_count) - 72usize];
    ["Offset of field: QuantizeRowsParams::hidden"]
        [::core::mem::offset_of!(QuantizeRowsParams, hidden) - 76usize];
    ["Offset of field: QuantizeRowsParams::status_before"]
        [::core::mem::offset_of!(QuantizeRowsParams, status_before) - 80usize];
};
#[doc = " kernels/read_stream_sm80.cu: reads an array."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct ReadStreamParams {
    #[doc = " [vectors] of 16 bytes, 16-byte aligned"]
    pub data: *const ::core::ffi::c_void,
    pub vectors: u64,
    #[doc = " [1]: the sum of all 32-bit words is added to it, modulo 2^32"]
    pub out: *mut u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ReadStreamParams"][::core::mem::size_of::<ReadStreamParams>() - 24usize];
    ["Alignment of ReadStreamParams"][::core::mem::align_of::<ReadStreamParams>() - 8usize];
    ["Offset of field: ReadStreamParams::data"][::core::mem::offset_of!(ReadStreamParams, data) - 0usize];
    ["Offset of field: ReadStreamParams::vectors"]
        [::core::mem::offset_of!(ReadStreamParams, vectors) - 8usize];
    ["Offset of field: ReadStreamParams::out"][::core::mem::offset_of!(ReadStreamParams, out) - 16usize];
};
#[doc = " kernels/read_bulk_sm90a.cu: the same by bulk copies of 32 KB into a ring in shared memory, as matmuls with\n TMA read their weights."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct ReadBulkParams {
    #[doc = " [bytes], 16-byte aligned"]
    pub data: *const ::core::ffi::c_void,
    #[doc = " a multiple of 16"]
    pub bytes: u64,
    #[doc = " [1]: as above"]
    pub out: *mut u32,
    #[doc = " consecutive copies of a block, before it skips the other blocks' runs; at least 1"]
    pub run: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ReadBulkParams"][::core::mem::size_of::<ReadBulkParams>() - 32usize];
    ["Alignment of ReadBulkParams"][::core::mem::align_of::<ReadBulkParams>() - 8usize];
    ["Offset of field: ReadBulkParams::data"][::core::mem::offset_of!(ReadBulkParams, data) - 0usize];
    ["Offset of field: ReadBulkParams::bytes"][::core::mem::offset_of!(ReadBulkParams, bytes) - 8usize];
    ["Offset of field: ReadBulkParams::out"][::core::mem::offset_of!(ReadBulkParams, out) - 16usize];
    ["Offset of field: ReadBulkParams::run"][::core::mem::offset_of!(ReadBulkParams, run) - 24usize];
};
#[doc = " The same for a row-major matrix, by boxes of 64 or 128 rows x 128 bytes. 32 KB of neighbouring boxes are\n read at once."]
#[repr(C)]
#[repr(align(64))]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct ReadBoxesParams {
    #[doc = " boxes of box_rows x 128 bytes, 128-byte swizzle"]
    pub matrix: TensorMap,
    #[doc = " [1]: as above"]
    pub out: *mut u32,
    #[doc = " rows of the matrix"]
    pub rows: u32,
    #[doc = " columns of 128 bytes of a row; the last may be narrower"]
    pub columns: u32,
    #[doc = " 64 or 128"]
    pub box_rows: u32,
    #[doc = " size of the map's elements"]
    pub element_bytes: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ReadBoxesParams"][::core::mem::size_of::<ReadBoxesParams>() - 192usize];
    ["Alignment of ReadBoxesParams"][::core::mem::align_of::<ReadBoxesParams>() - 64usize];
    ["Offset of field: ReadBoxesParams::matrix"][::core::mem::offset_of!(ReadBoxesParams, matrix) - 0usize];
    ["Offset of field: ReadBoxesParams::out"][::core::mem::offset_of!(ReadBoxesParams, out) - 128usize];
    ["Offset of field: ReadBoxesParams::rows"][::core::mem::offset_of!(ReadBoxesParams, rows) - 136usize];
    ["Offset of field: ReadBoxesParams::columns"]
        [::core::mem::offset_of!(ReadBoxesParams, columns) - 140usize];
    ["Offset of field: ReadBoxesParams::box_rows"]
        [::core::mem::offset_of!(ReadBoxesParams, box_rows) - 144usize];
    ["Offset of field: ReadBoxesParams::element_bytes"]
        [::core::mem::offset_of!(ReadBoxesParams, element_bytes) - 148usize];
};
#[doc = " every byte is the lowest byte of the seed"]
pub const LMHEAD_FILL_BYTES: LmheadFill = 0;
#[doc = " any int8"]
pub const LMHEAD_FILL_I8: LmheadFill = 1;
#[doc = " both signs, magnitudes from 2^-8 to 1"]
pub const LMHEAD_FILL_BF16: LmheadFill = 2;
pub const LMHEAD_FILL_F16: LmheadFill = 3;
pub const LMHEAD_FILL_F32: LmheadFill = 4;
#[doc = " any magnitude below 2, with subnormal numbers and both zeros"]
pub const LMHEAD_FILL_E4M3: LmheadFill = 5;
#[doc = " integers from -8 to 7"]
pub const LMHEAD_FILL_SMALL_I8: LmheadFill = 6;
pub const LMHEAD_FILL_SMALL_BF16: LmheadFill = 7;
pub const LMHEAD_FILL_SMALL_F16: LmheadFill = 8;
pub const LMHEAD_FILL_SMALL_F32: LmheadFill = 9;
pub const LMHEAD_FILL_SMALL_E4M3: LmheadFill = 10;
#[doc = " What an array is filled with: functions of seed and index (kernels/check/values.cuh)."]
pub type LmheadFill = ::core::ffi::c_uint;
#[doc = " kernels/check/fill_sm80.cu."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct FillParams {
    #[doc = " [vectors] of 16 bytes, 16-byte aligned"]
    pub out: *mut ::core::ffi::c_void,
    pub vectors: u64,
    #[doc = " if `out` is part of a larger array: number of vectors before it"]
    pub first: u64,
    pub seed: u64,
    #[doc = " For small integers: elements of a row, whose first one becomes 127; below 2^32. 0: no such element, as\n for E4M3"]
    pub row: u32,
    #[doc = " LMHEAD_FILL_*"]
    pub kind: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of FillParams"][::core::mem::size_of::<FillParams>() - 40usize];
    ["Alignment of FillParams"][::core::mem::align_of::<FillParams>() - 8usize];
    ["Offset of field: FillParams::out"][::core::mem::offset_of!(FillParams, out) - 0usize];
    ["Offset of field: FillParams::vectors"][::core::mem::offset_of!(FillParams, vectors) - 8usize];
    ["Offset of field: FillParams::first"][::core::mem::offset_of!(FillParams, first) - 16usize];
    ["Offset of field: FillParams::seed"][::core::mem::offset_of!(FillParams, seed) - 24usize];
    ["Offset of field: FillParams::row"][::core::mem::offset_of!(FillParams, row) - 32usize];
    ["Offset of field: FillParams::kind"][::core::mem::offset_of!(FillParams, kind) - 36usize];
};
#[doc = " One element with wrong bits."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct Mismatch {
    pub row: u32,
    pub column: u32,
    #[doc = " bits"]
    pub want: u32,
    pub got: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of Mismatch"][::core::mem::size_of::<Mismatch>() - 16usize];
    ["Alignment of Mismatch"][::core::mem::align_of::<Mismatch>() - 4usize];
    ["Offset of field: Mismatch::row"][::core::mem::offset_of!(Mismatch, row) - 0usize];
    ["Offset of field: Mismatch::column"][::core::mem::offset_of!(Mismatch, column) - 4usize];
    ["Offset of field: Mismatch::want"][::core::mem::offset_of!(Mismatch, want) - 8usize];
    ["Offset of field: Mismatch::got"][::core::mem::offset_of!(Mismatch, got) - 12usize];
};
pub const LMHEAD_MISMATCHES: LmheadMismatches = 8;
#[doc = " How many mismatches are kept."]
pub type LmheadMismatches = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct Mismatches {
    #[doc = " all mismatches"]
    pub count: u64,
    #[doc = " how many asked for a place in `some`; may exceed LMHEAD_MISMATCHES"]
    pub noted: u32,
    #[doc = " 0"]
    pub reserved: u32,
    pub some: [Mismatch; 8usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of Mismatches"][::core::mem::size_of::<Mismatches>() - 144usize];
    ["Alignment of Mismatches"][::core::mem::align_of::<Mismatches>() - 8usize];
    ["Offset of field: Mismatches::count"][::core::mem::offset_of!(Mismatches, count) - 0usize];
    ["Offset of field: Mismatches::noted"][::core::mem::offset_of!(Mismatches, noted) - 8usize];
    ["Offset of field: Mismatches::reserved"][::core::mem::offset_of!(Mismatches, reserved) - 12usize];
    ["Offset of field: Mismatches::some"][::core::mem::offset_of!(Mismatches, some) - 16usize];
};
#[doc = " kernels/check/compare_sm80.cu: counts the elements of a matrix whose bits differ from those of another."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct CompareParams {
    #[doc = " [rows, columns] of want_dtype; null: poison, which has every bit set"]
    pub want: *const ::core::ffi::c_void,
    #[doc = " [rows, columns] of dtype; poison is a mismatch unless it is wanted"]
    pub got: *const ::core::ffi::c_void,
    #[doc = " bytes from row to row"]
    pub want_pitch: u64,
    pub got_pitch: u64,
    pub rows: u32,
    #[doc = " at least 1"]
    pub columns: u32,
    #[doc = " LMHEAD_DTYPE_*: the same as `dtype`, or f32, which is first rounded to `dtype`"]
    pub want_dtype: u32,
    pub dtype: u32,
    #[doc = " [1], zeros before the launch"]
    pub found: *mut Mismatches,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of CompareParams"][::core::mem::size_of::<CompareParams>() - 56usize];
    ["Alignment of CompareParams"][::core::mem::align_of::<CompareParams>() - 8usize];
    ["Offset of field: CompareParams::want"][::core::mem::offset_of!(CompareParams, want) - 0usize];
    ["Offset of field: CompareParams::got"][::core::mem::offset_of!(CompareParams, got) - 8usize];
    ["Offset of field: CompareParams::want_pitch"]
        [::core::mem::offset_of!(CompareParams, want_pitch) - 16usize];
    ["Offset of field: CompareParams::got_pitch"]
        [::core::mem::offset_of!(CompareParams, got_pitch) - 24usize];
    ["Offset of field: CompareParams::rows"][::core::mem::offset_of!(CompareParams, rows) - 32usize];
    ["Offset of field: CompareParams::columns"][::core::mem::offset_of!(CompareParams, columns) - 36usize];
    ["Offset of field: CompareParams::want_dtype"]
        [::core::mem::offset_of!(CompareParams, want_dtype) - 40usize];
    ["Offset of field: CompareParams::dtype"][::core::mem::offset_of!(CompareParams, dtype) - 44usize];
    ["Offset of field: CompareParams::found"][::core::mem::offset_of!(CompareParams, found) - 48usize];
};
#[doc = " projection[k] += sum over ids of r(id)·scale(id)·weights[id, k], modulo 2^64; all are integers."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct ProjectWeightsParams {
    #[doc = " scales: integers, may be null; the bias is ignored"]
    pub weights: WeightMatrix,
    #[doc = " [hidden], zeros before the launch"]
    pub projection: *mut u64,
    #[doc = " seed of r"]
    pub seed: u64,
    #[doc = " LMHEAD_FILL_SMALL_I8, _E4M3, _BF16 or _F16: the weights' type"]
    pub kind: u32,
    pub vocab: u32,
    pub hidden: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ProjectWeightsParams"][::core::mem::size_of::<ProjectWeightsParams>() - 72usize];
    ["Alignment of ProjectWeightsParams"][::core::mem::align_of::<ProjectWeightsParams>() - 8usize];
    ["Offset of field: ProjectWeightsParams::weights"]
        [::core::mem::offset_of!(ProjectWeightsParams, weights) - 0usize];
    ["Offset of field: ProjectWeightsParams::projection"]
        [::core::mem::offset_of!(ProjectWeightsParams, projection) - 40usize];
    ["Offset of field: ProjectWeightsParams::seed"]
        [::core::mem::offset_of!(ProjectWeightsParams, seed) - 48usize];
    ["Offset of field: ProjectWeightsParams::kind"]
        [::core::mem::offset_of!(ProjectWeightsParams, kind) - 56usize];
    ["Offset of field: ProjectWeightsParams::vocab"]
        [::core::mem::offset_of!(ProjectWeightsParams, vocab) - 60usize];
    ["Offset of field: ProjectWeightsParams::hidden"]
        [::core::mem::offset_of!(ProjectWeightsParams, hidden) - 64usize];
};
#[doc = " difference[row] += sum over k of rows[row, k]·projection[k] - sum over ids of r(id)·logits[row, id], modulo\n 2^64. It is 0 if the row is right. A logit that is no integer adds a random number."]
#[repr(C)]
#[derive(Debug, Copy, Clone, PartialEq)]
pub struct ProjectRowsParams {
    pub rows: RowMatrix,
    #[doc = " [hidden]"]
    pub projection: *const u64,
    #[doc = " [row_count, vocab]"]
    pub logits: *const f32,
    #[doc = " bytes from row to row of logits"]
    pub pitch: u64,
    #[doc = " [row_count], zeros before the launch"]
    pub difference: *mut u64,
    pub seed: u64,
    #[doc = " LMHEAD_FILL_SMALL_BF16, _F16 or _F32: the rows' type"]
    pub kind: u32,
    pub row_count: u32,
    pub vocab: u32,
    pub hidden: u32,
    #[doc = " blocks of a row"]
    pub parts: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of ProjectRowsParams"][::core::mem::size_of::<ProjectRowsParams>() - 96usize];
    ["Alignment of ProjectRowsParams"][::core::mem::align_of::<ProjectRowsParams>() - 8usize];
    ["Offset of field: ProjectRowsParams::rows"][::core::mem::offset_of!(ProjectRowsParams, rows) - 0usize];
    ["Offset of field: ProjectRowsParams::projection"]
        [::core::mem::offset_of!(ProjectRowsParams, projection) - 32usize];
    ["Offset of field: ProjectRowsParams::logits"]
        [::core::mem::offset_of!(ProjectRowsParams, logits) - 40usize];
    ["Offset of field: ProjectRowsParams::pitch"]
        [::core::mem::offset_of!(ProjectRowsParams, pitch) - 48usize];
    ["Offset of field: ProjectRowsParams::difference"]
        [::core::mem::offset_of!(ProjectRowsParams, difference) - 56usize];
    ["Offset of field: ProjectRowsParams::seed"][::core::mem::offset_of!(ProjectRowsParams, seed) - 64usize];
    ["Offset of field: ProjectRowsParams::kind"][::core::mem::offset_of!(ProjectRowsParams, kind) - 72usize];
    ["Offset of field: ProjectRowsParams::row_count"]
        [::core::mem::offset_of!(ProjectRowsParams, row_count) - 76usize];
    ["Offset of field: ProjectRowsParams::vocab"]
        [::core::mem::offset_of!(ProjectRowsParams, vocab) - 80usize];
    ["Offset of field: ProjectRowsParams::hidden"]
        [::core::mem::offset_of!(ProjectRowsParams, hidden) - 84usize];
    ["Offset of field: ProjectRowsParams::parts"]
        [::core::mem::offset_of!(ProjectRowsParams, parts) - 88usize];
};

/// A struct of a kernel's parameters.
///
/// # Safety
/// `repr(C)`, laid out as the struct that the kernel takes.
pub unsafe trait Params: Copy + 'static {}

// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for MmaMicrokernelParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for WgmmaMicrokernelParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for GatherMicrokernelParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for MatmulParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for TargetLogitsParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for StageRowsParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for MergePartialsParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for FinishParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for FinishLogprobsParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for PlaceListsParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for MergeDrawsParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for FinishDrawParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for FinishLogitsParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for PackRowsParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for PackCapacityParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for OpenCapacityParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for CheckCapacityParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for SummariseHeldParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for HeldTargetsParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for HeldMaximaParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for HeldHistogramsParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for HeldTiesParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for HeldCandidatesParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for CutRowsParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for LearnCutsParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for SelectParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for EncodeTargetsParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for PickTargetsParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for OrStatusParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for SamplingRowsParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for PackAdjustmentsParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for UnpackAdjustmentsParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for SetWordsParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for ExchangePeersParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for QuantizeRowsParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for ReadStreamParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for ReadBulkParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for ReadBoxesParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for FillParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for CompareParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for ProjectWeightsParams {}
// SAFETY: laid out by the header that the kernel is compiled with.
unsafe impl Params for ProjectRowsParams {}
// SAFETY: numbers without gaps between them (the assertions above), of which all bytes are legal.
unsafe impl bytemuck::Zeroable for Candidate {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for Candidate {}
// SAFETY: numbers without gaps between them (the assertions above), of which all bytes are legal.
unsafe impl bytemuck::Zeroable for PartialRow {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for PartialRow {}
// SAFETY: numbers without gaps between them (the assertions above), of which all bytes are legal.
unsafe impl bytemuck::Zeroable for KeptLogits {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for KeptLogits {}
// SAFETY: numbers without gaps between them (the assertions above), of which all bytes are legal.
unsafe impl bytemuck::Zeroable for HeldHistogram {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for HeldHistogram {}
// SAFETY: numbers without gaps between them (the assertions above), of which all bytes are legal.
unsafe impl bytemuck::Zeroable for HeldTies {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for HeldTies {}
// SAFETY: numbers without gaps between them (the assertions above), of which all bytes are legal.
unsafe impl bytemuck::Zeroable for HeldWanted {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for HeldWanted {}
// SAFETY: numbers without gaps between them (the assertions above), of which all bytes are legal.
unsafe impl bytemuck::Zeroable for SamplingRow {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for SamplingRow {}
