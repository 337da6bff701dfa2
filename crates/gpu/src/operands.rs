//! Operands of any size, made and kept on a device, and products of them with guarded, poisoned outputs that
//! are compared there.

pub mod mistakes;

use crate::check::{Checker, Span, code, scales};
use crate::fill::Fill;
use lmhead::backend::device::hopper::packed_bytes;
use lmhead::backend::device::{KernelDevice, Matmul, MatmulCall, NO_ADJUSTMENTS, NO_PARTIALS, Spec};
use lmhead::backend::params::{LMHEAD_STATUS_ALLOWED, LogitMatrix, MatmulParams, RowMatrix, WeightMatrix};
use lmhead::epilogue::Epilogue;
use lmhead::memory::{self, Memory};
use lmhead::plan::hopper::COLUMN_BYTES;
use lmhead::plan::{Plan, Precision, Shape, WeightLayout};
use lmhead::{DType, Error, Result};

/// Bytes before and behind an output that nobody may write to.
const GUARD: usize = 512;
/// What an output holds before: a NaN in each type.
const POISON: u8 = 0xff;
/// Bytes that are copied to or from the device at once.
const CHUNK: usize = 256 << 20;

/// What is multiplied. All values are functions of the whole head's seed and their place, so that a shard has
/// those of its head.
#[derive(Debug, Clone, Copy)]
pub struct Operands {
    pub precision: Precision,
    /// The ids `first..first + vocab` of a head.
    pub first: usize,
    pub vocab: usize,
    pub hidden: usize,
    pub source_rows: usize,
    /// Small integers, whose sums are exact; random values otherwise.
    pub integers: bool,
    seed: u64,
}

impl Operands {
    /// A whole head with random values.
    pub fn new(precision: Precision, vocab: usize, hidden: usize, source_rows: usize) -> Self {
        let seed = (vocab * hidden) as u64;
        Operands { precision, first: 0, vocab, hidden, source_rows, integers: false, seed }
    }

    /// The same with small integers.
    #[must_use]
    pub fn integers(self) -> Self {
        Operands { integers: true, ..self }
    }

    /// Ids `first..first + vocab` of these weights, with the same rows.
    #[must_use]
    pub fn shard(self, first: usize, vocab: usize) -> Self {
        Operands { first: self.first + first, vocab, ..self }
    }

    /// The weights' type.
    pub fn weights(&self) -> DType {
        match self.precision {
            Precision::Bf16 | Precision::F16 => self.precision.rows(),
            Precision::W8a8(_) | Precision::W8a16(_) => DType::I8,
            Precision::Fp8(_) => DType::E4m3,
        }
    }

    /// Bytes from one row of weights to the next. What is between them is as random as the rows: it must not
    /// be read as numbers.
    pub fn pitch(&self) -> usize {
        (self.hidden * self.precision.weight_bytes()).next_multiple_of(16)
    }

    /// Bytes of all weights, and of all rows.
    pub fn bytes(&self) -> (usize, usize) {
        (self.vocab * self.pitch(), self.source_rows * self.hidden * self.precision.rows().size())
    }

    fn weight_fill(&self) -> Fill {
        let (dtype, seed) = (self.weights(), self.seed);
        if self.integers { Fill::Small { dtype, seed, row: 0 } } else { Fill::Random(dtype, seed) }
    }

    fn row_fill(&self) -> Fill {
        let (dtype, seed) = (self.precision.rows(), self.seed ^ 2);
        if self.integers { Fill::Small { dtype, seed, row: self.hidden } } else { Fill::Random(dtype, seed) }
    }

    /// The scales `[vocab]` of 8-bit weights; none for others.
    pub fn scales(&self) -> Vec<f32> {
        let vocab = if self.precision.weight_bytes() == 1 { self.vocab } else { 0 };
        scales(self.first, vocab, self.seed ^ 1, self.integers)
    }

    /// All weights on the host, `[vocab, pitch]` bytes.
    pub fn host_weights(&self) -> Vec<u8> {
        self.weight_fill().bytes(self.first * self.pitch(), self.bytes().0)
    }

