//! Choices that were measured on a device, which take the place of the cost model's.
//!
//! ```
//! use lmhead::plan::{DeviceLimits, Plan, Precision, Shape, Tuning, WeightLayout};
//!
//! # fn main() -> lmhead::Result<()> {
//! let table = r#"{
//!     "device": "NVIDIA H100 80GB HBM3", "capability": [9, 0], "num_sms": 132,
//!     "choices": [
//!         {"vocab": 129280, "hidden": 7168, "rows": 32, "kernel": "wgmma_matmul_bf16_64x32", "stages": 4}
//!     ]
//! }"#;
//! let table = Tuning::from_json(table)?;
//! table.check(&DeviceLimits::H100)?;
//! let shape = Shape { rows: 28, vocab: 129_280, hidden: 7168 };
//! let plan = table.plan(WeightLayout::Packed, Precision::Bf16, shape, &DeviceLimits::H100)?;
//! assert_eq!(plan.expect("a choice for up to 32 rows").tile.kernel, "wgmma_matmul_bf16_64x32");
//! # Ok(())
//! # }
//! ```
//!
//! On a GPU `gpu_matmul -- tune FILE SECONDS` measures the candidates of [`Plan::ranked`] and writes such a
//! table. Every plan gives the same bits, so a table changes times alone.

use super::{DeviceLimits, Plan, Precision, Shape, Tile, WeightLayout, hopper};
use crate::dtype::DType;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// The choices for one model of device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    /// The name of the device that was measured, for the reader.
    pub device: String,
    /// Its compute capability: major, minor.
    pub capability: (u32, u32),
    /// Its streaming multiprocessors (SMs).
    pub num_sms: usize,
    pub choices: Vec<Choice>,
}

/// The kernel for products of up to so many rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice {
    /// Ids of the shard.
    pub vocab: usize,
    pub hidden: usize,
    /// Largest row count it serves. The smallest is one more than in the choice before, of the same shape,
    /// precision and layout.
    pub rows: usize,
    /// A kernel of [`Precision::tiles`] or [`Precision::packed_tiles`]: it tells precision and layout.
    pub kernel: String,
    pub stages: usize,
    /// The measured time of one product of `rows` rows, in microseconds, for the reader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub median_us: Option<f64>,
}

const KEY: &str = "tuning table";

/// The most rows of a choice.
const MOST_ROWS: usize = 1 << 30;

/// All precisions; those with rows of another type that share kernels are left out.
const PRECISIONS: [Precision; 7] = [
    Precision::Bf16,
    Precision::F16,
    Precision::W8a8(DType::Bf16),
    Precision::W8a16(DType::F16),
    Precision::W8a16(DType::Bf16),
    Precision::Fp8(DType::F16),
    Precision::Fp8(DType::Bf16),
];

fn tiles(layout: WeightLayout, precision: Precision) -> &'static [Tile] {
    match layout {
        WeightLayout::Rows => precision.tiles(),
        WeightLayout::Packed => precision.packed_tiles(),
    }
}

impl Choice {
    /// The tile, where it is one of these.
    fn tile(&self, layout: WeightLayout, precision: Precision) -> Option<&'static Tile> {
        tiles(layout, precision).iter().find(|tile| tile.kernel == self.kernel)
    }

    /// The first layout and precision that have the kernel.
    fn of(&self) -> Option<(WeightLayout, Precision, &'static Tile)> {
        let layouts = [WeightLayout::Rows, WeightLayout::Packed].into_iter();
        let mut all = layouts.flat_map(|layout| PRECISIONS.map(|precision| (layout, precision)));
        all.find_map(|(layout, precision)| Some((layout, precision, self.tile(layout, precision)?)))
    }

    fn plan(
        &self,
        layout: WeightLayout,
        precision: Precision,
        rows: usize,
        limits: &DeviceLimits,
    ) -> Result<Plan> {
        let shape = Shape { rows, vocab: self.vocab, hidden: self.hidden };
        let Some(tile) = self.tile(layout, precision) else {
            let fix = "name a kernel of `lmhead plan --kernels`";
            return Err(Error::config(KEY, format!("a kernel of {precision}"), &self.kernel, fix));
        };
        match layout {
            WeightLayout::Rows => Plan::with_tile(precision, shape, tile, self.stages, limits),
            WeightLayout::Packed => Plan::with_packed_tile(precision, shape, tile, self.stages, limits),
        }
    }
}

impl Tuning {
    /// Reads a table.
    ///
    /// # Errors
    /// `Config` where the text is not a table.
    pub fn from_json(text: &str) -> Result<Self> {
        let fix = "write it by `gpu_matmul -- tune FILE SECONDS`";
        serde_json::from_str(text).map_err(|error| Error::config(KEY, "a table in JSON", error, fix))
    }

