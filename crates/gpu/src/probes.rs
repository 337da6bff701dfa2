//! How fast weights can be read in the patterns that a product might use, and by how many blocks: this
//! decides their layout.

use crate::about::cache_bytes;
use crate::heads::{HeadsReport, Turn, by_turns, heads, impatient, quantiles, stream};
use crate::needs::small;
use crate::roofs::{Reading, Roofs, Way};
use lmhead::backend::cuda::CudaDevice;
use serde_json::{Value, json};
use std::path::Path;

const METHOD: &str = "\
    CUDA events around replays of a CUDA graph of two launches over rotating windows of random data, each \
    about of the size of a bf16 head: for each pattern as many bytes as give all of its blocks the same \
    share; one untimed replay right before each timed one; all patterns take turns, but where a row says \
    `alone`; six stages of 32 KB a block, one block an SM. `read_all`: the sum of all words is right, \
    so that none was left out. Boxes: row-major weights by tensor maps, 128-byte swizzle";

/// Measures all patterns and writes them, each as soon as it has been read alone.
///
/// # Errors
/// What failed, or which patterns left words out.
pub fn write(device: &CudaDevice, file: &Path, seconds: f64) -> Result<(), String> {
    impatient(device);
    let own = stream(device)?;
    let (head, num_sms) = (heads()[0], device.info().num_sms);
    let pitch = 2 * head.hidden;
    let most = head.vocab * pitch;
    let rotate = if small() { most } else { most.max(3 * cache_bytes(device)) };
    let mut roofs = Roofs::new(device, own.handle(), most, rotate).map_err(said)?;
    let mut report = HeadsReport::new(device, METHOD, file);
    if let Some(reason) = roofs.no_bulk() {
        report.value["none"] = json!(reason);
        report.save()?;
        println!("ignored: {reason}");
        return Ok(());
    }
    let (mut readings, mut rows, mut problems) = (Vec::new(), Vec::new(), Vec::new());
    for way in ways(num_sms, most, pitch) {
        let reading = roofs.reading_by(way, even(way, num_sms, most), 2).map_err(said);
        let seconds = reading.and_then(|reading| {
            let seconds = reading.work.replay().map_err(said)?;
            Ok((roofs.check(std::slice::from_ref(&reading)).map_err(said)?.remove(0), seconds, reading))
        });
        match seconds {
            Ok((problem, seconds, reading)) => {
                let mut row = row(&reading, num_sms, &[seconds], problem.is_none());
                row["alone"] = json!(true);
                rows.push(row);
                match problem {
                    None => readings.push((rows.len() - 1, reading)),
                    Some(problem) => problems.push(problem),
                }
            }
            Err(problem) => problems.push(format!("{way}: {problem}")),
        }
        report.value["reads"] = json!(rows);
        if !problems.is_empty() {
            report.value["problem"] = json!(problems.join("; "));
        }
        report.save()?;
        if let Some(why) = device.lost() {
            return Err(format!("{}: {why}", problems.join("; ")));
        }
    }
    let (places, readings): (Vec<usize>, Vec<Reading>) = readings.into_iter().unzip();
    // The sums count from here on, as the replays do.
    let readings = readings.into_iter().map(|r| roofs.reading_by(r.way, r.bytes, 2).map_err(said));
    let readings: Vec<Reading> = readings.collect::<Result<_, _>>()?;
    let mut turns: Vec<Turn<'_>> = Vec::new();
    for reading in &readings {
        turns.push(Box::new(|| reading.work.replay().map_err(said)));
    }
    let times = by_turns(&mut turns, seconds)?;
    drop(turns);
    let checked = roofs.check(&readings).map_err(said)?;
    for (((place, reading), times), problem) in places.into_iter().zip(&readings).zip(&times).zip(checked) {
        rows[place] = row(reading, num_sms, times, problem.is_none());
        let speed = rows[place]["bytes_per_s"].as_f64().unwrap_or(0.0) / 1e12;
        println!("{}: {speed:.3} TB/s{}", reading.way, if problem.is_none() { "" } else { ", WRONG" });
        problems.extend(problem);
    }
    report.value["reads"] = json!(rows);
    if problems.is_empty() {
        return report.save();
    }
    report.value["problem"] = json!(problems.join("; "));
    report.save()?;
    Err(problems.join("; "))
}

fn said(e: lmhead::Error) -> String {
    e.to_string()
}

/// The patterns, those of which most is known first: one that loses the device costs only those behind it.
fn ways(num_sms: u32, bytes: usize, pitch: usize) -> Vec<Way> {
    let blocks = [num_sms, num_sms / 2, num_sms / 4, num_sms / 8].map(|n| n.max(1));
    let bulk = blocks.into_iter().flat_map(|blocks| {
        let apart = (bytes / 32768 / blocks as usize).max(1) as u32;
        [1, 16, apart].map(|run| Way::Bulk { blocks, run })
    });
    let boxes =
        blocks.into_iter().flat_map(|blocks| [64, 128].map(|rows| Way::Boxes { blocks, rows, pitch }));
    let mut ways = vec![Way::Loads];
    for way in bulk.chain(boxes) {
        if !ways.contains(&way) {
            ways.push(way);
        }
    }
    ways
}

/// The most bytes, `most` at most, of which all blocks read equally many: a tail that only some blocks have
/// would be taken for the pattern's own cost. `most` where that is less than one turn.
fn even(way: Way, num_sms: u32, most: usize) -> usize {
    let turn = match way {
        Way::Loads => 4 * num_sms as usize * 512 * 16,
        Way::Bulk { blocks, run } => blocks as usize * run as usize * 32768,
        Way::Boxes { blocks, rows, pitch } => blocks as usize * rows as usize * pitch,
    };
    if most < turn { most } else { most / turn * turn }
}

fn row(reading: &Reading, num_sms: u32, times: &[f64], read_all: bool) -> Value {
    let mut row = quantiles(times, reading.bytes);
    let (blocks, pattern) = match reading.way {
        Way::Loads => (4 * num_sms, "16-byte loads".to_string()),
        Way::Bulk { blocks, run: 1 } => (blocks, "contiguous 32 KB, neighbouring blocks".into()),
        Way::Bulk { blocks, run: 16 } => (blocks, "contiguous 32 KB, runs of 16".into()),
        Way::Bulk { blocks, .. } => (blocks, "contiguous 32 KB, one range a block".into()),
        Way::Boxes { blocks, rows, .. } => (blocks, format!("boxes of {rows} rows x 128 bytes")),
    };
    row["pattern"] = json!(pattern);
    row["blocks"] = json!(blocks);
    row["bytes"] = json!(reading.bytes);
    row["read_all"] = json!(read_all);
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_block_of_a_pattern_reads_as_much_as_every_other() {
        // An H100's SMs, and a bf16 head of DeepSeek-V3.
        let (num_sms, pitch) = (132, 2 * 7168);
        let most = 129_280 * pitch;
        for way in ways(num_sms, most, pitch) {
            let bytes = even(way, num_sms, most);
            let turn = match way {
                Way::Loads => continue,
                Way::Bulk { blocks, run } => blocks as usize * run as usize * 32768,
                Way::Boxes { blocks, rows, .. } => blocks as usize * rows as usize * pitch,
            };
            assert!(bytes.is_multiple_of(turn) && bytes <= most && 10 * bytes > 9 * most, "{way}: {bytes}");
        }
        let boxes = Way::Boxes { blocks: 132, rows: 128, pitch };
        assert_eq!(even(boxes, num_sms, most), 118_272 * pitch);
        assert_eq!(even(boxes, num_sms, 200 * 128), 200 * 128);
    }
}
