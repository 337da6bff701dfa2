//! Whole logits: written in place in device memory, or copied to host memory. What a shard without ids
//! answers.

use super::super::{CopyRows, Side, dtype_code};
use super::{DeviceShard, KernelDevice, Outputs, product_of, sum_of};
use crate::backend::params::{LogitMatrix, WordsToSet};
use crate::backend::{Job, LogitsOut, On, Out, Status};
use crate::error::Result;
use crate::memory::Memory;

impl<D: KernelDevice> DeviceShard<D> {
    /// [`LoadedShard::run`](crate::backend::LoadedShard::run) for logits that were checked.
    pub(super) fn logits(
        &mut self,
        stream: D::Stream,
        job: &Job<'_>,
        out: LogitsOut<'_>,
        on: &On<'_>,
    ) -> Result<()> {
        let (n, row_bytes) = (job.rows.len(), self.ids() * out.dtype.size());
        let places = self.places(n, 0)?;
        let workspace = self.workspace_at(on, places.total, n)?;
        let to_host = out.data.memory() == Memory::Host;
        let rows = self.rows(stream, &job.rows, to_host || on.stream.is_none())?;
        let adjustments = self.adjust(stream, job, 0..n)?;
        let dtype = dtype_code(out.dtype).expect("checked: a float type");
        let (device, own) = (self.common.device.clone(), self.own());
        let product = (workspace, places.product);
        if !to_host {
            let in_place = match &out.status {
                Status::Apart { words, stride } if *stride == 4 || n == 1 => Some(words.address()),
                _ => None,
            };
            let status = in_place.unwrap_or(workspace + places.status as u64);
            let logits = LogitMatrix {
                data: out.data.address() as usize as *mut _,
                pitch: out.stride as u64,
                status: status as usize as *mut u32,
                dtype,
            };
            self.launch(stream, (n, rows), Outputs::of(logits), adjustments, job.epilogue, product)?;
            if in_place.is_none() {
                let (address, pitch) = match &out.status {
                    Status::Apart { words, stride } => (words.address(), *stride),
                    Status::Inside { at } => (out.data.address() + *at as u64, out.stride),
                };
                let to = Side { memory: own, address, pitch };
                let copy = CopyRows {
                    to,
                    from: Side { memory: own, address: status, pitch: 4 },
                    row_bytes: 4,
                    rows: n,
                };
                // SAFETY: the caller's words, and the workspace's.
                unsafe { device.copy_rows(stream, &copy)? };
            }
            return Ok(());
        }
        // [status words][logits]
        let pitch = row_bytes.next_multiple_of(16);
        let first = (4 * n).next_multiple_of(256);
        let total = sum_of(&[first, product_of(&[n, pitch])?])?;
        let start = device.address(self.rooms.outputs.at_least(total, |bytes| device.alloc(bytes))?);
        let logits = LogitMatrix {
            data: (start as usize + first) as *mut _,
            pitch: pitch as u64,
            status: start as usize as *mut u32,
            dtype,
        };
        self.launch(stream, (n, rows), Outputs::of(logits), adjustments, job.epilogue, product)?;
        let from = |address: u64, pitch: usize| Side { memory: own, address, pitch };
        let from_logits = from(start + first as u64, pitch);
        let (words, words_pitch) = match &out.status {
            Status::Apart { words, stride } => (words.as_span(), *stride),
            Status::Inside { at } => (out.data.as_span().part(*at..out.data.len()), out.stride),
        };
        if device.is_pinned(&out.data.as_span()) && device.is_pinned(&words) {
            let to = Side::of(&out.data.as_span(), out.stride);
            let all = CopyRows { to, from: from_logits, row_bytes, rows: n };
            let to = Side::of(&words, words_pitch);
            let status = CopyRows { to, from: from(start, 4), row_bytes: 4, rows: n };
            // SAFETY: checked places of the caller's, which `run` waits for.
            unsafe {
                device.copy_rows(stream, &all)?;
                device.copy_rows(stream, &status)?;
            }
            return Ok(());
        }
        self.bring(stream, start, (first, total, pitch), row_bytes, out)
    }