    /// Refuses a table of another device, and choices that it cannot run. A table that passes names no plan
    /// that a call refuses.
    ///
    /// # Errors
    /// `Config`, naming the choice.
    pub fn check(&self, limits: &DeviceLimits) -> Result<()> {
        let name =
            |(major, minor): (u32, u32), sms: usize| format!("compute capability {major}.{minor}, {sms} SMs");
        let (own, of) = (name(limits.capability, limits.num_sms), name(self.capability, self.num_sms));
        if own != of {
            let got = format!("one of {}: {of}", self.device);
            return Err(Error::config(
                KEY,
                format!("one of this device: {own}"),
                got,
                "measure on this device",
            ));
        }
        if let Some(choice) = self.choices.iter().find(|choice| !(1..=MOST_ROWS).contains(&choice.rows)) {
            let got = format!("{} for {}", choice.rows, choice.kernel);
            return Err(Error::config(KEY, format!("choices of 1 to {MOST_ROWS} rows"), got, "leave it out"));
        }
        for (i, choice) in self.choices.iter().enumerate() {
            let Choice { vocab, hidden, rows, kernel, .. } = choice;
            let refuse = |wanted: String, got: String, fix: &str| {
                let key = format!("{KEY}, choice {i} ({vocab} x {hidden}, {rows} rows, {kernel})");
                Err(Error::config(&key, wanted, got, fix))
            };
            let Some((layout, precision, tile)) = choice.of() else {
                let fix = "name one of `lmhead plan --kernels`";
                return refuse("a kernel of this version".into(), format!("`{kernel}`"), fix);
            };
            // Those before it, of fewer rows, of the same products.
            let others = self.choices.iter().enumerate().filter(|(_, other)| {
                (other.vocab, other.hidden) == (*vocab, *hidden) && other.tile(layout, precision).is_some()
            });
            if let Some((j, _)) = others.clone().find(|(j, other)| *j < i && other.rows == *rows) {
                return refuse("one choice".into(), format!("choice {j}, too"), "leave one of them out");
            }
            let before = others.map(|(_, other)| other.rows).filter(|other| other < rows).max().unwrap_or(0);
            let most = hopper::staged_rows(precision, before + 1);
            if layout == WeightLayout::Packed && tile.cluster_m() > most {
                // A workspace for more rows must do for fewer.
                let wanted = format!(
                    "a tile of at most {most} rows, because this choice also serves {} rows",
                    before + 1
                );
                let fix = "add a choice for fewer rows before it";
                return refuse(wanted, format!("one of {}", tile.cluster_m()), fix);
            }
            if let Err(error) = choice.plan(layout, precision, *rows, limits) {
                return refuse(
                    "one that this device runs".into(),
                    error.to_string(),
                    "measure on this device",
                );
            }
        }
        Ok(())
    }

