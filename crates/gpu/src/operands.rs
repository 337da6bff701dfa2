//! Operands of any size on a device, quickly made, and products of them with guarded, poisoned outputs.

use lmhead::backend::device::{Call, KernelDevice, Matmul, NO_ADJUSTMENTS, Spec};
use lmhead::backend::params::{
    LMHEAD_DTYPE_BF16, LMHEAD_DTYPE_F16, LMHEAD_DTYPE_F32, LogitMatrix, RowMatrix, WeightMatrix,
};
use lmhead::epilogue::Epilogue;
use lmhead::plan::{Plan, Precision, Shape};
use lmhead::{DType, Result};

/// Bytes before and behind an output that nobody may write to.
const GUARD: usize = 512;
/// What an output holds before: a NaN in each type.
const POISON: u8 = 0xff;
/// Bytes that are copied to or from the device at once.
const CHUNK: usize = 256 << 20;

/// Operands on the host.
pub struct Operands {
    pub precision: Precision,
    pub vocab: usize,
    pub hidden: usize,
    pub source_rows: usize,
    /// `[vocab, pitch]` bytes: rows of a multiple of 16.
    pub weights: Vec<u8>,
    pub pitch: usize,
    /// `[vocab]`, of int8 weights.
    pub scales: Vec<f32>,
    /// `[source_rows, hidden]`.
    pub rows: Vec<u8>,
}

/// `words` 64-bit words of the same seed (xorshift64*).
fn words(seed: u64, words: usize) -> impl Iterator<Item = u64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..words).map(move |_| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    })
}

/// `n` values of that type of magnitudes from 2^-9 to 2, of both signs.
pub fn values(dtype: DType, n: usize, seed: u64) -> Vec<u8> {
    let each = 8 / dtype.size();
    let mut bytes = Vec::with_capacity(n.div_ceil(each) * 8);
    // In each lane: sign and mantissa kept, the exponent made of three random bits and a base.
    let place = |word: u64| match dtype {
        DType::I8 => word,
        DType::Bf16 => {
            let low = (word >> 5) & 0x0007_0007_0007_0007;
            (word & 0x807f_807f_807f_807f) | ((low + 0x0077_0077_0077_0077) << 7)
        }
        DType::F16 => {
            let low = (word >> 7) & 0x0007_0007_0007_0007;
            (word & 0x83ff_83ff_83ff_83ff) | ((low + 0x0007_0007_0007_0007) << 10)
        }
        DType::F32 => {
            let low = (word >> 11) & 0x0000_0007_0000_0007;
            (word & 0x807f_ffff_807f_ffff) | ((low + 0x0000_0077_0000_0077) << 23)
        }
    };
    for word in words(seed, n.div_ceil(each)) {
        bytes.extend_from_slice(&place(word).to_le_bytes());
    }
    bytes.truncate(n * dtype.size());
    bytes
}

impl Operands {
    pub fn new(precision: Precision, vocab: usize, hidden: usize, source_rows: usize) -> Self {
        let seed = (vocab * hidden) as u64;
        let int8 = precision.weight_bytes() == 1;
        let pitch = (hidden * precision.weight_bytes()).next_multiple_of(16);
        // What is behind a row is as random as the row: it must not be read as numbers.
        let dtype = if int8 { DType::I8 } else { precision.rows() };
        let weights = values(dtype, vocab * pitch / dtype.size(), seed);
        let scales = words(seed ^ 1, if int8 { vocab } else { 0 });
        let scales = scales.map(|word| (1 + (word >> 44)) as f32 * 2f32.powi(-30)).collect();
        let rows = values(precision.rows(), source_rows * hidden, seed ^ 2);
        Operands { precision, vocab, hidden, source_rows, weights, pitch, scales, rows }
    }

    /// Ids `first..first + vocab` of these weights, with the same rows.
    pub fn shard(&self, first: usize, vocab: usize) -> Self {
        let scales =
            if self.scales.is_empty() { Vec::new() } else { self.scales[first..first + vocab].to_vec() };
        Operands {
            precision: self.precision,
            vocab,
            hidden: self.hidden,
            source_rows: self.source_rows,
            weights: self.weights[first * self.pitch..(first + vocab) * self.pitch].to_vec(),
            pitch: self.pitch,
            scales,
            rows: self.rows.clone(),
        }
    }
}

