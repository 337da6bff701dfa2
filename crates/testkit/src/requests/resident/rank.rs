//! One rank whose steps stay on the device, for tests of faults in groups.

use super::{DeviceMemory, Resident};
use crate::TestHead;
use lmhead::backend::On;
use lmhead::backend::device::KernelDevice;
use lmhead::config::HeadConfig;
use lmhead::dtype::DType;
use lmhead::exchange::Exchange;
use lmhead::head::{LmHead, StepOptions};
use lmhead::layout::HeadGroup;
use lmhead::memory::{Allocation, SpanMut};
use lmhead::result::{AnswerBuffers, Output, Request, RowInputs};
use lmhead::rows::{HiddenRows, RowCounts};
use std::sync::Arc;

/// One rank of a head whose steps stay on the device. Steps answer the argmax of its rows; rank r has r + 1
/// rows.
pub struct ResidentRank<'d, D: KernelDevice> {
    pub head: LmHead,
    room: DeviceMemory<'d, D>,
    counts: RowCounts,
    rows: Box<dyn Allocation>,
    ids: Box<dyn Allocation>,
    status: Box<dyn Allocation>,
}

impl<'d, D: KernelDevice> ResidentRank<'d, D> {
    /// Creates the head; collective. `test` must have bf16 weights.
    ///
    /// # Errors
    /// As [`LmHead::new`].
    ///
    /// # Panics
    /// Where the device has no memory.
    pub fn new(
        device: &'d Resident<D>,
        test: &TestHead,
        config: &HeadConfig,
        exchange: Arc<dyn Exchange>,
    ) -> lmhead::Result<Self> {
        let (rank, ranks) = (exchange.me(), exchange.size());
        let device = device.place(rank);
        let group = HeadGroup::data_parallel(ranks, rank)?;
        let shard = test.shard(group.shard(test.vocab, rank));
        let head = LmHead::new(config, group, shard, exchange, Arc::clone(&device.backend))?;
        let room = DeviceMemory { device, stream: device.stream() };
        let rows = room.with(&test.rows(rank + 1, rank as u64));
        let (ids, status) = (room.bytes(8 * (rank + 1)), room.bytes(rank + 1));
        let counts = RowCounts::exact(&(1..=ranks).collect::<Vec<_>>());
        Ok(ResidentRank { head, room, counts, rows, ids, status })
    }

    /// Runs one step and returns the ids.
    ///
    /// # Errors
    /// As [`LmHead::run_into`].
    pub fn step(&mut self) -> lmhead::Result<Vec<i64>> {
        let ResidentRank { head, room, counts, rows, ids, status } = self;
        let none = || SpanMut::host(&mut [0u8; 0][..]);
        let row_bytes = head.config().hidden_size * 2;
        let n = rows.span().len() / row_bytes;
        let hidden = HiddenRows::strided(rows.span(), DType::Bf16, n, row_bytes / 2, row_bytes)?;
        let buffers = AnswerBuffers {
            row_status: status.span_mut(),
            logits: none(),
            logits_stride: 0,
            ids: ids.span_mut(),
            values: none(),
            logsumexp: none(),
            logprobs: none(),
            ranks: none(),
            top_ids: none(),
            top_logprobs: none(),
        };
        let options = StepOptions { on_device: true, ..StepOptions::default() };
        let ticket = head.begin(counts, &Request::argmax(), options)?;
        let on = On { stream: room.stream, workspace: None };
        head.run_into(ticket, hidden, &RowInputs::default(), buffers, on)?;
        assert_eq!(room.read::<u8>(&**status), vec![0; n], "good rows");
        Ok(room.read(&**ids))
    }

    /// What the steps must answer: computed by a head of one rank, with rows in host memory.
    ///
    /// # Panics
    /// Where the computation fails.
    pub fn wanted(device: &Resident<D>, test: &TestHead, rank: usize) -> Vec<i64> {
        let backend = &device.place(rank).backend;
        let group = HeadGroup::data_parallel(1, 0).expect("a group");
        let exchange = Arc::new(lmhead::exchange::local::group(1).remove(0));
        let shard = test.shard(0..test.vocab);
        let head = LmHead::new(&test.config(), group, shard, exchange, Arc::clone(backend));
        let rows = test.rows(rank + 1, rank as u64);
        let hidden = HiddenRows::new(&rows, DType::Bf16, rank + 1, test.hidden).expect("rows");
        let mut head = head.expect("a head");
        let step = head.step(RowCounts::exact(&[rank + 1]), &Request::argmax()).expect("a step");
        let Output::Argmax { ids } = step.run(hidden).expect("an answer").output else { unreachable!() };
        ids
    }
}