    /// The plan that the table names for a product; none where it names none, which is the cost model's then.
    ///
    /// # Errors
    /// As [`check`](super::check), where the choice has not passed [`Tuning::check`].
    pub fn plan(
        &self,
        layout: WeightLayout,
        precision: Precision,
        shape: Shape,
        limits: &DeviceLimits,
    ) -> Result<Option<Plan>> {
        let fits = |choice: &&Choice| {
            (choice.vocab, choice.hidden) == (shape.vocab, shape.hidden)
                && choice.rows >= shape.rows
                && choice.tile(layout, precision).is_some()
        };
        let choice = self.choices.iter().filter(fits).min_by_key(|choice| choice.rows);
        choice.map(|choice| choice.plan(layout, precision, shape.rows, limits)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const H100: DeviceLimits = DeviceLimits::H100;

    fn choice(rows: usize, kernel: &str, stages: usize) -> Choice {
        Choice { vocab: 4096, hidden: 1024, rows, kernel: kernel.into(), stages, median_us: None }
    }

    fn table(choices: Vec<Choice>) -> Tuning {
        Tuning { device: "a device".into(), capability: H100.capability, num_sms: H100.num_sms, choices }
    }

    #[test]
    fn the_choice_with_the_fewest_rows_that_are_enough_is_taken() {
        let table = table(vec![
            choice(64, "wgmma_matmul_bf16_128x64", 3),
            choice(32, "wgmma_matmul_bf16_128x32", 4),
            choice(8, "wgmma_matmul_bf16_64x8", 5),
            choice(16, "gather_matmul_bf16_128x16", 4),
        ]);
        table.check(&H100).expect("a table of an H100");
        let plan = |layout, precision, rows, vocab| {
            let shape = Shape { rows, vocab, hidden: 1024 };
            let plan = table.plan(layout, precision, shape, &H100).expect("plans");
            plan.map(|plan| (plan.tile.kernel, plan.stages))
        };
        use WeightLayout::{Packed, Rows};
        let bf16 = Precision::Bf16;
        assert_eq!(plan(Packed, bf16, 8, 4096), Some(("wgmma_matmul_bf16_64x8", 5)));
        assert_eq!(plan(Packed, bf16, 9, 4096), Some(("wgmma_matmul_bf16_128x32", 4)));
        assert_eq!(plan(Packed, bf16, 33, 4096), Some(("wgmma_matmul_bf16_128x64", 3)));
        assert_eq!(plan(Rows, bf16, 9, 4096), Some(("gather_matmul_bf16_128x16", 4)));
        let none = [(Packed, bf16, 65, 4096), (Packed, bf16, 8, 4160), (Packed, Precision::F16, 8, 4096)];
        for (layout, precision, rows, vocab) in none {
            assert_eq!(
                plan(layout, precision, rows, vocab),
                None,
                "{layout:?}, {precision}, {rows} x {vocab}"
            );
        }
    }

    #[test]
    fn tables_that_a_device_cannot_follow_are_refused() {
        let good = choice(8, "wgmma_matmul_bf16_64x8", 5);
        for (choices, said) in [
            (vec![choice(8, "wgmma_matmul_bf16_64x9", 5)], "got `wgmma_matmul_bf16_64x9`"),
            (vec![choice(8, "wgmma_matmul_bf16_64x8", 99)], "stages"),
            (vec![choice(8, "wgmma_matmul_bf16_64x8", 1)], "stages"),
            (vec![choice(64, "wgmma_matmul_bf16_128x64", 3)], "a tile of at most 32 rows"),
            (vec![good.clone(), good.clone()], "got choice 0, too"),
            (vec![choice(0, "wgmma_matmul_bf16_64x8", 5)], "choices of 1 to 1073741824 rows"),
            (
                vec![
                    choice(usize::MAX, "gather_matmul_bf16_64x8", 3),
                    choice(usize::MAX - 1, "wgmma_matmul_bf16_64x8", 5),
                ],
                "choices of 1 to 1073741824 rows",
            ),
        ] {
            let error = table(choices).check(&H100).expect_err(said).to_string();
            assert!(error.contains(said), "{said}: {error}");
        }
        let error = table(vec![good]).check(&DeviceLimits::A100).expect_err("another device").to_string();
        assert!(error.contains("one of a device: compute capability 9.0, 132 SMs"), "{error}");
        for text in [
            "",
            "{}",
            "[]",
            r#"{"device": "x", "capability": [9, 0], "num_sms": 1, "choices": [], "more": 1}"#,
        ] {
            let error = Tuning::from_json(text).expect_err(text).to_string();
            assert!(error.contains("tuning table"), "{error}");
        }
    }

    proptest! {
        /// A table whose tiles have no more rows than there is room for passes the check, and then plans
        /// every call, in a workspace that grows with the rows.
        #[test]
        fn a_table_that_passes_plans_every_call(
            sizes in proptest::collection::btree_map(1usize..400, 0usize..8, 1..5),
        ) {
            let precision = Precision::W8a8(DType::Bf16);
            let mut before = 0;
            let choices = sizes.into_iter().map(|(rows, tile)| {
                let most = hopper::staged_rows(precision, before + 1);
                before = rows;
                let fits = |tile: &&Tile| tile.cluster_m() <= most;
                let tiles: Vec<_> = precision.packed_tiles().iter().filter(fits).collect();
                choice(rows, tiles[tile % tiles.len()].kernel, *hopper::RING_STAGES.start())
            });
            let table = table(choices.collect());
            table.check(&H100).expect("a table of an H100");
            let mut before = 0;
            for rows in 1..=table.choices.iter().map(|choice| choice.rows).max().unwrap_or(0) {
                let shape = Shape { rows, vocab: 4096, hidden: 1024 };
                let plan = table.plan(WeightLayout::Packed, precision, shape, &H100);
                let bytes = plan.expect("a plan").expect("a choice").workspace.bytes;
                prop_assert!(bytes >= before, "{rows} rows: {bytes} bytes, fewer rows {before}");
                before = bytes;
            }
        }

        #[test]
        fn tables_are_read_as_they_were_written(
            rows in 1usize..9999, us in proptest::option::of(0u32..9999),
        ) {
            let table = table(vec![Choice { median_us: us.map(f64::from), ..choice(rows, "any", 3) }]);
            let text = serde_json::to_string(&table).expect("JSON");
            prop_assert_eq!(Tuning::from_json(&text).expect("a table"), table);
        }
    }
}
