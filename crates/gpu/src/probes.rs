//! How fast weights can be read in the patterns that a product might use, by how many blocks: what decides
//! how they should lie.

use crate::about::cache_bytes;
use crate::heads::{Report, Turn, by_turns, heads, quantiles, stream};
use crate::needs::small;
use crate::roofs::{Roofs, Way};
use lmhead::backend::cuda::CudaDevice;
use serde_json::json;
use std::path::Path;

const METHOD: &str = "\
    CUDA events around replays of a CUDA graph of two launches over rotating windows of random data, each \
    of the size of a bf16 head; all patterns take turns; six stages of 32 KB a block, one block a \
    processor; the sum of all words is compared, so that none was left out. Boxes: row-major weights by \
    tensor maps, 128-byte swizzle";

/// Measures all patterns and writes them.
///
/// # Errors
/// What failed, or a device without bulk copies.
pub fn write(device: &CudaDevice, file: &Path, seconds: f64) -> Result<(), String> {
    let said = |e: lmhead::Error| e.to_string();
    let own = stream(device)?;
    let (head, passes) = (heads()[0], 2);
    let pitch = 2 * head.hidden;
    let bytes = head.vocab * pitch;
    let rotate = if small() { bytes } else { bytes.max(3 * cache_bytes(device)) };
    let mut roofs = Roofs::new(device, own.handle(), bytes, rotate).map_err(said)?;
    let mut report = Report::new(device, METHOD, file);
    if let Some(reason) = roofs.no_bulk() {
        report.value["none"] = json!(reason);
        report.save()?;
        println!("ignored: {reason}");
        return Ok(());
    }
    let processors = device.info().processors;
    let mut works = vec![(Way::Loads, roofs.reading_by(Way::Loads, bytes, passes).map_err(said)?)];
    for blocks in [processors, processors / 2, processors / 4, processors / 8].map(|n| n.max(1)) {
        let apart = bytes.div_ceil(32768).div_ceil(blocks as usize) as u32;
        for way in [
            Way::Bulk { blocks, run: 1 },
            Way::Bulk { blocks, run: 16 },
            Way::Bulk { blocks, run: apart },
            Way::Boxes { blocks, rows: 64, pitch },
            Way::Boxes { blocks, rows: 128, pitch },
        ] {
            if works.iter().all(|(known, _)| *known != way) {
                works.push((way, roofs.reading_by(way, bytes, passes).map_err(said)?));
            }
        }
    }
    let mut turns: Vec<Turn<'_>> = Vec::new();
    for (_, work) in &works {
        turns.push(Box::new(move || work.replay().map_err(said)));
    }
    let times = by_turns(&mut turns, seconds)?;
    drop(turns);
    for ((way, _), times) in works.iter().zip(&times) {
        let mut row = quantiles(times, bytes);
        println!("{way}: {:.3} TB/s", row["bytes_per_s"].as_f64().unwrap_or(0.0) / 1e12);
        let (blocks, pattern) = match way {
            Way::Loads => (4 * processors, "16-byte loads".to_string()),
            Way::Bulk { blocks, run: 1 } => (*blocks, "contiguous 32 KB, neighbouring blocks".into()),
            Way::Bulk { blocks, run: 16 } => (*blocks, "contiguous 32 KB, runs of 16".into()),
            Way::Bulk { blocks, .. } => (*blocks, "contiguous 32 KB, one range a block".into()),
            Way::Boxes { blocks, rows, .. } => (*blocks, format!("boxes of {rows} rows x 128 bytes")),
        };
        for (key, value) in [("pattern", json!(pattern)), ("blocks", json!(blocks)), ("bytes", json!(bytes))]
        {
            row[key] = value;
        }
        report.push("reads", row);
    }
    report.save()?;
    let counts: Vec<_> = works.iter().zip(&times).map(|((way, _), times)| (*way, times.len() + 1)).collect();
    roofs.check(bytes, passes, &counts)
}
