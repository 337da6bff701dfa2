//! Device memory of a call, kept for the next one.

use super::KernelDevice;
use crate::adjust::Arrays;
use crate::backend::params::LogitAdjustments;
use crate::error::Result;

/// Memory that grows to what the largest call needed.
pub(super) struct Growing<B>(Option<(B, usize)>);

impl<B> Default for Growing<B> {
    fn default() -> Self {
        Growing(None)
    }
}

impl<B: Send + Sync> Growing<B> {
    /// At least `bytes` bytes; what was there is lost where it grows.
    ///
    /// # Errors
    /// `Device` where memory is short.
    pub fn at_least<D: KernelDevice<Buffer = B>>(&mut self, device: &D, bytes: usize) -> Result<&B> {
        if self.0.as_ref().is_none_or(|(_, size)| *size < bytes) {
            // First the old one goes: both need not fit at once.
            self.0 = None;
            self.0 = Some((device.alloc(bytes)?, bytes));
        }
        Ok(&self.0.as_ref().expect("just made").0)
    }
}

/// What one call needs beside the head. Calls of several ranks at once have one each, with a stream of its own, so that they
/// neither mix nor wait for each other.
pub(super) struct Scratch<D: KernelDevice> {
    pub rows: Growing<D::Buffer>,
    pub indices: Growing<D::Buffer>,
    pub logits: Growing<D::Buffer>,
    pub status: Growing<D::Buffer>,
    pub workspace: Growing<D::Buffer>,
    adjustments: Growing<D::Buffer>,
    /// On the host: rows on their way out, and logits that are looked at here.
    pub bytes: Vec<u8>,
    pub held: Vec<f32>,
    /// The last field: memory goes before the stream that used it.
    stream: D::OwnedStream,
}

impl<D: KernelDevice> Scratch<D> {
    /// # Errors
    /// As [`KernelDevice::open_stream`].
    pub fn new(device: &D) -> Result<Self> {
        Ok(Scratch {
            rows: Growing::default(),
            indices: Growing::default(),
            logits: Growing::default(),
            status: Growing::default(),
            workspace: Growing::default(),
            adjustments: Growing::default(),
            bytes: Vec::new(),
            held: Vec::new(),
            stream: device.open_stream()?,
        })
    }

    pub fn stream(&self, device: &D) -> D::Stream {
        device.on(&self.stream)
    }
}

/// No adjustments of any row.
pub const NO_ADJUSTMENTS: LogitAdjustments = LogitAdjustments {
    addition_offsets: std::ptr::null(),
    addition_ids: std::ptr::null(),
    addition_values: std::ptr::null(),
    count_offsets: std::ptr::null(),
    count_ids: std::ptr::null(),
    counts: std::ptr::null(),
    repetition: std::ptr::null(),
    frequency: std::ptr::null(),
    presence: std::ptr::null(),
    allowed: std::ptr::null(),
    allowed_pitch: 0,
    temperatures: std::ptr::null(),
};

impl<D: KernelDevice> Scratch<D> {
    /// Copies the arrays to the device, one behind the other.
    ///
    /// # Errors
    /// `Device` where memory is short.
    pub fn adjustments(&mut self, device: &D, arrays: &Arrays, words: usize) -> Result<LogitAdjustments> {
        let mut all: Vec<u32> = Vec::new();
        let mut place = |values: &[u32]| -> Option<usize> {
            let at = (!values.is_empty()).then_some(all.len());
            all.extend_from_slice(values);
            at
        };
        let floats = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let places = [
            place(&arrays.addition_offsets),
            place(&arrays.addition_ids),
            place(&floats(&arrays.addition_values)),
            place(&arrays.count_offsets),
            place(&arrays.count_ids),
            place(&arrays.counts),
            place(&floats(&arrays.repetition)),
            place(&floats(&arrays.frequency)),
            place(&floats(&arrays.presence)),
            place(&arrays.allowed),
        ];
        let stream = self.stream(device);
        let buffer = self.adjustments.at_least(device, 4 * all.len())?;
        device.write_on(stream, buffer, 0, bytemuck::cast_slice(&all))?;
        let start = device.address(buffer) as usize;
        let words_at =
            |place: Option<usize>| place.map_or(std::ptr::null(), |at| (start + 4 * at) as *const u32);
        let floats_at = |place: Option<usize>| words_at(place).cast::<f32>();
        Ok(LogitAdjustments {
            addition_offsets: words_at(places[0]),
            addition_ids: words_at(places[1]),
            addition_values: floats_at(places[2]),
            count_offsets: words_at(places[3]),
            count_ids: words_at(places[4]),
            counts: words_at(places[5]),
            repetition: floats_at(places[6]),
            frequency: floats_at(places[7]),
            presence: floats_at(places[8]),
            allowed: words_at(places[9]),
            allowed_pitch: words as u64,
            temperatures: std::ptr::null(),
        })
    }
}
