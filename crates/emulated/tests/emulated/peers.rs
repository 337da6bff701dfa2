//! Kernels that wait for kernels of other ranks: ranks are threads that share a device.

use lmhead::backend::device::{Grid, KernelDevice};
use lmhead::backend::params::{SetWordsParams, WordsToSet};
use lmhead_emulated::probe::*;
use lmhead_emulated::{Device, EmulatedDevice, FaultKind, LaunchConfig};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::Duration;

/// More than any machine for tests has cores, together.
const BLOCKS: usize = 40;
const ROUNDS: u32 = 12;
/// Words of `out`: 80 of each block, and what 32 lanes have computed.
const WORDS: usize = (80 + 32) * BLOCKS;
/// The longest wait for a flag in tests whose flags come.
const PATIENCE: u32 = 120_000; // ms

fn params(out: u64, peers: u64, n: [u32; 6]) -> ProbeParams {
    ProbeParams { map: NO_MAP, map_out: NO_MAP, input: peers as *const u32, out: out as *mut u32, n }
}

const GRID: Grid = Grid { blocks: BLOCKS as u32, threads: 32, shared_bytes: 0 };

/// What the lanes of both ranks' blocks compute.
fn wanted() -> [Vec<u32>; 2] {
    let mut v = [vec![0u32; 32 * BLOCKS], vec![0u32; 32 * BLOCKS]];
    for round in 1..=ROUNDS {
        let sent = [0, 1].map(|rank: usize| {
            let of_lane =
                |(i, v): (usize, &u32)| v.wrapping_mul(3).wrapping_add((i % 32 + 7 * (i / 32) + rank) as u32);
            v[rank].iter().enumerate().map(of_lane).collect::<Vec<_>>()
        });
        for (rank, v) in v.iter_mut().enumerate() {
            for (i, v) in v.iter_mut().enumerate() {
                *v = sent[1 - rank][32 * (BLOCKS - 1 - i / 32) + i % 32].wrapping_add(round);
            }
        }
    }
    v
}

/// Runs both ranks on threads and returns what each has computed. `memories`: of the ranks, zeros at first.
fn exchange(device: &EmulatedDevice, memories: [u64; 2], n: [u32; 6]) -> [lmhead::Result<()>; 2] {
    thread::scope(|scope| {
        let ranks = [0, 1].map(|rank: usize| {
            scope.spawn(move || {
                let n = [n[0], n[1], rank as u32, n[3], 0, 0];
                let params = params(memories[rank], memories[1 - rank], n);
                // SAFETY: nobody but the kernels touches the memories, which outlive them.
                unsafe { device.launch((), &probe_peers(), &GRID, &params) }
            })
        });
        ranks.map(|rank| rank.join().expect("no panic"))
    })
}

#[test]
fn ranks_hand_each_other_words() {
    let zeros = vec![0u8; 4 * WORDS];
    for seed in 0..20 {
        let device = EmulatedDevice::new(seed);
        let buffers = [0, 1].map(|_| device.alloc(4 * WORDS).expect("memory"));
        for buffer in &buffers {
            // SAFETY: nothing runs.
            unsafe { device.queue_write((), buffer, 0, &zeros) }.expect("a write");
        }
        let memories = [0, 1].map(|rank: usize| device.address(&buffers[rank]));
        let ended = exchange(&device, memories, [ROUNDS, PATIENCE, 0, 0, 0, 0]);
        for (rank, wanted) in wanted().into_iter().enumerate() {
            assert!(ended[rank].is_ok(), "seed {seed}, rank {rank}: {:?}", ended[rank]);
            let mut bytes = vec![0; 4 * WORDS];
            // SAFETY: the kernels have ended.
            unsafe { device.queue_read((), &buffers[rank], 0, &mut bytes) }.expect("a read");
            assert_eq!(words(&bytes)[80 * BLOCKS..], wanted, "seed {seed}, rank {rank}");
        }
    }
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect()
}

#[test]
fn staging_memory_is_within_reach_of_kernels() {
    let device = EmulatedDevice::new(0);
    let mut staging = [0, 1].map(|_| device.staging(4 * WORDS).expect("memory"));
    let memories = staging.each_mut().map(|memory| {
        let bytes = memory.as_mut();
        assert_eq!((bytes.len(), bytes.iter().all(|&byte| byte == 0xcb)), (4 * WORDS, true));
        bytes.fill(0);
        bytes.as_ptr().expose_provenance() as u64
    });
    let ended = exchange(&device, memories, [ROUNDS, PATIENCE, 0, 0, 0, 0]);
    assert!(ended.iter().all(Result::is_ok), "{ended:?}");
    for (memory, wanted) in staging.iter().zip(wanted()) {
        assert_eq!(words(memory.as_ref())[80 * BLOCKS..], wanted);
    }
    // Freed, it is out of reach.
    drop(staging);
    let [ended, _] = exchange(&device, memories, [1, 1, 0, 0, 0, 0]);
    assert!(ended.expect_err("a fault").to_string().contains("GlobalBounds"));
}

