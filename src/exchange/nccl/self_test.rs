//! Tests the device side when a channel is connected: every byte of a piece depends on its sender, its
//! receiver, its place, and a word that only these members know. Members of another run, whose id a member
//! here may have by mistake, send other bytes. The head tests the host transport in the same way.

use super::NcclExchange;
use crate::exchange::{Call, DeviceExchange, Exchange, Fault, Piece, Scratch};
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Instant;

/// The collectives, as an error names them.
const TESTS: [&str; 3] = ["all_gather_v of one length", "all_gather_v of uneven lengths", "all_to_all_v"];
/// The receiver in a gather, where everyone is sent the same.
const EVERYONE: usize = 0xffff;
/// Room for a piece; every piece is shorter.
const PLACE: usize = 32;

/// Bytes that `from` sends to `to`; in a group of three or more some of the uneven pieces are empty.
fn length(test: usize, from: usize, to: usize) -> usize {
    match test {
        0 => 24,
        1 => (from * 7 + 3) % 17 * usize::from(from % 3 != 2),
        _ => (from * 7 + to * 5 + 3) % 17 * usize::from((from + to) % 3 != 2),
    }
}

fn piece(word: [u8; WORD], test: usize, from: usize, to: usize) -> impl Iterator<Item = u8> {
    let byte = move |at: usize| (test * 89 + from * 131 + to * 29 + at * 7 + 1) as u8;
    (0..length(test, from, to)).map(move |at| byte(at) ^ word[at % WORD])
}

/// Bytes of the word that only the members know.
const WORD: usize = 8;

/// A word that member 0 draws, and all members of `control` get. Collective over them.
fn share_word(call: &Call, control: &dyn Exchange, everyone: &[usize]) -> Result<[u8; WORD], Fault> {
    let own = RandomState::new().build_hasher().finish().to_le_bytes();
    let send = if control.me() == 0 { &own[..] } else { &[] };
    let mut word = [0; WORD];
    let mut recv: Vec<&mut [u8]> = everyone.iter().map(|_| &mut [][..]).collect();
    recv[0] = &mut word;
    control.all_gather_v(call, everyone, send, &mut recv)?;
    Ok(word)
}

/// What a member has found: the test and the sender of the first wrong piece.
type Finding = Option<(usize, usize)>;

/// A finding as the others are told of it: `[test + 1, from]`, two u32; test + 1 is 0 where nothing is wrong.
const FINDING_BYTES: usize = 8;

fn encode(found: Finding) -> [u8; FINDING_BYTES] {
    let (test, from) = found.map_or((0, 0), |(test, from)| (test as u32 + 1, from as u32));
    let mut bytes = [0; FINDING_BYTES];
    bytes[..4].copy_from_slice(&test.to_le_bytes());
    bytes[4..].copy_from_slice(&from.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Finding {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize;
    Some((word(0).checked_sub(1)?, word(4)))
}

/// Places of pieces of these lengths, one behind the other.
fn places(mut address: u64, lengths: impl Iterator<Item = usize>) -> Vec<Piece> {
    let next = |len| {
        let piece = Piece { address, len };
        address += len as u64;
        piece
    };
    lengths.map(next).collect()
}

impl NcclExchange {
    /// Gives up for `fault`. Frees the scratch if NCCL has ended: until then NCCL may write there, and
    /// freeing it would wait for NCCL without a deadline. Otherwise the scratch is never freed.
    fn keep_until_the_end(&self, scratch: Box<dyn Scratch>, fault: &Fault) {
        self.abort(fault);
        // Whatever failed has already waited for the abort, as long as a fault may. Kernels that use windows
        // have ended with the fault.
        if !self.has_windows() && !self.await_abort(Instant::now()) {
            std::mem::forget(scratch);
        }
    }

    /// Runs each collective once over all members, and lets every member know what the others have found.
    ///
    /// # Errors
    /// `Broken` on every member, naming the collective, the sender and the receiver of a wrong piece.
    pub(super) fn test(&self, call: &Call, control: &dyn Exchange) -> Result<(), Fault> {
        let (size, me) = (control.size(), control.me());
        let everyone: Vec<usize> = (0..size).collect();
        let word = share_word(call, control, &everyone)?;
        // For each test a region to send from and one to receive in.
        let region = PLACE * size;
        let scratch = self.marks.scratch(2 * TESTS.len() * region)?;
        let sent = |test: usize| 2 * test * region;
        let received = |test: usize| sent(test) + region;
        let to_all = |test: usize| if test < 2 { vec![EVERYONE] } else { everyone.clone() };
        let mut bytes = vec![0xee; 2 * TESTS.len() * region];
        for test in 0..TESTS.len() {
            let own = to_all(test).into_iter().flat_map(|to| piece(word, test, me, to));
            bytes[sent(test)..].iter_mut().zip(own).for_each(|(to, byte)| *to = byte);
        }
        scratch.write(&bytes)?;
        let (address, stream) = (scratch.address(), scratch.stream());
        let run = || {
            for test in 0..TESTS.len() {
                let receiver = if test < 2 { EVERYONE } else { me };
                let send = to_all(test).into_iter().map(|to| length(test, me, to));
                let send = places(address + sent(test) as u64, send);
                let recv = everyone.iter().map(|&from| length(test, from, receiver));
                let recv = places(address + received(test) as u64, recv);
                // SAFETY: within the scratch, which lives until the wait, or until NCCL is aborted.
                unsafe {
                    match test {
                        0 | 1 => self.all_gather_v(call, &everyone, send[0], &recv, stream)?,
                        _ => self.all_to_all_v(call, &send, &recv, stream)?,
                    }
                }
            }
            self.wait(None, self.mark(call, stream)?, call, control)
        };
        if let Err(fault) = run() {
            self.keep_until_the_end(scratch, &fault);
            return Err(fault);
        }
        scratch.read(&mut bytes)?;
        // Freeing waits for all that the device runs. Until the peers go on, nothing there waits for this
        // member, also where they share the device.
        drop(scratch);

        let mut found = None;
        for test in 0..TESTS.len() {
            let (mut at, receiver) = (received(test), if test < 2 { EVERYONE } else { me });
            for &from in &everyone {
                let len = length(test, from, receiver);
                if !bytes[at..at + len].iter().copied().eq(piece(word, test, from, receiver)) {
                    found.get_or_insert((test, from));
                }
                at += len;
            }
        }
        let mut findings = vec![0; FINDING_BYTES * size];
        let mut recv: Vec<&mut [u8]> = findings.chunks_mut(FINDING_BYTES).collect();
        control.all_gather_v(call, &everyone, &encode(found), &mut recv)?;
        let mut wrong = findings.chunks(FINDING_BYTES).map(decode).enumerate();
        match wrong.find_map(|(to, found)| found.map(|(test, from)| (test, from, to))) {
            None => Ok(()),
            Some((test, from, to)) => {
                let what = TESTS.get(test).copied().unwrap_or("a collective");
                Err(Fault::Broken {
                    problem: format!(
                        "NCCL delivered other bytes in {what} than member {from} sent to member {to}"
                    ),
                    fix: "make the communicator from an id that only these members get; where it is, do not \
                          use this NCCL as it is: NCCL_DEBUG=INFO says over which paths it sends"
                        .into(),
                })
            }
        }
    }
}
