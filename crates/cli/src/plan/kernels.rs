//! `lmhead plan --kernels`: which kernel multiplies the rows of a step on a device, what its other tiles
//! would cost, and why.

use crate::report::bytes;
use crate::terminal;
use clap::ValueEnum;
use lmhead::config::HeadConfig;
use lmhead::dtype::DType;
use lmhead::error::Result;
use lmhead::plan::{Cost, DeviceLimits, Plan, Precision, Shape, WeightLayout};
use serde::Serialize;

/// A device whose limits are known without opening one.
#[derive(Clone, Copy, ValueEnum)]
pub enum Device {
    H100,
    A100,
    L40s,
}

impl Device {
    const fn limits(self) -> (&'static str, DeviceLimits) {
        match self {
            Device::H100 => ("H100", DeviceLimits::H100),
            Device::A100 => ("A100", DeviceLimits::A100),
            Device::L40s => ("L40S", DeviceLimits::L40S),
        }
    }
}

/// The cheapest plan of each tile for one product, the chosen one first.
#[derive(Serialize)]
pub struct Kernels {
    pub device: &'static str,
    pub precision: String,
    /// Rows of the group that brings most, and ids of its largest shard.
    pub rows: usize,
    pub ids: usize,
    /// How the weights of a head lie that is loaded there: packed, or in rows.
    pub layout: &'static str,
    /// The plan in words for that layout, which the rest is about.
    pub chosen: String,
    /// The plan in words for row-major weights, which an engine's own tensor has; none where `chosen` is it.
    pub row_major: Option<String>,
    pub bound: &'static str,
    pub wanted_in_flight: u64,
    pub candidates: Vec<Candidate>,
}

#[derive(Serialize)]
pub struct Candidate {
    pub kernel: &'static str,
    pub stages: usize,
    pub blocks: u32,
    /// Ids of each tile of the last wave, if that is cut.
    pub tail_ids: Option<u32>,
    pub blocks_of_one_sm: u64,
    pub blocks_per_sm: u64,
    pub in_flight: u64,
    /// Bytes of weights read by the whole device.
    pub weight_bytes: u64,
    /// On the busiest SM, like the next two.
    pub l2_bytes: u64,
    pub shared_bytes: u64,
    pub products: u64,
    pub clocks: Clocks,
}

#[derive(Serialize)]
pub struct Clocks {
    pub memory: f64,
    pub l2: f64,
    pub shared: f64,
    pub tensor: f64,
    pub last_wave: f64,
    pub fill_drain: f64,
    pub total: f64,
}

impl Kernels {
    /// For `rows` rows and a shard of `ids` ids of a head with weights of this type.
    ///
    /// # Errors
    /// Types without a kernel, sizes that no kernel takes.
    pub fn new(device: Device, config: &HeadConfig, weights: DType, rows: usize, ids: usize) -> Result<Self> {
        let (name, limits) = device.limits();
        let hidden_dtype = config.hidden_dtype.expect("set before planning");
        let precision = Precision::of(weights, config.quantization, hidden_dtype)?;
        let shape = Shape { rows, vocab: ids, hidden: config.hidden_size };
        let ranked = Plan::ranked(limits.layout(), precision, shape, &limits)?;
        let (chosen, cost) = &ranked[0];
        let row_major = match limits.layout() {
            WeightLayout::Rows => None,
            WeightLayout::Packed => Some(Plan::new(precision, shape, &limits)?.to_string()),
        };
        Ok(Kernels {
            device: name,
            precision: precision.to_string(),
            rows,
            ids,
            layout: limits.layout().as_str(),
            row_major,
            chosen: chosen.to_string(),
            bound: cost.clocks.bound(),
            wanted_in_flight: cost.wanted_in_flight,
            candidates: ranked.iter().map(|(plan, cost)| Candidate::of(plan, cost)).collect(),
        })
    }

    /// The table in the terminal.
    pub fn table(&self) -> String {
        // Short titles and units in the legend, so that the table fits 80 columns.
        let titles = ["tile", "blocks", "kB", "memory", "L2", "shared", "tensor", "wave", "fill", "all"];
        let mut table = terminal::table(titles, &[]);
        for candidate in &self.candidates {
            let Clocks { memory, l2, shared, tensor, last_wave, fill_drain, total } = candidate.clocks;
            let mut cells = vec![
                format!("{}x{}", candidate.tile(), candidate.stages),
                candidate.blocks.to_string(),
                format!("{:.0}", candidate.in_flight as f64 / 1e3),
            ];
            cells.extend(
                [memory, l2, shared, tensor, last_wave, fill_drain, total]
                    .map(|clocks| clocks / 1e3)
                    .map(|k| if k < 100.0 { format!("{k:.1}") } else { format!("{k:.0}") }),
            );
            table.add_row(cells);
        }
        let (first, more) = match &self.candidates[..] {
            [first, second, ..] => {
                let more = 100.0 * (second.clocks.total / first.clocks.total - 1.0);
                (first, format!("; {} would take {more:.1} % more", second.kernel))
            }
            [first] => (first, String::new()),
            [] => unreachable!("a plan was chosen"),
        };
        let Candidate { blocks_of_one_sm: most, blocks_per_sm: at_once, .. } = first;
        let (layout, work) = match self.row_major {
            Some(_) => ("weights packed at load", format!("tiles ({most})")),
            None => ("row-major weights", format!("blocks ({most}, {at_once} at once)")),
        };
        let others = self.row_major.iter().map(|plan| format!("row-major weights of an engine: {plan}\n"));
        format!(
            "\n{}, {}: {} rows x {} ids\n{layout}: {}\n{}{table}\n\
             tile: block_n x block_m x stages; kB: in flight to an SM; the rest: thousands of clocks, \
             of each unit, of the last wave, of fill and drain, of all\n\
             chosen for the fewest clocks of the SM with most {work}; arithmetic, not a measurement: \
             bound by {}{more}\n{} on their way to \
             an SM hide the memory's latency; every plan gives the same bits",
            self.device,
            self.precision,
            self.rows,
            self.ids,
            self.chosen,
            others.collect::<String>(),
            self.bound,
            bytes(self.wanted_in_flight),
        )
    }
}

impl Candidate {
    /// The tile, block_n x block_m, with which a kernel's name ends.
    fn tile(&self) -> &'static str {
        self.kernel.rsplit('_').next().unwrap_or(self.kernel)
    }

    fn of(plan: &Plan, cost: &Cost) -> Self {
        let lmhead::plan::Clocks { memory, l2, shared, tensor, last_wave, fill_drain } = cost.clocks;
        Candidate {
            kernel: plan.tile.kernel,
            stages: plan.stages,
            blocks: plan.blocks,
            tail_ids: plan.tail.map(|tail| tail.ids),
            blocks_of_one_sm: cost.blocks,
            blocks_per_sm: cost.blocks_per_sm,
            in_flight: cost.in_flight,
            weight_bytes: cost.weight_bytes,
            l2_bytes: cost.l2_bytes,
            shared_bytes: cost.shared_bytes,
            products: cost.products,
            clocks: Clocks { memory, l2, shared, tensor, last_wave, fill_drain, total: cost.clocks.total() },
        }
    }
}
