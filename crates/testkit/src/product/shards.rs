//! Loaded shards on a device: whichever memory rows and answers are in, answers are what the definitions give
//! for one product's f32 logits.

use crate::adjusting::OwnAdjustments;
use crate::hooked::ask_of;
use crate::{Random, TestHead};
use lmhead::adjust::ShardAdjustments;
use lmhead::backend::cpu::CpuBackend;
use lmhead::backend::device::{CopyRows, DeviceBackend, KernelDevice};
use lmhead::backend::params::{LMHEAD_STATUS_ALLOWED, LMHEAD_STATUS_BAD_INDEX, LMHEAD_STATUS_NONFINITE};
use lmhead::backend::{Ask, Backend, Job, LoadedShard, LogitsOut, On, Out, Pass, Status, Which};
use lmhead::backend::{TiesQuery, Wanted};
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::epilogue::Epilogue;
use lmhead::finish::columns::{row_stride, status_at};
use lmhead::memory::{Allocation, Memory, Span, SpanMut, Stream};
use lmhead::merge::{Candidate, ExpSum};
use lmhead::merge::{Merge, NO_TARGET, PartialSpec};
use lmhead::rows::HiddenRows;
use lmhead::sampling::SamplingParams;
use lmhead::sampling::cut::Kept;
use lmhead::sampling::mass::Scale;
use proptest::prelude::*;
use std::ops::Range;

/// A case: a shard, its rows, and what is asked.
#[derive(Debug, Clone)]
pub struct ShardCase {
    pub dtype: DType,
    pub quantization: Quantization,
    pub rows: usize,
    pub hidden: usize,
    pub vocab: usize,
    /// The shard's ids begin at the first multiple of 64 at or below this part of the vocabulary.
    pub cut: usize,
    pub bias: bool,
    pub adjusted: bool,
    /// Large enough that some logits overflow f16.
    pub scale: f32,
    /// The first row has an infinity.
    pub broken: bool,
    pub k: usize,
    pub seed: u64,
}

/// Cases of these kinds of heads.
pub fn cases(kinds: &'static [(DType, Quantization)]) -> impl Strategy<Value = ShardCase> {
    let sizes = (prop_oneof![1usize..12, 1usize..70], 1usize..70, 1usize..400);
    let flags = (any::<bool>(), any::<bool>(), prop::sample::select(vec![1.0f32, -0.5, 3e4]), 0usize..4);
    (
        prop::sample::select(kinds),
        sizes,
        0usize..400,
        flags,
        prop_oneof![1usize..9, 1usize..300],
        any::<u64>(),
    )
        .prop_map(
            |((dtype, quantization), (rows, hidden, vocab), cut, (bias, adjusted, scale, b), k, seed)| {
                let cut = cut % (vocab + 1);
                let broken = b == 0;
                ShardCase {
                    dtype,
                    quantization,
                    rows,
                    hidden,
                    vocab,
                    cut,
                    bias,
                    adjusted,
                    scale,
                    broken,
                    k,
                    seed,
                }
            },
        )
}

/// Elements in memory of the host or of a device.
pub struct Placed<'d, D: KernelDevice> {
    device: &'d D,
    memory: Box<dyn Allocation>,
}

impl<'d, D: KernelDevice> Placed<'d, D> {
    pub fn new(backend: &'d DeviceBackend<D>, memory: Memory, bytes: &[u8]) -> Self {
        let device = backend.device();
        let mut placed = Placed { device, memory: backend.allocate(memory, bytes.len(), "a test").unwrap() };
        placed.write(bytes);
        placed
    }

    pub fn write(&mut self, bytes: &[u8]) {
        let to = self.memory.span_mut();
        match to.memory() {
            Memory::Host => to.into_host().unwrap().copy_from_slice(bytes),
            memory => {
                let from = Span::host(bytes).address();
                let copy = CopyRows::whole((memory, to.address()), (Memory::Host, from), bytes.len());
                // SAFETY: both are borrowed until the wait.
                unsafe { self.device.copy_rows(self.device.stream(), &copy) }.unwrap();
                self.device.wait(self.device.stream()).unwrap();
            }
        }
    }

