//! A shard in device memory: copied there, or an engine's own memory that is used in place.

use super::hopper::{pack_weights, packed_bytes};
use super::partials::Kernels;
use super::{KernelDevice, MAX_ROWS, Matmul, Spec};
use crate::backend::params::WeightMatrix;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::memory::Memory;
use crate::plan::hopper::{COLUMN_BYTES, PACKED_IDS};
use crate::plan::{Precision, Tuning, WeightLayout};
use crate::weights::{HeadShard, ShardInfo};
use std::sync::Arc;

/// Bytes that are padded and copied at a time.
const CHUNK: usize = 64 << 20;

/// Weights, scales and bias of a shard on a device, and the matmul that multiplies them.
pub(super) struct Weights<D: KernelDevice> {
    pub info: ShardInfo,
    /// Type of the rows.
    pub hidden: DType,
    /// `None` for a shard without ids.
    pub product: Option<Matmul<D>>,
    pub kernels: Kernels<D>,
    data: u64,
    pitch: usize,
    /// 0 where there are none.
    scales: u64,
    bias: u64,
    /// What the addresses are of: memory of ours,
    _owned: Vec<D::Buffer>,
    /// or an engine's.
    _foreign: Option<Arc<HeadShard>>,
}

/// The precision of the kernels that multiply the shard with rows of type `hidden`.
pub(super) fn precision(shard: &HeadShard, hidden: DType) -> Result<Precision> {
    if shard.matrix().dtype().is_float() && shard.scales().is_some() {
        let fix = "use the cpu backend for NVFP4 heads, or quantise them to int8 at load";
        return Err(Error::unsupported("device kernels", "float weights without scales", "some with", fix));
    }
    Precision::of(shard.matrix().dtype(), shard.quantization(), hidden)
}

/// Refuses weights that are in the memory of another device.
pub(super) fn check_memory<D: KernelDevice>(device: &D, shard: &HeadShard) -> Result<()> {
    let own = Memory::Device(device.ordinal());
    match shard.device_weights() {
        Some(weights) if weights.memory() != own => {
            let wanted = format!("host memory or {own}");
            let fix = "load the shard with the backend of the device that has its weights";
            Err(Error::unsupported("weights of the shard", wanted, weights.memory(), fix))
        }
        _ => Ok(()),
    }
}

impl<D: KernelDevice> Weights<D> {
    /// Loads the kernels, and copies the weights unless they are on the device already. Rows are padded to a
    /// multiple of 16 bytes, which is what the kernels read at a time.
    ///
    /// # Errors
    /// As [`Matmul::prepare`]; `Device` where memory is short.
    pub fn new(
        device: &D,
        stream: D::Stream,
        shard: &Arc<HeadShard>,
        hidden: DType,
        tuning: Option<Arc<Tuning>>,
    ) -> Result<Self> {
        let (vocab, columns) = (shard.vocab().len(), shard.hidden_size());
        let product = if vocab == 0 {
            None
        } else {
            let max_rows = MAX_ROWS.min(crate::plan::most_rows(vocab));
            let precision = precision(shard, hidden)?;
            // An engine's own tensor keeps its layout.
            let own = shard.device_weights();
            let layout = own.map_or_else(|| device.limits().layout(), |weights| weights.layout);
            let spec = Spec { precision, layout, vocab, hidden: columns, max_rows };
            let product = match Matmul::prepare(device, spec) {
                // This build lacks the kernels for packed weights: those for all devices give the same bits.
                Err(Error::Unsupported { .. }) if layout == WeightLayout::Packed && own.is_none() => {
                    Matmul::prepare(device, Spec { layout: WeightLayout::Rows, ..spec })?
                }
                prepared => prepared?,
            };
            Some(product.tuned(tuning))
        };
        let mut weights = Weights {
            info: shard.info(),
            hidden,
            product,
            kernels: Kernels::load(device)?,
            data: 0,
            pitch: 0,
            scales: 0,
            bias: 0,
            _owned: Vec::new(),
            _foreign: None,
        };
        if vocab == 0 {
            return Ok(weights);
        }
        if let Some(foreign) = shard.device_weights() {
            (weights.data, weights.pitch) = (foreign.data, foreign.pitch);
            (weights.scales, weights.bias) = (foreign.scales, foreign.bias);
            weights._foreign = Some(Arc::clone(shard));
            return Ok(weights);
        }
        let (matrix, pitch) = match weights.layout() {
            WeightLayout::Rows => copy(device, stream, shard)?,
            WeightLayout::Packed => copy_packed(device, stream, shard)?,
        };
        (weights.data, weights.pitch) = (device.address(&matrix), pitch);
        weights._owned.push(matrix);
        let mut floats = |values: &[f32]| -> Result<u64> {
            let buffer = device.alloc(4 * values.len())?;
            device.write_on(stream, &buffer, 0, bytemuck::cast_slice(values))?;
            let address = device.address(&buffer);
            weights._owned.push(buffer);
            Ok(address)
        };
        if let Some(scales) = shard.scales() {
            weights.scales = floats(scales)?;
        }
        if let Some(bias) = shard.bias() {
            weights.bias = floats(bias)?;
        }
        Ok(weights)
    }

