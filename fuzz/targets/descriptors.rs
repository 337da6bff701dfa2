//! Bytes as the structs of a step: whatever their fields say, every call ends in a status, stays within the
//! caller's memory and writes nothing without success, and a head works on.
//!
//! Pointers are null, or of memory that is exactly as long as a struct says: C cannot be held to more.
#![no_main]

mod rig;

use libfuzzer_sys::fuzz_target;
use lmhead_capi::sys::*;
use rig::{Guarded, Input, init, known, tensor};
use std::ptr;
use std::sync::LazyLock;

const VOCAB: usize = 70;
const HIDDEN: usize = 4;
/// The most bytes of an array.
const ROOM: i128 = 1 << 13;

struct Rig {
    head: usize,
    weights: Vec<f32>,
}

static RIG: LazyLock<Rig> = LazyLock::new(|| {
    let weights: Vec<f32> = (0..VOCAB * HIDDEN).map(|i| (i % 7) as f32 - 3.0).collect();
    let backend_config = lmhead_backend_config { threads: 1, ..init!(lmhead_backend_config) };
    let wrapped = lmhead_weights_config {
        vocab_size: VOCAB as i64,
        matrix: tensor(weights.as_ptr(), VOCAB, HIDDEN),
        ..init!(lmhead_weights_config)
    };
    let config =
        lmhead_config { vocab_size: VOCAB as i64, hidden_size: HIDDEN as i64, ..init!(lmhead_config) };
    let (mut backend, mut shard, mut head) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
    // SAFETY: all are there.
    unsafe {
        assert_eq!(lmhead_backend_open(&raw const backend_config, &raw mut backend), 0);
        assert_eq!(lmhead_weights_wrap(&raw const wrapped, &raw mut shard), 0);
        let made = lmhead_create(&raw const config, ptr::null(), shard, ptr::null(), backend, &raw mut head);
        assert_eq!(made, 0);
    }
    Rig { head: head.addr(), weights }
});

thread_local! {
    static MEMORY: Guarded = Guarded::new(40, 4 * 4096);
}

/// Bytes of an element; of unknown types the most.
fn size(dtype: u32) -> i128 {
    match dtype {
        LMHEAD_F32 | LMHEAD_I32 => 4,
        LMHEAD_F16 | LMHEAD_BF16 => 2,
        LMHEAD_I8 => 1,
        _ => 8,
    }
}

/// What arrays hold: small numbers of both signs, as bytes, integers or floats.
struct Words(u64);

impl Words {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        match self.0 >> 61 {
            0 => 0,
            1 => self.0 >> 60,
            2 => u64::from((self.0 >> 58) as u32) | (self.0 >> 59) << 32,
            3 => u64::from(((self.0 >> 40) as f32).to_bits()) | u64::from(0.5f32.to_bits()) << 32,
            4 => u64::MAX,
            5 => 0x0101_0000_0101_0000 & self.0,
            _ => self.0,
        }
    }
}

struct Arrays<'a, 'b> {
    input: Input<'a>,
    memory: &'b Guarded,
    words: Words,
}

impl Arrays<'_, '_> {
    /// Null, or so many bytes that the library reads.
    fn bytes(&mut self, bytes: i128, align: usize) -> *mut u8 {
        if bytes > ROOM || self.input.chance(41) {
            return ptr::null_mut();
        }
        let place = self.memory.take(bytes, align);
        for at in (0..if place.is_null() { 0 } else { bytes as usize }).step_by(8) {
            let word = self.words.next().to_le_bytes();
            let n = word.len().min(bytes as usize - at);
            // SAFETY: within the array.
            unsafe { place.add(at).copy_from_nonoverlapping(word.as_ptr(), n) };
        }
        place
    }

    fn array<T>(&mut self, elements: i128) -> *mut T {
        self.bytes(elements.saturating_mul(size_of::<T>() as i128), align_of::<T>()).cast()
    }

    /// Null, or elements that the library writes.
    fn out<T>(&mut self, elements: i128) -> *mut T {
        let bytes = elements.saturating_mul(size_of::<T>() as i128);
        if bytes > ROOM || self.input.chance(41) {
            return ptr::null_mut();
        }
        self.memory.take(bytes, align_of::<T>()).cast()
    }

    /// Whatever fields, and the memory that they speak of where it is not too much.
    fn tensor(&mut self, columns: usize, place: impl Fn(&mut Self, i128, usize) -> *mut u8) -> lmhead_tensor {
        let input = &mut self.input;
        let mut tensor = lmhead_tensor {
            data: ptr::null_mut(),
            device_type: input.word() as i32,
            device_id: input.word() as i32,
            dtype: input.dtype(),
            reserved: u32::from(input.byte() > 250),
            rows: input.number(),
            columns: if input.chance(200) { columns as i64 } else { input.number() },
            stride: input.number(),
        };
        let (rows, columns) = (i128::from(tensor.rows), i128::from(tensor.columns));
        let stride = if tensor.stride == 0 { columns } else { i128::from(tensor.stride) };
        let elements = if rows > 0 { (rows - 1).saturating_mul(stride).saturating_add(columns) } else { 0 };
        if tensor.device_type != LMHEAD_CUDA as i32 {
            let size = size(tensor.dtype);
            tensor.data = place(self, elements.saturating_mul(size), size as usize).cast();
        }
        tensor
    }
}