    pub fn read(&self) -> Vec<u8> {
        let from = self.memory.span();
        if let Some(bytes) = from.as_host() {
            return bytes.to_vec();
        }
        let mut bytes = vec![0; from.len()];
        let to = SpanMut::host(&mut bytes[..]).address();
        let copy = CopyRows::whole((Memory::Host, to), (from.memory(), from.address()), from.len());
        // SAFETY: as in `write`.
        unsafe { self.device.copy_rows(self.device.stream(), &copy) }.unwrap();
        self.device.wait(self.device.stream()).unwrap();
        bytes
    }

    pub fn words(&self) -> Vec<u32> {
        bytemuck::pod_collect_to_vec(&self.read())
    }

    pub fn span(&self) -> Span<'_> {
        self.memory.span()
    }

    pub fn span_mut(&mut self) -> SpanMut<'_> {
        self.memory.span_mut()
    }
}

/// How the rows are given.
#[derive(Debug, Clone, Copy, PartialEq)]
enum RowForm {
    Packed,
    Strided,
    /// Selected by indices of this many bytes, with gaps between rows.
    Selected(usize),
}

/// The shard's slice of adjustments.
fn slice(own: &OwnAdjustments, rows: usize, vocab: &Range<usize>, vocab_size: usize) -> ShardAdjustments {
    let mut slice = ShardAdjustments::new(vocab.clone());
    own.with(|all| slice.push_encoded(&all.encode(0..rows, vocab.clone(), vocab_size), rows)).unwrap();
    slice
}

/// f32 logits and status words.
type Logits = (Vec<f32>, Vec<u32>);

/// Logits `[rows, shard]` in host memory.
pub fn host_logits(loaded: &mut dyn LoadedShard, job: &Job<'_>, dtype: DType) -> (Vec<u8>, Vec<u32>) {
    let (rows, ids) = (job.rows.len(), loaded.info().vocab.len());
    let stride = ids * dtype.size();
    // Aligned for every type.
    let mut data = vec![0u64; (rows * stride).div_ceil(8)];
    let mut words = vec![0xabcd_u32; rows];
    let out = LogitsOut {
        data: SpanMut::host(&mut data[..]).part(0..rows * stride),
        stride,
        dtype,
        status: Status::Apart { words: SpanMut::host(&mut words[..]), stride: 4 },
    };
    loaded.run(job, Out::Logits(out), &mut On::default()).unwrap();
    (bytemuck::cast_slice(&data)[..rows * stride].to_vec(), words)
}

/// A row's candidates, as ids and bits, and the bits of its logsumexp.
pub type Best = (Vec<(u32, u32)>, u64);

/// Logits of some rows with their status words, and the k best of each: two calls on host memory.
pub fn answers(
    loaded: &mut dyn LoadedShard,
    job: &Job<'_>,
    dtype: DType,
    k: usize,
) -> (Vec<u8>, Vec<u32>, Vec<Best>) {
    let (logits, words) = host_logits(loaded, job, dtype);
    let (spec, vocab) = (PartialSpec { k, sum: true, targets: 0 }, loaded.info().vocab.clone());
    let words_of_row = spec.stride(vocab.len()) / 8;
    let mut partials = vec![0u64; job.rows.len() * words_of_row];
    let out = Out::Partials(spec, SpanMut::host(&mut partials[..]));
    loaded.run(job, out, &mut On::default()).expect("candidates");
    let mut merge = Merge::default();
    let mut best = |row: &[u64]| {
        merge.reset(spec);
        merge.add(bytemuck::cast_slice(row), &vocab).expect("a partial");
        let best = merge.sorted().iter().map(|c| (c.id, c.value.to_bits())).collect();
        (best, merge.logsumexp().to_bits())
    };
    (logits, words, partials.chunks(words_of_row).map(&mut best).collect())
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytemuck::pod_collect_to_vec(bytes)
}

fn bits(values: &[f32]) -> Vec<u32> {
    super::bits_of(values)
}

/// A status word without the flag that means nothing in it: for a row that is not finite,
/// LMHEAD_STATUS_ALLOWED is unspecified, since a matmul without adjustments sets it without looking at
/// logits.
fn telling(word: u32) -> u32 {
    if word & LMHEAD_STATUS_NONFINITE == 0 { word } else { word & !LMHEAD_STATUS_ALLOWED }
}

