//! Paths around the loops of a kernel's machine code: what a round executes if nothing rare happens.

use crate::code::{Code, operation};
use std::collections::VecDeque;

/// The operations on the shortest path around a loop, from each waypoint to the next and back to the first. A
/// waypoint is the first instruction after the previous waypoint that has all of the given words or modifiers
/// (`LDS 128` finds `LDS.128 R8, [R8]`).
///
/// A conditional branch is followed both ways, so the shortest path skips what is rare. Waypoints are what it
/// must not skip. A call that returns ends a path, because calls are rare, too.
///
/// # Errors
/// A waypoint that does not exist, or two without a path from one to the next.
pub fn shortest_round<'a>(code: &'a Code, waypoints: &[&str]) -> Result<Vec<&'a str>, String> {
    let (mut places, mut from) = (Vec::new(), 0);
    for waypoint in waypoints {
        let here = (from..code.listing.len()).find(|i| has(&code.listing[*i].1, waypoint));
        let here = here.ok_or_else(|| format!("{} on {}: no {waypoint}", code.kernel, code.architecture))?;
        places.push(here);
        from = here;
    }
    let mut round = Vec::new();
    for (n, from) in places.iter().enumerate() {
        let next = (n + 1) % places.len();
        let path = shortest(code, *from, places[next]).ok_or_else(|| {
            let (kernel, architecture) = (&code.kernel, &code.architecture);
            format!("{kernel} on {architecture}: no path from {} to {}", waypoints[n], waypoints[next])
        })?;
        round.extend(path.into_iter().map(|i| operation(&code.listing[i].1)).filter(|name| *name != "NOP"));
    }
    Ok(round)
}

/// Whether an instruction has all of these words.
fn has(instruction: &str, words: &str) -> bool {
    let of_instruction = |wanted| instruction.split([' ', '.', ',']).any(|word| word == wanted);
    words.split(' ').all(of_instruction)
}

/// The instructions of the shortest path from one to another: without the first, with the last. At least one.
fn shortest(code: &Code, from: usize, to: usize) -> Option<Vec<usize>> {
    let mut before = vec![None; code.listing.len()];
    let mut queue = VecDeque::from([from]);
    while let Some(i) = queue.pop_front() {
        for next in successors(code, i) {
            if before[next].is_none() {
                before[next] = Some(i);
                queue.push_back(next);
            }
        }
    }
    let mut path = vec![to];
    let mut i = before[to]?;
    while i != from {
        path.push(i);
        i = before[i]?;
    }
    path.reverse();
    Some(path)
}

/// What may be executed behind instruction `i`.
fn successors(code: &Code, i: usize) -> impl Iterator<Item = usize> + use<> {
    let (_, text) = &code.listing[i];
    let conditional = text.starts_with('@');
    let branches = ["BRA", "CALL", "JMP"].iter().any(|name| has(operation(text), name));
    let ends = ["EXIT", "RET", "BRX", "KILL"].iter().any(|name| has(operation(text), name));
    // A branch has conditions among its operands, too: `BRA.DIV ~URZ, 0x290`, `BRA P1, 0x90`.
    let address = text.rsplit("0x").next().filter(|_| branches);
    let target = address.and_then(|digits| u32::from_str_radix(digits, 16).ok());
    let target = target.and_then(|to| code.listing.binary_search_by_key(&to, |(address, _)| *address).ok());
    let jumps = branches && !text.contains(',');
    let goes_on = conditional || !(ends || jumps);
    target.into_iter().chain((goes_on && i + 1 < code.listing.len()).then_some(i + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// A loop with a rare part that is skipped, a part that a shortcut leaves out, and a stub at the end.
    const LOOP: [&str; 14] = [
        "MOV R1, 0x1",
        "LDS.128 R8, [R8]",
        "@!P0 BRA 0x50",
        "DADD R2, R2, R2",
        "DADD R2, R2, R2",
        "@P1 BRA 0x80",
        "MUFU.RCP R4, R4",
        "FADD R4, R4, R4",
        "BRA.DIV ~URZ, 0xc0",
        "@P2 CALL.REL.NOINC 0xb0",
        "BRA 0x10",
        "EXIT",
        "NOP",
        "BRA 0x90",
    ];

    fn code() -> Code {
        let listing = LOOP.iter().enumerate().map(|(i, text)| (16 * i as u32, text.to_string())).collect();
        let (file, kernel, architecture) = ("sample".into(), "turns".into(), "sm_80".into());
        let operations = BTreeMap::new();
        Code { file, kernel, architecture, registers: 0, stack: 0, local: 0, shared: 0, operations, listing }
    }

    #[test]
    fn a_round_skips_what_is_rare_and_not_its_waypoints() {
        let code = code();
        let round = |waypoints: &[&str]| shortest_round(&code, waypoints);
        let shortest = ["BRA", "BRA", "BRA.DIV", "CALL.REL.NOINC", "BRA", "LDS.128"];
        assert_eq!(round(&["LDS 128"]).expect("a loop"), shortest);
        let by_reciprocal = ["BRA", "BRA", "MUFU.RCP", "FADD", "BRA.DIV", "CALL.REL.NOINC", "BRA", "LDS.128"];
        assert_eq!(round(&["LDS 128", "MUFU RCP"]).expect("a loop"), by_reciprocal);
        assert_eq!(round(&["LDS 128", "MUFU LG2"]).expect_err("none"), "turns on sm_80: no MUFU LG2");
        let error = round(&["MOV"]).expect_err("it is before the loop");
        assert_eq!(error, "turns on sm_80: no path from MOV to MOV");
    }
}
