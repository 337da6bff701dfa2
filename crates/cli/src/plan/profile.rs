//! Machine profiles: the speeds that one rank of a machine was measured to have over one transport, and steps
//! that were measured beside them. `cargo bench --bench transports -- --profiles DIR` writes them.

use crate::args;
use crate::report::micros;
use crate::{terminal, values, with_option_names};
use lmhead::config::{HeadConfig, Quantization};
use lmhead::cost::{CostModel, StepShape};
use lmhead::dtype::DType;
use lmhead::error::{Error, Result};
use lmhead::head::step_traffic;
use lmhead::layout::HeadGroup;
use lmhead::result::Request;
use lmhead::sampling::SamplingParams;
use serde::{Deserialize, Serialize};

/// Built-in profiles.
const KNOWN: &[&str] = &[
    include_str!("../../profiles/cpu2-local.json"),
    include_str!("../../profiles/cpu2-callbacks.json"),
    include_str!("../../profiles/cpu2-processes.json"),
    include_str!("../../profiles/cpu2-mpi.json"),
];

/// Measured speeds, with where and when they were measured.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    pub name: String,
    pub transport: String,
    /// Ranks that shared the machine when the speeds were measured.
    pub ranks: usize,
    pub machine: String,
    pub cpus: usize,
    pub commit: String,
    pub date: String,
    pub command: String,
    pub load_average: Option<f64>,
    /// Speeds of one rank while the others work too, for a 16-bit head.
    pub memory_gb_per_s: f64,
    pub tflops: f64,
    pub link_gb_per_s: f64,
    pub latency_us: f64,
    pub steps: Vec<MeasuredStep>,
}

/// Measured verified steps with exact counts and equal rows on each rank of a data-parallel group.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredStep {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub weights: DType,
    pub ranks: usize,
    pub rows_per_rank: usize,
    /// Values of `--request` and `--logits-dtype`.
    pub request: String,
    pub logits_dtype: Option<String>,
    pub median_us: f64,
    pub p10_us: f64,
    pub p90_us: f64,
}

/// A measured step, and the cost model's prediction from the profile's speeds.
#[derive(Serialize)]
pub struct ComparedStep {
    #[serde(flatten)]
    pub measured: MeasuredStep,
    pub predicted_us: f64,
    pub measured_to_predicted: f64,
}

/// The measured steps of a profile, compared.
#[derive(Serialize)]
pub struct Measured {
    pub transport: String,
    pub ranks: usize,
    pub machine: String,
    pub cpus: usize,
    pub commit: String,
    pub date: String,
    pub command: String,
    pub load_average: Option<f64>,
    pub steps: Vec<ComparedStep>,
}

impl Profile {
    /// The profile of that name, or in that file.
    ///
    /// # Errors
    /// `Config` listing the names where neither exists; `File` where the file is no profile.
    pub fn find(text: &str) -> Result<Self> {
        let known = KNOWN.iter().map(|json| serde_json::from_str::<Profile>(json).expect("a profile"));
        let known: Vec<Profile> = known.collect();
        if let Some(found) = known.iter().find(|profile| profile.name == text) {
            return Ok(found.clone());
        }
        let path = std::path::Path::new(text);
        let fix = "write one by `cargo bench --bench transports -- --profiles DIR`";
        let failed = |problem: String| Error::File { path: path.into(), problem, fix: fix.into() };
        if !path.exists() {
            let names: Vec<&str> = known.iter().map(|profile| profile.name.as_str()).collect();
            return Err(Error::Config {
                key: "--profile".into(),
                wanted: format!("one of {}, or a profile's file", names.join(", ")),
                got: format!("`{text}`"),
                fix: fix.into(),
            });
        }
        let json = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        let profile: Profile =
            serde_json::from_str(&json).map_err(|error| failed(format!("it is no profile: {error}")))?;
        let speeds = [profile.memory_gb_per_s, profile.tflops, profile.link_gb_per_s, profile.latency_us];
        if !speeds.iter().all(|speed| speed.is_finite() && *speed > 0.0) {
            return Err(failed(format!("wanted speeds above 0, got {speeds:?}")));
        }
        for (i, step) in profile.steps.iter().enumerate() {
            profile.predict(step).map_err(|error| failed(format!("steps[{i}]: {error}")))?;
        }
        Ok(profile)
    }