    /// All rows on the host, `[source_rows, hidden]`.
    pub fn host_rows(&self) -> Vec<u8> {
        self.row_fill().bytes(0, self.bytes().1)
    }
}

/// The operands on a device, and the product that was prepared for them.
pub struct Loaded<'d, D: KernelDevice> {
    pub device: &'d D,
    pub matmul: Matmul<D>,
    pub shape: Shape,
    pub operands: Operands,
    check: Checker<D>,
    weights: D::Buffer,
    /// Bytes of all weights; and from row to row, or, if packed, of a row's columns.
    weight_bytes: usize,
    weight_pitch: usize,
    scales: Option<D::Buffer>,
    rows: D::Buffer,
}

/// Logits on a device, between guards, rows a little apart.
pub struct Output<D: KernelDevice> {
    buffer: D::Buffer,
    bytes: usize,
    status: D::Buffer,
    workspace: D::Buffer,
    workspace_bytes: usize,
    indices: Option<D::Buffer>,
    pub rows: usize,
    row_bytes: usize,
    pitch: usize,
    dtype: DType,
}

fn upload<D: KernelDevice>(device: &D, bytes: &[u8]) -> Result<D::Buffer> {
    let buffer = device.alloc(bytes.len().next_multiple_of(16))?;
    for (i, chunk) in bytes.chunks(CHUNK).enumerate() {
        device.write(&buffer, i * CHUNK, chunk)?;
    }
    Ok(buffer)
}

fn said(e: lmhead::Error) -> String {
    e.to_string()
}

/// The layouts of weights that have kernels on this device and in this build: row-major first, that of a head
/// that is loaded there last.
///
/// # Errors
/// As [`KernelDevice::kernel`] where a kernel of this build cannot be loaded.
pub fn layouts<D: KernelDevice>(device: &D, precision: Precision) -> Result<Vec<WeightLayout>> {
    let rows = vec![WeightLayout::Rows];
    if device.limits().layout() == WeightLayout::Rows {
        return Ok(rows);
    }
    match device.kernel::<MatmulParams>(precision.packed_tiles()[0].kernel) {
        // The build was made without them.
        Err(Error::Unsupported { .. }) => Ok(rows),
        found => found.map(|_| vec![WeightLayout::Rows, WeightLayout::Packed]),
    }
}

impl<'d, D: KernelDevice> Loaded<'d, D> {
    /// With weights in the layout of a head that is loaded there.
    ///
    /// # Errors
    /// As [`Matmul::prepare`]; `Device` where memory is short.
    pub fn new(device: &'d D, operands: &Operands, max_rows: usize) -> Result<Self> {
        let all = layouts(device, operands.precision)?;
        Self::with_layout(device, operands, max_rows, all[all.len() - 1])
    }

    /// One for each of [`layouts`].
    ///
    /// # Errors
    /// As [`Loaded::new`].
    pub fn each(device: &'d D, operands: &Operands, max_rows: usize) -> Result<Vec<Self>> {
        let all = layouts(device, operands.precision)?.into_iter();
        all.map(|layout| Self::with_layout(device, operands, max_rows, layout)).collect()
    }

