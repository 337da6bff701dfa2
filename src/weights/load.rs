//! Stored head -> a shard's matrix. Rows are mapped or copied, checked, and unpacked, widened or quantised
//! where asked, in parallel on the caller's rayon pool. Only the shard's rows are read.

use super::Matrix;
use super::safetensors_file::{SafetensorsFile, Tensor};
use super::storage::{Fresh, Storage, forget};
use super::stored::{Format, StoredHead};
use super::widened::{self, Loaded};
use crate::dtype::DType;
use crate::epilogue::all_finite;
use crate::error::{Error, Result};
use crate::process;
use crate::quantize::quantize_row;
use bytemuck::Pod;
use half::{bf16, f16};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// A callback that gets `(bytes done, bytes in all)` while a shard is made. Called from several threads; both
/// numbers are equal in the last call.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// About how many bytes of weights are one task: enough to hide the overhead of a task, few enough for smooth
/// progress.
const TASK_BYTES: usize = 1 << 20;

/// Counts the bytes that the tasks have done, and reports progress.
pub(super) struct Meter<'a> {
    done: AtomicU64,
    total: u64,
    tell: Option<Progress<'a>>,
}

impl<'a> Meter<'a> {
    pub fn new(total: u64, tell: Option<Progress<'a>>) -> Self {
        Meter { done: AtomicU64::new(0), total, tell }
    }

    pub fn add(&self, bytes: usize) {
        let done = self.done.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        if let Some(tell) = self.tell
            && done < self.total
        {
            tell(done, self.total);
        }
    }

    /// The last report, after all tasks.
    pub fn finish(&self) {
        if let Some(tell) = self.tell {
            tell(self.total, self.total);
        }
    }
}

/// Rows of `row_bytes` bytes that make one task.
pub(super) fn rows_per_task(row_bytes: usize) -> usize {
    (TASK_BYTES / row_bytes.max(1)).max(1)
}

/// How the stored rows are loaded.
#[derive(Clone, Copy)]
pub(super) struct How {
    /// Float heads become int8.
    pub quantize: bool,
    /// 16-bit heads become f32.
    pub widen: bool,
    /// Rows are copied by reading the file, never through its mapping.
    pub copy: bool,
}

/// Loads rows `vocab` of the stored head.
pub(super) fn matrix(
    head: &StoredHead,
    vocab: Range<usize>,
    how: How,
    progress: Option<Progress<'_>>,
) -> Result<Loaded> {
    process::on_live_threads(|| match &head.format {
        Format::Widened(stored) => {
            let bytes = vocab.len() as u64 * head.hidden as u64 * size_of::<bf16>() as u64;
            let meter = Meter::new(bytes, progress);
            let loaded = widened::load(&**stored, &head.weight, vocab, head.hidden, how, &meter)?;
            meter.finish();
            Ok(loaded)
        }
        _ => Ok(Loaded { matrix: read(head, vocab, how, progress)?, scale: None, rounding: 0.0 }),
    })?
}

fn read(head: &StoredHead, vocab: Range<usize>, how: How, progress: Option<Progress<'_>>) -> Result<Matrix> {
    let row_bytes = head.weight.info.bytes.len() / head.rows;
    let start = head.weight.info.bytes.start;
    let bytes = start + vocab.start * row_bytes..start + vocab.end * row_bytes;
    let meter = Meter::new(bytes.len() as u64, progress);
    let file = File { file: &head.weight.file, bytes, copy: how.copy };
    let matrix = match &head.format {
        Format::Int8 { scale, packed } => {
            let scales = scale.finite_floats(vocab.clone(), "scales")?;
            let values = match packed {
                true => unpack(&file, vocab.len(), head.hidden, &meter)?,
                false => file.values("int8 weights")?,
            };
            Matrix::I8 { values, scales }
        }
        Format::E4m3 { scale, per_row } => {
            let scales = match per_row {
                true => widened::scales(scale, vocab.clone())?,
                false => vec![widened::scales(scale, 0..1)?[0]; vocab.len()],
            };
            Matrix::E4m3 { values: file.values("E4M3 weights")?, scales }
        }
        Format::Float(dtype) if how.quantize => {
            let source = StoredRows { weight: &head.weight, vocab, hidden: head.hidden };
            quantized(&source, *dtype, &file, &meter)?
        }
        Format::Float(dtype) if how.widen && *dtype != DType::F32 => {
            let source = StoredRows { weight: &head.weight, vocab, hidden: head.hidden };
            widened(&source, *dtype, &file, &meter)?
        }
        Format::Float(dtype) => {
            let source = StoredRows { weight: &head.weight, vocab, hidden: head.hidden };
            match dtype {
                DType::F32 => {
                    let values = file.values::<f32>("f32 weights")?;
                    source.check_finite(&values, |v| v.to_bits() & 0x7fff_ffff, 0x7f80_0000, &meter)?;
                    Matrix::F32(values)
                }
                DType::F16 => {
                    let values = file.values::<f16>("f16 weights")?;
                    source.check_finite(&values, |v| v.to_bits() & 0x7fff, 0x7c00, &meter)?;
                    Matrix::F16(values)
                }
                DType::Bf16 => {
                    let values = file.values::<bf16>("bf16 weights")?;
                    source.check_finite(&values, |v| v.to_bits() & 0x7fff, 0x7f80, &meter)?;
                    Matrix::Bf16(values)
                }
                DType::I8 | DType::E4m3 => unreachable!("Format::Float is a float"),
            }
        }
        Format::Widened(_) => unreachable!("not read by its bytes"),
    };
    meter.finish();
    Ok(matrix)
}

