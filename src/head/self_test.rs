//! The transport's self-test at creation and rebuilding: pieces of uneven sizes, some of them empty. Every
//! byte of a piece depends on its sender, its receiver and its place.
//!
//! Headers are all alike: a transport that permutes pieces or cuts them at the wrong place still delivers
//! good headers, and would mix rows of logits without an error.

use super::LmHead;
use super::buffers::cut;
use crate::error::{Error, Result};
use crate::exchange::{Call, Fault, Operation};

/// The receiver in a gather, where everyone is sent the same.
const EVERYONE: usize = 0xffff;

/// Bytes that `from` sends to `to`: 0 to 16, uneven over both. `sparse`: every other piece is empty, so that
/// in a group of three or more each receiver has an empty piece before one that is not; a transport may
/// confuse them.
fn length(from: usize, to: usize, sparse: bool) -> usize {
    match sparse {
        false => (from * 7 + to * 5 + 3) % 17,
        true if (from + to).is_multiple_of(2) => 0,
        true => 1 + (from * 7 + to * 5) % 16,
    }
}

/// Byte `at` of a piece.
fn byte(from: usize, to: usize, at: usize) -> u8 {
    (from * 131 + to * 29 + at * 7 + 1) as u8 ^ (from / 251) as u8
}

fn piece(from: usize, to: usize, sparse: bool) -> impl Iterator<Item = u8> {
    (0..length(from, to, sparse)).map(move |at| byte(from, to, at))
}

/// A member's finding, as it is sent to all others: `[kind, from]`, two u32.
const VERDICT_BYTES: usize = 8;

/// What a member has found wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finding {
    Nothing,
    /// A piece of `from`, in operation `TESTS[test]`.
    Wrong {
        test: usize,
        from: usize,
    },
}

const TESTS: [&str; 3] = ["all_gather_v", "all_to_all_v", "all_gather_v over a part of the members"];

impl Finding {
    fn encode(self) -> [u8; VERDICT_BYTES] {
        let (test, from) = match self {
            Finding::Nothing => (TESTS.len(), 0),
            Finding::Wrong { test, from } => (test, from),
        };
        let mut bytes = [0; VERDICT_BYTES];
        // Never all zeros: those stand for a finding that did not come.
        bytes[..4].copy_from_slice(&(test as u32 + 1).to_le_bytes());
        bytes[4..].copy_from_slice(&(from as u32).to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize;
        match word(0).checked_sub(1)? {
            test if test < TESTS.len() => Some(Finding::Wrong { test, from: word(4) }),
            test if test == TESTS.len() => Some(Finding::Nothing),
            _ => None,
        }
    }
}

impl LmHead {
    /// Runs both operations over all members, and a gather over a part of them where the head uses one; then
    /// every rank learns what each has found.
    ///
    /// # Errors
    /// `Exchange` on every rank, naming the operation, the sender and the receiver of the first wrong piece.
    pub(super) fn test_exchange(&mut self, call: &Call) -> Result<()> {
        let (size, me) = (self.wire.group.size(), self.wire.group.me());
        if size == 1 {
            return Ok(());
        }
        let call = Call { operation: Operation::SelfTest, ..*call };
        self.wire.exchange.note(&call);
        let ranks = self.wire.group.ranks().to_vec();
        let everyone: Vec<usize> = (0..size).collect();
        let mut found = Finding::Nothing;
        found = self.test_gather(&call, &everyone, 0, found)?;

        for sparse in [false, true] {
            let send: Vec<Vec<u8>> = everyone.iter().map(|&to| piece(me, to, sparse).collect()).collect();
            let send: Vec<&[u8]> = send.iter().map(Vec::as_slice).collect();
            let sizes: Vec<usize> = everyone.iter().map(|&from| length(from, me, sparse)).collect();
            let mut recv = vec![0; sizes.iter().sum()];
            let mut slices = Vec::new();
            cut(&mut recv, &sizes, &mut slices);
            let delivered = self.wire.exchange.all_to_all_v(&call, &send, &mut slices);
            let pieces = cut_shared(&recv, &sizes);
            let wanted = |from| piece(from, me, sparse);
            found = self.examine(&call, delivered, 1, &everyone, wanted, &pieces, found)?;
        }

        let row_members = self.wire.group.row_members();
        if row_members.len() > 1 && row_members.len() < size {
            found = self.test_gather(&call, &row_members, 2, found)?;
        }

        let mut verdicts = vec![0; VERDICT_BYTES * size];
        let mut slices: Vec<&mut [u8]> = verdicts.chunks_mut(VERDICT_BYTES).collect();
        let delivered = self.wire.exchange.all_gather_v(&call, &everyone, &found.encode(), &mut slices);
        delivered.map_err(|fault| fault.into_error(&call, &ranks))?;
        let error = |problem: String| Error::Exchange {
            operation: call.operation.to_string(),
            problem: format!("the transport `{}` {problem}", self.wire.exchange.name()),
            fix: "do not use this transport as it is: its pieces would be mixed up in every answer".into(),
        };
        for (bytes, receiver) in verdicts.chunks(VERDICT_BYTES).zip(&ranks) {
            match Finding::decode(bytes) {
                Some(Finding::Nothing) => {}
                Some(Finding::Wrong { test, from }) => {
                    let (operation, sender) = (TESTS[test], ranks.get(from).copied().unwrap_or(from));
                    return Err(error(format!(
                        "delivered other bytes in {operation} than rank {sender} sent to rank {receiver}"
                    )));
                }
                None => {
                    return Err(error(format!(
                        "delivered a damaged finding of rank {receiver} in all_gather_v"
                    )));
                }
            }
        }
        Ok(())
    }

