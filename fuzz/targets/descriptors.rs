//! Bytes as the structs of the C interface: whatever their fields say, every call ends in a status, and a head works on.
//!
//! Pointers are those of buffers that are as long as a struct says, or null: C cannot be held to more.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lmhead_capi::sys::*;
use std::ptr;
use std::sync::OnceLock;

const VOCAB: usize = 70;
const HIDDEN: usize = 4;
/// Bytes of each buffer.
const ROOM: usize = 1 << 13;

struct Rig {
    head: usize,
    weights: Vec<f32>,
}

/// What `NAME_init()` of the header does.
fn zeroed<T: Copy>() -> T {
    // SAFETY: structs of the header: numbers and pointers.
    unsafe { std::mem::zeroed() }
}

fn tensor(data: *const f32, rows: usize) -> lmhead_tensor {
    lmhead_tensor {
        data: data.cast_mut().cast(),
        device_type: LMHEAD_HOST as i32,
        device_id: 0,
        dtype: LMHEAD_F32,
        reserved: 0,
        rows: rows as i64,
        columns: HIDDEN as i64,
        stride: 0,
    }
}

fn rig() -> &'static Rig {
    static RIG: OnceLock<Rig> = OnceLock::new();
    RIG.get_or_init(|| {
        let weights: Vec<f32> = (0..VOCAB * HIDDEN).map(|i| (i % 7) as f32 - 3.0).collect();
        let backend_config =
            lmhead_backend_config { size: size_of::<lmhead_backend_config>(), threads: 1, ..zeroed() };
        let wrapped = lmhead_weights_config {
            size: size_of::<lmhead_weights_config>(),
            vocab_size: VOCAB as i64,
            matrix: tensor(weights.as_ptr(), VOCAB),
            ..zeroed()
        };
        let config = lmhead_config {
            size: size_of::<lmhead_config>(),
            vocab_size: VOCAB as i64,
            hidden_size: HIDDEN as i64,
            ..zeroed()
        };
        let (mut backend, mut shard, mut head) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
        // SAFETY: all are there.
        unsafe {
            assert_eq!(lmhead_backend_open(&raw const backend_config, &raw mut backend), 0);
            assert_eq!(lmhead_weights_wrap(&raw const wrapped, &raw mut shard), 0);
            let made =
                lmhead_create(&raw const config, ptr::null(), shard, ptr::null(), backend, &raw mut head);
            assert_eq!(made, 0);
        }
        Rig { head: head as usize, weights }
    })
}

/// Takes fields from the input.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let n = N.min(self.0.len());
        bytes[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        bytes
    }

    /// Mostly small, sometimes any.
    fn number(&mut self) -> i64 {
        match self.bytes::<1>()[0] {
            byte @ 0..=199 => i64::from(byte % 12),
            200..=219 => -1,
            220..=229 => i64::MAX,
            _ => i64::from_le_bytes(self.bytes()),
        }
    }

    fn word(&mut self) -> u32 {
        match self.bytes::<1>()[0] {
            byte @ 0..=239 => u32::from(byte % 8),
            _ => u32::from_le_bytes(self.bytes()),
        }
    }

    fn dtype(&mut self) -> u32 {
        let byte = self.bytes::<1>()[0];
        [LMHEAD_F32, LMHEAD_F16, LMHEAD_BF16, LMHEAD_I8, LMHEAD_F32, LMHEAD_F32, 0, 5][usize::from(byte % 8)]
    }

    fn tensor(&mut self, data: *mut u8) -> lmhead_tensor {
        let mut tensor = lmhead_tensor {
            data: data.cast(),
            device_type: self.word() as i32,
            device_id: self.word() as i32,
            dtype: self.dtype(),
            reserved: u32::from(self.bytes::<1>()[0] > 250),
            rows: self.number(),
            columns: if self.bytes::<1>()[0] < 200 { HIDDEN as i64 } else { self.number() },
            stride: self.number(),
        };
        let stride = if tensor.stride == 0 { tensor.columns } else { tensor.stride };
        let elements = i128::from(tensor.rows) * i128::from(stride.max(tensor.columns)).abs();
        if elements.abs() > ROOM as i128 / 8 || tensor.device_type == LMHEAD_CUDA as i32 {
            tensor.data = ptr::null_mut();
        }
        tensor
    }
}

/// Null, or the buffer where `elements` of `size` bytes fit into it.
fn buffer<T>(input: &mut Input<'_>, buffer: &mut [u64], elements: i128) -> *mut T {
    let fits = (0..=(ROOM / 16) as i128).contains(&elements);
    if fits && input.bytes::<1>()[0] > 40 { buffer.as_mut_ptr().cast() } else { ptr::null_mut() }
}

