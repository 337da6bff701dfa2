//! What happens before a signal ends the program: temporary files are removed, and a fault in a mapped file
//! is reported with the file's name.
//!
//! A signal handler may do very little. Here it writes one byte into a pipe, and a thread at the other end
//! does the rest.
//!
//! | signal | what happens |
//! |---|---|
//! | HUP, INT, QUIT, TERM, XCPU | temporary files are removed, then it ends the program as without a handler |
//! | XFSZ | is ignored, so that a write beyond the limit of a file's size is an error like a full disk |
//! | BUS (Linux) | if a mapped file cannot be read: the same, but the file is named, with exit 2 |
//!
//! A signal that was ignored when the program began stays ignored.
//!
//! Only the program has handlers. The library installs none, because an engine has its own.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The files that must not outlive the program.
static TEMPORARIES: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Registers a temporary file: while this lives, a signal that ends the program removes the file.
pub struct Listed(PathBuf);

impl Listed {
    /// Creates a file and registers it. A signal that arrives between the two waits for the lock.
    pub fn make<T>(
        make: impl FnOnce() -> io::Result<T>,
        path: impl FnOnce(&T) -> &Path,
    ) -> io::Result<(T, Self)> {
        let mut temporaries = TEMPORARIES.lock().unwrap_or_else(PoisonError::into_inner);
        let file = make()?;
        let path = path(&file).to_path_buf();
        temporaries.push(path.clone());
        Ok((file, Listed(path)))
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut temporaries = TEMPORARIES.lock().unwrap_or_else(PoisonError::into_inner);
        temporaries.retain(|path| *path != self.0);
    }
}

/// Ends the process without destructors and exit handlers, which could wait for other processes. Files that
/// must not outlive the program are removed.
pub fn exit_at_once(code: u8) -> ! {
    // The lock is never given back: no file is made after this.
    let temporaries = std::mem::ManuallyDrop::new(TEMPORARIES.lock().unwrap_or_else(PoisonError::into_inner));
    for path in temporaries.iter() {
        let _ = std::fs::remove_file(path);
    }
    #[cfg(unix)]
    // SAFETY: nothing of this process is used any more.
    unsafe {
        libc::_exit(code.into())
    }
    #[cfg(not(unix))]
    std::process::exit(code.into())
}

#[cfg(not(unix))]
pub fn watch() {}

#[cfg(unix)]
pub use unix::watch;

#[cfg(unix)]
mod unix {
    use super::{PoisonError, TEMPORARIES};
    use libc::c_int;
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGXCPU, SIGXFSZ};
    use signal_hook::low_level;
    use std::io::Read;
    use std::os::fd::IntoRawFd;
    use std::sync::atomic::{AtomicI32, Ordering};

    /// The end of the pipe that handlers write to. It is never closed.
    static PIPE: AtomicI32 = AtomicI32::new(-1);

    /// Installs the handlers. If the pipe or the thread cannot be created, signals keep the actions they
    /// have.
    pub fn watch() {
        let Ok((mut reader, writer)) = std::io::pipe() else { return };
        PIPE.store(writer.into_raw_fd(), Ordering::Relaxed);
        let serve = move || {
            let mut signal = [0];
            if reader.read_exact(&mut signal).is_ok() {
                end(c_int::from(signal[0]));
            }
        };
        if std::thread::Builder::new().name("signals".into()).spawn(serve).is_err() {
            return;
        }
        for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGXCPU] {
            if !is_ignored(signal) {
                // SAFETY: `send` is safe in a handler.
                let _ = unsafe { low_level::register(signal, move || send(signal)) };
            }
        }
        // SAFETY: no handler is replaced, and whether a signal is ignored is no memory of this program.
        unsafe { libc::signal(SIGXFSZ, libc::SIG_IGN) };
        #[cfg(target_os = "linux")]
        super::mapped::watch();
    }

    /// Whether the signal is ignored, as `nohup` or a shell's background job sets it.
    fn is_ignored(signal: c_int) -> bool {
        // SAFETY: without a new action, `sigaction` only writes the present one, a plain structure for which
        // zeros are valid.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, std::ptr::null(), &mut action) == 0
                && action.sa_sigaction == libc::SIG_IGN
        }
    }

    /// Sends the signal's number to the thread. Safe in a handler: one atomic load and one `write`.
    pub fn send(signal: c_int) {
        let byte = signal as u8;
        // SAFETY: the buffer is one byte of this frame; the descriptor is the pipe's, which nobody closes.
        let _ = unsafe { libc::write(PIPE.load(Ordering::Relaxed), (&raw const byte).cast(), 1) };
    }

    fn end(signal: c_int) -> ! {
        // The lock is never given back: no file is made after this.
        let temporaries =
            std::mem::ManuallyDrop::new(TEMPORARIES.lock().unwrap_or_else(PoisonError::into_inner));
        for path in temporaries.iter() {
            let _ = std::fs::remove_file(path);
        }
        #[cfg(target_os = "linux")]
        if signal == libc::SIGBUS && super::mapped::explain() {
            // SAFETY: ends the process without destructors and exit handlers, which could wait for the
            // threads that stand still.
            unsafe { libc::_exit(2) };
        }
        let _ = low_level::emulate_default_handler(signal);
        // Reached only if the system did not end the program.
        std::process::exit(128 + signal);
    }
}

