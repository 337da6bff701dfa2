//! A product's operands in device memory, and launches on them.

use super::{Finish, Guarded, Index, Operands, Product};
use lmhead::DType;
use lmhead::backend::device::hopper::{pack_weights, packed_bytes};
use lmhead::backend::device::{KernelDevice, Matmul, MatmulCall, NO_PARTIALS, Spec};
use lmhead::backend::params::{
    LMHEAD_DTYPE_BF16, LMHEAD_DTYPE_F16, LMHEAD_DTYPE_F32, LogitAdjustments, LogitMatrix, RowMatrix,
    WeightMatrix,
};
use lmhead::plan::{Family, Plan, Shape, WeightLayout};
use std::ops::Range;

/// Output rows by index.
#[derive(Debug, Clone, Copy)]
pub struct Picks<'a> {
    pub indices: &'a [i64],
    pub index: Index,
}

/// One launch: the plan, the rows, the ids, and what is done to the logits.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    pub plan: &'a Plan,
    pub picks: Picks<'a>,
    /// First id and number of ids of the shard, which begins at a multiple of 64 and writes its columns of
    /// the whole row.
    pub ids: (usize, usize),
    pub finish: Finish,
}

impl<'a> Launch<'a> {
    /// The raw logits of all ids of all rows.
    pub fn raw(plan: &'a Plan, operands: &'a Operands) -> Self {
        let Product { shape, layout, .. } = operands.product;
        let picks = Picks { indices: &operands.indices, index: layout.index };
        Launch { plan, picks, ids: (0, shape.vocab), finish: Finish::NONE }
    }
}

/// The results of a launch.
#[derive(Debug)]
pub struct Ran {
    /// `[rows, ids]` without the gaps.
    pub logits: Vec<u8>,
    pub status: Vec<u32>,
    /// For w8a8, the quantised rows `[rows, hidden]` and scales `[rows]`.
    pub quantised: Option<(Vec<i8>, Vec<f32>)>,
}

impl Ran {
    /// The logits, which must be f32.
    pub fn f32s(&self) -> Vec<f32> {
        bytemuck::pod_collect_to_vec(&self.logits)
    }
}

/// The arrays of adjustments on the device, in the order of `kernels/params.h`.
struct Arrays<D: KernelDevice> {
    names: [&'static str; 12],
    buffers: Vec<Guarded<D>>,
    words: usize,
}

pub struct Loaded<'a, D: KernelDevice> {
    device: &'a D,
    product: Product,
    weights: Guarded<D>,
    /// The weights on the host, for packing.
    rows_of_weights: Vec<u8>,
    scales: Guarded<D>,
    bias: Guarded<D>,
    source: Guarded<D>,
    row_pitch: usize,
    weight_pitch: usize,
    arrays: Arrays<D>,
}

/// Offsets, ids and values of all rows, sorted by id within a row; entries with equal ids keep their order.
fn by_id<T: Copy>(rows: &[Vec<(i64, T)>]) -> (Vec<u32>, Vec<u32>, Vec<T>) {
    let (mut offsets, mut ids, mut values) = (vec![0], Vec::new(), Vec::new());
    for row in rows {
        let mut row = row.clone();
        row.sort_by_key(|(id, _)| *id);
        ids.extend(row.iter().map(|(id, _)| *id as u32));
        values.extend(row.iter().map(|(_, value)| *value));
        offsets.push(ids.len() as u32);
    }
    (offsets, ids, values)
}

