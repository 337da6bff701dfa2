//! One collective operation of a step: noted where the peers can see it, its fault as an error, and what it
//! cost.

use super::buffers::{cut, cut_shared, resize, sum};
use super::{LmHead, Step};
use crate::error::Result;
use crate::exchange::{Exchange, Fault, Operation};
use crate::result::StepStats;
use crate::step::{Agreed, HEADER_BYTES, Ticket};
use std::time::Instant;

/// What goes to other ranks and what comes from them, in bytes.
struct Traffic {
    sent: usize,
    received: usize,
}

impl LmHead {
    /// Everyone of `members` gets what `members[i]` sent. With `headers` each message begins with its rank's
    /// header; these are compared, and what they say comes back.
    pub(super) fn gather_pieces(
        &mut self,
        (ticket, stats): (&Ticket, &mut StepStats),
        operation: Operation,
        members: &[usize],
        send: &[u8],
        recv: &mut [&mut [u8]],
        headers: bool,
    ) -> Result<Option<Agreed>> {
        let received: usize = recv.iter().map(|piece| piece.len()).sum();
        let own = members.iter().position(|&m| m == self.group.me()).map_or(0, |at| recv[at].len());
        let traffic = Traffic { sent: send.len() * (members.len() - 1), received: received - own };
        clear(recv, headers);
        let delivered = self.collective((ticket, stats), operation, traffic, |exchange| {
            exchange.all_gather_v(&ticket.call(operation), members, send, recv)
        });
        self.conclude(ticket, operation, delivered, members, recv, headers)
    }

    /// Member m is sent `send[m]`. With `headers` as above.
    pub(super) fn exchange_pieces(
        &mut self,
        (ticket, stats): (&Ticket, &mut StepStats),
        operation: Operation,
        send: &[&[u8]],
        recv: &mut [&mut [u8]],
        headers: bool,
    ) -> Result<Option<Agreed>> {
        let me = self.group.me();
        let sent: usize = send.iter().map(|piece| piece.len()).sum();
        let received: usize = recv.iter().map(|piece| piece.len()).sum();
        let traffic = Traffic { sent: sent - send[me].len(), received: received - recv[me].len() };
        clear(recv, headers);
        let delivered = self.collective((ticket, stats), operation, traffic, |exchange| {
            exchange.all_to_all_v(&ticket.call(operation), send, recv)
        });
        let everyone: Vec<usize> = (0..self.group.size()).collect();
        self.conclude(ticket, operation, delivered, &everyone, recv, headers)
    }

    fn collective(
        &mut self,
        (ticket, stats): (&Ticket, &mut StepStats),
        operation: Operation,
        traffic: Traffic,
        run: impl FnOnce(&dyn Exchange) -> std::result::Result<(), Fault>,
    ) -> std::result::Result<(), Fault> {
        let began = Instant::now();
        self.exchange.note(&ticket.call(operation));
        let delivered = run(&*self.exchange);
        let (sent, received) = (traffic.sent as u64, traffic.received as u64);
        self.recorder.operation(operation, sent, received, began.elapsed());
        stats.rounds += 1;
        stats.bytes_sent += sent;
        stats.bytes_received += received;
        delivered
    }

    fn conclude(
        &self,
        ticket: &Ticket,
        operation: Operation,
        delivered: std::result::Result<(), Fault>,
        members: &[usize],
        recv: &[&mut [u8]],
        headers: bool,
    ) -> Result<Option<Agreed>> {
        let call = ticket.call(operation);
        if !headers {
            delivered.map_err(|fault| fault.into_error(&call, self.group.ranks()))?;
            return Ok(None);
        }
        let header = |piece: &&mut [u8]| piece[..HEADER_BYTES].try_into().expect("a header's bytes");
        let headers: Vec<[u8; HEADER_BYTES]> = recv.iter().map(header).collect();
        self.judge(ticket, &call, delivered, members, &headers).map(Some)
    }
}

/// A message that is shorter than a header must not leave an old one in its place.
fn clear(recv: &mut [&mut [u8]], headers: bool) {
    if headers {
        recv.iter_mut().for_each(|piece| piece[..HEADER_BYTES].fill(0));
    }
}

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

    /// [`Step::all_gather`]; with `headers` each message begins with its rank's header, and what ranks
    /// disagree on is found there.
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
        let mut slices = cut(recv, sizes.iter().copied());
        let books = (&self.ticket, &mut self.stats);
        self.head.gather_pieces(books, operation, members, send, &mut slices, headers)?;
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
        let mut slices = cut(recv, sizes.iter().copied());
        let books = (&self.ticket, &mut self.stats);
        self.head.exchange_pieces(books, operation, send, &mut slices, false)?;
        Ok(cut_shared(recv, sizes))
    }
}
