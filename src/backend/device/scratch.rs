//! What one call needs beside the head: memory on the device and on the host, kept for the next one, and a stream.

use super::KernelDevice;
use super::head::DeviceHead;
use crate::adjust::Arrays;
use crate::backend::params::LogitAdjustments;
use crate::error::Result;
use std::sync::Arc;

/// Memory that grows to what the largest call needed.
pub(super) struct Growing<B>(Option<(B, usize)>);

impl<B> Default for Growing<B> {
    fn default() -> Self {
        Growing(None)
    }
}

impl<B> Growing<B> {
    /// At least `bytes` bytes; what was there is lost where it grows.
    ///
    /// # Errors
    /// What `alloc` says.
    pub fn at_least(&mut self, bytes: usize, alloc: impl FnOnce(usize) -> Result<B>) -> Result<&mut B> {
        if self.0.as_ref().is_none_or(|(_, size)| *size < bytes) {
            // First the old one goes: both need not fit at once.
            self.0 = None;
            self.0 = Some((alloc(bytes)?, bytes));
        }
        Ok(self.get())
    }

    /// What [`Growing::at_least`] answered last.
    ///
    /// # Panics
    /// Where nobody asked.
    pub fn get(&mut self) -> &mut B {
        &mut self.0.as_mut().expect("made before").0
    }

    /// Bytes.
    fn size(&self) -> usize {
        self.0.as_ref().map_or(0, |(_, size)| *size)
    }
}

/// Memory and stream of one call. Calls of several ranks at once have one each, so that they neither mix nor wait for each other.
pub(super) struct Scratch<D: KernelDevice> {
    /// Rows, indices and adjustments.
    pub inputs: Growing<D::Buffer>,
    /// Row statuses and logits.
    pub outputs: Growing<D::Buffer>,
    pub workspace: Growing<D::Buffer>,
    /// On the host: inputs on their way out, outputs that came.
    pub sent: Growing<D::Staging>,
    pub received: Growing<D::Staging>,
    /// Of the call under way.
    pub head: Option<Arc<DeviceHead<D>>>,
    /// The last field: memory goes before the stream that used it.
    stream: D::OwnedStream,
}

impl<D: KernelDevice> Scratch<D> {
    /// # Errors
    /// As [`KernelDevice::open_stream`].
    pub fn new(device: &D) -> Result<Self> {
        Ok(Scratch {
            inputs: Growing::default(),
            outputs: Growing::default(),
            workspace: Growing::default(),
            sent: Growing::default(),
            received: Growing::default(),
            head: None,
            stream: device.open_stream()?,
        })
    }

    pub fn stream(&self, device: &D) -> D::Stream {
        device.on(&self.stream)
    }
}

/// Those that nobody uses.
pub(super) struct Idle<D: KernelDevice>(Vec<Scratch<D>>);

impl<D: KernelDevice> Default for Idle<D> {
    fn default() -> Self {
        Idle(Vec::new())
    }
}

impl<D: KernelDevice> Idle<D> {
    /// One for a call with that many bytes of outputs.
    pub fn take(&mut self, bytes: usize) -> Option<Scratch<D>> {
        let rooms: Vec<usize> = self.0.iter().map(|scratch| scratch.outputs.size()).collect();
        fittest(&rooms, bytes).map(|i| self.0.swap_remove(i))
    }

    /// Gives all of them up; false where there were none.
    pub fn clear(&mut self) -> bool {
        let any = !self.0.is_empty();
        self.0.clear();
        any
    }

    pub fn put(&mut self, scratch: Scratch<D>) {
        self.0.push(scratch);
    }
}

/// The smallest room that suffices, so that small calls leave the large ones to large calls; where none does, the largest, which has the
/// least to grow.
fn fittest(rooms: &[usize], bytes: usize) -> Option<usize> {
    let places = || 0..rooms.len();
    let fitting = places().filter(|&i| rooms[i] >= bytes).min_by_key(|&i| rooms[i]);
    fitting.or_else(|| places().max_by_key(|&i| rooms[i]))
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

/// The adjustments' arrays on their way to the device, one behind the other.
pub(super) struct Packed {
    pub words: Vec<u32>,
    /// Of each array, in the order of `LogitAdjustments`: its first word, where it has any.
    places: [Option<usize>; 10],
    /// Of a row of the mask.
    row_words: usize,
}

impl Packed {
    pub fn new(arrays: &Arrays, row_words: usize) -> Self {
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
        Packed { words: all, places, row_words }
    }

    /// What the kernels are told of them where they lie at that address.
    pub fn at(&self, address: u64) -> LogitAdjustments {
        let (start, places) = (address as usize, self.places);
        let words_at =
            |place: Option<usize>| place.map_or(std::ptr::null(), |at| (start + 4 * at) as *const u32);
        let floats_at = |place: Option<usize>| words_at(place).cast::<f32>();
        LogitAdjustments {
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
            allowed_pitch: self.row_words as u64,
            temperatures: std::ptr::null(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_room_that_suffices_is_taken_or_else_the_largest() {
        for (rooms, bytes, wanted) in [
            (&[][..], 5, None),
            (&[10], 5, Some(0)),
            (&[10, 5, 7], 5, Some(1)),
            (&[10, 4, 7], 5, Some(2)),
            (&[1, 4, 3], 5, Some(1)),
            (&[0, 0], 0, Some(0)),
        ] {
            assert_eq!(fittest(rooms, bytes), wanted, "{bytes} of {rooms:?}");
        }
    }
}
