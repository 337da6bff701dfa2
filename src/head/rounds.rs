//! One collective operation of a step: the call, its fault as an error, and what it cost.

use super::Step;
use super::buffers::{cut, cut_shared, resize, sum};
use crate::error::Result;
use crate::exchange::Operation;
use crate::step::HEADER_BYTES;

impl Step<'_> {
    /// Everyone of `members` gets what `members[i]` sent, of `sizes[i]` bytes; the pieces of `recv` come back.
    pub(super) fn all_gather<'b>(
        &mut self,
        operation: Operation,
        members: &[usize],
        send: &[u8],
        sizes: &[usize],
        recv: &'b mut Vec<u8>,
    ) -> Result<Vec<&'b [u8]>> {
        self.all_gather_with(operation, members, send, sizes, recv, false)
    }

    /// [`Step::all_gather`]; where `headers` says so each message begins with its rank's header, and what ranks disagree on is found
    /// there.
    pub(super) fn all_gather_with<'b>(
        &mut self,
        operation: Operation,
        members: &[usize],
        send: &[u8],
        sizes: &[usize],
        recv: &'b mut Vec<u8>,
        headers: bool,
    ) -> Result<Vec<&'b [u8]>> {
        resize(recv, [sum(sizes, "gathered bytes")?, 1, 1], "gathered bytes")?;
        let call = self.ticket.call(operation);
        let mut slices = cut(recv, sizes.iter().copied());
        let delivered = self.head.exchange.all_gather_v(&call, members, send, &mut slices);
        if headers {
            let headers: Vec<[u8; HEADER_BYTES]> =
                slices.iter().map(|s| s[..HEADER_BYTES].try_into().expect("a header's bytes")).collect();
            self.head.judge(&self.ticket, &call, delivered, members, &headers)?;
        } else {
            delivered.map_err(|fault| fault.into_error(&call, self.head.group.ranks()))?;
        }
        self.stats.rounds += 1;
        self.stats.bytes_sent += send.len() as u64 * (members.len() as u64 - 1);
        self.stats.bytes_received += (recv.len() - send.len()) as u64;
        Ok(cut_shared(recv, sizes))
    }

    /// Member m is sent `send[m]`; from it come `sizes[m]` bytes. The pieces of `recv` come back.
    pub(super) fn all_to_all<'b>(
        &mut self,
        operation: Operation,
        send: &[&[u8]],
        sizes: &[usize],
        recv: &'b mut Vec<u8>,
    ) -> Result<Vec<&'b [u8]>> {
        resize(recv, [sum(sizes, "exchanged bytes")?, 1, 1], "exchanged bytes")?;
        let call = self.ticket.call(operation);
        let head = &*self.head;
        head.exchange
            .all_to_all_v(&call, send, &mut cut(recv, sizes.iter().copied()))
            .map_err(|fault| fault.into_error(&call, head.group.ranks()))?;
        let me = head.group.me();
        self.stats.rounds += 1;
        self.stats.bytes_sent += send.iter().map(|m| m.len() as u64).sum::<u64>() - send[me].len() as u64;
        self.stats.bytes_received += (recv.len() - sizes[me]) as u64;
        Ok(cut_shared(recv, sizes))
    }
}
