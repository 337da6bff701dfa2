//! Exchanges through windows, with one mistake each.

use crate::broken_matmul::Outcome;
use crate::planted::{Broken, Compared, before, check_compared};
use lmhead::backend::params::{
    ExchangePeersParams, LMHEAD_MAX_PEERS, LMHEAD_PEER_LANES, LMHEAD_PEER_SLOTS, PeerCounts, PeerFlags,
    PeerPieces, PeerStatus,
};
use lmhead_emulated::FaultKind::*;
use lmhead_emulated::{Buffer, Device, LaunchConfig, emulated_kernel};
use std::sync::Mutex;

const SIZE: usize = 2;
const LANES: usize = LMHEAD_PEER_LANES as usize;
const SLOT: usize = 128;
/// Bytes of the piece for the rank itself and for the other one: several rounds of all lanes, the last chunk
/// a part of a slot.
const PIECES: [usize; SIZE] = [300, 5 * LANES * SLOT + 20];
const ROUNDS: usize = 2;
/// So that the counts overflow while the kernel runs.
const FIRST: u32 = u32::MAX - 3;

fn byte(round: usize, from: usize, to: usize, i: usize) -> u8 {
    (i * 7 + i / 256 * 3 + from * 31 + to * 57 + round * 101) as u8
}

struct Rank {
    send: [[Buffer; SIZE]; ROUNDS],
    recv: [[Buffer; SIZE]; ROUNDS],
    counts: Buffer,
    status: Buffer,
    cut: Buffer,
}

/// Two ranks exchange twice, each in a thread of its own.
fn exchange(how: u32, seed: u64) -> Outcome {
    let mut device = Device::new();
    let window_bytes = SIZE * LANES * (size_of::<PeerFlags>() + LMHEAD_PEER_SLOTS as usize * SLOT);
    let mut flags = vec![0u32; window_bytes / 4];
    for lane in 0..SIZE * LANES {
        flags[lane * size_of::<PeerFlags>() / 4..][..2].fill(FIRST);
    }
    let windows: [Buffer; SIZE] = std::array::from_fn(|_| device.upload(&flags));
    let len = |from: usize, to: usize| PIECES[usize::from(from != to)];
    let ranks: [Rank; SIZE] = std::array::from_fn(|me| Rank {
        send: std::array::from_fn(|round| {
            std::array::from_fn(|to| {
                let bytes: Vec<u8> = (0..len(me, to)).map(|i| byte(round, me, to, i)).collect();
                device.upload_read_only(&bytes)
            })
        }),
        recv: std::array::from_fn(|_| {
            std::array::from_fn(|from| device.upload(&vec![0xddu8; len(from, me)]))
        }),
        counts: device.upload(&vec![FIRST; SIZE * LANES * size_of::<PeerCounts>() / 4]),
        status: device.upload(&[0u32; size_of::<PeerStatus>() / 4]),
        cut: device.upload(&[0u32]),
    });
    let kernel = emulated_kernel!(broken_exchange_peers: Broken<ExchangePeersParams>);
    let device = Mutex::new(device);
    let run = |me: usize| {
        for round in 0..ROUNDS {
            let rank = &ranks[me];
            let none = PeerPieces {
                send: std::ptr::null(),
                recv: std::ptr::null_mut(),
                send_bytes: 0,
                recv_bytes: 0,
                window: std::ptr::null_mut(),
            };
            let mut members = [none; LMHEAD_MAX_PEERS as usize];
            for peer in 0..SIZE {
                members[peer] = PeerPieces {
                    send: rank.send[round][peer].pointer(),
                    recv: rank.recv[round][peer].pointer(),
                    send_bytes: len(me, peer) as u64,
                    recv_bytes: len(peer, me) as u64,
                    window: windows[peer].pointer(),
                };
            }
            let right = ExchangePeersParams {
                members,
                counts: rank.counts.pointer(),
                status: rank.status.pointer(),
                cut: rank.cut.pointer(),
                // Where a flag never comes, that is the end.
                timeout_ns: if how == 0 { 60_000_000_000 } else { 500_000_000 },
                slot_bytes: SLOT as u32,
                size: SIZE as u32,
                me: me as u32,
                lanes: LANES as u32,
            };
            let params = Broken { right, how };
            let config = LaunchConfig::new([(2 * SIZE * LANES) as u32, 1, 1], [32, 1, 1]);
            let config = config.shared(4).seed(seed + 1000 * round as u64);
            let launch = {
                let mut device = device.lock().expect("no panic");
                before(&mut device, rank.status, 1, 0);
                device.prepare_for_peers(&kernel, &params, &config)?
            };
            // SAFETY: nobody touches the buffers before both ranks have ended.
            unsafe { launch.run()? };
        }
        Ok(())
    };
    let (one, other) = std::thread::scope(|scope| {
        let other = scope.spawn(|| run(1));
        (run(0), other.join().expect("no panic"))
    });
    if let Err(fault) = one.and(other) {
        return Outcome::Fault(fault);
    }
    let device = device.into_inner().expect("no panic");
    let arrived = |me: usize, round: usize, from: usize| {
        let got: Vec<u8> = device.download(ranks[me].recv[round][from]).expect("the device's own buffer");
        got.iter().enumerate().all(|(i, &got)| got == byte(round, from, me, i))
    };
    let all = |each: &dyn Fn(usize) -> bool, n: usize| (0..n).all(each);
    let right = all(&|me| all(&|round| all(&|from| arrived(me, round, from), SIZE), ROUNDS), SIZE);
    if right { Outcome::Right } else { Outcome::Wrong }
}

#[test]
fn exchanges() {
    let rows: &[Compared] = &[
        (1, "no griddepcontrol.wait", &[Dependency, Turn]),
        (2, "a chunk is taken before it has arrived", &[]),
        (3, "a slot is filled that is not empty", &[]),
        (4, "a chunk counts as arrived before it is there", &[]),
        (5, "a slot counts as empty before it is", &[]),
        (6, "no barrier between a chunk's stores and its flag", &[]),
        (7, "the first look at the flag is an ordinary load", &[Race]),
        (8, "an ordinary store sets a lane's last flag", &[Race]),
        (9, "a rank tells its peer in the lane of the peer", &[]),
        (10, "the last chunk is as long as the others", &[GlobalBounds]),
        (11, "always the first slot", &[]),
        (12, "how far a lane has come is forgotten", &[]),
    ];
    check_compared("broken_exchange_peers", rows, exchange);
}
