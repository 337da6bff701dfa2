//! One product on device memory: prepared once, then only launches.

use super::{Grid, KernelDevice};
use crate::backend::params::{
    LMHEAD_BEST, LMHEAD_DTYPE_BF16, LMHEAD_DTYPE_F16, LMHEAD_DTYPE_F32, LMHEAD_STATUS_ALLOWED,
    LogitAdjustments, LogitMatrix, MatmulParams, QuantizeRowsParams, RowMatrix, TilePartials, WeightMatrix,
};
use crate::dtype::DType;
use crate::epilogue::Epilogue;
use crate::error::{Error, Result};
use crate::plan::{Plan, Precision, Shape};

/// What is to be multiplied, call after call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spec {
    pub precision: Precision,
    /// Ids of the shard.
    pub vocab: usize,
    pub hidden: usize,
    /// The most rows of a call.
    pub max_rows: usize,
}

/// One call's rows and where everything lies in device memory. Shapes and alignments are those of
/// `kernels/params.h`.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// Output rows; 0 launches nothing.
    pub rows: usize,
    pub weights: WeightMatrix,
    pub hidden: RowMatrix,
    /// `status` need not be zeros; where partials are wanted it alone is used.
    pub logits: LogitMatrix,
    pub adjustments: LogitAdjustments,
    /// 0, or where f32 logits without adjustments go besides, at the pitch of the logits, which are f32, too.
    pub raw: u64,
    /// Instead of the logits ([`NO_PARTIALS`](super::NO_PARTIALS): none). `bars` need not be zeros.
    pub partials: TilePartials,
    pub epilogue: Epilogue,
    /// At least [`Matmul::workspace_bytes`] for these rows, aligned to 16; 0 where none are needed.
    pub workspace: u64,
    pub workspace_bytes: usize,
}

// SAFETY: device addresses, which no thread of the host follows.
unsafe impl Send for Call {}

