//! An engine's own weights, used in place: in host memory as a [`Storage`](super::Storage), in device memory
//! as [`DeviceWeights`].

use super::HeadShard;
use crate::config::Quantization;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::memory::{Memory, Span};
use crate::plan::WeightLayout;
use crate::plan::hopper::{COLUMN_BYTES, PACKED_IDS};
use std::fmt;
use std::ops::Range;

/// The engine's callback, called once when nobody uses the memory any more.
pub(super) struct Release(Option<Box<dyn FnOnce() + Send + Sync>>);

impl Release {
    pub(super) fn new(release: impl FnOnce() + Send + Sync + 'static) -> Self {
        Release(Some(Box::new(release)))
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        if let Some(release) = self.0.take() {
            release();
        }
    }
}

/// Describes a shard's weights in an engine's device memory. All spans are on one device.
#[derive(Debug, Clone, Copy)]
pub struct DeviceMatrix<'a> {
    /// bf16, f16, int8 or E4M3 `[vocab, hidden]`, aligned to 16 bytes.
    pub data: Span<'a>,
    pub dtype: DType,
    /// Row-major, which every device takes; or packed, which only those devices take that would pack weights
    /// of this type themselves ([`DeviceLimits::layout`](crate::plan::DeviceLimits::layout)): as
    /// [`pack_weights`](crate::backend::device::hopper::pack_weights) writes them, with zeros behind the end
    /// of k and copies of the last id behind it.
    pub layout: WeightLayout,
    /// Bytes from row to row, a multiple of 16. For packed weights the bytes of all columns of a row.
    pub pitch: usize,
    /// f32 `[vocab]`, for int8 and E4M3 weights only.
    pub scales: Option<Span<'a>>,
    /// f32 `[vocab]`.
    pub bias: Option<Span<'a>>,
}

/// Weights in device memory that a backend uses in place.
pub struct DeviceWeights {
    pub(crate) memory: Memory,
    pub(crate) dtype: DType,
    pub(crate) layout: WeightLayout,
    pub(crate) data: u64,
    pub(crate) pitch: usize,
    /// Addresses; 0 where there are none.
    pub(crate) scales: u64,
    pub(crate) bias: u64,
    _release: Release,
}

impl fmt::Debug for DeviceWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceWeights({} at {:#x} of {})", self.dtype, self.data, self.memory)
    }
}

impl DeviceWeights {
    /// The memory that the weights are in.
    pub fn memory(&self) -> Memory {
        self.memory
    }
}

