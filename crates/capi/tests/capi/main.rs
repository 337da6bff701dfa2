//! The C interface, called as C calls it.
#![allow(unsafe_code, reason = "functions of the C interface")]

mod bridge;
#[cfg(target_os = "linux")]
mod fork;
mod refused;
mod requests;
mod rig;
mod stress;