/// A mapped file that has become shorter, or that its disk cannot read, is reported by SIGBUS to the thread
/// that reads it.
#[cfg(target_os = "linux")]
mod mapped {
    use super::unix::send;
    use lmhead::error::Error;
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// The address that could not be read; 0: none yet.
    static ADDRESS: AtomicUsize = AtomicUsize::new(0);
    /// `si_code` of a page of a mapped file that is not there (`BUS_ADRERR` in Linux's `siginfo.h`).
    const NO_SUCH_PAGE: libc::c_int = 2;
    /// Seconds after which the program exits without a message, should the thread that writes it be stuck.
    const REPORT_TIMEOUT_S: u32 = 10;

    pub fn watch() {
        // SAFETY: zeros are a valid action without flags and with an empty mask; the handler does only what
        // is safe in one. Without SA_ONSTACK it runs on the thread's own stack, which is not what overflowed:
        // that would be SIGSEGV.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_flags = libc::SA_SIGINFO;
            action.sa_sigaction = on_bus as *const () as usize;
            libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
        }
    }

    extern "C" fn on_bus(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: with SA_SIGINFO the system passes a valid structure. `signal`, `raise`, `sleep` and `_exit`
        // are safe in a handler.
        unsafe {
            if (*info).si_code != NO_SUCH_PAGE {
                // Not a mapped file: take the default action. The signal is blocked until this handler
                // returns.
                libc::signal(signal, libc::SIG_DFL);
                libc::raise(signal);
                return;
            }
            // Several threads may read the same weights: the first one reports.
            let address = ((*info).si_addr() as usize).max(1);
            if ADDRESS.compare_exchange(0, address, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                send(signal);
            }
            // Returning would read the same address again.
            let mut left = REPORT_TIMEOUT_S;
            while left > 0 {
                left = libc::sleep(left);
            }
            libc::_exit(2);
        }
    }

    /// Reports the file on standard error; false where no file is mapped at the address.
    pub fn explain() -> bool {
        let maps = std::fs::read("/proc/self/maps").unwrap_or_default();
        let Some((path, byte)) = file_at(&maps, ADDRESS.load(Ordering::Relaxed)) else { return false };
        let length = std::fs::metadata(&path).map(|metadata| metadata.len());
        let (problem, fix) = match length {
            Ok(length) if length > byte => (
                format!("its byte {byte} cannot be read: its disk or network reports an error"),
                "copy the file to a disk that works",
            ),
            Ok(length) => (
                format!("was shortened while it was being read: wanted its byte {byte}, got {length} bytes"),
                "fetch or write it again; let no other program write to it, or read it once with `run --copy`",
            ),
            Err(error) => (
                format!(
                    "was shortened or removed while it was being read: wanted its byte {byte}, got an error: {error}"
                ),
                "fetch or write it again, and let no other program write to it meanwhile",
            ),
        };
        crate::tell(format_args!("error: {}", Error::File { path, problem, fix: fix.into() }));
        true
    }

    /// The file that is mapped at `address`, and which byte of it that is, by the lines of `/proc/self/maps`:
    /// `start-end permissions offset device inode path`, with numbers in hex, and `\012` for a new line in
    /// the path.
    fn file_at(maps: &[u8], address: usize) -> Option<(PathBuf, u64)> {
        maps.split(|byte| *byte == b'\n').find_map(|line| {
            let mut fields = line.splitn(6, |byte| *byte == b' ');
            let mut text = || std::str::from_utf8(fields.next()?).ok();
            let (range, _permissions, offset, _device, _inode) =
                (text()?, text()?, text()?, text()?, text()?);
            let (start, end) = range.split_once('-')?;
            let hex = |digits: &str| u64::from_str_radix(digits, 16).ok();
            let (start, end, address) = (hex(start)?, hex(end)?, address as u64);
            let path = fields.next()?.trim_ascii_start();
            if !(start..end).contains(&address) || !path.starts_with(b"/") {
                return None;
            }
            let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
            let mut name = Vec::new();
            let mut rest = path;
            while let Some((&byte, after)) = rest.split_first() {
                match rest.strip_prefix(b"\\012") {
                    Some(after) => (name.push(b'\n'), rest = after),
                    None => (name.push(byte), rest = after),
                };
            }
            Some((PathBuf::from(OsString::from_vec(name)), hex(offset)? + (address - start)))
        })
    }

    #[cfg(test)]
    mod tests {
        use super::file_at;
        use std::path::PathBuf;

        #[test]
        fn a_mapped_byte_is_found_by_its_address() {
            let maps = b"7f00000-7f02000 r--p 00003000 fd:01 17    /a folder/head\\012er (deleted)\n\
                7f02000-7f03000 rw-p 00000000 00:00 0 \n\
                7f03000-7f04000 rw-p 00000000 00:00 0 [heap]\n\
                broken line\n\
                7f04000-7f05000 r--s 00000000 fd:01 18 /w (deleted) w.safetensors\n";
            let at = |address| file_at(maps, address);
            assert_eq!(at(0x7f00010), Some((PathBuf::from("/a folder/head\ner"), 0x3010)));
            assert_eq!(at(0x7f01fff), Some((PathBuf::from("/a folder/head\ner"), 0x4fff)));
            assert_eq!(at(0x7f04001), Some((PathBuf::from("/w (deleted) w.safetensors"), 1)));
            for nothing in [0x7effff, 0x7f02000, 0x7f03000, 0x7f05000, 0] {
                assert_eq!(at(nothing), None, "{nothing:x}");
            }
        }
    }
}
