//! One matmul on device memory: prepared once, then only launched.

use super::words::{set_words, words};
use super::{Grid, KernelDevice};
use crate::backend::params::{
    LMHEAD_BEST, LMHEAD_DTYPE_BF16, LMHEAD_DTYPE_F16, LMHEAD_DTYPE_F32, LMHEAD_STATUS_ALLOWED,
    LMHEAD_TARGET_ROWS, LMHEAD_TARGET_STAGES, LMHEAD_TARGETS, LogitAdjustments, LogitMatrix, MatmulParams,
    PackRowsParams, QuantizeRowsParams, RowMatrix, SetWordsParams, StageRowsParams, TargetLogitsParams,
    TilePartials, WeightMatrix,
};
use crate::dtype::DType;
use crate::epilogue::Epilogue;
use crate::error::{Error, Result};
use crate::plan::{Family, Plan, Precision, QuantizePlan, Shape, StagePlan, Tile, Tuning, WeightLayout};
use std::ptr::null;
use std::sync::Arc;

/// What is to be multiplied, call after call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spec {
    pub precision: Precision,
    /// How the weights lie, which decides the kernels that multiply them: fixed when they are loaded.
    pub layout: WeightLayout,
    /// Ids of the shard.
    pub vocab: usize,
    pub hidden: usize,
    /// The most rows of a call.
    pub max_rows: usize,
}

/// One call's rows and where everything lies in device memory. Shapes and alignments are those of
/// `kernels/params.h`.
#[derive(Debug, Clone, Copy)]
pub struct MatmulCall {
    /// Output rows; 0 launches nothing.
    pub rows: usize,
    pub weights: WeightMatrix,
    pub hidden: RowMatrix,
    /// `status` need not be zeros. Where partials are wanted only `status` is used.
    pub logits: LogitMatrix,
    pub adjustments: LogitAdjustments,
    /// Where f32 logits without adjustments go as well, or 0 for nowhere. The logits are then f32 too, and of
    /// the same pitch.
    pub raw: u64,
    /// Where partials go instead of the logits ([`NO_PARTIALS`](super::NO_PARTIALS): nowhere). `bars` need
    /// not be zeros.
    pub partials: TilePartials,
    pub epilogue: Epilogue,
    /// At least [`Matmul::workspace_bytes`] for these rows, aligned to 16. 16-bit rows whose address and
    /// pitch are multiples of 16 bytes do not use it: it may be 0 then.
    pub workspace: u64,
    pub workspace_bytes: usize,
}

// SAFETY: device addresses, which no thread of the host follows.
unsafe impl Send for MatmulCall {}

/// A matmul whose kernels are loaded.
pub struct Matmul<D: KernelDevice> {
    spec: Spec,
    limits: crate::plan::DeviceLimits,
    tuning: Option<Arc<Tuning>>,
    /// The layout's tiles that the device can run, in the layout's order.
    tiles: Vec<(&'static str, D::Kernel<MatmulParams>)>,
    quantizer: Option<D::Kernel<QuantizeRowsParams>>,
    packer: Option<D::Kernel<PackRowsParams>>,
    /// Sets status and bars of rows that are not quantised.
    words: D::Kernel<SetWordsParams>,
    targets: D::Kernel<TargetLogitsParams>,
    /// For packed weights only.
    stager: Option<D::Kernel<StageRowsParams>>,
}

/// Target ids of rows, and where their logits go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetCall {
    /// Address of `[rows, per_row]` u32: ids of the vocabulary.
    pub ids: u64,
    /// At least 1.
    pub per_row: usize,
    /// First id of the shard.
    pub first_id: usize,
    /// Address of `[rows, per_row]` f32; NaN where the id is not the shard's.
    pub out: u64,
}

