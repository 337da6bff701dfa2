//! A whole [`Backend`] on a device: logits by its kernels, everything after them on the host.
//!
//! Rows go to the device, logits come back; candidates, sums and samples of them are found by the CPU backend's code, from chunks of
//! rows that are held on the host, so that they have its bits.

use super::head::{DeviceHead, precision};
use super::matmul::{dtype_code, of_product};
use super::scratch::{NO_ADJUSTMENTS, Scratch};
use super::{Call, KernelDevice};
use crate::backend::cpu::CpuBackend;
use crate::backend::params::{
    LMHEAD_STATUS_ALLOWED, LMHEAD_STATUS_BAD_INDEX, LMHEAD_STATUS_NONFINITE, LogitMatrix, RowMatrix,
};
use crate::backend::{
    Backend, HeadTypes, HeldLogits, Job, LogitsOut, Resident, SamplingPass, Tally, check_boundaries,
    check_job, check_logits,
};
use crate::config::Quantization;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::merge::{PartialSpec, RowPartial};
use crate::plan::Shape;
use crate::reference::Accuracy;
use crate::rows::HiddenRows;
use crate::weights::HeadShard;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Bytes of f32 logits that are held on the host at once, of as many rows as fit and at least one.
const HELD_BYTES: usize = 64 << 20;

/// Part of the fingerprint: raised whenever a kernel's bits change.
const VERSION: u32 = 1;

/// The kernels on one device as a [`Backend`]. Calls may come from any number of threads at once: ranks of one process share it.
pub struct DeviceBackend<D: KernelDevice> {
    device: D,
    host: CpuBackend,
    /// Of the heads that live, by the address of their shard. Each is kept by the [`Resident`] of its head.
    heads: Mutex<HashMap<usize, Weak<DeviceHead<D>>>>,
    idle: Mutex<Vec<Scratch<D>>>,
}

impl<D: KernelDevice> std::fmt::Debug for DeviceBackend<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceBackend").field("device", &self.device.name()).finish_non_exhaustive()
    }
}

impl<D: KernelDevice> DeviceBackend<D> {
    /// The backend of `device`; `host` does what comes after the logits.
    pub fn new(device: D, host: CpuBackend) -> Self {
        DeviceBackend { device, host, heads: Mutex::default(), idle: Mutex::default() }
    }

    pub fn device(&self) -> &D {
        &self.device
    }

    /// The shard on the device: as it was prepared, or copied for this call.
    fn head(&self, shard: &HeadShard) -> Result<Arc<DeviceHead<D>>> {
        let found = lock(&self.heads).get(&key(shard)).and_then(Weak::upgrade);
        match found {
            Some(head) => Ok(head),
            None => Ok(Arc::new(DeviceHead::new(&self.device, shard)?)),
        }
    }

    /// Runs `work` with memory of its own.
    fn with_scratch<T>(&self, work: impl FnOnce(&mut Scratch<D>) -> Result<T>) -> Result<T> {
        let idle = lock(&self.idle).pop();
        let mut scratch = idle.map_or_else(|| Scratch::new(&self.device), Ok)?;
        let done = work(&mut scratch);
        match done {
            Ok(_) => lock(&self.idle).push(scratch),
            // Something may still be running on that memory; what became of it is of no interest any more.
            Err(_) => drop(self.device.wait(scratch.stream(&self.device))),
        }
        done
    }