impl<D: KernelDevice> Arrays<D> {
    fn new(device: &D, operands: &Operands) -> Result<Self, String> {
        let a = &operands.adjustments;
        let (logit_bias_offsets, logit_bias_ids, logit_bias_values) =
            by_id(a.logit_bias.as_deref().unwrap_or(&[]));
        let penalties = a.penalties.clone().unwrap_or_default();
        let packed: Vec<Vec<(i64, u32)>> = penalties
            .iter()
            .map(|(_, counts)| counts.iter().map(|&(id, n, seen)| (id, n << 1 | u32::from(seen))).collect())
            .collect();
        let (count_offsets, count_ids, counts) = by_id(&packed);
        let column = |i: usize| penalties.iter().map(|(p, _)| p[i].to_bits()).collect::<Vec<u32>>();
        let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
        // Puts a word of garbage between the mask's rows, which no id belongs to.
        let words = a.vocab.div_ceil(32);
        let rows = a.mask.iter().flat_map(|mask| mask.chunks(words));
        let mask = rows.flat_map(|row| row.iter().map(|&word| word as u32).chain([0x5a5a_5a5a])).collect();
        let arrays = [
            logit_bias_offsets,
            logit_bias_ids,
            bits(&logit_bias_values),
            count_offsets,
            count_ids,
            counts,
            column(0),
            column(1),
            column(2),
            mask,
            bits(&operands.temperatures),
        ];
        let buffers = arrays
            .iter()
            .map(|words| Guarded::input(device, bytemuck::cast_slice(words)))
            .collect::<Result<_, _>>()?;
        let names = [
            "logit_bias_offsets",
            "logit_bias_ids",
            "logit_bias_values",
            "count_offsets",
            "count_ids",
            "counts",
            "repetition",
            "frequency",
            "presence",
            "allowed",
            "temperatures",
            "",
        ];
        Ok(Arrays { names, buffers, words: words + 1 })
    }

    /// The adjustments that `finish` asks for, for a shard whose first id is `first`.
    fn params(&self, finish: &Finish, first: usize) -> LogitAdjustments {
        let at = |i: usize, wanted: bool, words: usize| -> usize {
            if wanted { self.buffers[i].address() as usize + 4 * words } else { 0 }
        };
        let (logit_bias, penalties) = (finish.logit_bias, finish.penalties);
        LogitAdjustments {
            logit_bias_offsets: at(0, logit_bias, 0) as *const u32,
            logit_bias_ids: at(1, logit_bias, 0) as *const u32,
            logit_bias_values: at(2, logit_bias, 0) as *const f32,
            count_offsets: at(3, penalties, 0) as *const u32,
            count_ids: at(4, penalties, 0) as *const u32,
            counts: at(5, penalties, 0) as *const u32,
            repetition: at(6, penalties, 0) as *const f32,
            frequency: at(7, penalties, 0) as *const f32,
            presence: at(8, penalties, 0) as *const f32,
            allowed: at(9, finish.mask, first / 32) as *const u32,
            allowed_pitch: self.words as u64,
            temperatures: at(10, finish.temperatures, 0) as *const f32,
        }
    }
}

impl<'a, D: KernelDevice> Loaded<'a, D> {
    pub fn new(device: &'a D, product: &Product, operands: &Operands) -> Result<Self, String> {
        let floats = |values: &[f32]| Guarded::input(device, bytemuck::cast_slice(values));
        Ok(Loaded {
            device,
            product: *product,
            weights: Guarded::input(device, &operands.weights)?,
            rows_of_weights: operands.weights.clone(),
            scales: floats(&operands.scales)?,
            bias: floats(&operands.bias)?,
            source: Guarded::input(device, &operands.source)?,
            row_pitch: operands.row_pitch,
            weight_pitch: operands.weight_pitch,
            arrays: Arrays::new(device, operands)?,
        })
    }

