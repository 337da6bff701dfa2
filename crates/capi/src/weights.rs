//! One member's shard of the weights.

use crate::about::{WARNING, log};
use crate::boundary::{Outcome, argument, call, call_silently, place, text};
use crate::handles;
use crate::structs::{TensorShape, count, dtype_code, needed, room, sized, span, write};
use crate::sys::{
    self, lmhead_load, lmhead_status, lmhead_weights, lmhead_weights_config, lmhead_weights_info,
};
use half::{bf16, f16};
use lmhead::config::{Quantization, Settings};
use lmhead::memory::Memory;
use lmhead::plan::WeightLayout;
use lmhead::weights::{Checkpoint, DeviceMatrix, LoadOptions, Matrix, Storage};
use lmhead::{DType, Error, HeadShard};
use std::ffi::{c_char, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub struct Weights {
    pub shard: Arc<HeadShard>,
    /// Version of the weights, as the engine counts it.
    pub version: u64,
}

/// A pointer of the engine, which only the engine's own functions dereference.
#[derive(Clone, Copy)]
struct User(*mut c_void);

impl User {
    /// A method, so that closures capture the whole struct, which is `Send`, and not the field.
    fn pointer(self) -> *mut c_void {
        self.0
    }
}

// SAFETY: the engine promises that its functions may be called by any thread.
unsafe impl Send for User {}
// SAFETY: as above.
unsafe impl Sync for User {}

fn quantization(asked: i32) -> Outcome<Option<Quantization>> {
    match asked as u32 {
        sys::LMHEAD_QUANT_AS_STORED => Ok(None),
        sys::LMHEAD_QUANT_NONE => Ok(Some(Quantization::None)),
        sys::LMHEAD_QUANT_W8A8 => Ok(Some(Quantization::W8a8)),
        sys::LMHEAD_QUANT_W8A16 => Ok(Some(Quantization::W8a16)),
        _ => Err(argument("quantization", "a LMHEAD_QUANT_ number", asked, "use one of those")),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_weights_load(
    path: *const c_char,
    load: *const lmhead_load,
    weights: *mut *mut lmhead_weights,
) -> lmhead_status {
    call(|| {
        let weights = place("weights", weights)?;
        // SAFETY: the caller's promises.
        let (path, load) = unsafe { (text("path", path)?, sized("load", load)?) };
        let path = path.ok_or_else(|| argument("path", "a folder or a file", "NULL", "pass one"))?;
        // SAFETY: as above.
        let checkpoint = match unsafe { text("tensor", load.tensor)? } {
            None => Checkpoint::open_with(path, &Settings::default())?,
            Some(tensor) => Checkpoint::from_file(path, tensor)?,
        };
        let vocab_size = match count("vocab_size", load.vocab_size)? {
            0 => checkpoint.model_config().vocab_size.unwrap_or(checkpoint.rows()),
            n => n,
        };
        let vocab = match count("members", load.members)? {
            0 => 0..vocab_size,
            members => crate::group::shard(vocab_size, members, count("member", load.member)?)?,
        };
        let (tell, user) = (load.progress, User(load.user));
        let progress = |done: u64, total: u64| {
            if let Some(tell) = tell {
                // SAFETY: the engine's own function.
                unsafe { tell(user.pointer(), done, total) };
            }
        };
        let options = LoadOptions {
            quantization: quantization(load.quantization)?,
            bias: (load.without_bias != 0).then_some(false),
            copy: load.copy != 0,
            progress: tell.is_some().then_some(&progress),
            ..LoadOptions::default()
        };
        let shard = checkpoint.shard(vocab, vocab_size, &options)?;
        checkpoint.warnings().iter().for_each(|warning| log(WARNING, warning));
        let handle = handles::keep(Weights { shard: Arc::new(shard), version: load.version })?;
        // SAFETY: `weights` is non-null and aligned (checked); the header requires it to be writable.
        unsafe { weights.write(handle) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_weights_wrap(
    config: *const lmhead_weights_config,
    weights: *mut *mut lmhead_weights,
) -> lmhead_status {
    call(|| {
        let weights = place("weights", weights)?;
        // SAFETY: the caller's promises.
        let config = unsafe { sized("config", config)? };
        let ours = Arc::new(AtomicBool::new(false));
        // SAFETY: as above.
        let shard = unsafe { wrapped(&config, &ours)? };
        let handle = handles::keep(Weights { shard: Arc::new(shard), version: config.version })?;
        ours.store(true, Ordering::Release);
        // SAFETY: `weights` is non-null and aligned (checked); the header requires it to be writable.
        unsafe { weights.write(handle) };
        Ok(())
    })
}

/// A shard in the engine's memory. When nobody uses it any more, the engine's `release` is called, but only
/// if `ours` is true by then: if the call fails, the engine keeps the memory.
///
/// # Safety
/// The pointers must be what the header says.
unsafe fn wrapped(config: &lmhead_weights_config, ours: &Arc<AtomicBool>) -> Outcome<HeadShard> {
    let rows = TensorShape::of("matrix", &config.matrix)?;
    let (vocab_size, first) = (count("vocab_size", config.vocab_size)?, count("first", config.first)?);
    let end = first.checked_add(rows.rows).filter(|end| *end <= vocab_size).ok_or_else(|| {
        let wanted = format!("rows of ids 0..{vocab_size}");
        argument("first", wanted, format!("{} rows from {first} on", rows.rows), "pass the rows of the shard")
    })?;
    if rows.rows > 0 && rows.columns == 0 {
        let wanted = "at least one column, the hidden size";
        return Err(argument("matrix", wanted, "0 columns", "pass the rows of the shard"));
    }
    let n_scales = count("n_scales", config.n_scales)?;
    if n_scales > 1 && n_scales != rows.rows {
        let wanted = format!("{}, 1 or 0", rows.rows);
        return Err(argument("n_scales", wanted, n_scales, "one for each row, or one for all"));
    }
    let quantization = match (quantization(config.quantization)?, rows.dtype) {
        (None | Some(Quantization::None), dtype) if dtype.is_float() => Quantization::None,
        (Some(quantization @ (Quantization::W8a8 | Quantization::W8a16)), DType::I8) => quantization,
        (Some(Quantization::W8a16), DType::E4m3) => Quantization::W8a16,
        (asked, dtype) => {
            let got = asked.map_or("AS_STORED".into(), |asked| asked.to_string());
            let wanted = match dtype {
                DType::I8 => "w8a8 or w8a16 for int8 weights",
                DType::E4m3 => "w8a16 for e4m3 weights",
                _ => "none for float weights",
            };
            return Err(argument(
                "quantization",
                wanted,
                got,
                "lmhead_weights_load quantises while it reads",
            ));
        }
    };
    let vocab = first..end;
    if rows.memory != Memory::Host {
        // SAFETY: as the caller says.
        return unsafe { on_device(config, &rows, vocab, vocab_size, quantization, ours) };
    }
    // SAFETY: the caller's promises, for these and what follows.
    let scales = unsafe { needed("scales", config.scales, n_scales)? };
    let scales = if n_scales == 1 { vec![scales[0]; rows.rows] } else { scales.to_vec() };
    // SAFETY: as above.
    let bias = unsafe { crate::structs::array("bias", config.bias, rows.rows)? }.map(<[f32]>::to_vec);
    // SAFETY: as above.
    let matrix = unsafe {
        match rows.dtype {
            DType::F32 => Matrix::F32(storage(config, &rows, ours)?),
            DType::F16 => Matrix::F16(storage::<f16>(config, &rows, ours)?),
            DType::Bf16 => Matrix::Bf16(storage::<bf16>(config, &rows, ours)?),
            DType::I8 => Matrix::I8 { values: storage(config, &rows, ours)?, scales: scales.clone() },
            DType::E4m3 => Matrix::E4m3 { values: storage(config, &rows, ours)?, scales: scales.clone() },
        }
    };
    let shard = HeadShard::new(vocab, vocab_size, rows.columns, quantization, matrix, bias)?;
    match rows.dtype.is_float() && !scales.is_empty() {
        true => Ok(shard.with_scales(scales)?),
        false => Ok(shard),
    }
}

/// The closure to call when nobody needs the memory any more.
fn released(config: &lmhead_weights_config, ours: &Arc<AtomicBool>) -> impl FnOnce() + Send + Sync + use<> {
    let (release, user, ours) = (config.release, User(config.user), Arc::clone(ours));
    move || {
        if let Some(release) = release.filter(|_| ours.load(Ordering::Acquire)) {
            // SAFETY: the engine's own function.
            unsafe { release(user.pointer()) };
        }
    }
}

/// The elements of the matrix: used in place where the engine has a `release` function, else copied.
///
/// # Safety
/// The matrix must be in memory as `rows` describes it.
unsafe fn storage<T: bytemuck::Pod>(
    config: &lmhead_weights_config,
    rows: &TensorShape,
    ours: &Arc<AtomicBool>,
) -> Outcome<Storage<T>> {
    let (start, row_bytes) = (config.matrix.data.cast::<T>().cast_const(), rows.columns * size_of::<T>());
    let whole = rows.stride == row_bytes || rows.rows <= 1;
    if config.release.is_some() {
        if !whole {
            let wanted = format!("rows of {} elements without a gap, to be used in place", rows.columns);
            let got = format!("{} bytes from row to row", rows.stride);
            return Err(argument("matrix", wanted, got, "pass no release: the rows are copied then"));
        }
        // SAFETY: the engine keeps the memory until it is released.
        return Ok(unsafe { Storage::foreign(start, rows.rows * rows.columns, released(config, ours))? });
    }
    // SAFETY: the caller's promise.
    let bytes = unsafe {
        crate::structs::needed("matrix", config.matrix.data.cast::<u8>().cast_const(), rows.bytes)?
    };
    let mut copied: Vec<T> = Vec::new();
    let room = copied.try_reserve_exact(rows.rows * rows.columns);
    room.map_err(|_| {
        let fix = "pass a release function, so that the matrix is used in place";
        Error::unsupported("memory for the weights", format!("{} bytes", rows.bytes), "less", fix)
    })?;
    copied.resize(rows.rows * rows.columns, T::zeroed());
    for (row, to) in bytemuck::cast_slice_mut::<T, u8>(&mut copied).chunks_mut(row_bytes.max(1)).enumerate() {
        to.copy_from_slice(&bytes[row * rows.stride..][..row_bytes]);
    }
    Ok(copied.into())
}

/// Weights in device memory, used in place.
///
/// # Safety
/// As [`wrapped`].
unsafe fn on_device(
    config: &lmhead_weights_config,
    rows: &TensorShape,
    vocab: std::ops::Range<usize>,
    vocab_size: usize,
    quantization: Quantization,
    ours: &Arc<AtomicBool>,
) -> Outcome<HeadShard> {
    if config.release.is_none() {
        let fix = "pass a function that says when the memory may go";
        return Err(argument("release", "a function for weights in device memory", "NULL", fix));
    }
    if config.n_scales == 1 && rows.rows != 1 {
        let fix = "write it once for each row";
        return Err(argument("n_scales", "one for each row of weights in device memory", 1, fix));
    }
    // SAFETY: as the caller says.
    let floats = |pointer: *const f32| unsafe {
        (!pointer.is_null()).then(|| span(rows.memory, pointer.cast(), 4 * rows.rows))
    };
    let matrix = DeviceMatrix {
        // SAFETY: as above.
        data: unsafe { span(rows.memory, config.matrix.data, rows.bytes) },
        dtype: rows.dtype,
        layout: WeightLayout::Rows,
        pitch: rows.stride,
        scales: if config.n_scales == 0 { None } else { floats(config.scales) },
        bias: floats(config.bias),
    };
    // SAFETY: the engine keeps the memory until it is released.
    Ok(unsafe {
        HeadShard::on_device(vocab, vocab_size, rows.columns, quantization, matrix, released(config, ours))?
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_weights_free(weights: *mut lmhead_weights) {
    call_silently("lmhead_weights_free", || handles::free::<Weights>("weights", weights));
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_weights_about(
    weights: *const lmhead_weights,
    info: *mut lmhead_weights_info,
) -> lmhead_status {
    call(|| {
        // SAFETY: the caller's promise.
        let size = unsafe { room("info", info)? };
        let about = handles::get::<Weights>("weights", weights)?.shard.info();
        let value = lmhead_weights_info {
            size,
            vocab_size: about.vocab_size as i64,
            hidden_size: about.hidden_size as i64,
            first: about.vocab.start as i64,
            count: about.vocab.len() as i64,
            dtype: dtype_code(about.dtype),
            quantization: match about.quantization {
                Quantization::None => sys::LMHEAD_QUANT_NONE,
                Quantization::W8a8 => sys::LMHEAD_QUANT_W8A8,
                Quantization::W8a16 => sys::LMHEAD_QUANT_W8A16,
            } as i32,
            has_bias: about.has_bias.into(),
            bytes: about.bytes,
        };
        // SAFETY: as above.
        unsafe { write(info, size, &value) };
        Ok(())
    })
}