/// A product whose kernels are loaded.
pub struct Matmul<D: KernelDevice> {
    spec: Spec,
    limits: crate::plan::DeviceLimits,
    /// Those of `Precision::tiles` that the device takes, in that order.
    tiles: Vec<(&'static str, D::Kernel<MatmulParams>)>,
    quantizer: Option<D::Kernel<QuantizeRowsParams>>,
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
    /// As [`Plan::new`] for the most rows, and as [`KernelDevice::kernel`].
    pub fn prepare(device: &D, spec: Spec) -> Result<Self> {
        let limits = device.limits();
        let most = Shape { rows: spec.max_rows.max(1), vocab: spec.vocab, hidden: spec.hidden };
        Plan::new(spec.precision, most, &limits)?;
        // Of few rows every tile can be counted, of the most perhaps not.
        let plans = Plan::candidates(spec.precision, Shape { rows: 1, ..most }, &limits)?;
        let mut names: Vec<&'static str> = plans.iter().map(|plan| plan.tile.kernel).collect();
        names.dedup();
        let load = |name| Ok((name, device.kernel(name)?));
        let tiles = names.into_iter().map(load).collect::<Result<_>>()?;
        let quantizer = spec.precision.quantizer().map(|name| device.kernel(name)).transpose()?;
        Ok(Matmul { spec, limits, tiles, quantizer })
    }

    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// How a call of `rows` rows runs.
    ///
    /// # Errors
    /// `Shape` for more rows than were prepared for, or none.
    pub fn plan(&self, rows: usize) -> Result<Plan> {
        let Spec { precision, vocab, hidden, max_rows } = self.spec;
        if rows > max_rows {
            let fix = "prepare for more rows, or split the call";
            return Err(Error::shape("rows of a product", format!("at most {max_rows}"), rows, fix));
        }
        Plan::new(precision, Shape { rows, vocab, hidden }, &self.limits)
    }

    /// Bytes of workspace that a call of `rows` rows needs.
    ///
    /// # Errors
    /// As [`Matmul::plan`]; no rows need none.
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
    pub unsafe fn run(&self, device: &D, stream: D::Stream, call: &Call) -> Result<()> {
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
    pub unsafe fn run_plan(&self, device: &D, stream: D::Stream, call: &Call, plan: &Plan) -> Result<()> {
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
        let (row_count, hidden) = (call.rows as u32, hidden as u32);
        let a = &call.adjustments;
        let adjusted = !(a.allowed.is_null() && a.addition_offsets.is_null() && a.count_offsets.is_null());
        // Kernels look for a logit above minus infinity only where adjustments may have left none.
        let status_before = if adjusted { 0 } else { LMHEAD_STATUS_ALLOWED };
        let mut params = MatmulParams {
            weights: call.weights,
            rows: call.hidden,
            row_scales: std::ptr::null(),
            logits: call.logits,
            adjustments: call.adjustments,
            raw: call.raw as usize as *mut f32,
            partials: call.partials,
            softcap: call.epilogue.softcap.unwrap_or(0.0),
            scale: call.epilogue.scale,
            vocab: vocab as u32,
            row_count,
            hidden,
            stages: plan.stages as u32,
        };
        let (threads, shared_bytes) = (plan.tile.threads(), plan.shared_bytes());
        let grid = Grid { blocks: plan.blocks, threads, shared_bytes };
        let named = |error| of_product(&plan.shape, error);
        if !call.partials.data.is_null() {
            // SAFETY: the caller's promise, for this and what follows.
            unsafe { device.clear(stream, call.partials.bars as u64, call.rows).map_err(named)? };
        }
        let (Some(quantize), Some(quantizer)) = (&plan.quantize, &self.quantizer) else {
            // SAFETY: as above.
            unsafe {
                device.fill(stream, call.logits.status as u64, call.rows, status_before).map_err(named)?
            };
            // SAFETY: as above.
            return unsafe { device.launch(stream, kernel, &grid, &params).map_err(named) };
        };
        // The rows' status is stored by the kernel that quantises them.
        let scales = (call.workspace + plan.workspace.scales as u64) as usize;
        let rows = QuantizeRowsParams {
            rows: call.hidden,
            out: call.workspace as usize as *mut i8,
            out_pitch: plan.workspace.row_pitch as u64,
            scales: scales as *mut f32,
            status: call.logits.status,
            row_count,
            hidden,
            status_before,
        };
        params.row_scales = scales as *const f32;
        params.rows = RowMatrix {
            data: rows.out.cast_const().cast(),
            pitch: rows.out_pitch,
            indices: std::ptr::null(),
            index_bytes: 4,
            source_rows: row_count,
        };
        let rows_grid =
            Grid { blocks: quantize.blocks, threads: quantize.threads, shared_bytes: quantize.shared_bytes };
        // SAFETY: as above.
        unsafe { device.launch_dependent(stream, (quantizer, &rows_grid, &rows), (kernel, &grid, &params)) }
            .map_err(named)
    }
}

/// A device's error with the product that it belongs to.
pub(super) fn of_product(shape: &Shape, error: Error) -> Error {
    match error {
        Error::Device { what, problem, fix } => {
            Error::Device { what: format!("product {shape}, {what}"), problem, fix }
        }
        other => other,
    }
}

/// The code of a type of logits or rows in `kernels/params.h`; none for the types of weights alone.
pub(super) fn dtype_code(dtype: DType) -> Option<u32> {
    match dtype {
        DType::F32 => Some(LMHEAD_DTYPE_F32),
        DType::F16 => Some(LMHEAD_DTYPE_F16),
        DType::Bf16 => Some(LMHEAD_DTYPE_BF16),
        DType::I8 | DType::E4m3 => None,
    }
}

/// The single statement of what a call's addresses must be.
fn check(call: &Call, plan: &Plan) -> Result<()> {
    let Shape { rows, vocab, hidden } = plan.shape;
    let wrong =
        |what: &str, wanted: String, got: String, fix: &str| Err(Error::shape(what, wanted, got, fix));
    let aligned = |what: &str, address: u64, to: usize, optional: bool| {
        let null = address == 0;
        if (null && !optional) || !address.is_multiple_of(to as u64) {
            let wanted = format!("an address that is a multiple of {to}");
            return wrong(
                what,
                wanted,
                format!("{address:#x}"),
                "align it, or copy it to where it is aligned",
            );
        }
        Ok(())
    };
    let pitched = |what: &str, pitch: u64, row_bytes: usize, to: usize| {
        if pitch < row_bytes as u64 || !pitch.is_multiple_of(to as u64) {
            let wanted = format!("at least the {row_bytes} bytes of a row, a multiple of {to}");
            return wrong(what, wanted, pitch.to_string(), "pad the rows");
        }
        Ok(())
    };
    let precision = plan.precision;

    aligned("weights", call.weights.data as u64, 16, false)?;
    pitched("pitch of the weights", call.weights.pitch, vocab_row(hidden, precision), 16)?;
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
    } else {
        aligned("partials of the tiles", call.partials.data as u64, 8, false)?;
        aligned("bars of the rows", call.partials.bars as u64, 4, false)?;
        aligned("sampling parameters", call.partials.draws as u64, 16, true)?;
        if call.partials.draws.is_null() && !(1..=LMHEAD_BEST).contains(&call.partials.k) {
            let wanted = format!("1 to {LMHEAD_BEST}");
            return wrong(
                "candidates of a tile",
                wanted,
                call.partials.k.to_string(),
                "hold the logits instead",
            );
        }
    }

    let a = &call.adjustments;
    for (what, address) in [
        ("additions", a.addition_offsets as u64),
        ("ids of the additions", a.addition_ids as u64),
        ("values of the additions", a.addition_values as u64),
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
        ("additions", a.addition_offsets, a.addition_ids, a.addition_values as u64),
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
    if plan.quantize.is_some() {
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