    /// Copies logits by way of the shard's own pinned memory to the caller's: in one copy where they fit it.
    pub(super) fn bring(
        &mut self,
        stream: D::Stream,
        start: u64,
        (first, total, pitch): (usize, usize, usize),
        row_bytes: usize,
        out: LogitsOut<'_>,
    ) -> Result<()> {
        let (device, own) = (&self.common.device, self.common.memory());
        let rows = (total - first) / pitch;
        let at_once = total.min(self.common.staged.max(first));
        let staging = self.rooms.received.at_least(at_once, |bytes| device.staging(bytes))?.as_mut();
        let host = staging.as_mut_ptr().expose_provenance() as u64;
        let LogitsOut { data, stride, status, .. } = out;
        let data = data.into_host().expect("checked: host memory");
        let (mut apart, inside) = match status {
            Status::Apart { words, stride } => {
                (Some((words.into_host().expect("checked: host memory"), stride)), 0)
            }
            Status::Inside { at } => (None, at),
        };
        for at in (0..total).step_by(at_once) {
            let bytes = at_once.min(total - at);
            let copy = CopyRows::whole((Memory::Host, host), (own, start + at as u64), bytes);
            // SAFETY: the shard's own memory, and a wait.
            unsafe { device.copy_rows(stream, &copy)? };
            device.record(&self.used, stream)?;
            device.wait_for(&self.used)?;
            let mut came = &staging[..bytes];
            let mut from = at.saturating_sub(first);
            if at == 0 {
                for (row, word) in came[..4 * rows].as_chunks::<4>().0.iter().enumerate() {
                    let slot = match &mut apart {
                        Some((words, stride)) => &mut words[row * *stride..],
                        None => &mut data[row * stride + inside..],
                    };
                    slot[..4].copy_from_slice(word);
                }
                came = &came[first..];
                from = 0;
            }
            // Between rows there is padding.
            while !came.is_empty() {
                let (row, column) = (from / pitch, from % pitch);
                let (now, later) = came.split_at(came.len().min(pitch - column));
                let wanted = &now[..now.len().min(row_bytes.saturating_sub(column))];
                if !wanted.is_empty() {
                    data[row * stride + column..][..wanted.len()].copy_from_slice(wanted);
                }
                (from, came) = (from + now.len(), later);
            }
        }
        // Each part was waited for.
        self.queued = false;
        Ok(())
    }

    /// The outputs of a shard without ids: nothing was seen.
    pub(super) fn nothing(&mut self, stream: D::Stream, rows: usize, out: Out<'_>) -> Result<()> {
        match out {
            Out::Logits(LogitsOut { data, stride, status, .. }) => {
                let (words, stride) = match status {
                    Status::Apart { words, stride } => (words, stride),
                    Status::Inside { at } => {
                        let len = data.len();
                        (data.part(at..len), stride)
                    }
                };
                if words.memory() == Memory::Host {
                    let bytes = words.into_host().expect("host memory");
                    (0..rows).for_each(|row| bytes[row * stride..][..4].fill(0));
                    return Ok(());
                }
                let (to, pitch) = (words.address() as usize as *mut u8, stride as u64);
                let zeros = WordsToSet { to, pitch, count: rows as u64, value: 0 };
                // SAFETY: checked words of the caller's.
                unsafe { self.set_words(stream, zeros) }
            }
            Out::Partials(spec, out) | Out::Counted { spec, out, .. } => {
                self.nothing_at(stream, rows, &spec, out)
            }
            Out::TargetLogits { out, .. } => self.no_targets(stream, out),
            Out::Drawn(..) => unreachable!("drawn like those of other shards"),
        }
    }
}