/// Rounded logits and the status that goes with them.
fn delivered((logits, status): &Logits, dtype: DType, ids: usize) -> (Vec<u32>, Vec<u32>) {
    let mut bytes = vec![0; logits.len() * dtype.size()];
    dtype.round_into(logits, &mut bytes);
    let rounded: Vec<f32> = (0..logits.len()).map(|i| dtype.read(&bytes, i)).collect();
    let status = status.iter().enumerate().map(|(row, word)| {
        let own = row * ids..(row + 1) * ids;
        let over =
            logits[own.clone()].iter().zip(&rounded[own]).any(|(l, r)| l.is_finite() && !r.is_finite());
        telling(word | if over { LMHEAD_STATUS_NONFINITE } else { 0 })
    });
    (bits(&rounded), status.collect())
}

/// The contents of a row's partial: candidates, logarithm of the sum, counts, status.
type Said = (Vec<(u32, u32)>, u64, Vec<u32>, u32);

/// The flag that decides a row's status, if several are set.
fn worst(word: u32) -> u32 {
    let flags = [LMHEAD_STATUS_BAD_INDEX, LMHEAD_STATUS_NONFINITE];
    flags.into_iter().find(|flag| word & flag != 0).unwrap_or(0)
}

fn said(bytes: &[u8], spec: PartialSpec, vocab: &Range<usize>) -> Vec<Said> {
    let rows = bytes.chunks_exact(spec.stride(vocab.len()));
    let mut merge = Merge::default();
    rows.map(|row| {
        merge.reset(spec);
        merge.add(row, vocab).unwrap();
        let bad = worst(merge.status());
        if bad != 0 {
            return (vec![], 0, vec![], bad);
        }
        let sum = merge.logsumexp().to_bits();
        let best = merge.sorted().iter().map(|c| (c.id, c.value.to_bits())).collect();
        (best, sum, merge.num_greater().to_vec(), 0)
    })
    .collect()
}

/// The contents of the partials by definition.
fn defined(
    (logits, status): &Logits,
    spec: PartialSpec,
    vocab: &Range<usize>,
    targets: &[Candidate],
) -> Vec<Said> {
    let one = |(row, word): (usize, &u32)| {
        let bad = worst(*word);
        if bad != 0 {
            return (vec![], 0, vec![], bad);
        }
        let own = &logits[row * vocab.len()..][..vocab.len()];
        let all = vocab.clone().zip(own).map(|(id, &value)| Candidate { value, id: id as u32 });
        let mut best: Vec<Candidate> = all.clone().filter(|c| c.value > f32::NEG_INFINITY).collect();
        best.sort_by(|a, b| b.value.partial_cmp(&a.value).unwrap().then(a.id.cmp(&b.id)));
        let max = best.first().map_or(f32::NEG_INFINITY, |c| c.value);
        best.truncate(spec.k);
        let num_greater =
            targets[row * spec.targets..][..spec.targets].iter().map(|target| match target.id {
                NO_TARGET => 0,
                _ => all.clone().filter(|c| c.beats(target)).count() as u32,
            });
        let best = best.iter().map(|c| (c.id, c.value.to_bits())).collect();
        (best, ExpSum::of(own).ln(max).to_bits(), num_greater.collect(), 0)
    };
    status.iter().enumerate().map(one).collect()
}

impl ShardCase {
    fn head(&self) -> TestHead {
        let dtype = self.dtype;
        let mut head = TestHead::random(self.vocab, self.hidden, dtype, self.quantization, self.seed);
        if self.bias {
            head = head.with_bias(self.seed);
        }
        head
    }

    fn ids(&self) -> Range<usize> {
        self.cut / 64 * 64..self.vocab
    }