    /// # Errors
    /// As [`Loaded::new`].
    pub fn with_layout(
        device: &'d D,
        operands: &Operands,
        max_rows: usize,
        layout: WeightLayout,
    ) -> Result<Self> {
        let Operands { precision, vocab, hidden, .. } = *operands;
        let matmul = Matmul::prepare(device, Spec { precision, layout, vocab, hidden, max_rows })?;
        let (mut weight_bytes, row_bytes) = operands.bytes();
        let mut weight_pitch = operands.pitch();
        let check = Checker::new(device)?;
        let mut weights = device.alloc(weight_bytes)?;
        let rows = device.alloc(row_bytes.next_multiple_of(16))?;
        let first = operands.first * weight_pitch;
        check.fill(device, &weights, 0, weight_bytes, (operands.weight_fill(), first))?;
        check.fill(device, &rows, 0, row_bytes, (operands.row_fill(), 0))?;
        if layout == WeightLayout::Packed {
            let k_bytes = hidden * precision.weight_bytes();
            weight_bytes = packed_bytes(vocab, k_bytes).expect("fewer bytes than a device has");
            let packed = device.alloc(weight_bytes)?;
            check.pack(device, (&weights, weight_pitch), &packed, (vocab, k_bytes))?;
            device.wait(device.stream())?;
            (weights, weight_pitch) = (packed, k_bytes.next_multiple_of(COLUMN_BYTES));
        }
        let scales = operands.scales();
        let scales = (!scales.is_empty()).then(|| upload(device, bytemuck::cast_slice(&scales)));
        let scales = scales.transpose()?;
        device.wait(device.stream())?;
        let shape = Shape { rows: max_rows, vocab, hidden };
        Ok(Loaded {
            device,
            matmul,
            shape,
            operands: *operands,
            check,
            weights,
            weight_bytes,
            weight_pitch,
            scales,
            rows,
        })
    }

    pub fn layout(&self) -> WeightLayout {
        self.matmul.spec().layout
    }

    /// For each tile of this layout the plans with the fewest stages and with the most.
    pub fn plans(&self, rows: usize) -> Result<Vec<Plan>> {
        let (shape, precision) = (Shape { rows, ..self.shape }, self.operands.precision);
        let limits = self.device.limits();
        let all = match self.layout() {
            WeightLayout::Rows => Plan::candidates(precision, shape, &limits)?,
            WeightLayout::Packed => Plan::packed_candidates(precision, shape, &limits)?,
        };
        let of_tiles = all.chunk_by(|one, other| one.tile == other.tile);
        let mut some: Vec<Plan> = of_tiles.flat_map(|plans| [plans[0], plans[plans.len() - 1]]).collect();
        some.dedup();
        Ok(some)
    }

    /// Room for the logits of `rows` rows, or of those that `indices` pick, by any plan of [`Loaded::plans`].
    /// `gap`: elements between rows.
    pub fn output(
        &self,
        rows: usize,
        indices: Option<&[i64]>,
        dtype: DType,
        gap: usize,
    ) -> Result<Output<D>> {
        let row_bytes = self.shape.vocab * dtype.size();
        let pitch = row_bytes + gap * dtype.size();
        let bytes = (2 * GUARD + rows * pitch).next_multiple_of(16);
        let of_plans = self.plans(rows)?.iter().map(|plan| plan.workspace.bytes).max();
        let workspace_bytes = self.matmul.workspace_bytes(rows)?.max(of_plans.unwrap_or(0));
        Ok(Output {
            buffer: self.device.alloc(bytes)?,
            bytes,
            status: self.device.alloc((4 * rows).next_multiple_of(16))?,
            workspace: self.device.alloc(workspace_bytes.next_multiple_of(16))?,
            workspace_bytes,
            indices: indices.map(|i| upload(self.device, bytemuck::cast_slice(i))).transpose()?,
            rows,
            row_bytes,
            pitch,
            dtype,
        })
    }

    fn weight_matrix(&self) -> WeightMatrix {
        let address = |buffer: &D::Buffer| self.device.address(buffer) as usize;
        WeightMatrix {
            data: address(&self.weights) as *const _,
            pitch: self.weight_pitch as u64,
            scales: self.scales.as_ref().map_or(std::ptr::null(), |b| address(b) as *const f32),
            bias: std::ptr::null(),
            packed: u32::from(self.layout() == WeightLayout::Packed),
        }
    }

    /// Bytes from row to row of the weights; packed: of a row's columns.
    pub fn weight_pitch(&self) -> usize {
        self.weight_pitch
    }