/// The kernel that computes single logits in a precision.
pub fn target_kernel(precision: Precision) -> &'static str {
    match precision {
        Precision::Bf16 => "target_logits_bf16",
        Precision::F16 => "target_logits_f16",
        Precision::W8a8(_) => "target_logits_w8a8",
        Precision::W8a16(DType::F16) => "target_logits_w8a16_f16",
        Precision::W8a16(_) => "target_logits_w8a16_bf16",
        Precision::Fp8(DType::F16) => "target_logits_fp8_f16",
        Precision::Fp8(_) => "target_logits_fp8_bf16",
    }
}

impl<D: KernelDevice> std::fmt::Debug for Matmul<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Matmul").field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl<D: KernelDevice> Matmul<D> {
    /// Loads every kernel that a call may launch.
    ///
    /// # Errors
    /// As [`Plan::for_layout`] for the most rows, and as [`KernelDevice::kernel`].
    pub fn prepare(device: &D, spec: Spec) -> Result<Self> {
        let limits = device.limits();
        let most = Shape { rows: spec.max_rows.max(1), vocab: spec.vocab, hidden: spec.hidden };
        let (layout, precision) = (spec.layout, spec.precision);
        Plan::for_layout(layout, precision, most, &limits)?;
        // With few rows a plan can count the blocks of every tile, with the most perhaps not.
        let few = Shape { rows: 1, ..most };
        let plans = match layout {
            WeightLayout::Rows => Plan::candidates(precision, few, &limits)?,
            WeightLayout::Packed => Plan::packed_candidates(precision, few, &limits)?,
        };
        let mut names: Vec<&'static str> = plans.iter().map(|plan| plan.tile.kernel).collect();
        names.dedup();
        let load = |name| Ok((name, device.kernel(name)?));
        let tiles = names.into_iter().map(load).collect::<Result<_>>()?;
        // Single logits need rows quantised or aligned, whatever the layout of the weights.
        let quantizer = precision.quantizer().map(|name| device.kernel(name)).transpose()?;
        let packer = precision.packer().map(|name| device.kernel(name)).transpose()?;
        let stager = match layout {
            WeightLayout::Rows => None,
            WeightLayout::Packed => Some(device.kernel(precision.stager())?),
        };
        let (words, targets) = (device.kernel("set_words")?, device.kernel(target_kernel(precision))?);
        Ok(Matmul { spec, limits, tuning: None, tiles, quantizer, packer, words, targets, stager })
    }

    /// The same, with the choices of a table that has passed [`Tuning::check`] for this device.
    #[must_use]
    pub fn tuned(self, tuning: Option<Arc<Tuning>>) -> Self {
        Matmul { tuning, ..self }
    }

    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// How a call of `rows` rows runs.
    ///
    /// # Errors
    /// `Shape` for more rows than were prepared for, or none.
    pub fn plan(&self, rows: usize) -> Result<Plan> {
        let Spec { precision, layout, vocab, hidden, max_rows } = self.spec;
        if rows > max_rows {
            let fix = "prepare for more rows, or split the call";
            return Err(Error::shape("rows of a product", format!("at most {max_rows}"), rows, fix));
        }
        let shape = Shape { rows, vocab, hidden };
        let of_table = |table: &Arc<Tuning>| table.plan(layout, precision, shape, &self.limits);
        match self.tuning.as_ref().map(of_table).transpose()?.flatten() {
            Some(plan) => Ok(plan),
            None => Plan::for_layout(layout, precision, shape, &self.limits),
        }
    }

    /// The most parts of the vocabulary that a call leaves partials of, however many rows it has.
    pub fn most_parts(&self) -> usize {
        let Spec { precision, layout, vocab, .. } = self.spec;
        match layout {
            WeightLayout::Rows => vocab.div_ceil(Tile::FEWEST_IDS),
            WeightLayout::Packed => crate::plan::most_parts(precision, vocab, &self.limits),
        }
    }

    /// Bytes of workspace that a call of `rows` rows needs, wherever its rows lie.
    ///
    /// # Errors
    /// As [`Matmul::plan`], except that 0 rows take 0 bytes.
    pub fn workspace_bytes(&self, rows: usize) -> Result<usize> {
        if rows == 0 { Ok(0) } else { self.plan(rows).map(|plan| plan.workspace.bytes) }
    }

    /// Queues the call's launches on the stream: nothing is allocated, loaded or waited for, so that a graph
    /// can capture it.
    ///
    /// # Errors
    /// `Shape` where an address, a pitch or the workspace is not what the kernels take, naming it; nothing is
    /// launched then. `Device` where a launch is refused.
    ///
    /// # Safety
    /// All addresses are of this device and their memory is as large as the call's sizes say, until the
    /// launches have ended.
    pub unsafe fn run(&self, device: &D, stream: D::Stream, call: &MatmulCall) -> Result<()> {
        if call.rows == 0 {
            return Ok(());
        }
        let plan = self.plan(call.rows)?;
        // SAFETY: the caller's promise.
        unsafe { self.run_plan(device, stream, call, &plan) }
    }

    /// [`Matmul::run`] with a plan of the caller's choice, for tests and measurements.
    ///
    /// # Errors
    /// As [`Matmul::run`].
    ///
    /// # Safety
    /// As [`Matmul::run`].
    pub unsafe fn run_plan(
        &self,
        device: &D,
        stream: D::Stream,
        call: &MatmulCall,
        plan: &Plan,
    ) -> Result<()> {
        let Spec { precision, vocab, hidden, .. } = self.spec;
        let shape = Shape { rows: call.rows, vocab, hidden };
        if (plan.precision, plan.shape) != (precision, shape) {
            let wanted = format!("one of {precision}, {shape}");
            let got = format!("of {}, {}", plan.precision, plan.shape);
            return Err(Error::shape("plan", wanted, got, "plan for this product and the call's rows"));
        }
        check(call, plan)?;
        let Some((_, kernel)) = self.tiles.iter().find(|(name, _)| *name == plan.tile.kernel) else {
            let fix = "use a plan of this product's precision";
            return Err(Error::shape("plan", format!("one of {}", self.spec.precision), plan, fix));
        };
        crate::plan::check(precision, &shape, &plan.tile, plan.stages, &self.limits)?;
        let cluster = plan.tile.cluster() as u32;
        if plan.blocks == 0 || !plan.blocks.is_multiple_of(cluster) {
            let wanted = format!("at least one block, in clusters of {cluster}");
            return Err(Error::shape("plan", wanted, plan.blocks, "use a plan as plan::Plan makes it"));
        }
        if let Some(tail) = plan.tail.filter(|tail| !tail.fits(&plan.tile, &shape)) {
            let wanted = "tail tiles of a multiple of 8 ids, behind whole tiles that leave some";
            let got = format!("{} ids behind {} tiles", tail.ids, tail.whole_tiles);
            return Err(Error::shape("tail of the plan", wanted, got, "use a plan as plan::Plan makes it"));
        }
        let (threads, shared_bytes) = (plan.tile.threads(), plan.shared_bytes());
        let grid = Grid { blocks: plan.blocks, threads, shared_bytes };
        let mut params = params(call, plan);
        // A kernel before the matmul initialises what the matmul adds to, and lets it begin to load weights.
        // SAFETY: the caller's promise.
        let before = unsafe {
            if let Some((kernel, grid, rows)) = self.staged(call, plan, &mut params) {
                device.launch(stream, kernel, &grid, &rows)
            } else if self.brings_rows(call, plan) {
                self.bring_rows(device, stream, call, plan, &mut params)
            } else {
                let status = words(call.logits.status as u64, call.rows, status_before(call));
                set_words(device, stream, &self.words, [status, words(bars(call) as u64, call.rows, 0)])
            }
        };
        // SAFETY: as above.
        let run = |()| unsafe { device.launch(stream, kernel, &grid, &params) };
        before.and_then(run).map_err(|error| of_product(&plan.shape, error))
    }

    /// Queues the logits of single ids of the call's rows, with the bits that the matmul gives them. The
    /// call's logits and partials are not used; its status words are written where rows are quantised.
    ///
    /// # Errors
    /// As [`Matmul::run`].
    ///
    /// # Safety
    /// As [`Matmul::run`].
    pub unsafe fn run_targets(
        &self,
        device: &D,
        stream: D::Stream,
        call: &MatmulCall,
        targets: &TargetCall,
    ) -> Result<()> {
        let TargetCall { ids, per_row, first_id, out } = *targets;
        if call.rows == 0 || per_row == 0 {
            return Ok(());
        }
        let plan = self.plan(call.rows)?;
        check_operands(call, &plan)?;
        aligned("targets", ids, 4, false)?;
        aligned("logits of the targets", out, 4, false)?;
        let (rows, each) = (LMHEAD_TARGET_ROWS as usize, LMHEAD_TARGETS as usize);
        let blocks = call.rows.div_ceil(rows).checked_mul(per_row.div_ceil(each));
        let blocks = blocks.filter(|_| i32::try_from(per_row).is_ok());
        let Some(blocks) = blocks.and_then(|n| i32::try_from(n).ok()) else {
            let got = format!("{} x {per_row}", call.rows);
            let wanted = format!("fewer than 2^31 parts of {rows} rows x {each} targets");
            return Err(Error::shape("rows x targets", wanted, got, "split the rows"));
        };
        let tile = &self.spec.precision.tiles()[0];
        debug_assert_eq!((tile.block_n, tile.block_m), (rows * each, rows), "the kernel's tile");
        let shared_bytes = tile.shared_bytes(LMHEAD_TARGET_STAGES as usize);
        let grid = Grid { blocks: blocks as u32, threads: tile.threads(), shared_bytes };
        let mut product = MatmulParams { stages: LMHEAD_TARGET_STAGES, ..params(call, &plan) };
        let before = match self.brings_rows(call, &plan) {
            // SAFETY: the caller's promise.
            true => unsafe { self.bring_rows(device, stream, call, &plan, &mut product) },
            false => Ok(()),
        };
        let params = TargetLogitsParams {
            product,
            targets: ids as usize as *const u32,
            out: out as usize as *mut f32,
            per_row: per_row as u32,
            first_id: first_id as u32,
        };
        // SAFETY: as above.
        let run = |()| unsafe { device.launch(stream, &self.targets, &grid, &params) };
        before.and_then(run).map_err(|error| of_product(&plan.shape, error))
    }

    /// Whether [`Matmul::bring_rows`] has something to do.
    fn brings_rows(&self, call: &MatmulCall, plan: &Plan) -> bool {
        self.quantizer.is_some() || needs_packing(call, plan)
    }

    /// Brings a call's rows into the workspace, contiguous: quantised, or unchanged where they are not
    /// aligned. The matmul then reads them there.
    ///
    /// # Safety
    /// As [`Matmul::run`].
    unsafe fn bring_rows(
        &self,
        device: &D,
        stream: D::Stream,
        call: &MatmulCall,
        plan: &Plan,
        product: &mut MatmulParams,
    ) -> Result<()> {
        let (precision, hidden) = (plan.precision, plan.shape.hidden);
        let (out, status, status_before) =
            (call.workspace as usize as *mut u8, call.logits.status, status_before(call));
        let (row_count, blocks) = (product.row_count, product.row_count);
        let in_order = |pitch| RowMatrix {
            data: out.cast_const().cast(),
            pitch,
            indices: null(),
            index_bytes: 4,
            source_rows: row_count,
        };
        if let (Some(quantizer), Some(quantize)) = (&self.quantizer, precision.quantize(call.rows)) {
            let out_pitch = hidden.next_multiple_of(16) as u64;
            let rows = QuantizeRowsParams {
                rows: call.hidden,
                out: out.cast(),
                out_pitch,
                scales: (call.workspace as usize + plan.workspace.scales) as *mut f32,
                status,
                bars: bars(call),
                row_count,
                hidden: product.hidden,
                status_before,
            };
            (product.row_scales, product.rows) = (rows.scales, in_order(out_pitch));
            let QuantizePlan { threads, shared_bytes, .. } = quantize;
            // SAFETY: the caller's promise.
            return unsafe {
                device.launch(stream, quantizer, &Grid { blocks, threads, shared_bytes }, &rows)
            };
        }
        let Some(packer) = &self.packer else { return Ok(()) };
        let row_bytes = hidden * precision.rows().size();
        let out_pitch = row_bytes.next_multiple_of(16) as u64;
        let rows = PackRowsParams {
            rows: call.hidden,
            out,
            out_pitch,
            status,
            row_count,
            row_bytes: row_bytes as u32,
            status_before,
        };
        product.rows = in_order(out_pitch);
        let no_bars = [words(bars(call) as u64, call.rows, 0), words(0, 0, 0)];
        let grid = Grid { blocks, threads: 256, shared_bytes: 0 };
        // SAFETY: as above.
        unsafe {
            set_words(device, stream, &self.words, no_bars)?;
            device.launch(stream, packer, &grid, &rows)
        }
    }

    /// The launch that brings a call's rows into the order of stages, where the weights are packed.
    fn staged(
        &self,
        call: &MatmulCall,
        plan: &Plan,
        product: &mut MatmulParams,
    ) -> Before<'_, D, StageRowsParams> {
        let (stage, stager) = (plan.stage?, self.stager.as_ref()?);
        let int8 = plan.precision.quantizer().is_some();
        let scales = if int8 { call.workspace as usize + plan.workspace.scales } else { 0 };
        let rows = StageRowsParams {
            rows: call.hidden,
            out: call.workspace as usize as *mut u8,
            scales: scales as *mut f32,
            status: call.logits.status,
            bars: bars(call),
            row_count: product.row_count,
            hidden: product.hidden,
            block_m: plan.tile.block_m as u32,
            status_before: status_before(call),
        };
        product.row_scales = rows.scales;
        product.rows = RowMatrix {
            data: rows.out.cast_const().cast(),
            pitch: plan.workspace.row_pitch as u64,
            indices: null(),
            index_bytes: 4,
            source_rows: stage.blocks,
        };
        let StagePlan { blocks, threads, shared_bytes, .. } = stage;
        Some((stager, Grid { blocks, threads, shared_bytes }, rows))
    }
}