/// The bytes of the shard's rows in their file.
struct File<'a> {
    file: &'a SafetensorsFile,
    /// Counted from the start of the file.
    bytes: Range<usize>,
    /// Whether they are read from the file, never through the mapping.
    copy: bool,
}

impl File<'_> {
    /// All bytes as elements, mapped or copied.
    fn values<T: Pod + Send>(&self, what: &str) -> Result<Storage<T>> {
        if !self.copy {
            return Ok(Storage::from_map(self.file.map(), self.bytes.clone()));
        }
        let mut values = Fresh::<T>::zeros(self.bytes.len() / size_of::<T>(), what)?;
        let task = TASK_BYTES / size_of::<T>();
        values.par_chunks_mut(task).enumerate().try_for_each(|(i, values)| {
            self.file.read_at(self.bytes.start + i * TASK_BYTES, bytemuck::cast_slice_mut(values))
        })?;
        values.finish(what)
    }

    /// Passes `length` bytes from `start` on to `work`; they will not be needed again. `buffer` is reused
    /// memory for a copy.
    fn with(
        &self,
        start: usize,
        length: usize,
        buffer: &mut Vec<u8>,
        work: impl FnOnce(&[u8]),
    ) -> Result<()> {
        let own = self.bytes.start + start..self.bytes.start + start + length;
        if self.copy {
            buffer.resize(length, 0);
            self.file.read_at(own.start, buffer)?;
            work(buffer);
        } else {
            let map = self.file.map();
            work(&map[own.clone()]);
            forget(map, own);
        }
        Ok(())
    }
}

/// The shard's rows of a float weight.
pub(super) struct StoredRows<'a> {
    pub weight: &'a Tensor,
    pub vocab: Range<usize>,
    pub hidden: usize,
}

impl StoredRows<'_> {
    /// Checks that all values are finite. `magnitude` gives a value's bits without the sign: those of finite
    /// floats are below `infinity`, those of all others are not. So one integer maximum per row is enough,
    /// which vectorises.
    fn check_finite<T: Copy + Sync, B: Ord + Copy + Default + Sync>(
        &self,
        values: &[T],
        magnitude: impl Fn(T) -> B + Sync,
        infinity: B,
        meter: &Meter<'_>,
    ) -> Result<()> {
        let row_bytes = self.hidden * size_of::<T>();
        let rows = rows_per_task(row_bytes);
        let broken = values.par_chunks(rows * self.hidden).enumerate().find_map_first(|(task, chunk)| {
            let bad = chunk
                .chunks(self.hidden)
                .position(|row| row.iter().fold(B::default(), |m, &v| m.max(magnitude(v))) >= infinity);
            meter.add(size_of_val(chunk));
            bad.map(|row| task * rows + row)
        });
        match broken {
            None => Ok(()),
            Some(row) => Err(self.not_finite(row)),
        }
    }

    /// The error for row `row` of the shard, which holds a value that is not finite.
    pub fn not_finite(&self, row: usize) -> Error {
        let id = self.vocab.start + row;
        let dtype = super::safetensors_file::float_dtype(self.weight.info.dtype).unwrap_or(DType::F32);
        let size = dtype.size();
        let bytes = &self.weight.bytes()[id * self.hidden * size..(id + 1) * self.hidden * size];
        let found = (0..self.hidden).map(|k| (k, dtype.read(bytes, k))).find(|(_, v)| !v.is_finite());
        let got = match found {
            Some((column, value)) => format!("{value} at vocabulary row {id}, column {column}"),
            None => format!("NaN or infinity at vocabulary row {id}, in a file that is being changed"),
        };
        self.weight.error(
            "finite weights",
            got,
            "the checkpoint is damaged or diverged: fetch or export it again",
        )
    }
}

