//! Tests of one whole product (matmul with epilogue) of `kernels/`: its operands, their layout, the expected
//! result, and the comparison. Generic over the device: `crates/emulated/tests/device` runs it on the
//! emulated one, `crates/gpu/tests/gpu` on a GPU.
//!
//! ```text
//! Product (what) -> Operands (values) -> Loaded (on the device) -> launches -> `expected` and float64
//! ```

pub mod capacity;
pub mod cuts;
pub mod draws;
mod expected;
mod loaded;
pub mod logits;
mod memory;
mod operands;
pub mod partials;
pub mod peers;
pub mod shards;
pub mod shared_device;
pub mod steady;
pub mod table;

pub use expected::{bits_of, check_raw, expected, quantised};
pub use loaded::{Launch, Loaded, Picks, Ran};
pub use memory::Guarded;
pub use operands::Operands;

use lmhead::DType;
use lmhead::backend::device::KernelDevice;
use lmhead::epilogue::Epilogue;
use lmhead::plan::{DeviceLimits, Plan, Precision, Shape, Tile, WeightLayout};

/// What the operands hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values {
    Gaussian,
    /// Integers with magnitudes up to 8: every sum is exact, so the bits are known.
    Integers,
    /// Every sixth row has a NaN, an infinity, values that overflow, subnormal values, zeros, or a scale at
    /// its smallest.
    Broken,
}

/// How rows are selected: in order, or by indices of this type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Index {
    InOrder,
    Int32,
    Int64,
}

/// Which steps follow the raw logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Finish {
    pub bias: bool,
    pub softcap: Option<f32>,
    pub scale: f32,
    pub mask: bool,
    pub logit_bias: bool,
    pub penalties: bool,
    pub temperatures: bool,
    pub out: DType,
}

impl Finish {
    /// No step: raw logits in f32.
    pub const NONE: Finish = Finish {
        bias: false,
        softcap: None,
        scale: 1.0,
        mask: false,
        logit_bias: false,
        penalties: false,
        temperatures: false,
        out: DType::F32,
    };
    /// Every step.
    pub const ALL: Finish = Finish {
        bias: true,
        softcap: Some(3.0),
        scale: -0.75,
        mask: true,
        logit_bias: true,
        penalties: true,
        temperatures: true,
        out: DType::F32,
    };

    pub fn epilogue(&self) -> Epilogue {
        Epilogue { softcap: self.softcap, scale: self.scale }
    }

    pub fn adjusted(&self) -> bool {
        self.mask || self.logit_bias || self.penalties
    }
}

/// The layout of the operands. Offsets and gaps count elements unless a field says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    pub index: Index,
    /// Rows that indices can select; at least as many as are multiplied.
    pub source_rows: usize,
    /// Elements before the first row; 1 leaves the address aligned to one element only.
    pub row_offset: usize,
    /// Elements between rows.
    pub row_gap: usize,
    /// Between rows of weights, in units of 16 bytes.
    pub weight_gap: usize,
    pub out_offset: usize,
    /// Elements between rows of logits.
    pub out_gap: usize,
}

impl Layout {
    /// Contiguous rows, in order.
    pub fn packed(rows: usize) -> Self {
        Layout {
            index: Index::InOrder,
            source_rows: rows,
            row_offset: 0,
            row_gap: 0,
            weight_gap: 0,
            out_offset: 0,
            out_gap: 0,
        }
    }
}

/// A product's precision, sizes and layout; all values follow from the seed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Product {
    pub precision: Precision,
    pub shape: Shape,
    pub values: Values,
    pub finish: Finish,
    pub layout: Layout,
    pub seed: u64,
}

impl Product {
    pub fn new(precision: Precision, rows: usize, vocab: usize, hidden: usize) -> Self {
        Product {
            precision,
            shape: Shape { rows, vocab, hidden },
            values: Values::Gaussian,
            finish: Finish::NONE,
            layout: Layout::packed(rows),
            seed: (rows * 1_000_003 + vocab * 1009 + hidden) as u64,
        }
    }
}

/// The plans to test: the one that is chosen, and one for every other tile that computes at most `work`
/// multiply-adds, padding included. The numbers of stages take turns.
pub fn plans<D: KernelDevice>(device: &D, product: &Product, work: usize) -> Result<Vec<Plan>, String> {
    let text = |e: lmhead::Error| e.to_string();
    let shape = product.shape;
    let chosen = Plan::new(product.precision, shape, &device.limits()).map_err(text)?;
    let all = Plan::candidates(product.precision, shape, &device.limits()).map_err(text)?;
    let cost = |plan: &Plan| {
        let Tile { block_m, block_n, .. } = plan.tile;
        // A tail tile takes the instructions of a tile.
        let ids = match plan.tail {
            Some(_) => plan.tiles() as usize * block_n,
            None => shape.vocab.next_multiple_of(block_n),
        };
        shape.rows.next_multiple_of(block_m) * ids * shape.hidden
    };
    let of_tiles = all.chunk_by(|one, other| one.tile == other.tile).enumerate();
    let others = of_tiles.map(|(i, plans)| plans[(i + (product.seed % 1024) as usize) % plans.len()]);
    let others = others.filter(|plan| plan.tile != chosen.tile && cost(plan) <= work);
    let packed = packed_plans(product, &device.limits())?.into_iter().filter(|plan| cost(plan) <= work);
    Ok([chosen].into_iter().chain(others).chain(packed).collect())
}