/// A kernel that prepares rows before a matmul, with its launch.
type Before<'a, D, P> = Option<(&'a <D as KernelDevice>::Kernel<P>, Grid, P)>;

/// The parameters of a call's matmul; its rows are the call's own.
fn params(call: &MatmulCall, plan: &Plan) -> MatmulParams {
    let Shape { rows, vocab, hidden } = plan.shape;
    MatmulParams {
        weights: call.weights,
        rows: call.hidden,
        row_scales: null(),
        logits: call.logits,
        adjustments: call.adjustments,
        raw: call.raw as usize as *mut f32,
        partials: call.partials,
        softcap: call.epilogue.softcap.unwrap_or(0.0),
        scale: call.epilogue.scale,
        vocab: vocab as u32,
        row_count: rows as u32,
        hidden: hidden as u32,
        stages: plan.stages as u32,
        whole_tiles: plan.tail.map_or(0, |tail| tail.whole_tiles),
        tail_ids: plan.tail.map_or(0, |tail| tail.ids),
    }
}

/// The words that tiles of partials raise; null where logits are stored.
fn bars(call: &MatmulCall) -> *mut u32 {
    if call.partials.data.is_null() { std::ptr::null_mut() } else { call.partials.bars }
}

/// The status of each row before its matmul. Kernels look for a logit above minus infinity only where
/// adjustments may have left none.
fn status_before(call: &MatmulCall) -> u32 {
    let a = &call.adjustments;
    let adjusted = !(a.allowed.is_null() && a.logit_bias_offsets.is_null() && a.count_offsets.is_null());
    if adjusted { 0 } else { LMHEAD_STATUS_ALLOWED }
}

