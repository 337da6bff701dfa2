//! Mistakes made on purpose: the comparisons of [`Loaded`] must find each of them, on whatever device they
//! run.

use super::{GUARD, Loaded, Operands, Output, POISON, layouts};
use lmhead::DType;
use lmhead::backend::device::KernelDevice;
use lmhead::plan::{Precision, WeightLayout};
use lmhead_testkit::product::table::PRECISIONS;

type Outcome = Result<(), String>;

fn said(e: lmhead::Error) -> String {
    e.to_string()
}

/// Makes each kind of mistake and expects the complaint that it must lead to.
///
/// # Errors
/// The mistake that was not found, or a complaint about what is right.
pub fn mistakes_are_found<D: KernelDevice>(device: &D) -> Outcome {
    for precision in PRECISIONS {
        for layout in layouts(device, precision).map_err(said)? {
            let of = |e| format!("proof of integers, {precision}, weights {layout:?}: {e}");
            proof(device, precision, layout).map_err(of)?;
        }
    }
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        comparison(device, dtype).map_err(|e| format!("comparison of {dtype} logits: {e}"))?;
    }
    Ok(())
}

/// Expects no complaint, since nothing is wrong.
fn good(found: &Outcome, when: &str) -> Outcome {
    found.clone().map_err(|e| format!("{when}: wanted no complaint, got \"{e}\""))
}

/// Expects a complaint with these words.
fn found(complaint: Outcome, words: &[&str], mistake: &str) -> Outcome {
    match complaint {
        Ok(()) => Err(format!("{mistake}: wanted a complaint, got none")),
        Err(e) if words.iter().all(|word| e.contains(word)) => Ok(()),
        Err(e) => Err(format!("{mistake}: wanted {words:?}, got \"{e}\"")),
    }
}

/// An output whose bytes can be changed.
struct Spoiled<'a, D: KernelDevice> {
    device: &'a D,
    out: &'a Output<D>,
}

impl<D: KernelDevice> Spoiled<'_, D> {
    fn place(&self, row: usize, id: usize) -> usize {
        GUARD + row * self.out.pitch + id * self.out.dtype.size()
    }

    fn read<const N: usize>(&self, place: usize) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        self.device.read(&self.out.buffer, place, &mut bytes).map_err(said)?;
        Ok(bytes)
    }

    fn write(&self, place: usize, bytes: &[u8]) -> Outcome {
        self.device.write(&self.out.buffer, place, bytes).map_err(said)
    }

    /// Changes one bit, or changes it back.
    fn flip(&self, place: usize) -> Outcome {
        let [byte] = self.read(place)?;
        self.write(place, &[byte ^ 1])
    }
}

fn proof<D: KernelDevice>(device: &D, precision: Precision, layout: WeightLayout) -> Outcome {
    // Rows of k that do not end with a vector of 16 bytes, picked by index, one of them twice.
    let operands = Operands::new(precision, 130, 200, 9).integers();
    let loaded = Loaded::with_layout(device, &operands, 9, layout).map_err(said)?;
    let projection = loaded.projection().map_err(said)?;
    let out = loaded.output(5, Some(&[8, 0, 3, 3, 7]), DType::F32, 1).map_err(said)?;
    loaded.run(&out, None).map_err(said)?;
    let (spoiled, proved) = (Spoiled { device, out: &out }, || loaded.is_exact(&out, &projection));
    good(&proved(), "a product")?;
    for (row, id) in [(0, 0), (2, 77), (4, 129)] {
        let next = if id == 129 { 128 } else { id + 1 };
        let (at, beside) = (spoiled.place(row, id), spoiled.place(row, next));
        let [right, other] = [spoiled.read(at)?, spoiled.read(beside)?].map(f32::from_le_bytes);
        for wrong in [right + 1.0, right - 1.0, right + 65536.0, right + 0.5, f32::NAN, f32::INFINITY, 3e9] {
            spoiled.write(at, &wrong.to_le_bytes())?;
            let words = format!("1 of 5 rows are wrong, the first {row}");
            found(proved(), &[&words], &format!("{wrong} instead of {right}"))?;
        }
        spoiled.write(at, &[POISON; 4])?;
        found(proved(), &["rows are wrong"], "a logit that was not written")?;
        // Two logits that have changed places.
        spoiled.write(at, &other.to_le_bytes())?;
        spoiled.write(beside, &right.to_le_bytes())?;
        match right == other {
            true => good(&proved(), "two equal logits that have changed places")?,
            false => found(proved(), &["rows are wrong"], "two logits that have changed places")?,
        }
        spoiled.write(at, &right.to_le_bytes())?;
        spoiled.write(beside, &other.to_le_bytes())?;
    }
    good(&proved(), "a product that was mended")?;
    let shard = Loaded::with_layout(device, &operands.shard(0, 129), 9, layout).map_err(said)?;
    let fewer = shard.projection().map_err(said)?;
    found(loaded.is_exact(&out, &fewer), &["rows are wrong"], "the product of other weights")?;
    loaded.poison(&out).map_err(said)?;
    found(proved(), &[], "a kernel that stores nothing")
}

