//! Launches the kernels that exchange through windows (`kernels/exchange_peers_sm80.cu`).

use super::marks::broken;
use super::{Grid, KernelDevice};
use crate::error::{Error, Result};
use crate::exchange::peers::{MOST_MEMBERS, PeerExchange, WINDOW_ALIGNMENT, window_bytes};
use crate::exchange::{Fault, Piece};
use crate::memory::Stream;
use crate::params::{
    ExchangePeersParams, LMHEAD_PEER_LANES, LMHEAD_PEER_SLOT_BYTES, LMHEAD_PEER_THREADS, PeerCounts,
    PeerPieces, PeerStatus,
};
use crate::process::Maker;
use std::mem::offset_of;
use std::sync::Mutex;
use std::time::Duration;

const LANES: usize = LMHEAD_PEER_LANES as usize;
/// A word in which a block's threads learn whether the next chunk may be moved.
const SHARED_BYTES: usize = 4;

pub(super) struct Peers<D: KernelDevice> {
    device: D,
    kernel: D::Kernel<ExchangePeersParams>,
    me: usize,
    /// Address of each member's window.
    windows: Vec<u64>,
    /// [`PeerCounts`] of each lane, and the word that tells of an exchange that was given up.
    counts: D::Buffer,
    /// A [`PeerStatus`], which host and device read and write; kept for its memory.
    _status: Mutex<D::Staging>,
    /// Address of the status.
    at: usize,
    /// The process that made it: a forked one does not share the status.
    maker: Maker,
}

impl<D: KernelDevice> Peers<D> {
    /// Clears the window of member `me`, and what counts the chunks that went through it.
    ///
    /// # Errors
    /// `Shape` for other numbers of members, or a window that is not aligned; `Device` where there is no
    /// memory; `Unsupported` where the device does not run the kernel.
    ///
    /// # Safety
    /// As [`StreamMarks::peer_exchange`](crate::exchange::StreamMarks::peer_exchange).
    pub unsafe fn new(device: &D, me: usize, windows: &[u64]) -> Result<Self> {
        let size = windows.len();
        if !(2..=MOST_MEMBERS).contains(&size) || me >= size {
            let wanted = format!("one of 2 to {MOST_MEMBERS} members");
            let fix = "exchange without windows in other groups";
            return Err(Error::shape("windows", wanted, format!("member {me} of {size}"), fix));
        }
        if let Some(window) = windows.iter().find(|&&window| !window.is_multiple_of(WINDOW_ALIGNMENT as u64))
        {
            let wanted = format!("addresses that are multiples of {WINDOW_ALIGNMENT}");
            return Err(Error::shape("windows", wanted, format!("{window:#x}"), "align the memory"));
        }
        let count_bytes = size * LANES * size_of::<PeerCounts>();
        let (kernel, counts) = (device.kernel("exchange_peers")?, device.alloc(count_bytes + 4)?);
        let mut status = device.staging(size_of::<PeerStatus>())?;
        status.as_mut().fill(0);
        let at = status.as_mut().as_mut_ptr().expose_provenance();
        let own = device.open_stream()?;
        let on = device.on(&own);
        // SAFETY: memory of this call, and this member's window, as the caller says.
        unsafe {
            device.clear(on, device.address(&counts), count_bytes / 4 + 1)?;
            device.clear(on, windows[me], window_bytes(size) / 4)?;
        }
        device.wait(on)?;
        let (device, windows) = (device.clone(), windows.to_vec());
        Ok(Peers {
            device,
            kernel,
            me,
            windows,
            counts,
            _status: Mutex::new(status),
            at,
            maker: Maker::here(),
        })
    }

    fn word(&self, offset: usize) -> *mut u32 {
        std::ptr::with_exposed_provenance_mut(self.at + offset)
    }
}

impl<D: KernelDevice> PeerExchange for Peers<D> {
    unsafe fn exchange(
        &self,
        send: &[Piece],
        recv: &[Piece],
        timeout: Duration,
        stream: Stream,
    ) -> std::result::Result<(), Fault> {
        let size = self.windows.len();
        crate::exchange::check_pieces(size, send.len(), recv.len())?;
        let longest = send.iter().chain(recv).map(|piece| piece.len).max().unwrap_or(0);
        let lanes = longest.div_ceil(LMHEAD_PEER_SLOT_BYTES as usize).min(LANES);
        if lanes == 0 {
            return Ok(());
        }
        let none = PeerPieces {
            send: std::ptr::null(),
            recv: std::ptr::null_mut(),
            send_bytes: 0,
            recv_bytes: 0,
            window: std::ptr::null_mut(),
        };
        let mut members = [none; MOST_MEMBERS];
        for (((to, send), recv), window) in members.iter_mut().zip(send).zip(recv).zip(&self.windows) {
            *to = PeerPieces {
                send: send.address as usize as *const u8,
                recv: recv.address as usize as *mut u8,
                send_bytes: send.len as u64,
                recv_bytes: recv.len as u64,
                window: *window as usize as *mut u8,
            };
        }
        let counts = self.device.address(&self.counts);
        let cut = counts + (size * LANES * size_of::<PeerCounts>()) as u64;
        let params = ExchangePeersParams {
            members,
            counts: counts as usize as *mut PeerCounts,
            status: self.at as *mut PeerStatus,
            cut: cut as usize as *mut u32,
            // Years are enough, and the clock does not overflow.
            timeout_ns: u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX).min(1 << 60),
            slot_bytes: LMHEAD_PEER_SLOT_BYTES,
            size: size as u32,
            me: self.me as u32,
            lanes: lanes as u32,
        };
        let blocks = (2 * size * lanes) as u32;
        let grid = Grid { blocks, threads: LMHEAD_PEER_THREADS, shared_bytes: SHARED_BYTES };
        // SAFETY: the caller's promises, and memory that lives as long as this.
        let queued = unsafe {
            let stream = self.device.stream_from(stream);
            self.device.launch(stream, &self.kernel, &grid, &params)
        };
        queued.map_err(|error| broken(&error))
    }

    fn end(&self) {
        if !self.maker.is_here() {
            return;
        }
        // SAFETY: an aligned word that lives as long as this; kernels and host write nothing but whole words.
        unsafe { self.word(offset_of!(PeerStatus, ended)).write_volatile(1) };
    }

    fn fault(&self) -> Option<Fault> {
        // SAFETY: as above.
        let word = |offset: usize| unsafe { self.word(offset).read_volatile() } as usize;
        if let Some(member) = word(offset_of!(PeerStatus, missing)).checked_sub(1) {
            return Some(Fault::Timeout { missing: vec![member] });
        }
        let member = word(offset_of!(PeerStatus, mismatched)).checked_sub(1)?;
        let (wanted, got) = (word(offset_of!(PeerStatus, wanted)), word(offset_of!(PeerStatus, got)));
        Some(Fault::Length { peers: vec![(member, wanted, got)] })
    }
}

impl<D: KernelDevice> Drop for Peers<D> {
    /// Freeing memory waits for the device, where no kernel may go on waiting for a peer.
    fn drop(&mut self) {
        self.end();
    }
}