/// Whether the kernel's 16-byte copies would be misaligned, so that the rows must be packed before.
fn needs_packing(call: &MatmulCall, plan: &Plan) -> bool {
    plan.precision.quantizer().is_none() && !(call.hidden.data as u64 | call.hidden.pitch).is_multiple_of(16)
}

/// Adds the matmul that it belongs to to a device's error.
pub(super) fn of_product(shape: &Shape, error: Error) -> Error {
    match error {
        Error::Device { what, problem, fix } => {
            Error::Device { what: format!("product {shape}, {what}"), problem, fix }
        }
        other => other,
    }
}

/// The code of a type of logits or rows in `kernels/params.h`; `None` for types that only weights have.
pub(super) fn dtype_code(dtype: DType) -> Option<u32> {
    match dtype {
        DType::F32 => Some(LMHEAD_DTYPE_F32),
        DType::F16 => Some(LMHEAD_DTYPE_F16),
        DType::Bf16 => Some(LMHEAD_DTYPE_BF16),
        DType::I8 | DType::E4m3 => None,
    }
}

fn wrong(what: &str, wanted: String, got: String, fix: &str) -> Result<()> {
    Err(Error::shape(what, wanted, got, fix))
}

fn aligned(what: &str, address: u64, to: usize, optional: bool) -> Result<()> {
    let null = address == 0;
    if (null && !optional) || !address.is_multiple_of(to as u64) {
        let wanted = format!("an address that is a multiple of {to}");
        return wrong(what, wanted, format!("{address:#x}"), "align it, or copy it to where it is aligned");
    }
    Ok(())
}