    /// The call of a launch with outputs at these addresses; `logits` is the address for the whole head's
    /// first id.
    pub fn call(
        &self,
        launch: &Launch,
        indices: u64,
        logits: u64,
        status: u64,
        workspace: u64,
    ) -> MatmulCall {
        let Product { precision, layout, .. } = self.product;
        let (first, rows) = (launch.ids.0, launch.picks.indices.len());
        let size = launch.finish.out.size();
        let int8 = precision.weight_bytes() == 1;
        let offset = (layout.row_offset * precision.rows().size()) as u64;
        MatmulCall {
            rows,
            weights: WeightMatrix {
                data: (self.weights.address() as usize + first * self.weight_pitch) as *const _,
                pitch: self.weight_pitch as u64,
                scales: if int8 { self.scales.address() as usize + 4 * first } else { 0 } as *const f32,
                bias: if launch.finish.bias { self.bias.address() as usize + 4 * first } else { 0 }
                    as *const f32,
                packed: 0,
            },
            hidden: RowMatrix {
                data: (self.source.address() + offset) as usize as *const _,
                pitch: self.row_pitch as u64,
                indices: indices as usize as *const _,
                index_bytes: if launch.picks.index == Index::Int32 { 4 } else { 8 },
                source_rows: layout.source_rows as u32,
            },
            logits: LogitMatrix {
                data: (logits as usize + first * size) as *mut _,
                pitch: ((self.product.shape.vocab + layout.out_gap) * size) as u64,
                status: status as usize as *mut u32,
                dtype: match launch.finish.out {
                    DType::F16 => LMHEAD_DTYPE_F16,
                    DType::Bf16 => LMHEAD_DTYPE_BF16,
                    _ => LMHEAD_DTYPE_F32,
                },
            },
            adjustments: self.arrays.params(&launch.finish, first),
            raw: 0,
            partials: NO_PARTIALS,
            epilogue: launch.finish.epilogue(),
            workspace,
            workspace_bytes: launch.plan.workspace.bytes,
        }
    }

    /// The weights of some ids, packed, on the device.
    fn packed(&self, plan: &Plan, ids: &Range<usize>) -> Result<Guarded<D>, String> {
        let row_bytes = plan.shape.hidden * plan.precision.weight_bytes();
        let row = |id: usize| &self.rows_of_weights[id * self.weight_pitch..][..row_bytes];
        let rows: Vec<u8> = ids.clone().flat_map(row).copied().collect();
        let mut packed = vec![0; packed_bytes(ids.len(), row_bytes).expect("they are in memory")];
        pack_weights(&rows, row_bytes, &mut packed);
        Guarded::input(self.device, &packed)
    }

    /// Runs the launch, with outputs between guard zones.
    ///
    /// # Errors
    /// What the device refused or found, or a write to a place that must not be written.
    pub fn launch(&self, launch: &Launch) -> Result<Ran, String> {
        let (device, plan, size) = (self.device, launch.plan, launch.finish.out.size());
        let Product { shape: whole, layout, .. } = self.product;
        let Shape { rows, vocab, hidden } = plan.shape;
        let ids: Range<usize> = launch.ids.0..launch.ids.1;
        assert!(vocab == ids.len() && rows == launch.picks.indices.len(), "the launch's own plan");

        let indices: Vec<u8> = match launch.picks.index {
            Index::InOrder => Vec::new(),
            Index::Int32 => launch.picks.indices.iter().flat_map(|&i| (i as i32).to_le_bytes()).collect(),
            Index::Int64 => launch.picks.indices.iter().flat_map(|&i| i.to_le_bytes()).collect(),
        };
        let indices = Guarded::input(device, &indices)?;
        let at = if launch.picks.index == Index::InOrder { 0 } else { indices.address() };
        let pitch = (whole.vocab + layout.out_gap) * size;
        let before = layout.out_offset * size;
        let out = Guarded::output(device, before + (rows - 1) * pitch + whole.vocab * size)?;
        let status = Guarded::output(device, 4 * rows)?;
        let workspace = Guarded::output(device, plan.workspace.bytes)?;

        let text = |e: lmhead::Error| e.to_string();
        let is_packed = plan.tile.family == Family::Wgmma;
        let layout = if is_packed { WeightLayout::Packed } else { WeightLayout::Rows };
        let spec = Spec { precision: plan.precision, layout, vocab, hidden, max_rows: rows };
        let product = Matmul::prepare(device, spec).map_err(text)?;
        let mut call =
            self.call(launch, at, out.address() + before as u64, status.address(), workspace.address());
        let packed = if is_packed { Some(self.packed(plan, &ids)?) } else { None };
        if let Some(packed) = &packed {
            let pitch = plan.precision.packed_row_bytes(hidden) as u64;
            call.weights = WeightMatrix {
                data: packed.address() as usize as *const _,
                pitch,
                packed: 1,
                ..call.weights
            };
        }
        // SAFETY: the buffers are as large as the call says, and live until they are read below, which waits.
        unsafe { product.run_plan(device, device.stream(), &call, plan) }.map_err(text)?;

        let column = |at: usize| at.checked_sub(before).map(|at| at % pitch / size);
        let inside = |at: usize| column(at).is_some_and(|id| ids.contains(&id));
        let all = out.unchanged(device, "logits", inside)?;
        let row = |row: usize| &all[before + row * pitch + ids.start * size..][..ids.len() * size];
        let said = status.read(device, "status")?;
        indices.unchanged(device, "indices", |_| false)?;
        if let Some(packed) = &packed {
            packed.unchanged(device, "packed weights", |_| false)?;
        }
        let used = workspace.read(device, "workspace")?;
        Ok(Ran {
            logits: (0..rows).flat_map(row).copied().collect(),
            status: bytemuck::pod_collect_to_vec(&said),
            quantised: quantised_rows(plan, &used)?,
        })
    }

