//! Which channels have windows, through which kernels of this crate exchange
//! ([`peers`](crate::exchange::peers)).

use super::NcclExchange;
use super::communicator::Communicator;
use super::window::Window;
use crate::digest::mix64;
use crate::exchange::peers::{MOST_MEMBERS, PeerExchange, window_bytes};
use crate::exchange::{Call, Exchange, Fault};
use std::sync::Arc;

/// Environment variable: with `on` on all ranks, channels have windows where they can; with `off`, or where
/// it is not set, collectives go through NCCL's own kernels.
pub const LMHEAD_NCCL_WINDOWS: &str = "LMHEAD_NCCL_WINDOWS";

/// A channel's windows.
pub(super) struct Windows {
    pub peers: Box<dyn PeerExchange>,
    /// Kept for its memory.
    _window: Window,
}

impl NcclExchange {
    /// Makes the channel's windows, if all members ask for them and can have them: NCCL is new enough, they
    /// run on one host, and the kernels of each reach the memory of all others. An engine's own communicator
    /// gets none: what is registered with it would have to be given back before the engine destroys it.
    ///
    /// # Errors
    /// A fault of NCCL, or of the host transport, over which the members agree.
    pub(super) fn windows(
        &self,
        communicator: &Arc<Communicator>,
        call: &Call,
        control: &dyn Exchange,
    ) -> Result<Option<Windows>, Fault> {
        let fits = (2..=MOST_MEMBERS).contains(&self.size);
        let can = is_on()? && fits && self.given.is_none() && self.nccl.has_windows();
        // Registration was seen to hang across hosts (sgl-project/sglang#29881).
        if !all_say(host().filter(|_| can), call, control)? {
            return Ok(None);
        }
        let mut ended = || self.ended(call, Some(control));
        let made = communicator.window_polled(window_bytes(self.size), &mut ended);
        let window = made.map_err(|refused| match refused.into_fault() {
            Fault::Broken { problem, fix } => {
                Fault::Broken { problem, fix: format!("{fix}; or set {LMHEAD_NCCL_WINDOWS}=off") }
            }
            fault => fault,
        })?;
        let addresses: Option<Vec<u64>> = window.peers().iter().copied().collect();
        // SAFETY: as long as `window_bytes` says, aligned by NCCL to a page, and used for nothing else. The
        // kernels end before the communicator does (State::give_up).
        let made = addresses.map(|all| unsafe { self.marks.peer_exchange(self.me, &all) });
        let peers = made.and_then(Result::ok);
        // From here on the peers store into this member's window, which is clear now.
        if !all_say(peers.is_some().then_some(1), call, control)? {
            return Ok(None);
        }
        Ok(peers.map(|peers| Windows { peers, _window: window }))
    }
}

/// What [`LMHEAD_NCCL_WINDOWS`] says.
fn is_on() -> Result<bool, Fault> {
    match std::env::var_os(LMHEAD_NCCL_WINDOWS) {
        None => Ok(false),
        Some(value) if value.is_empty() || value == "off" => Ok(false),
        Some(value) if value == "on" => Ok(true),
        Some(value) => {
            let problem = format!("{LMHEAD_NCCL_WINDOWS}: wanted on or off, got {value:?}");
            Err(Fault::Broken { problem, fix: "set it to one of these, or not at all".into() })
        }
    }
}

/// A number that processes of one host have in common: of its boot.
fn host() -> Option<u64> {
    let boot = std::fs::read("/proc/sys/kernel/random/boot_id").ok()?;
    Some(boot.iter().fold(0, |hash, &byte| mix64(hash ^ u64::from(byte))) | 1)
}

/// Whether all members say the same; `None` is a no. Collective.
fn all_say(own: Option<u64>, call: &Call, control: &dyn Exchange) -> Result<bool, Fault> {
    let everyone: Vec<usize> = (0..control.size()).collect();
    let own = own.unwrap_or(0).to_le_bytes();
    let mut answers = vec![[0u8; 8]; everyone.len()];
    let mut recv: Vec<&mut [u8]> = answers.iter_mut().map(|answer| &mut answer[..]).collect();
    control.all_gather_v(call, &everyone, &own, &mut recv)?;
    Ok(own != [0; 8] && answers.iter().all(|answer| *answer == own))
}