    /// Checks everything that is promised of a loaded shard of this device.
    ///
    /// # Panics
    /// Where something is not so.
    pub fn holds<D: KernelDevice>(&self, backend: &DeviceBackend<D>) {
        let (head, vocab, own) = (self.head(), self.ids(), Backend::memory(backend));
        let shard = head.shard(vocab.clone());
        let mut loaded = backend.load(&shard, self.dtype).unwrap();
        let mut bytes = head.rows(self.rows, self.seed ^ 1);
        if self.broken {
            self.dtype.round_into(&[f32::INFINITY], &mut bytes[..self.dtype.size()]);
        }
        let random = OwnAdjustments::random(self.rows, self.vocab, &mut Random(self.seed));
        let adjustments = slice(&random, self.rows, &vocab, self.vocab);
        let packed = HiddenRows::new(&bytes, self.dtype, self.rows, self.hidden).unwrap();
        let epilogue = Epilogue { softcap: None, scale: self.scale };
        let job = |rows, adjusted: bool| Job {
            rows,
            epilogue,
            adjustments: adjusted.then_some(&adjustments),
            placed: None,
        };
        let (raw, words) = host_logits(&mut *loaded, &job(packed, false), DType::F32);
        let raw = (f32s(&raw), words);
        self.check_raw(&raw, vocab.len());
        let mut want = raw.clone();
        if self.adjusted {
            self.adjust(&mut want, &adjustments, &vocab);
        }

        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            let expected = delivered(&want, dtype, vocab.len());
            let (got, words) = host_logits(&mut *loaded, &job(packed, self.adjusted), dtype);
            let got: Vec<f32> = (0..got.len() / dtype.size()).map(|i| dtype.read(&got, i)).collect();
            let words = words.into_iter().map(telling).collect();
            assert_eq!((bits(&got), words), expected, "{dtype} in host memory");
        }
        // Rows in every form, logits in every form.
        let forms = [RowForm::Packed, RowForm::Strided, RowForm::Selected(4), RowForm::Selected(8)];
        for (i, form) in forms.into_iter().enumerate() {
            for (from, to) in
                [(own, own), (Memory::Host, Memory::Host), (own, Memory::Host), (Memory::Host, own)]
            {
                let dtype = [DType::F32, DType::F16, DType::Bf16][(i + self.seed as usize) % 3];
                self.with_rows(backend, &bytes, form, from, |rows, picked| {
                    let expected = self.picked(&want, &picked, vocab.len());
                    let job = Job {
                        rows,
                        epilogue,
                        adjustments: self.adjusted.then_some(&adjustments),
                        placed: None,
                    };
                    self.placed_logits(backend, &mut *loaded, &job, dtype, to, &expected);
                    let spec = PartialSpec { k: self.k, sum: true, targets: 0 };
                    let mut out =
                        Placed::new(backend, to, &vec![0xa5; rows.len() * spec.stride(vocab.len())]);
                    run_on(backend, &mut *loaded, &job, Out::Partials(spec, out.span_mut()), i % 2 == 0);
                    let got = said(&out.read(), spec, &vocab);
                    assert_eq!(got, defined(&expected, spec, &vocab, &[]), "{form:?} {from} to {to}");
                    self.counted(backend, &mut *loaded, &job, to, &expected, i % 2 == 0);
                });
            }
        }
        self.held(backend, &mut *loaded, &job(packed, self.adjusted), &raw, &want);
        let mut other = loaded.another().unwrap();
        drop(loaded);
        let (again, words) = host_logits(&mut *other, &job(packed, false), DType::F32);
        assert_eq!((bits(&f32s(&again)), &words), (bits(&raw.0), &raw.1), "another head of the same weights");
    }

    fn check_raw(&self, (logits, words): &Logits, ids: usize) {
        for (row, word) in words.iter().enumerate() {
            let finite = logits[row * ids..][..ids].iter().all(|l| l.is_finite());
            let wanted = if ids == 0 {
                0
            } else {
                LMHEAD_STATUS_ALLOWED | if finite { 0 } else { LMHEAD_STATUS_NONFINITE }
            };
            assert_eq!(*word, wanted, "row {row}");
        }
    }

    fn adjust(&self, (logits, words): &mut Logits, adjustments: &ShardAdjustments, vocab: &Range<usize>) {
        if vocab.is_empty() {
            return;
        }
        for (row, own) in logits.chunks_exact_mut(vocab.len()).enumerate() {
            let mut finite = true;
            for (i, block) in own.chunks_mut(64).enumerate() {
                finite &= adjustments.apply(row, vocab.start + 64 * i, block);
            }
            words[row] &= !LMHEAD_STATUS_ALLOWED;
            words[row] |= if finite { 0 } else { LMHEAD_STATUS_NONFINITE };
            let any = own.iter().any(|l| *l > f32::NEG_INFINITY);
            words[row] |= if any { LMHEAD_STATUS_ALLOWED } else { 0 };
        }
    }

    /// The rows in this form and memory, and for each the packed row that it is. On a device, one index may
    /// be out of range: `None`.
    fn with_rows<D: KernelDevice>(
        &self,
        backend: &DeviceBackend<D>,
        bytes: &[u8],
        form: RowForm,
        memory: Memory,
        run: impl FnOnce(HiddenRows<'_>, Vec<Option<usize>>),
    ) {
        let row_bytes = self.hidden * self.dtype.size();
        let stride = if form == RowForm::Packed { row_bytes } else { row_bytes + 3 * self.dtype.size() };
        let mut strided = vec![0xff; self.rows * stride];
        for (to, from) in strided.chunks_mut(stride).zip(bytes.chunks(row_bytes)) {
            to[..row_bytes].copy_from_slice(from);
        }
        let source = Placed::new(backend, memory, &strided);
        let rows = HiddenRows::strided(source.span(), self.dtype, self.rows, self.hidden, stride).unwrap();
        let RowForm::Selected(size) = form else { return run(rows, (0..self.rows).map(Some).collect()) };
        // Adjustments belong to output rows, so the selected rows keep their order.
        let mut numbers: Vec<i64> = (0..self.rows as i64).collect();
        if memory != Memory::Host {
            let at = self.seed as usize % self.rows;
            numbers[at] = [-1, self.rows as i64][at % 2];
        }
        let picked = numbers.iter().map(|n| usize::try_from(*n).ok().filter(|n| *n < self.rows)).collect();
        let indices: Vec<u8> = match size {
            4 => numbers.iter().flat_map(|n| (*n as i32).to_le_bytes()).collect(),
            _ => numbers.iter().flat_map(|n| n.to_le_bytes()).collect(),
        };
        let indices = Placed::new(backend, memory, &indices);
        run(rows.select_span(indices.span(), size).unwrap(), picked);
    }

    /// The logits of the selected rows. For an index out of range only the status counts.
    fn picked(&self, (logits, words): &Logits, picked: &[Option<usize>], ids: usize) -> Logits {
        let word = |(row, picked): (usize, &Option<usize>)| match picked {
            Some(row) => words[*row],
            None if ids == 0 => 0,
            None => words[row] | LMHEAD_STATUS_BAD_INDEX,
        };
        (logits.clone(), picked.iter().enumerate().map(word).collect())
    }

    /// Checks logits in the layout of messages, and with gaps and separate status words.
    fn placed_logits<D: KernelDevice>(
        &self,
        backend: &DeviceBackend<D>,
        loaded: &mut dyn LoadedShard,
        job: &Job<'_>,
        dtype: DType,
        to: Memory,
        expected: &Logits,
    ) {
        let (rows, ids) = (job.rows.len(), loaded.info().vocab.len());
        let (want, want_words) = delivered(expected, dtype, ids);
        let compare = |bytes: &[u8], stride: usize, words: &[u32], what: &str| {
            for row in 0..rows {
                if want_words[row] & LMHEAD_STATUS_BAD_INDEX != 0 {
                    assert!(words[row] & LMHEAD_STATUS_BAD_INDEX != 0, "{what}, row {row}");
                    continue;
                }
                let own: Vec<f32> = (0..ids).map(|i| dtype.read(&bytes[row * stride..], i)).collect();
                assert_eq!(bits(&own), want[row * ids..][..ids], "{what}, row {row} of {dtype} to {to}");
                assert_eq!(telling(words[row]), want_words[row], "{what}, row {row} of {dtype} to {to}");
            }
        };
        // As a message.
        let (stride, at) = (row_stride(ids, dtype), status_at(ids, dtype));
        let mut out = Placed::new(backend, to, &vec![0xa5; rows * stride]);
        let status = Status::Inside { at };
        let places = Out::Logits(LogitsOut { data: out.span_mut(), stride, dtype, status });
        run_on(backend, loaded, job, places, self.seed.is_multiple_of(2));
        let bytes = out.read();
        let words: Vec<u32> =
            bytes.chunks_exact(stride).map(|row| bytemuck::pod_read_unaligned(&row[at..at + 4])).collect();
        compare(&bytes, stride, &words, "a message");
        for row in bytes.chunks_exact(stride) {
            assert!(row[ids * dtype.size()..at].iter().all(|b| *b == 0xa5), "what lies between is nobody's");
        }
        // With gaps of whole elements, and separate status words.
        let stride = (ids + 5) * dtype.size();
        let words_stride = 4 + 8 * (self.seed as usize % 2);
        let mut out = Placed::new(backend, to, &vec![0xa5; rows * stride]);
        let mut words = Placed::new(backend, to, &vec![0xa5; rows * words_stride]);
        let status = Status::Apart { words: words.span_mut(), stride: words_stride };
        let places = Out::Logits(LogitsOut { data: out.span_mut(), stride, dtype, status });
        run_on(backend, loaded, job, places, self.seed.is_multiple_of(3));
        let bytes = out.read();
        let all = words.read();
        let words: Vec<u32> =
            all.chunks(words_stride).map(|row| bytemuck::pod_read_unaligned(&row[..4])).collect();
        compare(&bytes, stride, &words, "with gaps");
        for row in bytes.chunks_exact(stride) {
            assert!(row[ids * dtype.size()..].iter().all(|b| *b == 0xa5), "what lies between is nobody's");
        }
    }

    /// Checks that logits of single ids have the bits of the whole product, and that the matmul counts the
    /// ids that beat them.
    fn counted<D: KernelDevice>(
        &self,
        backend: &DeviceBackend<D>,
        loaded: &mut dyn LoadedShard,
        job: &Job<'_>,
        to: Memory,
        expected: &Logits,
        caller_workspace: bool,
    ) {
        let (vocab, rows, own) = (self.ids(), job.rows.len(), Backend::memory(backend));
        let (mut random, (logits, words)) = (Random(self.seed ^ 2), expected);
        // A block takes eight targets of each row.
        let per_row = [1, 3, 8, 11][self.seed as usize % 4];
        let target = |_| match random.below(5) {
            0 => NO_TARGET,
            _ => random.below(self.vocab) as u32,
        };
        let ids: Vec<u32> = (0..rows * per_row).map(target).collect();
        let asked = Placed::new(backend, to, bytemuck::cast_slice(&ids));
        let mut out = Placed::new(backend, to, &vec![0xa5; 4 * ids.len()]);
        let targets = Out::TargetLogits { targets: asked.span(), per_row, out: out.span_mut() };
        run_on(backend, loaded, job, targets, caller_workspace);
        let values = f32s(&out.read());
        for (i, (&id, &value)) in ids.iter().zip(&values).enumerate() {
            let row = i / per_row;
            let wanted = match vocab.contains(&(id as usize)) {
                true if words[row] & LMHEAD_STATUS_BAD_INDEX != 0 => continue,
                true => logits[row * vocab.len() + id as usize - vocab.start],
                false => f32::NAN,
            };
            assert_eq!(bits(&[value]), bits(&[wanted]), "id {id} of row {row}, {per_row} each, to {to}");
        }
        let compared =
            |(&id, &value): (&u32, &f32)| Candidate { value: if value.is_nan() { 0.25 } else { value }, id };
        let targets: Vec<Candidate> = ids.iter().zip(&values).map(compared).collect();
        let spec = PartialSpec { k: self.k, sum: true, targets: per_row };
        let want = defined(expected, spec, &vocab, &targets);
        for from in [Memory::Host, own] {
            let asked = Placed::new(backend, from, bytemuck::cast_slice(&targets));
            let mut out = Placed::new(backend, to, &vec![0xa5; rows * spec.stride(vocab.len())]);
            let partials =
                Out::Counted { spec, targets: asked.span(), again: from == to, out: out.span_mut() };
            run_on(backend, loaded, job, partials, caller_workspace);
            assert_eq!(said(&out.read(), spec, &vocab), want, "counted, from {from} to {to}");
        }
    }

    /// Checks the passes over held logits.
    fn held<D: KernelDevice>(
        &self,
        backend: &DeviceBackend<D>,
        loaded: &mut dyn LoadedShard,
        job: &Job<'_>,
        raw: &Logits,
        adjusted: &Logits,
    ) {
        let (vocab, rows, own) = (self.ids(), self.rows, Backend::memory(backend));
        let needed = loaded.workspace(rows, Ask::Hold { raw: true }).unwrap();
        let mut workspace = Placed::new(backend, own, &vec![0xa5; needed]);
        let mut on = On {
            stream: Stream::NONE,
            workspace: (self.seed.is_multiple_of(2)).then(|| workspace.span_mut()),
        };
        let held = loaded.hold(job, true, &mut on).unwrap();
        assert_eq!(held.rows(), rows);
        for (of, (logits, words)) in [(Which::Raw, raw), (Which::Adjusted, adjusted), (Which::Raw, raw)] {
            let targets: Vec<u32> = (0..rows as u32)
                .flat_map(|row| [(row * 37 + 5) % self.vocab as u32, NO_TARGET, self.vocab as u32 - 1])
                .collect();
            let mut values = vec![7.0f32; 3 * rows];
            held.pass(Pass::TargetLogits {
                of,
                targets: Span::host(&targets[..]),
                per_row: 3,
                out: SpanMut::host(&mut values[..]),
            })
            .unwrap();
            let wanted: Vec<f32> = targets
                .iter()
                .enumerate()
                .map(|(i, id)| match vocab.contains(&(*id as usize)) {
                    true => logits[i / 3 * vocab.len() + *id as usize - vocab.start],
                    false => f32::NAN,
                })
                .collect();
            assert_eq!(bits(&values), bits(&wanted));
            let targets: Vec<Candidate> = targets
                .iter()
                .zip(&values)
                .map(|(&id, &value)| Candidate { value: if value.is_nan() { 0.25 } else { value }, id })
                .collect();
            let spec = PartialSpec { k: self.k, sum: true, targets: 3 };
            let want = defined(&(logits.clone(), words.clone()), spec, &vocab, &targets);
            for memory in [Memory::Host, own] {
                let mut out = Placed::new(backend, memory, &vec![0xa5; rows * spec.stride(vocab.len())]);
                held.pass(Pass::Partials {
                    of,
                    spec,
                    targets: Span::host(&targets[..]),
                    out: out.span_mut(),
                })
                .unwrap();
                assert_eq!(said(&out.read(), spec, &vocab), want, "{of:?} to {memory}");
            }
        }
        let numbers: Vec<usize> = (0..rows).rev().chain([0]).collect();
        let mut largest = vec![1.0; numbers.len()];
        held.pass(Pass::Maxima { rows: &numbers, out: &mut largest }).unwrap();
        let row = |row: usize| &adjusted.0[row * vocab.len()..][..vocab.len()];
        let wanted: Vec<f32> = numbers
            .iter()
            .map(|&n| match adjusted.1[n] & LMHEAD_STATUS_NONFINITE {
                0 => row(n).iter().fold(f32::NEG_INFINITY, |max, l| max.max(*l)),
                _ => f32::NAN,
            })
            .collect();
        assert_eq!(bits(&largest), bits(&wanted));
        let wants: Vec<(usize, Wanted)> =
            numbers.iter().map(|&n| (n, Wanted::Best { k: self.k.min(vocab.len()) })).collect();
        for memory in [Memory::Host, own] {
            let places = numbers.len() * self.k.min(vocab.len());
            let mut out = Placed::new(backend, memory, &vec![0xa5; 8 * places]);
            held.pass(Pass::Candidates { rows: &wants, out: out.span_mut() }).unwrap();
            let got: Vec<Candidate> = bytemuck::pod_collect_to_vec(&out.read());
            for (&n, got) in numbers.iter().zip(got.chunks(self.k.min(vocab.len()).max(1))) {
                if adjusted.1[n] & LMHEAD_STATUS_NONFINITE != 0 {
                    assert!(got[0].value.is_nan());
                    continue;
                }
                let mut got: Vec<u32> =
                    got.iter().filter(|c| c.value > f32::NEG_INFINITY).map(|c| c.id).collect();
                let mut want: Vec<Candidate> = vocab
                    .clone()
                    .zip(row(n))
                    .map(|(id, &value)| Candidate { value, id: id as u32 })
                    .filter(|c| c.value > f32::NEG_INFINITY)
                    .collect();
                want.sort_by(|a, b| b.value.partial_cmp(&a.value).unwrap().then(a.id.cmp(&b.id)));
                let mut want: Vec<u32> = want.iter().take(self.k).map(|c| c.id).collect();
                got.sort_unstable();
                want.sort_unstable();
                assert_eq!(got, want);
            }
        }
    }

    /// Checks that an int8 head gives the CPU backend's own bits, whatever is asked.
    ///
    /// # Panics
    /// Where something differs.
    pub fn is_the_cpus<D: KernelDevice>(&self, backend: &DeviceBackend<D>, cpu: &CpuBackend) {
        let (head, vocab) = (self.head(), self.ids());
        let shard = head.shard(vocab.clone());
        let bytes = head.rows(self.rows, self.seed ^ 1);
        let random = OwnAdjustments::random(self.rows, self.vocab, &mut Random(self.seed));
        let adjustments = slice(&random, self.rows, &vocab, self.vocab);
        let rows = HiddenRows::new(&bytes, self.dtype, self.rows, self.hidden).unwrap();
        let epilogue = Epilogue { softcap: Some(20.0), scale: self.scale.min(1.0) };
        let job = Job { rows, epilogue, adjustments: self.adjusted.then_some(&adjustments), placed: None };
        let answers = [backend as &dyn Backend, cpu as &dyn Backend].map(|backend| {
            let mut loaded = backend.load(&shard, self.dtype).unwrap();
            let logits = host_logits(&mut *loaded, &job, DType::Bf16);
            let held = loaded.hold(&job, false, &mut On::default()).unwrap();
            let all: Vec<usize> = (0..self.rows).collect();
            let mut largest = vec![0.0; self.rows];
            held.pass(Pass::Maxima { rows: &all, out: &mut largest }).unwrap();
            let params = SamplingParams { seed: self.seed, ..SamplingParams::default() };
            let kept = |row: usize| {
                let max = if largest[row].is_finite() { largest[row] } else { 0.0 };
                Kept::new(Scale::new(&params, max, self.vocab))
            };
            let queries: Vec<TiesQuery> = all
                .iter()
                .map(|&row| TiesQuery { row, kept: kept(row), logit: largest[row], allowance: 1 })
                .collect();
            let mut ends = vec![7; self.rows];
            held.pass(Pass::Ties { queries: &queries, out: &mut ends }).unwrap();
            let wants: Vec<(usize, Wanted)> =
                all.iter().map(|&row| (row, Wanted::Drawn { params, kept: Some(kept(row)) })).collect();
            let mut drawn = vec![Candidate { value: 1.0, id: 7 }; self.rows];
            held.pass(Pass::Candidates { rows: &wants, out: SpanMut::host(&mut drawn[..]) }).unwrap();
            let drawn: Vec<(u32, u32)> = drawn.iter().map(|c| (c.id, bits(&[c.value])[0])).collect();
            (logits, bits(&largest), ends, drawn)
        });
        assert_eq!(answers[0], answers[1]);
    }
}

/// Runs a call on a new stream, in a workspace of the caller's where `caller_workspace`; then waits for the
/// stream.
fn run_on<D: KernelDevice>(
    backend: &DeviceBackend<D>,
    loaded: &mut dyn LoadedShard,
    job: &Job<'_>,
    out: Out<'_>,
    caller_workspace: bool,
) {
    let device = backend.device();
    let own = device.open_stream().unwrap();
    let stream = device.on(&own);
    let needed = loaded.workspace(job.rows.len(), ask_of(&out)).unwrap();
    let mut workspace = Placed::new(backend, Backend::memory(backend), &vec![0xa5; needed]);
    let workspace = caller_workspace.then(|| workspace.span_mut());
    loaded.run(job, out, &mut On { stream: device.handle(stream), workspace }).unwrap();
    device.wait(stream).unwrap();
}

/// A new backend for a case; where `small`, it holds few rows at once and pins little memory.
pub fn backend_of<D: KernelDevice>(device: D, small: bool) -> DeviceBackend<D> {
    let backend = DeviceBackend::new(device);
    if small { backend.staged(4096).held(3000) } else { backend }
}