/// The operands on a device, and the product that was prepared for them.
pub struct Loaded<'d, D: KernelDevice> {
    pub device: &'d D,
    pub matmul: Matmul<D>,
    pub shape: Shape,
    precision: Precision,
    weights: D::Buffer,
    pitch: usize,
    scales: Option<D::Buffer>,
    rows: D::Buffer,
    source_rows: usize,
}

/// Logits on a device, between guards, rows a little apart.
pub struct Output<D: KernelDevice> {
    buffer: D::Buffer,
    bytes: usize,
    status: D::Buffer,
    workspace: D::Buffer,
    workspace_bytes: usize,
    indices: Option<D::Buffer>,
    rows: usize,
    row_bytes: usize,
    /// Bytes of a logit.
    size: usize,
    pitch: usize,
    dtype: DType,
}

fn upload<D: KernelDevice>(device: &D, bytes: &[u8]) -> Result<D::Buffer> {
    let buffer = device.alloc(bytes.len())?;
    for (i, chunk) in bytes.chunks(CHUNK).enumerate() {
        device.write(&buffer, i * CHUNK, chunk)?;
    }
    Ok(buffer)
}

impl<'d, D: KernelDevice> Loaded<'d, D> {
    pub fn new(device: &'d D, operands: &Operands, max_rows: usize) -> Result<Self> {
        let Operands { precision, vocab, hidden, .. } = *operands;
        let matmul = Matmul::prepare(device, Spec { precision, vocab, hidden, max_rows })?;
        let scales = (!operands.scales.is_empty())
            .then(|| upload(device, bytemuck::cast_slice(&operands.scales)))
            .transpose()?;
        Ok(Loaded {
            device,
            matmul,
            shape: Shape { rows: max_rows, vocab, hidden },
            precision,
            weights: upload(device, &operands.weights)?,
            pitch: operands.pitch,
            scales,
            rows: upload(device, &operands.rows)?,
            source_rows: operands.source_rows,
        })
    }

    pub fn plans(&self, rows: usize) -> Result<Vec<Plan>> {
        Plan::candidates(self.precision, Shape { rows, ..self.shape }, &self.device.limits())
    }

    /// Room for the logits of `rows` rows, or of those that `indices` pick. `gap`: elements between rows.
    pub fn output(
        &self,
        rows: usize,
        indices: Option<&[i64]>,
        dtype: DType,
        gap: usize,
    ) -> Result<Output<D>> {
        let row_bytes = self.shape.vocab * dtype.size();
        let pitch = row_bytes + gap * dtype.size();
        let bytes = 2 * GUARD + rows * pitch;
        let workspace_bytes = self.matmul.workspace_bytes(rows)?;
        Ok(Output {
            buffer: self.device.alloc(bytes)?,
            bytes,
            status: self.device.alloc(4 * rows)?,
            workspace: self.device.alloc(workspace_bytes)?,
            workspace_bytes,
            indices: indices.map(|i| upload(self.device, bytemuck::cast_slice(i))).transpose()?,
            rows,
            row_bytes,
            size: dtype.size(),
            pitch,
            dtype,
        })
    }

    pub fn call(&self, out: &Output<D>) -> Call {
        let address = |buffer: &D::Buffer| self.device.address(buffer) as usize;
        let floats = |buffer: &Option<D::Buffer>| {
            buffer.as_ref().map_or(std::ptr::null(), |b| address(b) as *const f32)
        };
        Call {
            rows: out.rows,
            weights: WeightMatrix {
                data: address(&self.weights) as *const _,
                pitch: self.pitch as u64,
                scales: floats(&self.scales),
                bias: std::ptr::null(),
            },
            hidden: RowMatrix {
                data: address(&self.rows) as *const _,
                pitch: (self.shape.hidden * self.precision.rows().size()) as u64,
                indices: floats(&out.indices).cast(),
                index_bytes: 8,
                source_rows: self.source_rows as u32,
            },
            logits: LogitMatrix {
                data: (address(&out.buffer) + GUARD) as *mut _,
                pitch: out.pitch as u64,
                status: address(&out.status) as *mut u32,
                dtype: match out.dtype {
                    DType::F32 => LMHEAD_DTYPE_F32,
                    DType::F16 => LMHEAD_DTYPE_F16,
                    _ => LMHEAD_DTYPE_BF16,
                },
            },
            adjustments: NO_ADJUSTMENTS,
            epilogue: Epilogue::default(),
            workspace: address(&out.workspace) as u64,
            workspace_bytes: out.workspace_bytes,
        }
    }