    /// The device memory of all weights, and of all rows.
    pub fn spans(&self) -> (memory::Span<'_>, memory::Span<'_>) {
        let of = Memory::Device(self.device.ordinal());
        let (weights, rows) = (self.weight_bytes, self.operands.bytes().1);
        // SAFETY: this product's own buffers, which are written at its beginning alone.
        let span = |buffer, bytes| unsafe { memory::Span::from_raw(of, self.device.address(buffer), bytes) };
        (span(&self.weights, weights), span(&self.rows, rows))
    }

    pub fn call(&self, out: &Output<D>) -> MatmulCall {
        let address = |buffer: &D::Buffer| self.device.address(buffer) as usize;
        MatmulCall {
            rows: out.rows,
            weights: self.weight_matrix(),
            hidden: RowMatrix {
                data: address(&self.rows) as *const _,
                pitch: (self.shape.hidden * self.operands.precision.rows().size()) as u64,
                indices: out.indices.as_ref().map_or(std::ptr::null(), |b| address(b) as *const _),
                index_bytes: 8,
                source_rows: self.operands.source_rows as u32,
            },
            logits: LogitMatrix {
                data: (address(&out.buffer) + GUARD) as *mut _,
                pitch: out.pitch as u64,
                status: address(&out.status) as *mut u32,
                dtype: code(out.dtype),
            },
            adjustments: NO_ADJUSTMENTS,
            raw: 0,
            partials: NO_PARTIALS,
            epilogue: Epilogue::default(),
            workspace: address(&out.workspace) as u64,
            workspace_bytes: out.workspace_bytes,
        }
    }

    /// Fills the output, its status and the workspace with poison.
    pub fn poison(&self, out: &Output<D>) -> Result<()> {
        let poison = (Fill::Bytes(POISON), 0);
        for (buffer, bytes) in
            [(&out.buffer, out.bytes), (&out.status, 4 * out.rows), (&out.workspace, out.workspace_bytes)]
        {
            self.check.fill(self.device, buffer, 0, bytes, poison)?;
        }
        self.device.wait(self.device.stream())
    }

    /// Poisons the output, runs the plan, waits. No plan: the product's own choice.
    pub fn run(&self, out: &Output<D>, plan: Option<&Plan>) -> Result<()> {
        self.poison(out)?;
        let (stream, call) = (self.device.stream(), self.call(out));
        // SAFETY: all of it is this device's, and lives until the wait below.
        unsafe {
            match plan {
                Some(plan) => self.matmul.run_plan(self.device, stream, &call, plan)?,
                None => self.matmul.run(self.device, stream, &call)?,
            }
        }
        self.device.wait(stream)
    }

    fn logits(&self, out: &Output<D>) -> Span {
        Span { address: self.device.address(&out.buffer) + GUARD as u64, pitch: out.pitch, dtype: out.dtype }
    }

    fn mismatches(
        &self,
        want: Option<Span>,
        got: Span,
        shape: (usize, usize),
        what: &str,
    ) -> std::result::Result<(), String> {
        let found = self.check.mismatches(self.device, want, got, shape).map_err(said)?;
        if found.count == 0 { Ok(()) } else { Err(format!("of {} {what}, {found}", shape.0 * shape.1)) }
    }

    /// Checks that statuses are good, and that nothing beside the logits was written.
    fn intact(&self, out: &Output<D>) -> std::result::Result<(), String> {
        let mut status = vec![0u32; out.rows];
        self.device.read(&out.status, 0, bytemuck::cast_slice_mut(&mut status)).map_err(said)?;
        if let Some(row) = status.iter().position(|&status| status != LMHEAD_STATUS_ALLOWED) {
            return Err(format!("row {row} has status {:#x}", status[row]));
        }
        let (logits, size) = (self.logits(out), out.dtype.size());
        let at = |address: u64, pitch| Span { address, pitch, dtype: out.dtype };
        let behind = logits.address + (out.rows * out.pitch) as u64;
        for (span, shape) in [
            (at(logits.address - GUARD as u64, GUARD), (1, GUARD / size)),
            (at(behind, GUARD), (1, GUARD / size)),
            (
                at(logits.address + out.row_bytes as u64, out.pitch),
                (out.rows, (out.pitch - out.row_bytes) / size),
            ),
        ] {
            self.mismatches(None, span, shape, "elements beside the logits")?;
        }
        Ok(())
    }