fn pitched(what: &str, pitch: u64, row_bytes: usize, to: usize) -> Result<()> {
    if pitch < row_bytes as u64 || !pitch.is_multiple_of(to as u64) {
        let wanted = format!("at least the {row_bytes} bytes of a row, a multiple of {to}");
        return wrong(what, wanted, pitch.to_string(), "pad the rows");
    }
    Ok(())
}

/// The single statement of what a call's addresses must be, with [`check_operands`].
fn check(call: &MatmulCall, plan: &Plan) -> Result<()> {
    let Shape { vocab, .. } = plan.shape;
    check_operands(call, plan)?;
    aligned("row status", call.logits.status as u64, 4, false)?;
    if call.partials.data.is_null() {
        let size = match call.logits.dtype {
            LMHEAD_DTYPE_F32 => 4,
            LMHEAD_DTYPE_F16 | LMHEAD_DTYPE_BF16 => 2,
            other => {
                let wanted = "LMHEAD_DTYPE_F32, _F16 or _BF16".to_string();
                return wrong("type of the logits", wanted, other.to_string(), "use one of those");
            }
        };
        aligned("logits", call.logits.data as u64, size, false)?;
        pitched("pitch of the logits", call.logits.pitch, vocab * size, size)?;
        aligned("logits without adjustments", call.raw, 4, true)?;
        if call.raw != 0 && call.logits.dtype != LMHEAD_DTYPE_F32 {
            let fix = "ask for f32 logits";
            return wrong("logits beside those without adjustments", "f32".into(), "16 bits".into(), fix);
        }
        return Ok(());
    }
    let p = &call.partials;
    aligned("partials of the tiles", p.data as u64, 8, false)?;
    aligned("bars of the rows", p.bars as u64, 4, false)?;
    aligned("sampling parameters", p.draws as u64, 16, true)?;
    aligned("targets", p.targets as u64, 8, p.target_count == 0)?;
    if p.draws.is_null() && !(1..=LMHEAD_BEST).contains(&p.k) {
        let wanted = format!("1 to {LMHEAD_BEST}");
        return wrong("candidates of a tile", wanted, p.k.to_string(), "hold the logits instead");
    }
    Ok(())
}

