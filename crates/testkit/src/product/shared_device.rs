//! Exchanges of pieces in device memory, between ranks that share a device or have one each.

use crate::Random;
use lmhead::backend::device::shared_device::group;
use lmhead::backend::device::{CopyRows, KernelDevice};
use lmhead::exchange::{Call, Exchange, Operation, Piece};
use lmhead::memory::Memory;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

/// The call of step `step` on a channel.
pub fn call(step: u64, operation: Operation, patience: Duration) -> Call {
    let began = Instant::now();
    Call { head: 7, instance: 0, epoch: 0, step, operation, terms: 3, began, deadline: began + patience }
}

/// Byte `i` of what `from` sends `to` in a round.
fn byte(round: usize, from: usize, to: usize, i: usize) -> u8 {
    (i * 7 + from * 31 + to * 57 + round * 101) as u8
}

/// Queues a copy of host bytes, which must live until the stream has been waited for.
fn upload<D: KernelDevice>(device: &D, stream: D::Stream, to: u64, bytes: &[u8]) {
    let own = Memory::Device(device.ordinal());
    let copy =
        CopyRows::whole((own, to), (Memory::Host, bytes.as_ptr().expose_provenance() as u64), bytes.len());
    // SAFETY: as the caller says.
    unsafe { device.copy_rows(stream, &copy) }.expect("a copy");
}

/// Checks that each rank gets the same on the device as on the host. Sizes are random, some of them zero;
/// gathers go over some of the ranks. The stream overwrites what was sent right after it is sent, and nobody
/// waits for a stream before the end.
///
/// # Panics
/// Where something else arrives.
pub fn pieces_arrive<D: KernelDevice>(device: &D, size: usize, rounds: usize, seed: u64) {
    let endpoints = group(device, size).expect("events").into_iter();
    let ranks = endpoints.map(|endpoint| (device.clone(), Arc::new(endpoint) as _)).collect();
    pieces_arrive_between(ranks, rounds, seed);
}

/// `pieces_arrive` over any transport: `ranks` has each member's device and endpoint.
///
/// # Panics
/// As [`pieces_arrive`].
pub fn pieces_arrive_between<D: KernelDevice>(ranks: Vec<(D, Arc<dyn Exchange>)>, rounds: usize, seed: u64) {
    // All ranks stay until the end: one that leaves early is lost to the others.
    let end = Barrier::new(ranks.len());
    std::thread::scope(|scope| {
        for (device, endpoint) in ranks {
            let end = &end;
            scope.spawn(move || rank(&device, &*endpoint, rounds, seed, end));
        }
    });
}

fn rank<D: KernelDevice>(device: &D, first: &dyn Exchange, rounds: usize, seed: u64, end: &Barrier) {
    let (size, me) = (first.size(), first.me());
    let (instance, channel) = first.channel(7).expect("a channel");
    let side = channel.device().expect("a side for device memory");
    assert_eq!(side.memory(), Memory::Device(device.ordinal()));
    let connect = Call { instance, ..call(0, Operation::Connect, Duration::from_secs(60)) };
    assert_eq!(side.connect(&connect, &*channel), Ok(()));
    let own = device.open_stream().expect("a stream");
    let stream = device.on(&own);
    // The plan is the same on all ranks.
    let mut random = Random(seed);
    let plan: Vec<(Vec<usize>, Vec<usize>, bool)> = (0..rounds)
        .map(|_| {
            let members: Vec<usize> = (0..size).filter(|_| random.below(3) > 0).collect();
            let lengths =
                (0..size * size).map(|_| [0, 1, random.below(40), random.below(5000)][random.below(4)]);
            (members, lengths.collect(), random.below(2) == 0)
        })
        .collect();
    let most = 5000 * size;
    let send = device.alloc(most).expect("memory");
    // These buffers are kept until the end, since copies are queued.
    let (mut sent, mut received) = (Vec::new(), Vec::new());
    let garbage = vec![0xee; most];
    for (round, (members, lengths, gathers)) in plan.iter().enumerate() {
        let call = Call { instance, ..call(round as u64, Operation::GatherRows, Duration::from_secs(60)) };
        if *gathers && !members.contains(&me) {
            continue;
        }
        let len = |from: usize, to: usize| lengths[if *gathers { from } else { from * size + to }];
        let peers: Vec<usize> = if *gathers { members.clone() } else { (0..size).collect() };
        // The pieces for each rank, one behind the other; a gather has one piece for all.
        let to_all: Vec<usize> = if *gathers { vec![0] } else { (0..size).collect() };
        let pieces: Vec<Vec<u8>> =
            to_all.iter().map(|&to| (0..len(me, to)).map(|i| byte(round, me, to, i)).collect()).collect();
        let bytes = pieces.concat();
        upload(device, stream, device.address(&send), &bytes);
        let mut at = device.address(&send);
        let outgoing: Vec<Piece> = pieces
            .iter()
            .map(|piece| {
                let this = Piece { address: at, len: piece.len() };
                at += piece.len() as u64;
                this
            })
            .collect();
        let incoming: Vec<usize> = peers.iter().map(|&from| len(from, me)).collect();
        let buffer = device.alloc(incoming.iter().sum::<usize>().max(1)).expect("memory");
        let mut at = device.address(&buffer);
        let places: Vec<Piece> = incoming
            .iter()
            .map(|&len| {
                let this = Piece { address: if len == 0 { 0 } else { at }, len };
                at += len as u64;
                this
            })
            .collect();
        let handle = device.handle(stream);
        // SAFETY: the buffers live until the end, and the stream orders who writes them.
        let done = unsafe {
            match *gathers {
                true => side.all_gather_v(&call, members, outgoing[0], &places, handle),
                false => side.all_to_all_v(&call, &outgoing, &places, handle),
            }
        };
        assert_eq!(done, Ok(()));
        upload(device, stream, device.address(&send), &garbage);
        // Exchanges the same pieces in host memory.
        let mut host: Vec<Vec<u8>> = incoming.iter().map(|len| vec![0; *len]).collect();
        let mut slices: Vec<&mut [u8]> = host.iter_mut().map(Vec::as_mut_slice).collect();
        let done = match *gathers {
            true => channel.all_gather_v(&call, members, &pieces[0], &mut slices),
            false => {
                let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
                channel.all_to_all_v(&call, &pieces, &mut slices)
            }
        };
        assert_eq!(done, Ok(()));
        sent.push(bytes);
        received.push((round, buffer, host.concat()));
    }
    let last = Call { instance, ..call(rounds as u64, Operation::ExchangeResults, Duration::from_secs(60)) };
    let pending = side.mark(&last, device.handle(stream)).expect("a mark");
    assert_eq!(side.wait(None, pending, &last, &*channel), Ok(()));
    assert!(side.wait(None, pending, &last, &*channel).is_err(), "each mark is waited for once");
    end.wait();
    for (round, buffer, want) in &received {
        let mut got = vec![0; want.len()];
        device.read_on(stream, buffer, 0, &mut got).expect("a copy");
        assert!(got == *want, "rank {me}, round {round}");
    }
}