fn try_it(data: &[u8], memory: &Guarded) {
    let head: *mut lmhead_head = ptr::without_provenance_mut(RIG.head);
    let mut input = Input(data);
    let words = Words(u64::from_le_bytes(input.bytes()));
    let (rows, k, targets) = (input.number(), input.number(), input.number());
    let n = i128::from(rows);
    let mut step = lmhead_step {
        mode: input.word() as i32,
        request: (input.word() % 7) as i32,
        rows,
        capacity: input.number(),
        k,
        n_targets: targets,
        logits_dtype: input.dtype(),
        flags: input.word(),
        ..init!(lmhead_step)
    };
    let mut all = Arrays { input, memory, words };
    step.hidden = all.tensor(HIDDEN, Arrays::bytes);
    step.index_dtype = all.input.dtype();
    step.counts = all.array(1);
    let of_index = if step.index_dtype == LMHEAD_I32 { 4 } else { 8 };
    step.indices = all.bytes(n * of_index, of_index as usize).cast();
    step.targets = all.array(n * i128::from(targets.max(1)));
    let sampling = lmhead_sampling {
        seed: all.array(n),
        position: all.array(n),
        temperature: all.array(n),
        top_k: all.array(n),
        top_p: all.array(n),
        min_p: all.array(n),
    };
    if all.input.byte() > 60 {
        step.sampling = &raw const sampling;
    }
    let mut offsets = || {
        let (place, last) = (all.array::<i64>(n + 1), all.input.number());
        if !place.is_null() && rows >= 0 {
            // SAFETY: as long as that.
            unsafe { place.add(rows as usize).write(last) };
        }
        (place, i128::from(last))
    };
    let (logit_bias, counts) = (offsets(), offsets());
    let adjustments = lmhead_adjustments {
        allowed: all.array(n * VOCAB.div_ceil(32) as i128),
        logit_bias_offsets: logit_bias.0,
        logit_bias_ids: all.array(logit_bias.1),
        logit_bias_values: all.array(logit_bias.1),
        repetition: all.array(n),
        frequency: all.array(n),
        presence: all.array(n),
        count_offsets: counts.0,
        count_ids: all.array(counts.1),
        counts: all.array(counts.1),
        in_prompt: all.array(counts.1),
    };
    if all.input.byte() > 128 {
        step.adjustments = &raw const adjustments;
    }
    let best = n.saturating_mul(i128::from(k.max(1)));
    let told = n.saturating_mul(i128::from(targets.max(1)));
    let first = memory.taken();
    let mut answer =
        lmhead_answer {
            row_status: all.out(n),
            logits: all.tensor(VOCAB, |all, bytes, align| {
                if bytes > ROOM { ptr::null_mut() } else { all.memory.take(bytes, align) }
            }),
            ids: all.out(best),
            values: all.out(best),
            logsumexp: all.out(n),
            logprobs: all.out(told),
            ranks: all.out(told),
            top_ids: all.out(best),
            top_logprobs: all.out(best),
            ..init!(lmhead_answer)
        };
    let end = memory.taken();
    let mut needs = init!(lmhead_needs);
    // SAFETY: every pointer is null, or of memory that is as long as the structs say.
    unsafe {
        known(lmhead_plan(head, &raw const step, &raw mut needs));
        if known(lmhead_run(head, &raw const step, &raw mut answer)) != 0 {
            assert!(memory.is_untouched(first, end), "written without success");
        }
        memory.check();
        // Whatever came before, a good step is answered.
        let (mut ids, mut status) = ([-9i64; 1], [9u8; 1]);
        let good = lmhead_step {
            request: LMHEAD_ARGMAX as i32,
            rows: 1,
            hidden: tensor(RIG.weights.as_ptr(), 1, HIDDEN),
            ..init!(lmhead_step)
        };
        let mut answer =
            lmhead_answer { row_status: status.as_mut_ptr(), ids: ids.as_mut_ptr(), ..init!(lmhead_answer) };
        assert_eq!(lmhead_run(head, &raw const good, &raw mut answer), 0);
        assert!(status[0] == 0 && (0..VOCAB as i64).contains(&ids[0]));
    }
}

fuzz_target!(|data: &[u8]| MEMORY.with(|memory| try_it(data, memory)));