    fn layout(&self) -> WeightLayout {
        self.product.as_ref().map_or(WeightLayout::Rows, |product| product.spec().layout)
    }

    /// The matrix as the kernels read it.
    pub fn matrix(&self) -> WeightMatrix {
        WeightMatrix {
            data: self.data as usize as *const _,
            pitch: self.pitch as u64,
            scales: self.scales as usize as *const f32,
            bias: self.bias as usize as *const f32,
            packed: u32::from(self.layout() == WeightLayout::Packed),
        }
    }
}

/// Packs and copies the weights; returns them, and the bytes of a row's columns.
fn copy_packed<D: KernelDevice>(
    device: &D,
    stream: D::Stream,
    shard: &HeadShard,
) -> Result<(D::Buffer, usize)> {
    let (rows, row_bytes) = (shard.vocab().len(), shard.hidden_size() * shard.matrix().dtype().size());
    let pitch = row_bytes.next_multiple_of(COLUMN_BYTES);
    let block = PACKED_IDS * pitch;
    let bytes = packed_bytes(rows, row_bytes).ok_or_else(|| {
        let got = format!("{rows} rows of {row_bytes} bytes");
        Error::shape("weights of the shard", "fewer bytes than can be counted", got, "shard the head")
    })?;
    let buffer = device.alloc(bytes)?;
    let at_once = (CHUNK / block).max(1);
    let mut packed = vec![0; bytes.min(at_once * block)];
    for at in (0..bytes).step_by(at_once * block) {
        let out = &mut packed[..(bytes - at).min(at_once * block)];
        // A whole block of ids behind the last is made of the last row alone.
        let first = (at / pitch).min(rows - 1);
        let last = ((at + out.len()) / pitch).min(rows);
        pack_weights(&shard.matrix().as_bytes()[first * row_bytes..last * row_bytes], row_bytes, out);
        device.write_on(stream, &buffer, at, out)?;
    }
    Ok((buffer, pitch))
}

fn copy<D: KernelDevice>(device: &D, stream: D::Stream, shard: &HeadShard) -> Result<(D::Buffer, usize)> {
    let bytes = shard.matrix().as_bytes();
    let (rows, row_bytes) = (shard.vocab().len(), shard.hidden_size() * shard.matrix().dtype().size());
    let pitch = row_bytes.next_multiple_of(16);
    let buffer = device.alloc(rows * pitch)?;
    let at_once = (CHUNK / pitch).max(1);
    let mut padded = Vec::new();
    for (i, chunk) in bytes.chunks(at_once * row_bytes).enumerate() {
        let at = i * at_once * pitch;
        if pitch == row_bytes {
            device.write_on(stream, &buffer, at, chunk)?;
            continue;
        }
        padded.clear();
        for row in chunk.chunks(row_bytes) {
            padded.extend_from_slice(row);
            padded.resize(padded.len() + pitch - row_bytes, 0);
        }
        device.write_on(stream, &buffer, at, &padded)?;
    }
    Ok((buffer, pitch))
}