fuzz_target!(|data: &[u8]| {
    let rig = rig();
    let head: *mut lmhead_head = ptr::without_provenance_mut(rig.head);
    let mut input = Input(data);
    let mut buffers: Vec<Vec<u64>> = (0..24).map(|_| vec![0; ROOM / 8]).collect();
    // What arrays hold: small numbers of both signs, as bytes, integers or floats.
    let mut state = u64::from_le_bytes(input.bytes());
    for word in buffers.iter_mut().flatten() {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        *word = match state >> 61 {
            0 => 0,
            1 => state >> 60,
            2 => u64::from((state >> 58) as u32) | (state >> 59) << 32,
            3 => u64::from(((state >> 40) as f32).to_bits()) | u64::from(0.5f32.to_bits()) << 32,
            4 => u64::MAX,
            5 => 0x0101_0000_0101_0000 & state,
            _ => state,
        };
    }
    let mut all = buffers.iter_mut();
    let mut next = || all.next().expect("enough of them");

    let rows = input.number();
    let n = i128::from(rows);
    let k = input.number();
    let targets = input.number();
    let hidden = next().as_mut_ptr().cast::<u8>();
    let mut step = lmhead_step {
        size: size_of::<lmhead_step>(),
        mode: input.word() as i32,
        request: (input.word() % 7) as i32,
        rows,
        capacity: input.number(),
        k,
        n_targets: targets,
        logits_dtype: input.dtype(),
        flags: input.word(),
        hidden: input.tensor(hidden),
        index_dtype: input.dtype(),
        ..zeroed()
    };
    step.counts = buffer(&mut input, next(), 1);
    step.indices = buffer::<u8>(&mut input, next(), n).cast();
    step.targets = buffer(&mut input, next(), n * i128::from(targets.max(1)));
    let sampling = lmhead_sampling {
        seed: buffer(&mut input, next(), n),
        position: buffer(&mut input, next(), n),
        temperature: buffer(&mut input, next(), n),
        top_k: buffer(&mut input, next(), n),
        top_p: buffer(&mut input, next(), n),
        min_p: buffer(&mut input, next(), n),
    };
    if input.bytes::<1>()[0] > 60 {
        step.sampling = &raw const sampling;
    }
    let (offsets, entries) = {
        let offsets: &mut [u64] = next();
        let last = input.number();
        if let Some(end) = usize::try_from(rows).ok().and_then(|rows| offsets.get_mut(rows)) {
            *end = last as u64;
        }
        (buffer(&mut input, offsets, n + 1), i128::from(last))
    };
    let mut adjustments: lmhead_adjustments = zeroed();
    adjustments.allowed = buffer(&mut input, next(), n * VOCAB.div_ceil(32) as i128);
    adjustments.logit_bias_offsets = offsets;
    adjustments.logit_bias_ids = buffer(&mut input, next(), entries);
    adjustments.logit_bias_values = buffer(&mut input, next(), entries);
    adjustments.repetition = buffer(&mut input, next(), n);
    if input.bytes::<1>()[0] > 128 {
        step.adjustments = &raw const adjustments;
    }
    let best = n * i128::from(k.clamp(0, 1 << 20)).max(1);
    let told = n * i128::from(targets.clamp(0, 1 << 20)).max(1);
    let logits = next().as_mut_ptr().cast::<u8>();
    let mut answer = lmhead_answer {
        size: size_of::<lmhead_answer>(),
        row_status: buffer(&mut input, next(), n),
        logits: lmhead_tensor { columns: VOCAB as i64, ..input.tensor(logits) },
        ids: buffer(&mut input, next(), best),
        values: buffer(&mut input, next(), best),
        logsumexp: buffer(&mut input, next(), n),
        ..zeroed()
    };
    answer.logprobs = answer.values.cast();
    answer.ranks = buffer(&mut input, next(), told.max(best));
    if i128::from(answer.logits.rows).abs() * i128::from(answer.logits.stride.max(VOCAB as i64)) > (ROOM / 8) as i128 {
        answer.logits.data = ptr::null_mut();
    }
    let mut needs = lmhead_needs { size: size_of::<lmhead_needs>(), ..zeroed() };
    // SAFETY: every pointer is null or of a buffer that is as long as the structs say.
    unsafe {
        let planned = lmhead_plan(head, &raw const step, &raw mut needs);
        let ran = lmhead_run(head, &raw const step, &raw mut answer);
        for status in [planned, ran] {
            assert!((0..=16).contains(&status) && status != LMHEAD_ERROR_INTERNAL as i32, "{status}");
        }
        // Whatever came before, a good step is answered.
        let (mut ids, mut status) = ([-9i64; 1], [9u8; 1]);
        let good = lmhead_step {
            size: size_of::<lmhead_step>(),
            request: LMHEAD_ARGMAX as i32,
            rows: 1,
            hidden: tensor(rig.weights.as_ptr(), 1),
            ..zeroed()
        };
        let mut answer = lmhead_answer {
            size: size_of::<lmhead_answer>(),
            row_status: status.as_mut_ptr(),
            ids: ids.as_mut_ptr(),
            ..zeroed()
        };
        assert_eq!(lmhead_run(head, &raw const good, &raw mut answer), 0);
        assert!(status[0] == 0 && (0..VOCAB as i64).contains(&ids[0]));
    }
});