    /// The logits of a job in `scratch.logits`, rows one behind the other with the returned pitch; calls `row(i, status)` for each.
    /// `adjusted`: which rows of the adjustments are the job's.
    fn run(
        &self,
        job: &Job<'_>,
        adjusted: Range<usize>,
        dtype: DType,
        scratch: &mut Scratch<D>,
        mut row: impl FnMut(usize, u32),
    ) -> Result<usize> {
        let (device, rows, vocab) = (&self.device, job.rows.len(), job.shard.vocab().len());
        let stream = scratch.stream(device);
        let head = self.head(job.shard)?;
        let product = head.product(device, precision(job.shard, job.rows.dtype())?)?;
        let hidden = self.upload(&job.rows, scratch)?;
        let adjustments = match job.adjustments {
            Some(adjustments) => {
                scratch.adjustments(device, &adjustments.arrays(adjusted), vocab.div_ceil(32))?
            }
            None => NO_ADJUSTMENTS,
        };
        // Of rows that nothing is done to the kernels do not say that something is allowed: also where there are adjustments, of
        // no kind.
        let plain = adjustments.allowed.is_null()
            && adjustments.addition_offsets.is_null()
            && adjustments.count_offsets.is_null();
        let always = if plain { LMHEAD_STATUS_ALLOWED } else { 0 };
        let pitch = (vocab * dtype.size()).next_multiple_of(16);
        let logits = scratch.logits.at_least(device, product_of(&[rows, pitch])?)?;
        let status = scratch.status.at_least(device, 4 * rows)?;
        let bytes = product.workspace_bytes(rows)?;
        let workspace = scratch.workspace.at_least(device, bytes)?;
        let call = Call {
            rows,
            weights: head.weights(device),
            hidden,
            logits: LogitMatrix {
                data: device.address(logits) as usize as *mut _,
                pitch: pitch as u64,
                status: device.address(status) as usize as *mut u32,
                dtype: dtype_code(dtype).expect("checked: a float type"),
            },
            adjustments,
            epilogue: job.epilogue,
            workspace: device.address(workspace),
            workspace_bytes: bytes,
        };
        // SAFETY: every buffer is this device's, as large as the call says, and lives until it is read below, which waits.
        unsafe { product.run(device, stream, &call)? };
        let shape = Shape { rows, vocab, hidden: job.shard.hidden_size() };
        let named = |error| of_product(&shape, error);
        let mut said = vec![0u32; rows];
        device.read_on(stream, status, 0, bytemuck::cast_slice_mut(&mut said)).map_err(named)?;
        if let Some(bad) = said.iter().position(|status| status & LMHEAD_STATUS_BAD_INDEX != 0) {
            return Err(Error::Device {
                what: format!("row {bad} of the product"),
                problem: "its index, checked on the host, was out of range on the device".into(),
                fix: "something overwrote device memory: run under compute-sanitizer".into(),
            });
        }
        said.iter().enumerate().for_each(|(i, &status)| row(i, status | always));
        Ok(pitch)
    }

    /// [`Backend::logits`] of a job that was checked.
    fn compute(&self, job: &Job<'_>, adjusted: Range<usize>, out: LogitsOut<'_>) -> Result<()> {
        let LogitsOut { bytes, stride, dtype, nonfinite, mut any_allowed } = out;
        let (rows, row_bytes) = (job.rows.len(), job.shard.vocab().len() * dtype.size());
        if rows == 0 || row_bytes == 0 {
            return Ok(());
        }
        self.with_scratch(|scratch| {
            let pitch = self.run(job, adjusted, dtype, scratch, |row, status| {
                nonfinite[row] |= status & LMHEAD_STATUS_NONFINITE != 0;
                if let Some(any) = &mut any_allowed {
                    any[row] |= status & LMHEAD_STATUS_ALLOWED != 0;
                }
            })?;
            let stream = scratch.stream(&self.device);
            let logits = scratch.logits.at_least(&self.device, 0)?;
            if pitch == stride && stride == row_bytes {
                return self.device.read_on(stream, logits, 0, &mut bytes[..rows * stride]);
            }
            scratch.bytes.resize(rows * pitch, 0);
            self.device.read_on(stream, logits, 0, &mut scratch.bytes[..rows * pitch])?;
            for (to, from) in bytes.chunks_mut(stride).zip(scratch.bytes.chunks(pitch)).take(rows) {
                to[..row_bytes].copy_from_slice(&from[..row_bytes]);
            }
            Ok(())
        })
    }

    /// The rows in device memory: all that were given, with the selection, or the selected ones where those are far fewer.
    fn upload(&self, rows: &HiddenRows<'_>, scratch: &mut Scratch<D>) -> Result<RowMatrix> {
        let (device, stream) = (&self.device, scratch.stream(&self.device));
        let (mut bytes, mut source_rows) = rows.source();
        let mut selection = rows.selection();
        if selection.is_some() && source_rows > 2 * rows.len() {
            scratch.bytes.resize(product_of(&[rows.len(), rows.row_bytes()])?, 0);
            rows.copy_into(&mut scratch.bytes);
            (bytes, source_rows, selection) = (&scratch.bytes, rows.len(), None);
        }
        // Rows at multiples of 16 bytes are what the kernels copy 16 bytes at a time.
        let (row_bytes, pitch) = (rows.row_bytes(), rows.row_bytes().next_multiple_of(16));
        let padded: Vec<u8>;
        if pitch != row_bytes {
            let each = bytes
                .chunks(row_bytes.max(1))
                .flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(0, pitch - row_bytes)));
            padded = each.collect();
            bytes = &padded;
        }
        let data = scratch.rows.at_least(device, bytes.len())?;
        device.write_on(stream, data, 0, bytes)?;
        let mut indices = std::ptr::null();
        if let Some(selection) = selection {
            let numbers: Vec<i64> = selection.iter().map(|&row| row as i64).collect();
            let buffer = scratch.indices.at_least(device, 8 * numbers.len())?;
            device.write_on(stream, buffer, 0, bytemuck::cast_slice(&numbers))?;
            indices = device.address(buffer) as usize as *const _;
        }
        let too_many = |_| {
            let fix = "send fewer rows in one step";
            Error::shape("rows of hidden_states", "fewer than 2^32", source_rows, fix)
        };
        Ok(RowMatrix {
            data: device.address(data) as usize as *const _,
            pitch: pitch as u64,
            indices,
            index_bytes: 8,
            source_rows: u32::try_from(source_rows).map_err(too_many)?,
        })
    }
}