    /// Checks for the same bits as another output, rounded to this one's type; and that all of it was
    /// written, and nothing else.
    pub fn equals(&self, out: &Output<D>, want: &Output<D>) -> std::result::Result<(), String> {
        self.intact(out)?;
        let shape = (out.rows, self.shape.vocab);
        if (want.rows, want.row_bytes / want.dtype.size()) != shape {
            return Err(format!("{} rows to compare with {}", shape.0, want.rows));
        }
        self.mismatches(Some(self.logits(want)), self.logits(out), shape, "logits")
    }

    /// Checks for the same bits as `want`, contiguous `[rows, vocab]`.
    pub fn equals_bytes(&self, out: &Output<D>, want: &[u8]) -> std::result::Result<(), String> {
        if want.len() != out.rows * out.row_bytes {
            return Err(format!("{} bytes to compare with {}", want.len(), out.rows * out.row_bytes));
        }
        self.intact(out)?;
        let buffer = upload(self.device, want).map_err(said)?;
        let span = Span { address: self.device.address(&buffer), pitch: out.row_bytes, dtype: out.dtype };
        self.mismatches(Some(span), self.logits(out), (out.rows, self.shape.vocab), "logits")
    }

    /// Checks for the same bits as columns `from..` of rows `rows[i]` of a larger output of the same type.
    pub fn equals_part(
        &self,
        out: &Output<D>,
        (want, rows, from): (&Output<D>, &[i64], usize),
    ) -> std::result::Result<(), String> {
        self.intact(out)?;
        let whole = self.logits(want);
        for (i, &row) in rows.iter().enumerate() {
            let start = (row as usize * want.pitch + from * want.dtype.size()) as u64;
            let want = Span { address: whole.address + start, ..whole };
            let got = Span { address: self.logits(out).address + (i * out.pitch) as u64, ..self.logits(out) };
            self.mismatches(Some(want), got, (1, self.shape.vocab), &format!("logits of row {row}"))?;
        }
        Ok(())
    }

    /// The projection by which [`Loaded::is_exact`] checks products of these integers.
    pub fn projection(&self) -> Result<D::Buffer> {
        let Operands { vocab, hidden, .. } = self.operands;
        self.check.projection(self.device, self.weight_matrix(), self.operands.weights(), (vocab, hidden))
    }

    /// Whether f32 logits are the exact product of the integers.
    ///
    /// # Errors
    /// Which rows are not, or what was written beside them.
    pub fn is_exact(&self, out: &Output<D>, projection: &D::Buffer) -> std::result::Result<(), String> {
        assert!(self.operands.integers && out.dtype == DType::F32, "exact f32 logits of integers");
        self.intact(out)?;
        let Operands { vocab, hidden, precision, .. } = self.operands;
        let rows = (self.call(out).hidden, precision.rows(), hidden);
        let logits = self.logits(out);
        let wrong =
            self.check.wrong_rows(self.device, projection, rows, logits, (out.rows, vocab)).map_err(said)?;
        match wrong.first() {
            None => Ok(()),
            Some(first) => Err(format!("{} of {} rows are wrong, the first {first}", wrong.len(), out.rows)),
        }
    }

    /// All logits on the host, one row behind the other.
    pub fn all(&self, out: &Output<D>) -> std::result::Result<Vec<u8>, String> {
        self.intact(out)?;
        self.part(out, 0..self.shape.vocab)
    }