    /// The cost model with these speeds.
    ///
    /// # Errors
    /// `Config` for w8a8, whose speed is not measured.
    pub fn model(&self, quantization: Quantization) -> Result<CostModel> {
        if quantization == Quantization::W8a8 {
            return Err(Error::Config {
                key: "--profile".into(),
                wanted: "a head whose products are of 16 bits, as the measured ones".into(),
                got: quantization.to_string(),
                fix: "leave --profile out, and give the speeds as numbers".into(),
            });
        }
        Ok(self.speeds())
    }

    fn speeds(&self) -> CostModel {
        CostModel {
            rows_per_rank: 0,
            memory_gb_per_s: self.memory_gb_per_s,
            tflops: self.tflops,
            link_gb_per_s: self.link_gb_per_s,
            latency_us: self.latency_us,
            collectives: 2,
            candidates: None,
            logits_dtype: DType::Bf16,
        }
    }

    /// Every measured step beside its prediction.
    ///
    /// # Errors
    /// Where the file describes an impossible step.
    pub fn compare(&self) -> Result<Measured> {
        let steps = self.steps.iter().map(|step| {
            let predicted_us = self.predict(step)?;
            let measured_to_predicted = step.median_us / predicted_us;
            Ok(ComparedStep { measured: step.clone(), predicted_us, measured_to_predicted })
        });
        Ok(Measured {
            transport: self.transport.clone(),
            ranks: self.ranks,
            machine: self.machine.clone(),
            cpus: self.cpus,
            commit: self.commit.clone(),
            date: self.date.clone(),
            command: self.command.clone(),
            load_average: self.load_average,
            steps: steps.collect::<Result<_>>()?,
        })
    }

    fn predict(&self, step: &MeasuredStep) -> Result<f64> {
        let mut config = HeadConfig::new(step.vocab_size, step.hidden_size);
        config.hidden_dtype = Some(step.weights);
        let float = values::float("logits_dtype", "use one of those");
        let logits_dtype = step.logits_dtype.as_deref().map(float).transpose()?;
        let request = args::request(step.request.parse().map_err(with_option_names)?, logits_dtype, false)?;
        request.check(step.vocab_size)?;
        let group = HeadGroup::data_parallel(step.ranks, 0)?;
        let counts = vec![step.rows_per_rank; step.ranks];
        let sampling = SamplingParams::default();
        let traffic = step_traffic(&config, &group, step.weights, &counts, &request, &sampling, true)?;
        let logits_dtype = if let Request::Logits { dtype } = request { dtype } else { DType::Bf16 };
        let candidates = request.candidates();
        let collectives = traffic.first().map_or(0, |rank| rank.rounds);
        let rows_per_rank = step.rows_per_rank;
        let model = CostModel { rows_per_rank, collectives, candidates, logits_dtype, ..self.speeds() };
        let bytes = step.weights.size();
        let shape = StepShape {
            weight_bytes: bytes,
            hidden_bytes: bytes,
            ..StepShape::sixteen_bit(step.vocab_size, step.hidden_size)
        };
        Ok(model.step(&shape, step.ranks).total_us())
    }
}

impl Measured {
    /// The table in the terminal.
    pub fn table(&self) -> String {
        let Measured { transport, ranks, machine, cpus, commit, date, command, .. } = self;
        let load = self.load_average.map_or(String::new(), |load| format!(", load average {load}"));
        let head = |step: &ComparedStep| {
            let MeasuredStep { vocab_size, hidden_size, weights, .. } = &step.measured;
            format!("{vocab_size} x {hidden_size} {weights}")
        };
        // A table for each head: its name would be a wide column that repeats.
        let tables = self.steps.chunk_by(|a, b| head(a) == head(b)).map(|steps| {
            let header = ["ranks", "rows", "request", "predicted", "measured", "10 to 90 %", "ratio"];
            let mut table = terminal::table(header, &[2]);
            for ComparedStep { measured: step, predicted_us, measured_to_predicted } in steps {
                table.add_row([
                    step.ranks.to_string(),
                    step.rows_per_rank.to_string(),
                    match &step.logits_dtype {
                        Some(dtype) => format!("{} {dtype}", step.request),
                        None => step.request.clone(),
                    },
                    micros(*predicted_us),
                    micros(step.median_us),
                    format!("{} - {}", micros(step.p10_us), micros(step.p90_us)),
                    format!("{measured_to_predicted:.2}"),
                ]);
            }
            format!("{}:\n{table}", head(&steps[0]))
        });
        let tables = tables.collect::<Vec<_>>().join("\n");
        format!(
            "measured over {transport} on {machine}, {cpus} CPUs{load}; {date}, commit {commit}, {command}\n\
             (the speeds above are those of one rank while {ranks} work at once; ratio: measured to \
             predicted)\n\
             {tables}"
        )
    }
}
