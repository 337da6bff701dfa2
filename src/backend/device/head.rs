//! A shard in device memory.

use super::{KernelDevice, Matmul, Spec};
use crate::backend::params::WeightMatrix;
use crate::dtype::DType;
use crate::error::Result;
use crate::plan::Precision;
use crate::weights::{HeadShard, Matrix};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes that are padded and copied at a time, where rows need padding.
const CHUNK: usize = 64 << 20;

/// The most rows of a call: what a plan can count; memory is the real limit.
pub(super) const MAX_ROWS: usize = 1 << 24;

/// Weights, scales and bias of a shard on a device, and the products that were prepared for them.
pub(super) struct DeviceHead<D: KernelDevice> {
    vocab: usize,
    hidden: usize,
    matrix: D::Buffer,
    pitch: usize,
    scales: Option<D::Buffer>,
    bias: Option<D::Buffer>,
    products: Mutex<HashMap<Precision, Arc<Matmul<D>>>>,
}

impl<D: KernelDevice> DeviceHead<D> {
    /// Copies the shard. Rows are padded to a multiple of 16 bytes, which is what the kernels read at a time.
    ///
    /// # Errors
    /// `Device` where memory is short.
    pub fn new(device: &D, shard: &HeadShard) -> Result<Self> {
        let (matrix, pitch) = copy(device, shard)?;
        let floats = |values: &[f32]| -> Result<D::Buffer> {
            let buffer = device.alloc(4 * values.len())?;
            device.write(&buffer, 0, bytemuck::cast_slice(values))?;
            Ok(buffer)
        };
        let scales = match shard.matrix() {
            Matrix::I8 { scales, .. } => Some(floats(scales)?),
            _ => None,
        };
        let bias = shard.bias().map(floats).transpose()?;
        let (vocab, hidden) = (shard.vocab().len(), shard.hidden_size());
        Ok(DeviceHead { vocab, hidden, matrix, pitch, scales, bias, products: Mutex::default() })
    }

    /// Where the kernels find it.
    pub fn weights(&self, device: &D) -> WeightMatrix {
        let floats = |buffer: &Option<D::Buffer>| {
            buffer.as_ref().map_or(std::ptr::null(), |b| device.address(b) as usize as *const f32)
        };
        WeightMatrix {
            data: device.address(&self.matrix) as usize as *const _,
            pitch: self.pitch as u64,
            scales: floats(&self.scales),
            bias: floats(&self.bias),
        }
    }

    /// The product of that precision, prepared on first use.
    ///
    /// # Errors
    /// As [`Matmul::prepare`].
    pub fn product(&self, device: &D, precision: Precision) -> Result<Arc<Matmul<D>>> {
        let mut products = self.products.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(product) = products.get(&precision) {
            return Ok(Arc::clone(product));
        }
        let (vocab, hidden) = (self.vocab, self.hidden);
        let spec = Spec { precision, vocab, hidden, max_rows: MAX_ROWS.min(crate::plan::most_rows(vocab)) };
        let product = Arc::new(Matmul::prepare(device, spec)?);
        products.insert(precision, Arc::clone(&product));
        Ok(product)
    }
}

pub(super) fn precision(shard: &HeadShard, hidden: DType) -> Result<Precision> {
    Precision::of(shard.matrix().dtype(), shard.quantization(), hidden)
}

fn copy<D: KernelDevice>(device: &D, shard: &HeadShard) -> Result<(D::Buffer, usize)> {
    let bytes: &[u8] = match shard.matrix() {
        Matrix::F32(w) => bytemuck::cast_slice(w),
        Matrix::F16(w) => bytemuck::cast_slice(w),
        Matrix::Bf16(w) => bytemuck::cast_slice(w),
        Matrix::I8 { values, .. } => bytemuck::cast_slice(values),
    };
    let (rows, row_bytes) = (shard.vocab().len(), shard.hidden_size() * shard.matrix().dtype().size());
    let pitch = row_bytes.next_multiple_of(16);
    let buffer = device.alloc(rows * pitch)?;
    if pitch == row_bytes {
        device.write(&buffer, 0, bytes)?;
        return Ok((buffer, pitch));
    }
    let at_once = (CHUNK / pitch).max(1);
    let mut padded = Vec::new();
    for (i, chunk) in bytes.chunks(at_once * row_bytes).enumerate() {
        padded.clear();
        for row in chunk.chunks(row_bytes) {
            padded.extend_from_slice(row);
            padded.resize(padded.len() + pitch - row_bytes, 0);
        }
        device.write(&buffer, i * at_once * pitch, &padded)?;
    }
    Ok((buffer, pitch))
}
