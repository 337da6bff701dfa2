//! NCCL's unique ids: how the members of a communicator find each other.

use super::library::Failed;
use super::{Nccl, sys};
use crate::error::{Error, Result};
use crate::exchange::{Call, Exchange, Fault};
use std::fmt;

/// Names one communicator to all of its members. One member makes it ([`Nccl::unique_id`]), and the engine's
/// control plane, or [`UniqueId::share`], takes its bytes to the others. It is used once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UniqueId([u8; UniqueId::BYTES]);

impl fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UniqueId({:#018x})", crate::digest::of_bytes(&self.0))
    }
}

impl UniqueId {
    /// Its length in bytes.
    pub const BYTES: usize = sys::NCCL_UNIQUE_ID_BYTES as usize;

    pub(super) fn of(id: sys::ncclUniqueId) -> Self {
        UniqueId(id.internal.map(|byte| byte as u8))
    }

    pub(super) fn raw(&self) -> sys::ncclUniqueId {
        sys::ncclUniqueId { internal: self.0.map(|byte| byte as std::ffi::c_char) }
    }

    /// The id of these bytes, which a control plane has brought.
    ///
    /// # Errors
    /// `Shape` for another number of bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let whole = <[u8; Self::BYTES]>::try_from(bytes).map_err(|_| {
            let (wanted, got) = (format!("{} bytes", Self::BYTES), format!("{} bytes", bytes.len()));
            let fix = "send all bytes of the id that one member made, and nothing else";
            Error::shape("unique id of NCCL", wanted, got, fix)
        })?;
        Ok(UniqueId(whole))
    }

    /// The bytes that the control plane takes to the other members.
    pub fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// A new id, which member 0 makes and all members of `control` get. Collective over them.
    ///
    /// # Errors
    /// The control transport's fault; `Broken` on member 0 where NCCL makes no id: it must tell the others,
    /// who wait.
    pub fn share(nccl: Nccl, call: &Call, control: &dyn Exchange) -> std::result::Result<Self, Fault> {
        let (size, me) = (control.size(), control.me());
        let own = if me == 0 { Some(nccl.make_id().map_err(Failed::into_fault)?) } else { None };
        let mut id = [0; Self::BYTES];
        let mut recv: Vec<&mut [u8]> = (0..size).map(|_| &mut [][..]).collect();
        recv[0] = &mut id;
        let everyone: Vec<usize> = (0..size).collect();
        let send = own.as_ref().map_or(&[][..], |own| &own.0[..]);
        control.all_gather_v(call, &everyone, send, &mut recv)?;
        Ok(UniqueId(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_another_length_are_refused_by_name() {
        let id = UniqueId::from_bytes(&[7; 128]).expect("an id");
        assert_eq!(id.as_bytes(), &[7; 128]);
        assert_eq!(UniqueId::of(id.raw()), id);
        for len in [0, 127, 129] {
            let error = UniqueId::from_bytes(&vec![7; len]).expect_err("another length");
            let wanted = format!("unique id of NCCL: wanted 128 bytes, got {len} bytes; send all bytes");
            assert!(error.to_string().starts_with(&wanted), "{error}");
        }
    }
}
