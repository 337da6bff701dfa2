//! What every kernel that is wrong on purpose is held to.

use lmhead_emulated::FaultKind::{self, *};
use lmhead_emulated::probe::*;
use lmhead_emulated::{Fault, Kernel};

/// One way of being wrong: variant, in words, what it must be called (any of these), and in how many of 8
/// seeds at least.
pub type Row = (u32, &'static str, &'static [FaultKind], u32);

const SEEDS: u64 = 8;

/// Faults of these kinds name the address that they are about.
const OF_AN_ADDRESS: [FaultKind; 9] =
    [SharedBounds, GlobalBounds, Misaligned, Race, Incomplete, Proxy, Transactions, TensorMap, Dependency];

pub fn check(name: &str, rows: &[Row], run: impl Fn(u32, u64) -> Result<Vec<u32>, Fault>) {
    // Some have three right variants, by seed: a hundred of each.
    for seed in 0..300 {
        if let Err(fault) = run(0, seed) {
            panic!("{name}: a false alarm: {fault}");
        }
    }
    for &(how, what, kinds, least) in rows {
        let mut found = 0;
        let mut said = Vec::new();
        for seed in 0..SEEDS {
            match run(how, seed) {
                Ok(_) => said.push("-".into()),
                Err(fault) => {
                    assert!(kinds.contains(&fault.kind), "{name}, {what}: wanted {kinds:?}, got {fault}");
                    let whole = !fault.text.is_empty() && fault.kernel == name && fault.seed == seed;
                    let who = fault.thread.is_some() && !fault.instruction.is_empty();
                    let place = fault.address.is_some() || !OF_AN_ADDRESS.contains(&fault.kind);
                    assert!(whole && who && place, "{name}, {what}: an incomplete report: {fault:?}");
                    found += 1;
                    said.push(format!("{:?} in {}", fault.kind, fault.instruction));
                }
            }
        }
        record(name, how, what, &said);
        assert!(found >= least, "{name}, {what}: wanted it found in {least} of {SEEDS} seeds, got {found}");
    }
}

/// Holds `docs/faults.md` to having a row for each mistake; or, where `LMHEAD_FAULT_TABLE` names a file
/// (scripts/fault-table), appends the row with what the device said of each seed.
pub fn record(name: &str, how: u32, what: &str, said: &[String]) {
    let Some(path) = std::env::var_os("LMHEAD_FAULT_TABLE") else {
        let row = format!("| `{name}` {how:02} | {what} | ");
        let page = include_str!("../../../../docs/faults.md");
        assert!(
            page.contains(&row),
            "docs/faults.md: wanted a row that begins {row:?}; run scripts/fault-table"
        );
        return;
    };
    let mut by_seed: Vec<(&str, Vec<String>)> = Vec::new();
    for (seed, said) in said.iter().enumerate() {
        match by_seed.iter_mut().find(|(text, _)| text == said) {
            Some((_, seeds)) => seeds.push(seed.to_string()),
            None => by_seed.push((said, vec![seed.to_string()])),
        }
    }
    let cells = by_seed.iter().map(|(text, seeds)| format!("{text} ({})", seeds.join(" ")));
    let row = format!("| `{name}` {how:02} | {what} | {} |\n", cells.collect::<Vec<_>>().join("; "));
    let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
    let written = file.and_then(|mut file| std::io::Write::write_all(&mut file, row.as_bytes()));
    written.unwrap_or_else(|e| panic!("LMHEAD_FAULT_TABLE {}: {e}", path.display()));
}

pub fn plain(
    kernel: fn() -> Kernel<ProbeParams>,
    threads: u32,
    shared: u32,
) -> impl Fn(u32, u64) -> Result<Vec<u32>, Fault> {
    move |how, seed| Probe::new(kernel(), threads, shared, 64).n(&[how]).config(|c| c.seed(seed)).run()
}