    /// Some ids of every row on the host, one row behind the other.
    pub fn part(&self, out: &Output<D>, ids: std::ops::Range<usize>) -> std::result::Result<Vec<u8>, String> {
        let size = out.dtype.size();
        let mut bytes = vec![0; out.rows * ids.len() * size];
        for (row, to) in bytes.chunks_mut((ids.len() * size).max(1)).enumerate() {
            let at = GUARD + row * out.pitch + ids.start * size;
            self.device.read(&out.buffer, at, to).map_err(said)?;
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lmhead::backend::device::hopper::pack_weights;
    use lmhead_emulated::EmulatedDevice;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        /// Weights that the device has packed are those that a head's loader packs.
        #[test]
        fn a_device_packs_as_the_host_does(
            vocab in 1usize..300, hidden in 1usize..300, int8 in any::<bool>(), schedule in any::<u64>(),
        ) {
            let device = EmulatedDevice::new(schedule);
            let precision = if int8 { Precision::W8a8(DType::Bf16) } else { Precision::F16 };
            let operands = Operands::new(precision, vocab, hidden, 1);
            let loaded = Loaded::new(&device, &operands, 1).expect("kernels");
            prop_assert_eq!(loaded.layout(), WeightLayout::Packed);
            let row_bytes = hidden * precision.weight_bytes();
            let all = operands.host_weights();
            let rows: Vec<u8> =
                all.chunks(operands.pitch()).flat_map(|row| row[..row_bytes].to_vec()).collect();
            let mut wanted = vec![0; packed_bytes(vocab, row_bytes).expect("few")];
            pack_weights(&rows, row_bytes, &mut wanted);
            let mut got = vec![0; wanted.len()];
            device.read(&loaded.weights, 0, &mut got).expect("a copy");
            prop_assert!(got == wanted);
        }
    }

    #[test]
    fn a_device_is_filled_as_the_host_says() {
        let device = EmulatedDevice::new(1);
        let check = Checker::new(&device).expect("kernels");
        let types = [DType::I8, DType::E4m3, DType::Bf16, DType::F16, DType::F32];
        let random = types.map(|dtype| Fill::Random(dtype, 0x1234_5678_9abc));
        let row = |dtype| if dtype == DType::E4m3 { 0 } else { 50 };
        let small = types.map(|dtype| Fill::Small { dtype, seed: 7, row: row(dtype) });
        let buffer = device.alloc(1 << 14).expect("memory");
        for fill in random.into_iter().chain(small).chain([Fill::Bytes(0x5a)]) {
            for (at, bytes, first) in [(0, 16, 0), (32, 4096, 160), (0, 1 << 14, 1 << 20)] {
                check.fill(&device, &buffer, 0, 1 << 14, (Fill::Bytes(0xee), 0)).expect("a launch");
                check.fill(&device, &buffer, at, bytes, (fill, first)).expect("a launch");
                let mut all = vec![0; 1 << 14];
                device.read(&buffer, 0, &mut all).expect("a copy");
                assert!(
                    all[at..at + bytes] == fill.bytes(first, bytes),
                    "{fill:?}, {bytes} bytes from {first}"
                );
                let outside = all[..at].iter().chain(&all[at + bytes..]);
                assert!(outside.copied().all(|byte| byte == 0xee), "{fill:?}: written beside it");
            }
        }
        // By the type's own definition: no code is NaN, and the integers are right.
        let codes = Fill::Random(DType::E4m3, 5).bytes(0, 4096);
        assert!(codes.iter().enumerate().all(|(i, _)| DType::E4m3.read(&codes, i).abs() < 2.0), "{codes:?}");
        let [bytes, codes] =
            [DType::I8, DType::E4m3].map(|dtype| Fill::Small { dtype, seed: 3, row: 0 }.bytes(0, 1000));
        for (i, byte) in bytes.iter().enumerate() {
            assert_eq!(DType::E4m3.read(&codes, i), f32::from(*byte as i8), "element {i}");
        }
        // Integers are what they say, and the first of a row 127.
        let bytes = Fill::Small { dtype: DType::I8, seed: 3, row: 100 }.bytes(0, 1000);
        let firsts = bytes.iter().step_by(100).all(|byte| *byte == 127);
        assert!(firsts && bytes.iter().filter(|byte| !(-8..8).contains(&(**byte as i8))).count() == 10);
    }
}