    /// # Errors
    /// The first input that a kernel wrote to.
    pub fn inputs_are_unchanged(&self) -> Result<(), String> {
        let inputs = [
            ("weights", &self.weights),
            ("weight scales", &self.scales),
            ("bias", &self.bias),
            ("rows", &self.source),
        ];
        let arrays = self.arrays.names.into_iter().zip(&self.arrays.buffers);
        for (what, input) in inputs.into_iter().chain(arrays) {
            input.unchanged(self.device, what, |_| false)?;
        }
        Ok(())
    }
}

/// Rows `[rows, hidden]`, and their scales.
type QuantisedRows = (Vec<i8>, Vec<f32>);

/// The int8 rows and their scales that a plan has left in its workspace, where it quantises.
///
/// # Errors
/// Where the padding behind each row and behind the last one is not zeros, as the layout demands.
fn quantised_rows(plan: &Plan, used: &[u8]) -> Result<Option<QuantisedRows>, String> {
    let Shape { rows, hidden, .. } = plan.shape;
    let (pitch, scales) = (plan.workspace.row_pitch, plan.workspace.scales);
    let int8 = plan.precision.multiplies_int8();
    let element = if int8 { 1 } else { plan.precision.rows().size() };
    // Pairs of each 16 elements change places: even ones come first.
    let interleaved = !int8 && plan.precision.weight_bytes() == 1;
    // Where byte `at` of row `row` lies.
    let place = |row: usize, at: usize| match plan.stage {
        None => row * pitch + at,
        Some(_) => {
            let pair = at % 32 / 4;
            let at = if interleaved { at - 4 * pair + 4 * (pair / 2 + pair % 2 * 4) } else { at };
            let (n, columns) = (plan.tile.block_m, pitch / 128);
            let column = (row / n * columns + at / 128) * n * 128;
            column + row % n * 128 + ((at % 128 / 16) ^ (row % n % 8)) * 16 + at % 16
        }
    };
    let Some(staged) = plan.stage.map(|stage| stage.blocks as usize).or(plan.quantize.map(|_| rows)) else {
        return Ok(None);
    };
    for row in 0..staged {
        let end = if row < rows { hidden * element } else { 0 };
        if (end..pitch).any(|at| used[place(row, at)] != 0) {
            return Err(format!("row {row} in the workspace: wanted zeros from byte {end} on"));
        }
    }
    if !int8 {
        return Ok(None);
    }
    let values = (0..rows).flat_map(|row| (0..hidden).map(move |at| (row, at)));
    let values = values.map(|(row, at)| used[place(row, at)] as i8).collect();
    Ok(Some((values, bytemuck::pod_collect_to_vec(&used[scales..][..4 * rows]))))
}
