//! The head that is timed: its weights, synthetic rows, and the timed calls.

use super::{BenchSetup, Device, HeadType, Stage};
use crate::input::{advance, progress_bar};
use lmhead::backend::HeadTypes;
use lmhead::backend::{Job, LoadedShard, LogitsOut, On, Out, Status};
use lmhead::config::HeadConfig;
use lmhead::dtype::DType;
use lmhead::epilogue::Epilogue;
use lmhead::error::{Error, Result};
use lmhead::exchange::local;
use lmhead::head::LmHead;
use lmhead::layout::HeadGroup;
use lmhead::memory::SpanMut;
use lmhead::result::{Request, RowInputs};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::sampling::SamplingParams;
use lmhead::weights::HeadShard;
use lmhead::weights::synthetic::{self, Spec};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The softcap of stage `softcap`: Gemma 2's.
const SOFTCAP: f32 = 30.0;

pub struct Subject<'a> {
    device: &'a Device,
    kind: HeadType,
    /// The whole head, on one rank.
    head: LmHead,
    shard: Arc<HeadShard>,
    /// The shard loaded by the backend, for its matmul alone.
    loaded: Box<dyn LoadedShard>,
    /// A head of one id: its matmul is small beside packing the rows.
    one_id: Box<dyn LoadedShard>,
    /// A head of one column: the matmul takes no time, what remains is the epilogue.
    one_column: Box<dyn LoadedShard>,
    hidden_dtype: DType,
    /// `[most rows, hidden]`, and `[most rows, 1]` for `one_column`.
    hidden: Vec<u8>,
    column: Vec<u8>,
    most_rows: usize,
    /// `[most rows, vocab]` f32, where a stage writes logits, and the rows' status words.
    logits: Vec<u8>,
    status: Vec<u32>,
}

/// A duration, and the parts of it where it is that of a step.
#[derive(Clone, Copy)]
pub struct Sample {
    pub time: Duration,
    pub parts: Option<Parts>,
}

/// Durations of the parts of a step.
#[derive(Clone, Copy)]
pub struct Parts {
    pub contract: Duration,
    pub gather: Duration,
    pub matmul: Duration,
    /// What comes after the matmul: merging candidates, sampling, putting columns in order.
    pub after: Duration,
}

impl<'a> Subject<'a> {
    pub fn new(setup: &BenchSetup, device: &'a Device, kind: HeadType) -> Result<Self> {
        let (dtype, quantization) = kind.parts();
        let config = config(setup, kind)?;
        let make = |vocab_size, hidden_size, progress: Option<lmhead::weights::Progress<'_>>| {
            let spec = Spec { vocab_size, hidden_size, dtype };
            synthetic::shard(&spec, setup.seed, 0..vocab_size, quantization, progress)
        };
        let most_rows = setup.rows.iter().copied().max().unwrap_or(1);
        let hidden = zeroed_bytes(most_rows, setup.hidden_size * dtype.size())?;
        let writes =
            setup.stages.iter().any(|s| matches!(s, Stage::Matmul | Stage::Epilogue | Stage::Softcap));
        let logits = zeroed_bytes(if writes { most_rows } else { 1 }, setup.vocab_size * 4)?;
        let bar = progress_bar(&format!("making the {} head", kind.name()));
        let progress = |done, total| advance(&bar, done, total);
        let shard = Arc::new(make(setup.vocab_size, setup.hidden_size, Some(&progress))?);
        bar.finish_and_clear();