/// Plans for packed weights, where the device has kernels for them: one for every third tile only,
/// since they take the emulated device longest. Tiles take turns with the product's seed, and so do fewer and
/// more stages, and blocks with one tile or several.
pub fn packed_plans(product: &Product, limits: &DeviceLimits) -> Result<Vec<Plan>, String> {
    if limits.layout() == WeightLayout::Rows {
        return Ok(Vec::new());
    }
    let all = Plan::packed_candidates(product.precision, product.shape, limits).map_err(|e| e.to_string())?;
    let turn = (product.seed % 1024) as usize;
    let of_tiles = all.chunk_by(|one, other| one.tile == other.tile).enumerate();
    let of_tile = of_tiles.filter(|(i, _)| (i + turn).is_multiple_of(3)).map(|(i, plans)| {
        let plan = plans[(i + turn) % plans.len()];
        let clusters = plan.blocks / plan.tile.cluster() as u32;
        let some = clusters.div_ceil([1, 3, 2][(i + turn / 2) % 3]);
        Plan { blocks: some * plan.tile.cluster() as u32, ..plan }
    });
    Ok(of_tile.collect())
}

/// Raw logits `[rows, vocab]` by the chosen plan.
///
/// # Errors
/// What the device refused or found.
pub fn raw_logits<D: KernelDevice>(device: &D, product: &Product) -> Result<Vec<f32>, String> {
    let operands = Operands::new(product);
    let plan = plans(device, product, 0)?[0];
    let ran = Loaded::new(device, product, &operands)?.launch(&Launch::raw(&plan, &operands))?;
    Ok(ran.f32s())
}

/// Everything that is promised of one product:
/// - raw logits are within the bounds of the accuracy rules, and exact where bits are known;
/// - every plan gives the same bits;
/// - what is done to them has the CPU backend's bits, and so has each row's status;
/// - nothing but the outputs is written, and all of those are.
///
/// # Errors
/// What is wrong.
pub fn run_product<D: KernelDevice>(device: &D, product: &Product, work: usize) -> Result<(), String> {
    let operands = Operands::new(product);
    let loaded = Loaded::new(device, product, &operands)?;
    let plans = plans(device, product, work)?;
    let mut raw: Option<Vec<f32>> = None;
    for plan in &plans {
        let name = |problem| format!("{}: {problem}", plan.tile.kernel);
        let ran = loaded.launch(&Launch::raw(plan, &operands)).map_err(name)?;
        let logits = ran.f32s();
        match &raw {
            None => check_raw(product, &operands, &logits).map_err(name)?,
            Some(first) if bits_of(first) != bits_of(&logits) => {
                return Err(name(format!("other bits than {}", plans[0].tile.kernel)));
            }
            Some(_) => {}
        }
        let (_, status) = expected(&operands, &Finish::NONE, &logits);
        same_status(&ran.status, &status).map_err(name)?;
        if let Some((rows, scales)) = &ran.quantised {
            let (want, want_scales) = quantised(&operands);
            if *rows != want || bits_of(scales) != bits_of(&want_scales) {
                return Err(name("quantised rows or scales differ from the rule's".into()));
            }
        }
        raw.get_or_insert(logits);
    }
    let raw = raw.ok_or("no plan")?;
    let (want, status) = expected(&operands, &product.finish, &raw);
    for plan in plans.iter().filter(|_| product.finish != Finish::NONE) {
        let name = |problem| format!("{} with its epilogue: {problem}", plan.tile.kernel);
        let ran = loaded.launch(&Launch { finish: product.finish, ..Launch::raw(plan, &operands) });
        let ran = ran.map_err(name)?;
        same_logits(&ran, &want, product.shape.vocab, product.finish.out).map_err(name)?;
        same_status(&ran.status, &status).map_err(name)?;
    }
    loaded.inputs_are_unchanged()
}

/// # Errors
/// The first element that differs.
pub fn same_logits(ran: &Ran, want: &[u8], vocab: usize, dtype: DType) -> Result<(), String> {
    if ran.logits.len() != want.len() {
        return Err(format!("wanted {} bytes of logits, got {}", want.len(), ran.logits.len()));
    }
    for at in 0..want.len() / dtype.size() {
        let (got, want) = (dtype.read(&ran.logits, at), dtype.read(want, at));
        // NaN payloads are not part of the promise.
        if got.to_bits() != want.to_bits() && !(got.is_nan() && want.is_nan()) {
            let (row, id) = (at / vocab, at % vocab);
            return Err(format!("row {row}, id {id}: wanted {want:e}, got {got:e}"));
        }
    }
    Ok(())
}

/// # Errors
/// The first row whose status differs.
pub fn same_status(got: &[u32], want: &[u32]) -> Result<(), String> {
    match got.iter().zip(want).position(|(got, want)| got != want) {
        _ if got.len() != want.len() => Err(format!("wanted {} statuses, got {}", want.len(), got.len())),
        Some(row) => Err(format!("row {row}: wanted status {:#b}, got {:#b}", want[row], got[row])),
        None => Ok(()),
    }
}