impl HeadShard {
    /// A shard whose weights stay in an engine's device memory, usable only by the backend of that device.
    /// The values are not checked: they must be finite.
    ///
    /// `release` is called when nobody uses the weights any more: all heads and loaded shards are dropped,
    /// and the work on their own streams has ended. Work on the engine's stream is not waited for: the engine
    /// must wait for that stream before it drops the head.
    ///
    /// # Errors
    /// As [`HeadShard::new`] for parts that do not fit; `Shape` naming a part that is not in device memory,
    /// is too short or misaligned; `Dtype` for f32 weights, which no kernel takes. After an error, `release`
    /// has been called.
    ///
    /// # Safety
    /// Until `release` is called, the memory must be valid and must not be written.
    pub unsafe fn on_device(
        vocab: Range<usize>,
        vocab_size: usize,
        hidden_size: usize,
        quantization: Quantization,
        matrix: DeviceMatrix<'_>,
        release: impl FnOnce() + Send + Sync + 'static,
    ) -> Result<Self> {
        let release = Release::new(release);
        let DeviceMatrix { data, dtype, layout, pitch, scales, bias } = matrix;
        let rows = vocab.len();
        let memory = data.memory();
        if memory == Memory::Host {
            let fix = "pass host weights as a Matrix";
            return Err(Error::shape("shard weights", "device memory", memory, fix));
        }
        if dtype == DType::F32 {
            return Err(Error::dtype(
                "shard weights on a device",
                "bf16, f16, int8 or E4M3",
                dtype,
                "convert them",
            ));
        }
        let row_bytes = hidden_size.checked_mul(dtype.size());
        if row_bytes.is_none_or(|row| pitch < row) || !pitch.is_multiple_of(16) {
            let wanted =
                format!("at least {hidden_size} elements of {dtype} from row to row, a multiple of 16 bytes");
            let got = format!("{pitch} bytes");
            return Err(Error::shape("pitch of the shard weights", wanted, got, "pad the rows"));
        }
        let columns = row_bytes.and_then(|row| row.checked_next_multiple_of(COLUMN_BYTES));
        if layout == WeightLayout::Packed && columns != Some(pitch) {
            let wanted = format!("{hidden_size} elements of {dtype}, padded to whole columns of 128 bytes");
            let got = format!("{pitch} bytes");
            let fix = "pack them as backend::device::hopper::pack_weights does";
            return Err(Error::shape("pitch of packed shard weights", wanted, got, fix));
        }
        data.check_aligned("shard weights", 16)?;
        let needed = match layout {
            WeightLayout::Rows => rows
                .checked_sub(1)
                .map_or(Some(0), |before| before.checked_mul(pitch)?.checked_add(row_bytes?)),
            WeightLayout::Packed => {
                rows.checked_next_multiple_of(2 * PACKED_IDS).and_then(|ids| ids.checked_mul(pitch))
            }
        };
        if needed.is_none_or(|needed| data.len() < needed) {
            let bytes = needed.map_or("more than 2^64".into(), |needed| needed.to_string());
            let wanted =
                format!("{rows} rows of {hidden_size} {dtype}, {pitch} bytes from row to row: {bytes} bytes");
            let got = format!("{} bytes", data.len());
            return Err(Error::shape("shard weights", wanted, got, "pass exactly the rows of the shard"));
        }
        let floats = |what: &str, span: Option<Span<'_>>| -> Result<u64> {
            let Some(span) = span else { return Ok(0) };
            span.check_memory(what, memory)?;
            span.check_len(what, 4 * rows)?;
            span.check_aligned(what, 4)?;
            Ok(span.address())
        };
        if scales.is_some() == dtype.is_float() {
            let (wanted, got) = match dtype.is_float() {
                false => ("one f32 a row of int8 or E4M3 weights", "none"),
                true => ("none for float weights", "some"),
            };
            let fix = "scales and 8-bit weights belong together";
            return Err(Error::shape("shard scales", wanted, got, fix));
        }
        let weights = DeviceWeights {
            memory,
            dtype,
            layout,
            data: data.address(),
            pitch,
            scales: floats("shard scales", scales)?,
            bias: floats("shard bias", bias)?,
            _release: release,
        };
        Self::with_weights_on_device(vocab, vocab_size, hidden_size, quantization, weights)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn span(memory: Memory, address: u64, len: usize) -> Span<'static> {
        // SAFETY: nobody reads it.
        unsafe { Span::from_raw(memory, address, len) }
    }

    #[test]
    fn weights_on_a_device_are_checked_and_released_once() {
        let (device, host) = (Memory::Device(1), Memory::Host);
        // Three rows of 20 bf16: 48 bytes each.
        let good = DeviceMatrix {
            data: span(device, 0x1000, 2 * 48 + 40),
            dtype: DType::Bf16,
            layout: WeightLayout::Rows,
            pitch: 48,
            scales: None,
            bias: Some(span(device, 0x2000, 12)),
        };
        let released = Arc::new(AtomicUsize::new(0));
        let make = |matrix: DeviceMatrix<'_>, quantization| {
            let released = Arc::clone(&released);
            // SAFETY: nobody follows an address.
            unsafe {
                HeadShard::on_device(0..3, 64, 20, quantization, matrix, move || {
                    released.fetch_add(1, Ordering::Relaxed);
                })
            }
        };
        let shard = make(good, Quantization::None).unwrap();
        let info = shard.info();
        assert_eq!((info.dtype, info.has_bias, info.bytes), (DType::Bf16, true, 3 * 20 * 2 + 12));
        assert_eq!(shard.device_weights().map(DeviceWeights::memory), Some(device));
        assert_eq!(released.load(Ordering::Relaxed), 0);
        drop(shard);
        assert_eq!(released.load(Ordering::Relaxed), 1);
        let int8 = DeviceMatrix { dtype: DType::I8, ..good };
        // Two blocks of 64 ids, each of one column.
        let bytes = 2 * 64 * 128;
        let data = span(device, 0x1000, bytes);
        let packed = DeviceMatrix { data, layout: WeightLayout::Packed, pitch: 128, ..good };
        drop(make(packed, Quantization::None).unwrap());
        released.store(1, Ordering::Relaxed);
        let scales = Some(span(device, 0x3000, 12));
        for (i, (matrix, quantization, said)) in [
            (
                DeviceMatrix { data: span(host, 0x1000, 136), ..good },
                Quantization::None,
                "wanted device memory",
            ),
            (
                DeviceMatrix { data: span(device, 0x1008, 136), ..good },
                Quantization::None,
                "a multiple of 16",
            ),
            (DeviceMatrix { data: span(device, 0x1000, 135), ..good }, Quantization::None, "got 135 bytes"),
            (DeviceMatrix { pitch: 40, ..good }, Quantization::None, "pitch of the shard weights"),
            (DeviceMatrix { pitch: 32, ..good }, Quantization::None, "pitch of the shard weights"),
            (DeviceMatrix { pitch: 256, ..packed }, Quantization::None, "pitch of packed shard weights"),
            (
                DeviceMatrix { data: span(device, 0x1000, bytes - 1), ..packed },
                Quantization::None,
                "got 16383 bytes",
            ),
            (
                DeviceMatrix { dtype: DType::F32, ..good },
                Quantization::None,
                "wanted bf16, f16, int8 or E4M3",
            ),
            (
                DeviceMatrix { bias: Some(span(device, 0x2000, 8)), ..good },
                Quantization::None,
                "shard bias: wanted 12",
            ),
            (
                DeviceMatrix { bias: Some(span(host, 0x2000, 12)), ..good },
                Quantization::None,
                "shard bias: wanted",
            ),
            (DeviceMatrix { scales, ..good }, Quantization::None, "shard scales: wanted none"),
            (int8, Quantization::W8a8, "shard scales: wanted one f32"),
            (DeviceMatrix { scales, ..int8 }, Quantization::None, "wanted w8a8 or w8a16"),
            (
                DeviceMatrix { scales: Some(span(device, 0x3002, 12)), ..int8 },
                Quantization::W8a8,
                "shard scales: wanted an address",
            ),
        ]
        .into_iter()
        .enumerate()
        {
            let error = make(matrix, quantization).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(said), "{error}, wanted {said}");
            assert_eq!(released.load(Ordering::Relaxed), i + 2);
        }
    }

    #[test]
    fn foreign_host_memory_is_used_in_place_and_released_once() {
        let values: &'static [f32] = vec![1.0f32; 6].leak();
        let released = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&released);
        // SAFETY: it is never freed.
        let storage = unsafe {
            super::super::Storage::foreign(values.as_ptr(), 6, move || {
                count.fetch_add(1, Ordering::Relaxed);
            })
        };
        let storage = storage.unwrap();
        assert!(std::ptr::eq(&*storage, values));
        let matrix = super::super::Matrix::F32(storage);
        let shard = HeadShard::new(0..3, 64, 2, Quantization::None, matrix, None).unwrap();
        assert_eq!(released.load(Ordering::Relaxed), 0);
        drop(shard);
        assert_eq!(released.load(Ordering::Relaxed), 1);
        let misaligned = values.as_ptr().cast::<u8>().wrapping_add(1).cast::<f32>();
        // SAFETY: it is refused.
        let error = unsafe { super::super::Storage::foreign(misaligned, 1, || ()) }.unwrap_err();
        assert!(error.to_string().contains("weights: wanted an address that is a multiple of 4"), "{error}");
    }
}
