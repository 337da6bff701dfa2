//! Exchanges: what connects the members of a group.

use crate::backend::Backend;
use crate::boundary::{Outcome, argument, call, call_silently, place};
use crate::handles;
use crate::structs::{count, sized};
use crate::sys::{lmhead_backend, lmhead_exchange, lmhead_status, lmhead_transport};
use crate::transport::Table;
#[cfg(feature = "nccl")]
use lmhead::exchange::WithDevice;
use lmhead::exchange::{Exchange, Operation, StreamMarks, callbacks, local};
use lmhead::memory::Memory;
use std::ffi::{c_char, c_void};
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub struct Endpoint(pub Arc<dyn Exchange>);

/// The most members that may be threads of one process: their memory grows with the square of the number.
const MOST_THREADS: usize = 4096;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_exchange_local(
    n: i64,
    endpoints: *mut *mut lmhead_exchange,
) -> lmhead_status {
    call(|| {
        let endpoints = place("endpoints", endpoints)?;
        let n = count("n", n)?;
        if n > MOST_THREADS {
            let wanted = format!("at most {MOST_THREADS}");
            return Err(argument("n", wanted, n, "each member is a thread of this process"));
        }
        for (i, endpoint) in local::group(n).into_iter().enumerate() {
            let handle = handles::keep(Endpoint(Arc::new(endpoint)))?;
            // SAFETY: the caller's promise of `n` places.
            unsafe { endpoints.add(i).write(handle) };
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_exchange_callbacks(
    transport: *const lmhead_transport,
    user: *mut c_void,
    endpoint: *mut *mut lmhead_exchange,
) -> lmhead_status {
    call(|| {
        let endpoint = place("endpoint", endpoint)?;
        // SAFETY: the caller's promise.
        let functions = unsafe { sized("transport", transport)? };
        let (n, me) = (count("transport.n", functions.n)?, count("transport.me", functions.me)?);
        let (exchange, table): (Arc<dyn Exchange>, _) = if functions.device.is_null() {
            let table = Arc::new(Table::new(functions, user, Memory::Host)?);
            (callbacks::exchange(n, me, Arc::clone(&table) as _)?, table)
        } else {
            let device = handles::get::<Backend>("transport.device", functions.device)?;
            let control = Arc::clone(&handles::get::<Endpoint>("transport.control", functions.control)?.0);
            if (n, me) != (control.size(), control.me()) {
                let (wanted, got) = (member(control.me(), control.size()), member(me, n));
                return Err(argument(
                    "transport",
                    wanted,
                    got,
                    "control is a host exchange of the same members",
                ));
            }
            let marks = device.marks()?;
            let table = Arc::new(Table::new(functions, user, marks.memory())?);
            (callbacks::with_device(Arc::clone(&table) as _, marks, control)?, table)
        };
        let handle = handles::keep(Endpoint(exchange))?;
        table.handed_over.store(true, Ordering::Release);
        // SAFETY: `endpoint` is non-null and aligned (checked); the header requires it to be writable.
        unsafe { endpoint.write(handle) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_exchange_nccl(
    device: *const lmhead_backend,
    nccl_comm: *mut c_void,
    control: *const lmhead_exchange,
    endpoint: *mut *mut lmhead_exchange,
) -> lmhead_status {
    call(|| {
        let endpoint = place("endpoint", endpoint)?;
        let marks = handles::get::<Backend>("device", device)?.marks()?;
        let control = Arc::clone(&handles::get::<Endpoint>("control", control)?.0);
        // SAFETY: the caller's promise.
        let handle = handles::keep(Endpoint(unsafe { nccl(marks, nccl_comm, control)? }))?;
        // SAFETY: `endpoint` is non-null and aligned (checked); the header requires it to be writable.
        unsafe { endpoint.write(handle) };
        Ok(())
    })
}

/// # Safety
/// `nccl_comm` must be null, or an `ncclComm_t` as the header says.
#[cfg(feature = "nccl")]
unsafe fn nccl(
    marks: Arc<dyn StreamMarks>,
    nccl_comm: *mut c_void,
    control: Arc<dyn Exchange>,
) -> Outcome<Arc<dyn Exchange>> {
    use lmhead::exchange::nccl::{Communicator, Nccl, NcclExchange};
    let nccl = Nccl::load(None)?;
    let device_exchange = if nccl_comm.is_null() {
        NcclExchange::new(nccl, marks, (control.me(), control.size()))
    } else {
        // SAFETY: as the caller says.
        let borrowed = unsafe { Communicator::borrow(nccl, &marks, nccl_comm) };
        let borrowed = borrowed.map_err(|fault| fault.without_call("the engine's communicator"))?;
        if (borrowed.rank(), borrowed.size()) != (control.me(), control.size()) {
            let (wanted, got) =
                (member(control.me(), control.size()), member(borrowed.rank(), borrowed.size()));
            return Err(argument("nccl_comm", wanted, got, "control is a host exchange of the same members"));
        }
        NcclExchange::over(nccl, marks, Arc::new(borrowed))
    };
    Ok(Arc::new(WithDevice::new(control, Arc::new(device_exchange))))
}

/// # Safety
/// Unsafe only to match the other build's signature.
#[cfg(not(feature = "nccl"))]
unsafe fn nccl(_: Arc<dyn StreamMarks>, _: *mut c_void, _: Arc<dyn Exchange>) -> Outcome<Arc<dyn Exchange>> {
    let fix = "build the library with `--features cuda,nccl`";
    Err(lmhead::Error::unsupported("exchange nccl", "a build with NCCL", "one without", fix).into())
}

fn member(me: usize, n: usize) -> String {
    format!("member {me} of {n}")
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_exchange_free(endpoint: *mut lmhead_exchange) {
    call_silently("lmhead_exchange_free", || handles::free::<Endpoint>("endpoint", endpoint));
}

/// [`Operation::name`] as a C string; a test compares the two.
fn c_name(operation: Operation) -> &'static std::ffi::CStr {
    match operation {
        Operation::Create => c"creation of the head",
        Operation::Rebuild => c"rebuilding of the head",
        Operation::Connect => c"connecting of the devices",
        Operation::SelfTest => c"self-test of the exchange",
        Operation::Contract => c"exchange of step headers",
        Operation::GatherRows => c"all_gather of hidden rows",
        Operation::ExchangeResults => c"all_to_all of results",
        Operation::AdjustmentSizes => c"all_to_all of adjustment sizes",
        Operation::Adjustments => c"all_to_all of adjustments",
        Operation::Targets => c"all_gather of targets",
        Operation::TargetLogits => c"all_gather of target logits",
        Operation::SamplingParams => c"all_gather of sampling parameters",
        Operation::LargestLogits => c"all_gather of largest logits",
        Operation::Histograms => c"all_to_all of histograms",
        Operation::Cuts => c"all_to_all of cuts",
        Operation::Tokens => c"all_gather of tokens",
        Operation::Idle => c"idle after the step",
        _ => c"?",
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_operation_name(operation: i32) -> *const c_char {
    let known = u8::try_from(operation).ok().and_then(Operation::from_code);
    known.map_or(c"?", c_name).as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_has_its_name() {
        for operation in Operation::ALL {
            assert_eq!(c_name(operation).to_str(), Ok(operation.name()));
        }
    }
}
