//! Exchanges through windows in each other's memory, between ranks that are threads on one device.

use crate::Random;
use lmhead::backend::device::{KernelDevice, stream_marks};
use lmhead::backend::params::{LMHEAD_PEER_LANES, LMHEAD_PEER_SLOT_BYTES};
use lmhead::exchange::Piece;
use lmhead::exchange::peers::{PeerExchange, window_bytes};
use std::sync::Barrier;
use std::time::Duration;

/// Longest wait of a kernel: never reached where all members come.
const PATIENCE: Duration = Duration::from_secs(60);

/// The windows of a group, and its members' kernels.
pub struct PeerGroup<D: KernelDevice> {
    /// Dropped first.
    pub members: Vec<Box<dyn PeerExchange>>,
    _windows: Vec<D::Buffer>,
}

impl<D: KernelDevice> PeerGroup<D> {
    /// # Panics
    /// Where there is no memory, or no such kernel.
    pub fn new(device: &D, size: usize) -> Self {
        let windows: Vec<D::Buffer> =
            (0..size).map(|_| device.alloc(window_bytes(size)).expect("memory")).collect();
        let addresses: Vec<u64> = windows.iter().map(|window| device.address(window)).collect();
        let marks = stream_marks(device);
        // SAFETY: memory of that size, for nothing else, which outlives the members.
        let member = |me| unsafe { marks.peer_exchange(me, &addresses) }.expect("the kernels");
        PeerGroup { members: (0..size).map(member).collect(), _windows: windows }
    }
}

/// Byte `i` of what `from` sends `to` in a round.
fn byte(round: usize, from: usize, to: usize, i: usize) -> u8 {
    (i * 7 + i / 256 * 3 + from * 31 + to * 57 + round * 101) as u8
}

/// Lengths of pieces, `[from][to]`, the same for all members: mostly short, of any alignment; some of
/// several chunks, some empty.
fn lengths(random: &mut Random, size: usize) -> Vec<Vec<usize>> {
    // All kernels run at the same time, and an emulated device has stacks for so many threads.
    let slots = if size < 4 { 3 } else { 1 };
    let longest = slots * LMHEAD_PEER_SLOT_BYTES as usize;
    let length = |random: &mut Random| match random.below(8) {
        0 | 1 => 0,
        2 => random.below(longest),
        3 => 16 * random.below(300),
        _ => random.below(500),
    };
    (0..size).map(|_| (0..size).map(|_| length(random)).collect()).collect()
}

/// Checks that each member of `size` gets what the others send it, in rounds that nobody waits for.
///
/// # Panics
/// Where something else arrives.
pub fn pieces_arrive_through_windows<D: KernelDevice>(device: &D, size: usize, rounds: usize, seed: u64) {
    let mut random = Random(seed);
    let plan: Vec<Vec<Vec<usize>>> = (0..rounds).map(|_| lengths(&mut random, size)).collect();
    // Where a piece begins, behind the one before.
    rounds_arrive(device, &plan, random.below(16));
}

/// The same for two members, with pieces that go through all lanes and fill each slot several times.
///
/// # Panics
/// As [`pieces_arrive_through_windows`].
pub fn long_pieces_arrive_through_windows<D: KernelDevice>(device: &D) {
    let (slot, lanes) = (LMHEAD_PEER_SLOT_BYTES as usize, LMHEAD_PEER_LANES as usize);
    let round = |one: usize, other: usize| vec![vec![one, one], vec![other, other]];
    let plan = [
        round(lanes * slot + 1, 5 * lanes * slot / 2 + 12),
        round(5 * lanes * slot, 0),
        round(3 * slot, 2 * lanes * slot),
    ];
    for gap in [0, 4, 7] {
        rounds_arrive(device, &plan, gap);
    }
}

fn rounds_arrive<D: KernelDevice>(device: &D, plan: &[Vec<Vec<usize>>], gap: usize) {
    let size = plan[0].len();
    let group = PeerGroup::new(device, size);
    let ready = Barrier::new(size);
    std::thread::scope(|scope| {
        for (me, member) in group.members.iter().enumerate() {
            let ready = &ready;
            scope.spawn(move || rank(device, &**member, me, plan, gap, ready));
        }
    });
}

/// What a member sends and receives in one round.
struct Round<D: KernelDevice> {
    _from: D::Buffer,
    to: D::Buffer,
    send: Vec<Piece>,
    recv: Vec<Piece>,
    /// What is in `to` afterwards.
    wanted: Vec<u8>,
}

impl<D: KernelDevice> Round<D> {
    /// Pieces lie one behind the other, `gap` bytes apart.
    fn new(
        device: &D,
        stream: D::Stream,
        me: usize,
        number: usize,
        lengths: &[Vec<usize>],
        gap: usize,
    ) -> Self {
        let size = lengths.len();
        let incoming: Vec<usize> = (0..size).map(|from| lengths[from][me]).collect();
        let pieces = |buffer: &D::Buffer, lengths: &[usize]| {
            let mut at = device.address(buffer);
            let piece = |&len: &usize| {
                let this = Piece { address: at, len };
                at += (len + gap) as u64;
                this
            };
            lengths.iter().map(piece).collect::<Vec<_>>()
        };
        let bytes = |from: usize, to: usize| (0..lengths[from][to]).map(move |i| byte(number, from, to, i));
        let gaps = |value: u8| (0..gap).map(move |_| value);
        let sent: Vec<u8> = (0..size).flat_map(|to| bytes(me, to).chain(gaps(0xee))).collect();
        let wanted: Vec<u8> = (0..size).flat_map(|from| bytes(from, me).chain(gaps(0xdd))).collect();
        let from = device.alloc(sent.len()).expect("memory");
        let to = device.alloc(wanted.len()).expect("memory");
        device.write_on(stream, &from, 0, &sent).expect("a copy");
        device.write_on(stream, &to, 0, &vec![0xdd; wanted.len()]).expect("a copy");
        let (send, recv) = (pieces(&from, &lengths[me]), pieces(&to, &incoming));
        Round { _from: from, to, send, recv, wanted }
    }
}

fn rank<D: KernelDevice>(
    device: &D,
    member: &dyn PeerExchange,
    me: usize,
    plan: &[Vec<Vec<usize>>],
    gap: usize,
    ready: &Barrier,
) {
    let own = device.open_stream().expect("a stream");
    let stream = device.on(&own);
    let round =
        |(number, lengths): (usize, &Vec<Vec<usize>>)| Round::new(device, stream, me, number, lengths, gap);
    let rounds: Vec<Round<D>> = plan.iter().enumerate().map(round).collect();
    // While kernels wait for each other, nobody allocates: that may wait for the whole device.
    ready.wait();
    for round in &rounds {
        // SAFETY: buffers that live until the stream was waited for; windows that outlive this thread.
        let queued = unsafe { member.exchange(&round.send, &round.recv, PATIENCE, device.handle(stream)) };
        assert_eq!(queued, Ok(()));
    }
    device.wait(stream).expect("all rounds end");
    assert_eq!(member.fault(), None);
    for (number, round) in rounds.iter().enumerate() {
        let mut got = vec![0; round.wanted.len()];
        device.read_on(stream, &round.to, 0, &mut got).expect("a copy");
        assert!(got == round.wanted, "member {me} of {}, round {number}", plan[number].len());
    }
}