    /// Fills the output, its status and the workspace with poison.
    pub fn poison(&self, out: &Output<D>) -> Result<()> {
        let poison = vec![POISON; CHUNK.min(out.bytes.max(out.workspace_bytes).max(4 * out.rows))];
        for (buffer, bytes) in
            [(&out.buffer, out.bytes), (&out.status, 4 * out.rows), (&out.workspace, out.workspace_bytes)]
        {
            for at in (0..bytes).step_by(CHUNK) {
                self.device.write(buffer, at, &poison[..(bytes - at).min(CHUNK)])?;
            }
        }
        Ok(())
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
}

impl<D: KernelDevice> Output<D> {
    /// The logits, some rows at a time: `look(first row, bytes of whole rows one behind the other)`. Checks guards, gaps and statuses.
    pub fn each(
        &self,
        device: &D,
        mut look: impl FnMut(usize, &[u8]) -> std::result::Result<(), String>,
    ) -> std::result::Result<(), String> {
        let said = |e: lmhead::Error| e.to_string();
        let mut status = vec![0u32; self.rows];
        device.read(&self.status, 0, bytemuck::cast_slice_mut(&mut status)).map_err(said)?;
        if let Some(row) = status.iter().position(|&status| status != 0) {
            return Err(format!("row {row} has status {:#x}", status[row]));
        }
        for at in [0, GUARD + self.rows * self.pitch] {
            let mut guard = [0; GUARD];
            device.read(&self.buffer, at, &mut guard).map_err(said)?;
            if guard != [POISON; GUARD] {
                return Err("memory beside the logits was written to".into());
            }
        }
        let at_once = (CHUNK / self.pitch).max(1);
        let (mut read, mut packed) = (Vec::new(), Vec::new());
        for first in (0..self.rows).step_by(at_once) {
            let rows = at_once.min(self.rows - first);
            read.resize(rows * self.pitch, 0);
            device.read(&self.buffer, GUARD + first * self.pitch, &mut read).map_err(said)?;
            packed.clear();
            for (i, row) in read.chunks(self.pitch).enumerate() {
                let (logits, gap) = row.split_at(self.row_bytes);
                if gap.iter().any(|&byte| byte != POISON) {
                    return Err(format!("the gap behind row {} was written to", first + i));
                }
                // No logit of these operands is that NaN.
                let unwritten = |logit: &[u8]| logit.iter().all(|&byte| byte == POISON);
                if let Some(id) = logits.chunks(self.size).position(unwritten) {
                    return Err(format!("the logit of row {}, id {id} was not written", first + i));
                }
                packed.extend_from_slice(logits);
            }
            look(first, &packed)?;
        }
        Ok(())
    }

    /// All logits.
    pub fn all(&self, device: &D) -> std::result::Result<Vec<u8>, String> {
        let mut all = Vec::new();
        self.each(device, |_, bytes| {
            all.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(all)
    }

    /// The same bits as `want`, `[rows, vocab]` one behind the other.
    pub fn equals(&self, device: &D, want: &[u8]) -> std::result::Result<(), String> {
        if want.len() != self.rows * self.row_bytes {
            return Err(format!("{} bytes to compare with {}", want.len(), self.rows * self.row_bytes));
        }
        self.each(device, |first, bytes| {
            let want = &want[first * self.row_bytes..][..bytes.len()];
            if bytes == want {
                return Ok(());
            }
            let size = self.dtype.size();
            let differs = |(_, (a, b)): &(usize, (&[u8], &[u8]))| a != b;
            let pairs = || bytes.chunks(size).zip(want.chunks(size)).enumerate();
            let count = pairs().filter(differs).count();
            let (at, (got, wanted)) = pairs().find(differs).expect("they differ");
            let vocab = self.row_bytes / size;
            Err(format!(
                "{count} of {} logits have other bits, the first at row {}, id {}: {got:02x?} for {wanted:02x?}",
                bytes.len() / size,
                first + at / vocab,
                at % vocab
            ))
        })
    }
}