/// Quantises the rows in `bytes` of the file, each by the rule of [`crate::quantize`]. Needs one widened row
/// per thread, and keeps of the file only the parts that the threads are working on. `cargo bench --bench
/// cpu_load` (`benches/results/cpu/load.json`) compares its time with those of reading the file, of clearing
/// the copy's pages, and of quantising.
fn quantized(source: &StoredRows<'_>, dtype: DType, file: &File<'_>, meter: &Meter<'_>) -> Result<Matrix> {
    const WHAT: &str = "int8 weights";
    let (rows, hidden) = (source.vocab.len(), source.hidden);
    let row_bytes = hidden * dtype.size();
    let mut values = Fresh::<i8>::zeros(rows * hidden, WHAT)?;
    let mut scales = vec![0.0f32; rows];
    let task = rows_per_task(row_bytes);
    values.par_chunks_mut(task * hidden).zip(scales.par_chunks_mut(task)).enumerate().try_for_each_init(
        || (vec![0.0f32; hidden], Vec::new()),
        |(wide, buffer), (i, (values, scales))| {
            let length = scales.len() * row_bytes;
            file.with(i * task * row_bytes, length, buffer, |bytes| {
                let rows = values.chunks_mut(hidden).zip(scales).zip(bytes.chunks(row_bytes));
                for ((q, scale), row) in rows {
                    dtype.widen(row, wide);
                    *scale = quantize_row(wide, q);
                }
            })?;
            meter.add(length);
            Ok(())
        },
    )?;
    // quantize_row marks a row with NaN or infinity by a NaN scale.
    match scales.iter().position(|s| s.is_nan()) {
        Some(row) => Err(source.not_finite(row)),
        None => Ok(Matrix::I8 { values: values.finish(WHAT)?, scales }),
    }
}

/// Widens the rows to f32, which is exact.
fn widened(source: &StoredRows<'_>, dtype: DType, file: &File<'_>, meter: &Meter<'_>) -> Result<Matrix> {
    const WHAT: &str = "f32 weights";
    let (rows, hidden) = (source.vocab.len(), source.hidden);
    let row_bytes = hidden * dtype.size();
    let task = rows_per_task(row_bytes);
    let mut values = Fresh::<f32>::zeros(rows * hidden, WHAT)?;
    let first_bad = AtomicUsize::new(usize::MAX);
    values.par_chunks_mut(task * hidden).enumerate().try_for_each_init(Vec::new, |buffer, (i, values)| {
        let length = values.len() * dtype.size();
        file.with(i * task * row_bytes, length, buffer, |bytes| dtype.widen(bytes, values))?;
        if let Some(row) = values.chunks(hidden).position(|row| !all_finite(row)) {
            first_bad.fetch_min(i * task + row, Ordering::Relaxed);
        }
        meter.add(length);
        Ok(())
    })?;
    match first_bad.into_inner() {
        usize::MAX => Ok(Matrix::F32(values.finish(WHAT)?)),
        row => Err(source.not_finite(row)),
    }
}

/// Unpacks `[rows, ceil(hidden / 4)]` words to int8 `[rows, hidden]`: byte `k` of a row is weight `k` plus
/// 128.
fn unpack(file: &File<'_>, rows: usize, hidden: usize, meter: &Meter<'_>) -> Result<Storage<i8>> {
    const WHAT: &str = "int8 weights";
    let row_bytes = hidden.div_ceil(4) * 4;
    let mut values = Fresh::<i8>::zeros(rows * hidden, WHAT)?;
    let task = rows_per_task(row_bytes);
    values.par_chunks_mut(task * hidden).enumerate().try_for_each_init(Vec::new, |buffer, (i, values)| {
        let length = values.len() / hidden * row_bytes;
        file.with(i * task * row_bytes, length, buffer, |bytes| {
            for (row, packed) in values.chunks_mut(hidden).zip(bytes.chunks(row_bytes)) {
                for (value, byte) in row.iter_mut().zip(packed) {
                    *value = (byte ^ 0x80) as i8;
                }
            }
        })?;
        meter.add(length);
        Ok(())
    })?;
    values.finish(WHAT)
}