impl<D: KernelDevice> Backend for DeviceBackend<D> {
    fn name(&self) -> &'static str {
        self.device.name()
    }

    /// The device's, the kernels' version, and the CPU's, whose code sums the exponentials.
    fn fingerprint(&self, types: HeadTypes) -> String {
        let held = HeadTypes { weights: DType::F32, quantization: Quantization::None, hidden: DType::F32 };
        let (device, host) = (self.device.fingerprint(), self.host.fingerprint(held));
        format!("{device}/{VERSION} {}, {host}", types.weights)
    }

    fn accuracy(&self) -> Accuracy {
        Accuracy::TensorCores
    }

    fn check(&self, shard: &HeadShard, hidden: DType) -> Result<()> {
        precision(shard, hidden)?;
        check_boundaries(shard)
    }

    fn prepare(&self, shard: &Arc<HeadShard>, hidden: DType) -> Result<Resident> {
        if shard.vocab().is_empty() {
            return Ok(Resident::default());
        }
        let mut heads = lock(&self.heads);
        heads.retain(|_, head| head.strong_count() > 0);
        let head = match heads.get(&key(shard)).and_then(Weak::upgrade) {
            Some(head) => head,
            None => {
                let head = Arc::new(DeviceHead::keeping(&self.device, shard)?);
                heads.insert(key(shard), Arc::downgrade(&head));
                head
            }
        };
        drop(heads);
        head.product(&self.device, precision(shard, hidden)?)?;
        Ok(Resident::new(head))
    }

    fn logits(&self, job: &Job<'_>, out: LogitsOut<'_>) -> Result<()> {
        let rows = job.rows.len();
        check_job(job, rows, out.nonfinite.len())?;
        check_job(job, rows, out.any_allowed.as_ref().map_or(rows, |flags| flags.len()))?;
        check_logits(&out, rows, job.shard.vocab().len())?;
        self.compute(job, 0..rows, out)
    }

    fn partials(&self, job: &Job<'_>, spec: PartialSpec, out: &mut [RowPartial]) -> Result<()> {
        check_job(job, job.rows.len(), out.len())?;
        if spec.k == 0 {
            return Err(Error::request("candidates of a partial", "at least 1", 0, "ask for one"));
        }
        let vocab = job.shard.vocab();
        if out.is_empty() || vocab.is_empty() {
            out.iter_mut().for_each(|partial| partial.reset(spec));
            return Ok(());
        }
        let at_once = (HELD_BYTES / (4 * vocab.len())).max(1);
        self.with_scratch(|scratch| {
            let held = &mut scratch.held;
            for (i, out) in out.chunks_mut(at_once).enumerate() {
                let range = i * at_once..i * at_once + out.len();
                let job = Job { rows: job.rows.range(range.clone()), ..*job };
                let mut nonfinite = vec![false; out.len()];
                held.resize(out.len() * vocab.len(), 0.0);
                let place = LogitsOut {
                    bytes: bytemuck::cast_slice_mut(held),
                    stride: 4 * vocab.len(),
                    dtype: DType::F32,
                    nonfinite: &mut nonfinite,
                    any_allowed: None,
                };
                self.compute(&job, range, place)?;
                let held = HeldLogits { logits: held, vocab: vocab.clone(), nonfinite: &nonfinite };
                self.host.partials_of(&held, spec, out);
            }
            Ok(())
        })
    }

    fn tally(&self, tally: Tally<'_>) -> Result<()> {
        self.host.tally(tally)
    }

    fn sample(&self, held: &HeldLogits<'_>, pass: SamplingPass<'_>) -> Result<()> {
        self.host.sample(held, pass)
    }
}

fn key(shard: &HeadShard) -> usize {
    std::ptr::from_ref(shard) as usize
}

fn product_of(sizes: &[usize]) -> Result<usize> {
    sizes.iter().try_fold(1usize, |n, &size| n.checked_mul(size)).ok_or_else(|| {
        Error::shape(
            "device memory",
            "fewer bytes than 2^64",
            format!("{sizes:?}"),
            "send fewer rows in one step",
        )
    })
}

/// What these locks guard is whole at every moment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