#[test]
fn a_kernel_whose_peer_never_comes_ends_while_others_use_the_device() {
    let device = EmulatedDevice::new(3);
    let [out, peer] = [0, 1].map(|_| device.alloc(4 * WORDS).expect("memory"));
    // SAFETY: nothing runs.
    unsafe { device.queue_write((), &out, 0, &vec![0; 4 * WORDS]) }.expect("a write");
    // SAFETY: likewise.
    unsafe { device.queue_write((), &peer, 0, &vec![0; 4 * WORDS]) }.expect("a write");
    let [out_at, peer_at] = [&out, &peer].map(|buffer| device.address(buffer));
    let set_words = device.kernel::<SetWordsParams>("set_words").expect("a kernel of the crate");
    let ended = AtomicBool::new(false);
    let meanwhile = thread::scope(|scope| {
        scope.spawn(|| {
            let params = params(out_at, peer_at, [1, 2000, 0, 0, 0, 0]);
            // SAFETY: nobody touches what it writes to, but for a flag that is read as one.
            let launched = unsafe { device.launch((), &probe_peers(), &GRID, &params) };
            ended.store(true, Ordering::SeqCst);
            launched.expect("its waits end");
        });
        // The first block sets a flag of the peer's last.
        let mut flag = [0; 4];
        while flag == [0; 4] {
            thread::sleep(Duration::from_millis(1));
            // SAFETY: the bytes are this thread's; nobody makes anything of their order.
            unsafe { device.queue_read((), &peer, 80 * 4 * (BLOCKS - 1), &mut flag) }.expect("a read");
        }
        // The kernel, which runs, may go on to use what is freed now.
        drop(peer);
        let mut meanwhile = 0;
        while !ended.load(Ordering::SeqCst) {
            let own = device.alloc(4 * 64).expect("memory");
            let to = device.address(&own) as *mut u8;
            let none = WordsToSet { to: std::ptr::null_mut(), pitch: 0, count: 0, value: 0 };
            let params = SetWordsParams { words: [WordsToSet { to, pitch: 4, count: 64, value: 7 }, none] };
            let grid = Grid { blocks: 1, threads: 256, shared_bytes: 0 };
            // SAFETY: nobody else knows the buffer.
            unsafe { device.launch((), &set_words, &grid, &params) }.expect("a launch");
            let mut bytes = [0; 4 * 64];
            // SAFETY: the launch has ended.
            unsafe { device.queue_read((), &own, 0, &mut bytes) }.expect("a read");
            assert_eq!(words(&bytes), [7; 64]);
            meanwhile += u32::from(!ended.load(Ordering::SeqCst));
        }
        meanwhile
    });
    assert!(meanwhile > 1, "{meanwhile} launches while the kernel waited");
    let mut bytes = vec![0; 4 * WORDS];
    // SAFETY: the kernel has ended.
    unsafe { device.queue_read((), &out, 0, &mut bytes) }.expect("a read");
    let words = words(&bytes);
    assert!((0..BLOCKS).all(|block| words[80 * block + 1] == 0), "no words came");
    assert!(words[80 * BLOCKS..].iter().all(|&word| word == 0), "every lane has ended");
}

#[test]
fn a_fault_of_one_rank_leaves_the_others_to_their_limits() {
    let device = Mutex::new(Device::new());
    let memories = [0, 1].map(|_| device.lock().expect("no panic").upload(&[0u32; WORDS]));
    let together = Barrier::new(2);
    let config = LaunchConfig::new([BLOCKS as u32, 1, 1], [32, 1, 1]);
    let [faulty, other] = thread::scope(|scope| {
        let ranks = [0, 1].map(|rank: usize| {
            let (device, together, memories, config) = (&device, &together, &memories, &config);
            scope.spawn(move || {
                let [out, peers] = [memories[rank], memories[1 - rank]].map(|buffer| buffer.address());
                let n = [1, 300, rank as u32, u32::from(rank == 0), 0, 0];
                let launch = device.lock().expect("no panic").prepare_for_peers(
                    &probe_peers(),
                    &params(out, peers, n),
                    config,
                );
                together.wait();
                // SAFETY: nobody but the kernels touches the memories, which outlive them.
                unsafe { launch.expect("legal").run() }
            })
        });
        ranks.map(|rank| rank.join().expect("no panic"))
    });
    let fault = faulty.expect_err("a store before the wait");
    assert_eq!((fault.kind, fault.instruction.as_str()), (FaultKind::Dependency, "st.global.b32"));
    assert_eq!(other, Ok(()), "no words came, and it ended");
}

#[test]
fn a_launch_of_too_many_threads_is_refused() {
    let mut device = Device::new();
    let out = device.upload(&[0u32; 8]).address();
    let config = LaunchConfig::new([500, 1, 1], [32, 1, 1]);
    let launch = device.prepare_for_peers(&probe_peers(), &params(out, out, [0; 6]), &config);
    // SAFETY: nothing runs.
    let fault = unsafe { launch.expect("legal").run() }.expect_err("16,000 threads");
    assert_eq!(fault.kind, FaultKind::Launch);
    assert!(fault.text.contains("use fewer blocks"), "{fault}");
}