        let exchange = local::group(1).pop().expect("a group of one has a member");
        let head = LmHead::new(
            &config,
            HeadGroup::data_parallel(1, 0)?,
            Arc::clone(&shard),
            Arc::new(exchange),
            Arc::clone(&device.backend),
        )?;
        let rows = 0..most_rows as u64;
        let row = |hidden, row| synthetic::hidden_row(setup.seed, row, hidden, dtype);
        let load = |shard: &Arc<HeadShard>| device.backend.load(shard, dtype);
        let mut subject = Subject {
            device,
            kind,
            head,
            loaded: load(&shard)?,
            one_id: load(&Arc::new(make(1, setup.hidden_size, None)?))?,
            one_column: load(&Arc::new(make(setup.vocab_size, 1, None)?))?,
            shard,
            hidden_dtype: dtype,
            hidden,
            column: rows.clone().flat_map(|i| row(1, i)).collect(),
            most_rows,
            logits,
            status: vec![0; most_rows],
        };
        for (to, i) in subject.hidden.chunks_exact_mut(setup.hidden_size * dtype.size()).zip(rows) {
            to.copy_from_slice(&row(setup.hidden_size, i));
        }
        Ok(subject)
    }

    pub fn name(&self) -> String {
        self.kind.name()
    }

    pub fn hidden_dtype(&self) -> DType {
        self.hidden_dtype
    }

    /// Bytes of the matrix, which every matmul reads.
    pub fn weight_bytes(&self) -> usize {
        self.shard.matrix().as_bytes().len()
    }

    pub fn most_rows(&self) -> usize {
        self.most_rows
    }

    /// Operations per second of the device on heads of this type.
    pub fn arithmetic_rate(&self) -> Option<f64> {
        self.device.roofs.arithmetic(HeadTypes::of(&self.shard, self.hidden_dtype))
    }

    /// Reads the weights once.
    pub fn time_read(&self) -> Duration {
        let began = Instant::now();
        self.device.roofs.read(self.shard.matrix().as_bytes());
        began.elapsed()
    }

    /// Runs `stage` for the first `rows` rows once.
    pub fn time(&mut self, stage: Stage, rows: usize) -> Result<Sample> {
        if let Stage::Request(request) = stage {
            return self.time_step(&request, rows);
        }
        let whole = Epilogue { softcap: self.head.config().final_logit_softcapping, scale: 1.0 };
        let capped = Epilogue { softcap: Some(SOFTCAP), scale: 1.0 };
        let (shard, hidden, epilogue) = match stage {
            Stage::Rows => (&mut self.one_id, &self.hidden, Epilogue::default()),
            Stage::Epilogue => (&mut self.one_column, &self.column, Epilogue::default()),
            Stage::Softcap => (&mut self.one_column, &self.column, capped),
            _ => (&mut self.loaded, &self.hidden, whole),
        };
        let columns = shard.info().hidden_size;
        let bytes = &hidden[..rows * columns * self.hidden_dtype.size()];
        let hidden = HiddenRows::new(bytes, self.hidden_dtype, rows, columns)?;
        let job = Job { rows: hidden, epilogue, adjustments: None, placed: None };
        let stride = shard.info().vocab.len() * DType::F32.size();
        let out = LogitsOut {
            data: SpanMut::host(&mut self.logits[..rows * stride]),
            stride,
            dtype: DType::F32,
            status: Status::Apart {
                words: SpanMut::host(&mut self.status[..rows]),
                stride: size_of::<u32>(),
            },
        };
        let began = Instant::now();
        shard.run(&job, Out::Logits(out), &mut On::default())?;
        Ok(Sample { time: began.elapsed(), parts: None })
    }

    /// One step of one rank: everything that an engine would wait for.
    fn time_step(&mut self, request: &Request, rows: usize) -> Result<Sample> {
        let columns = self.head.config().hidden_size;
        let bytes = &self.hidden[..rows * columns * self.hidden_dtype.size()];
        let hidden = HiddenRows::new(bytes, self.hidden_dtype, rows, columns)?;
        let targets: Vec<i64> = vec![0; rows];
        let sampling: Vec<SamplingParams> = (0..rows as u64)
            .map(|position| SamplingParams { position, ..SamplingParams::default() })
            .collect();
        let inputs = RowInputs {
            targets: matches!(request, Request::Logprobs { .. }).then_some(&targets[..]),
            sampling: matches!(request, Request::Sample { .. }).then_some(&sampling[..]),
            ..RowInputs::default()
        };
        let began = Instant::now();
        let answer = self.head.step(RowCounts::exact(&[rows]), request)?.run_with(hidden, &inputs)?;
        let time = began.elapsed();
        let stats = answer.stats;
        let (contract, gather, matmul, after) = (stats.contract, stats.gather, stats.matmul, stats.exchange);
        Ok(Sample { time, parts: Some(Parts { contract, gather, matmul, after }) })
    }
}

/// The head's configuration, or why no such head can exist.
pub fn config(setup: &BenchSetup, kind: HeadType) -> Result<HeadConfig> {
    let (dtype, quantization) = kind.parts();
    let mut config = HeadConfig::new(setup.vocab_size, setup.hidden_size);
    config.quantization = quantization;
    config.hidden_dtype = Some(dtype);
    config.final_logit_softcapping = setup.softcap;
    config.validate()?;
    Ok(config)
}

/// Zeroed bytes for `rows` rows of `row_bytes`; an allocation that fails is an error instead of an abort.
fn zeroed_bytes(rows: usize, row_bytes: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let Some(n) = rows.checked_mul(row_bytes).filter(|&n| bytes.try_reserve_exact(n).is_ok()) else {
        return Err(Error::Shape {
            what: "--rows".into(),
            wanted: "rows whose hidden states and f32 logits fit this machine's memory".into(),
            got: format!("{rows} rows of {row_bytes} bytes"),
            fix: "time fewer rows".into(),
        });
    };
    bytes.resize(n, 0);
    Ok(bytes)
}
