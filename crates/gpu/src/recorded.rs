//! Products whose bits the emulated device has computed beforehand, so that this takes no minute of a GPU:
//! the bundle carries the file.

use crate::operands::{Loaded, Operands};
use lmhead::DType;
use lmhead::backend::device::KernelDevice;
use lmhead::plan::{Precision, WeightLayout};
use lmhead_emulated::EmulatedDevice;
use lmhead_testkit::product::table::{Case, PRECISIONS, cases};
use lmhead_testkit::product::{bits_of, raw_logits};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::BTreeMap;
use std::path::Path;

/// The head of which some ids are recorded, and how many of each end.
pub const HEAD: (usize, usize) = (129_280, 7168);
pub const ROWS: usize = 28;
pub const IDS: usize = 130;

/// Bits of f32 logits, by the name of what was multiplied.
#[derive(Default)]
pub struct Recorded(BTreeMap<String, Vec<u32>>);

/// Cases of the table of products whose sums are rounded: those of int8 are known from the rule.
pub fn rounded() -> impl Iterator<Item = Case> {
    cases().into_iter().filter(|case| !matches!(case.product.precision, Precision::W8a8(_)))
}

/// The first and the last ids of the head, in every precision.
pub fn ends() -> impl Iterator<Item = (Precision, usize)> {
    PRECISIONS.into_iter().flat_map(|precision| [(precision, 0), (precision, HEAD.0 - IDS)])
}

fn name_of_end(precision: Precision, first: usize) -> String {
    format!("{} x {}, {precision}, {ROWS} rows, ids from {first}", HEAD.0, HEAD.1)
}

/// One case's logits by the emulated device.
fn of_case(case: &Case) -> Result<Vec<u32>, String> {
    raw_logits(&EmulatedDevice::new(1), &case.product).map(|logits| bits_of(&logits))
}

fn of_end(precision: Precision, first: usize) -> Result<Vec<u32>, String> {
    let said = |e: lmhead::Error| e.to_string();
    let operands = Operands::new(precision, HEAD.0, HEAD.1, ROWS).shard(first, IDS);
    let device = EmulatedDevice::new(1);
    let loaded = Loaded::with_layout(&device, &operands, ROWS, WeightLayout::Rows).map_err(said)?;
    let out = loaded.output(ROWS, None, DType::F32, 0).map_err(said)?;
    loaded.run(&out, None).map_err(said)?;
    Ok(bytemuck::pod_collect_to_vec(&loaded.all(&out)?))
}

impl Recorded {
    /// The file that `LMHEAD_GPU_RECORDED` names; nothing where it names none: then each is computed when it
    /// is asked for.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn read() -> Result<Self, String> {
        let Some(path) = std::env::var_os("LMHEAD_GPU_RECORDED") else { return Ok(Self::default()) };
        let wrong = |e: &dyn std::fmt::Display| format!("{}: {e}; make the bundle anew", path.display());
        let bytes = std::fs::read(&path).map_err(|e| wrong(&e))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| wrong(&e))?;
        let tensors = file.tensors().into_iter();
        Ok(Recorded(tensors.map(|(name, view)| (name, bytemuck::pod_collect_to_vec(view.data()))).collect()))
    }

    /// A case of [`rounded`].
    ///
    /// # Errors
    /// The emulated device's, where it is not in the file.
    pub fn case(&self, case: &Case) -> Result<Vec<u32>, String> {
        self.0.get(&case.name).map_or_else(|| of_case(case), |bits| Ok(bits.clone()))
    }

    /// One of [`ends`]: `[ROWS, IDS]`.
    ///
    /// # Errors
    /// As [`Recorded::case`].
    pub fn end(&self, precision: Precision, first: usize) -> Result<Vec<u32>, String> {
        let known = self.0.get(&name_of_end(precision, first));
        known.map_or_else(|| of_end(precision, first), |bits| Ok(bits.clone()))
    }

    /// Computes all of it and writes the file.
    ///
    /// # Errors
    /// What failed.
    pub fn write(path: &Path) -> Result<(), String> {
        let mut all = BTreeMap::new();
        for case in rounded() {
            all.insert(case.name.clone(), of_case(&case)?);
        }
        for (precision, first) in ends() {
            all.insert(name_of_end(precision, first), of_end(precision, first)?);
        }
        let views = all.iter().map(|(name, bits)| {
            let bytes = bytemuck::cast_slice(bits);
            (name, TensorView::new(Dtype::U32, vec![bits.len()], bytes).expect("as many words as it says"))
        });
        safetensors::serialize_to_file(views, None, path).map_err(|e| format!("{}: {e}", path.display()))
    }
}

/// Device logits of the head's ends against the recorded ones.
///
/// # Errors
/// The first that differs.
pub fn compare_ends<D: KernelDevice>(device: &D, recorded: &Recorded) -> Result<(), String> {
    let said = |e: lmhead::Error| e.to_string();
    for precision in PRECISIONS {
        let operands = Operands::new(precision, HEAD.0, HEAD.1, ROWS);
        for loaded in Loaded::each(device, &operands, ROWS).map_err(said)? {
            let out = loaded.output(ROWS, None, DType::F32, 0).map_err(said)?;
            loaded.run(&out, None).map_err(said)?;
            for first in [0, HEAD.0 - IDS] {
                let got: Vec<u32> = bytemuck::pod_collect_to_vec(&loaded.part(&out, first..first + IDS)?);
                let name =
                    |e| format!("{}, weights {:?}: {e}", name_of_end(precision, first), loaded.layout());
                same_bits(&got, &recorded.end(precision, first)?).map_err(name)?;
            }
        }
    }
    Ok(())
}

/// # Errors
/// How many words differ, and the first.
pub fn same_bits(got: &[u32], want: &[u32]) -> Result<(), String> {
    let differing = got.iter().zip(want).filter(|(got, want)| got != want).count();
    match got.iter().zip(want).position(|(got, want)| got != want) {
        None if got.len() == want.len() => Ok(()),
        None => Err(format!("{} logits, recorded are {}", got.len(), want.len())),
        Some(at) => Err(format!(
            "{differing} of {} logits have other bits than recorded, the first at {at}: wanted {:#010x}, got {:#010x}",
            want.len(),
            want[at],
            got[at]
        )),
    }
}