/// Checks what is multiplied, and what the epilogue reads.
fn check_operands(call: &MatmulCall, plan: &Plan) -> Result<()> {
    let Shape { rows, vocab, hidden } = plan.shape;
    let precision = plan.precision;

    aligned("weights", call.weights.data as u64, 16, false)?;
    pitched("pitch of the weights", call.weights.pitch, vocab_row(hidden, precision), 16)?;
    let packed = plan.tile.family == Family::Wgmma;
    if (call.weights.packed != 0) != packed {
        let name = |packed| if packed { "packed weights" } else { "weights row behind row" };
        let fix = "plan for the layout that the weights were loaded in";
        return wrong("weights", name(packed).into(), name(!packed).into(), fix);
    }
    let row_bytes = precision.packed_row_bytes(hidden);
    if packed && call.weights.pitch != row_bytes as u64 {
        let wanted = format!("the {row_bytes} bytes of a row's columns");
        let fix = "pack the weights with hopper::pack_weights";
        return wrong("pitch of packed weights", wanted, call.weights.pitch.to_string(), fix);
    }
    aligned("weight scales", call.weights.scales as u64, 4, precision.weight_bytes() != 1)?;
    aligned("bias", call.weights.bias as u64, 4, true)?;

    let element = precision.rows().size();
    aligned("hidden states", call.hidden.data as u64, element, false)?;
    pitched("pitch of the hidden states", call.hidden.pitch, hidden * element, element)?;
    if call.hidden.indices.is_null() {
        if (call.hidden.source_rows as usize) < rows {
            return wrong(
                "rows of the hidden states",
                format!("at least {rows}"),
                call.hidden.source_rows.to_string(),
                "pass as many rows as are multiplied, or indices",
            );
        }
    } else {
        let bytes = call.hidden.index_bytes;
        if bytes != 4 && bytes != 8 {
            return wrong(
                "bytes of an index",
                "4 or 8".into(),
                bytes.to_string(),
                "pass int32 or int64 indices",
            );
        }
        aligned("indices", call.hidden.indices as u64, bytes as usize, false)?;
    }

    let a = &call.adjustments;
    for (what, address) in [
        ("logit_bias", a.logit_bias_offsets as u64),
        ("ids of logit_bias", a.logit_bias_ids as u64),
        ("values of logit_bias", a.logit_bias_values as u64),
        ("counts", a.count_offsets as u64),
        ("ids of the counts", a.count_ids as u64),
        ("packed counts", a.counts as u64),
        ("repetition penalties", a.repetition as u64),
        ("frequency penalties", a.frequency as u64),
        ("presence penalties", a.presence as u64),
        ("mask", a.allowed as u64),
        ("temperatures", a.temperatures as u64),
    ] {
        aligned(what, address, 4, true)?;
    }
    for (what, offsets, ids, values) in [
        ("logit_bias", a.logit_bias_offsets, a.logit_bias_ids, a.logit_bias_values as u64),
        ("counts", a.count_offsets, a.count_ids, a.counts as u64),
    ] {
        if !offsets.is_null() && (ids.is_null() || values == 0) {
            let wanted = "ids and values beside the offsets".to_string();
            let fix = "pass all three; where no row has an entry, none";
            return wrong(what, wanted, "a null address".into(), fix);
        }
    }
    if !a.count_offsets.is_null() && (a.repetition.is_null() || a.frequency.is_null() || a.presence.is_null())
    {
        let wanted = "repetition, frequency and presence of each row beside the counts".to_string();
        return wrong(
            "penalties",
            wanted,
            "a null address".into(),
            "pass 1, 0 and 0 where nothing shall change",
        );
    }
    if !a.allowed.is_null() && a.allowed_pitch < vocab.div_ceil(32) as u64 {
        let wanted = format!("at least the {} words of a row", vocab.div_ceil(32));
        return wrong("pitch of the mask", wanted, a.allowed_pitch.to_string(), "one bit for each id");
    }
    if plan.stage.is_some() || plan.quantize.is_some() || needs_packing(call, plan) {
        if call.workspace_bytes < plan.workspace.bytes {
            return wrong(
                "workspace",
                format!("{} bytes for {rows} rows", plan.workspace.bytes),
                format!("{}", call.workspace_bytes),
                "allocate what Matmul::workspace_bytes says",
            );
        }
        aligned("workspace", call.workspace, 16, false)?;
    }
    Ok(())
}

fn vocab_row(hidden: usize, precision: Precision) -> usize {
    hidden * precision.weight_bytes()
}