fn comparison<D: KernelDevice>(device: &D, dtype: DType) -> Outcome {
    let operands = Operands::new(Precision::Bf16, 301, 72, 4);
    let loaded = Loaded::new(device, &operands, 4).map_err(said)?;
    let output = |dtype, gap| loaded.output(4, None, dtype, gap).map_err(said);
    let (want, out) = (output(DType::F32, 0)?, output(dtype, 3)?);
    loaded.run(&want, None).map_err(said)?;
    loaded.run(&out, None).map_err(said)?;
    let (spoiled, compared) = (Spoiled { device, out: &out }, || loaded.equals(&out, &want));
    good(&compared(), "the same product")?;
    let all = loaded.all(&out)?;
    good(&loaded.equals_bytes(&out, &all), "the same bytes")?;

    let places = [(0, 0), (1, 255), (1, 256), (3, 300)];
    let flip = || places.iter().try_for_each(|&(row, id)| spoiled.flip(spoiled.place(row, id)));
    flip()?;
    let named = places.map(|(row, id)| format!("row {row}, id {id}: "));
    let mut words = vec!["of 1204 logits, 4 have other bits, as row 0, id 0: wanted 0x"];
    words.extend(named.iter().map(String::as_str));
    found(compared(), &words, "four flipped bits")?;
    found(loaded.equals_bytes(&out, &all), &words, "four flipped bits")?;
    let picked = [0, 1, 2, 3];
    found(loaded.equals_part(&out, (&want, &picked, 0)), &[words[1]], "a flipped bit of a part")?;
    flip()?;
    good(&compared(), "logits that were mended")?;

    // A logit that nobody has written is wrong, also where the other output lacks it, too.
    spoiled.write(spoiled.place(2, 100), &[POISON; 4][..dtype.size()])?;
    let poisoned = loaded.part(&out, 0..301)?;
    let hole = &["1 have other bits, as row 2, id 100"];
    found(loaded.equals_bytes(&out, &poisoned), hole, "a hole on both sides")?;
    found(compared(), hole, "a hole")?;
    loaded.run(&out, None).map_err(said)?;

    // Before, between and behind the rows.
    let end = spoiled.place(4, 0);
    for place in [0, GUARD - 1, spoiled.place(1, 301), end, end + GUARD - 1] {
        spoiled.flip(place)?;
        found(compared(), &["elements beside the logits"], &format!("a write at byte {place}"))?;
        spoiled.flip(place)?;
    }
    device.write(&out.status, 4, &[1, 0, 0, 0]).map_err(said)?;
    found(compared(), &["row 1 has status 0x1"], "a row's bad status")?;
    loaded.poison(&out).map_err(said)?;
    found(compared(), &[], "a kernel that stores nothing")
}

#[cfg(test)]
mod tests {
    use super::*;
    use lmhead_emulated::EmulatedDevice;

    #[test]
    fn the_emulated_device_finds_them() {
        mistakes_are_found(&EmulatedDevice::new(2)).expect("each is found");
    }

    #[test]
    fn a_comparison_that_never_complains_is_found() {
        let deaf = found(Ok(()), &[], "a flipped bit").expect_err("nothing was found");
        assert_eq!(deaf, "a flipped bit: wanted a complaint, got none");
        let other = found(Err("another".into()), &["row 1"], "a flipped bit").expect_err("other words");
        assert!(other.contains("wanted [\"row 1\"], got \"another\""), "{other}");
        assert!(good(&Err("row 1".into()), "a product").is_err());
    }
}
