//! Common checks of the deliberately wrong kernels.

use crate::broken_matmul::{Outcome, told};
use lmhead::backend::params::{SetWordsParams, WordsToSet};
use lmhead_emulated::FaultKind::{self, *};
use lmhead_emulated::probe::*;
use lmhead_emulated::{Buffer, Device, Fault, Kernel, LaunchConfig, Params, emulated_kernel};

/// One mistake: variant, description, the kinds of fault that may be reported, and in how many of 8 seeds at
/// least.
pub type Row = (u32, &'static str, &'static [FaultKind], u32);

const SEEDS: u64 = 8;

/// Faults of these kinds name an address.
const OF_AN_ADDRESS: [FaultKind; 9] =
    [SharedBounds, GlobalBounds, Misaligned, Race, Incomplete, Proxy, Transactions, TensorMap, Dependency];

pub fn check(name: &str, rows: &[Row], run: impl Fn(u32, u64) -> Result<Vec<u32>, Fault>) {
    // Some kernels have three correct variants, chosen by seed: a hundred runs of each.
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

/// Checks that `docs/faults.md` has a row for each mistake; or, where `LMHEAD_FAULT_TABLE` names a file
/// (scripts/fault-table), appends the row with what the device reported for each seed.
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

/// `Broken` of `kernels/broken.h`: the parameters of a kernel that is right, and the mistake, 0 for none.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Broken<P> {
    pub right: P,
    pub how: u32,
}

// SAFETY: mirrors the struct of broken.h.
unsafe impl<P: Params> Params for Broken<P> {}

/// One mistake of a kernel whose results are compared: variant, description, and the kinds of fault that may
/// be reported; where there are none, no fault is, and the result must be wrong. So it is in each of 6 seeds.
pub type Compared = (u32, &'static str, &'static [FaultKind]);

pub fn check_compared(name: &str, rows: &[Compared], run: impl Fn(u32, u64) -> Outcome) {
    for seed in 0..60 {
        match run(0, seed) {
            Outcome::Right => {}
            Outcome::Wrong => panic!("{name}, seed {seed}: a wrong result without a mistake"),
            Outcome::Fault(fault) => panic!("{name}: a false alarm: {fault}"),
        }
    }
    for &(how, what, kinds) in rows {
        let found = |seed| match run(how, seed) {
            Outcome::Fault(fault) if kinds.contains(&fault.kind) => told(&fault),
            Outcome::Fault(fault) => panic!("{name}, {what}, seed {seed}: wanted {kinds:?}, got {fault}"),
            Outcome::Wrong if kinds.is_empty() => "wrong result".into(),
            Outcome::Wrong => panic!("{name}, {what}, seed {seed}: wanted {kinds:?}, got a wrong result"),
            Outcome::Right => panic!("{name}, {what}, seed {seed}: wanted it found, got a right result"),
        };
        record(name, how, what, &(0..6).map(found).collect::<Vec<_>>());
    }
}

/// What a run of a kernel came to: `compare` says whether what it left is right.
pub fn outcome(ran: Result<(), Fault>, compare: impl FnOnce() -> bool) -> Outcome {
    match ran {
        Err(fault) => Outcome::Fault(fault),
        Ok(()) if compare() => Outcome::Right,
        Ok(()) => Outcome::Wrong,
    }
}

/// Launches the kernel before the one under test: `set_words`, which sets word `at` of the buffer.
pub fn before(device: &mut Device, buffer: Buffer, at: usize, value: u32) {
    let to = (buffer.address() as usize + 4 * at) as *mut u8;
    let one = WordsToSet { to, pitch: 4, count: 1, value };
    let none = WordsToSet { to: std::ptr::null_mut(), pitch: 0, count: 0, value };
    let config = LaunchConfig::new([1; 3], [256, 1, 1]).threads(1);
    let kernel = emulated_kernel!(set_words: SetWordsParams);
    device.launch_in_turn(&kernel, &SetWordsParams { words: [one, none] }, &config).expect("no mistake");
}