    fn test_gather(&self, call: &Call, members: &[usize], test: usize, found: Finding) -> Result<Finding> {
        let send: Vec<u8> = piece(self.wire.group.me(), EVERYONE, false).collect();
        let sizes: Vec<usize> = members.iter().map(|&from| length(from, EVERYONE, false)).collect();
        let mut recv = vec![0; sizes.iter().sum()];
        let mut slices = Vec::new();
        cut(&mut recv, &sizes, &mut slices);
        let delivered = self.wire.exchange.all_gather_v(call, members, &send, &mut slices);
        let wanted = |from| piece(from, EVERYONE, false);
        self.examine(call, delivered, test, members, wanted, &cut_shared(&recv, &sizes), found)
    }

    /// Keeps the first finding. Pieces of another length than was wanted are a finding too.
    #[allow(clippy::too_many_arguments, reason = "one operation, what it should have done and what it did")]
    fn examine<P: Iterator<Item = u8>>(
        &self,
        call: &Call,
        delivered: std::result::Result<(), Fault>,
        test: usize,
        members: &[usize],
        wanted: impl Fn(usize) -> P,
        pieces: &[&[u8]],
        found: Finding,
    ) -> Result<Finding> {
        let wrong = match delivered {
            Ok(()) => {
                let intact = |(&from, got): (&usize, &&[u8])| got.iter().copied().eq(wanted(from));
                members.iter().zip(pieces).find(|pair| !intact(*pair)).map(|(&from, _)| from)
            }
            Err(Fault::Length { peers }) => peers.first().map(|(from, ..)| *from),
            // The call is the same in every operation here, so this can only be a peer that is not in its
            // self-test.
            Err(fault) => return Err(fault.into_error(call, self.wire.group.ranks())),
        };
        Ok(match (found, wrong) {
            (Finding::Nothing, Some(from)) => Finding::Wrong { test, from },
            (found, _) => found,
        })
    }
}

/// Consecutive pieces of a buffer.
fn cut_shared<'b>(mut buffer: &'b [u8], sizes: &[usize]) -> Vec<&'b [u8]> {
    sizes
        .iter()
        .map(|&size| {
            let (piece, rest) = buffer.split_at(size);
            buffer = rest;
            piece
        })
        .collect()
}
