//! A transport between processes: a Unix socket for each pair of ranks, and for each peer one thread that
//! reads and one that writes.
//!
//! A rank's calls never wait for a socket: frames to send are handed to the peer's writing thread, received
//! frames are in a queue. So every wait has a deadline, even where a peer is stopped and its socket is full.
//! When a peer's process ends, its sockets close, which is noticed at once.

use lmhead::exchange::messages::{Event, FRAME_HEADER_BYTES, Link, MessageExchange, frame_length};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long ranks wait for each other's sockets.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a leaving rank waits until its last frames are sent.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// More than any test sends; a frame header with a larger length is invalid.
const MOST_BYTES: usize = 1 << 30;

/// The sockets of one rank. They close when its last endpoint is dropped.
struct Sockets {
    me: usize,
    size: usize,
    /// One for each peer; `None` for the rank itself.
    outboxes: Vec<Option<Sender<Arc<Vec<u8>>>>>,
    events: Mutex<Receiver<Event>>,
    writers: Vec<JoinHandle<()>>,
    streams: Vec<UnixStream>,
}

/// Connects this rank with the others of its scenario by sockets in `folder`.
pub(super) fn connect(folder: &Path, me: usize, size: usize) -> io::Result<MessageExchange> {
    let began = Instant::now();
    let late = || io::Error::new(io::ErrorKind::TimedOut, "a peer does not come");
    let socket = |rank: usize| folder.join(format!("{rank}.socket"));
    let listener = UnixListener::bind(socket(me))?;
    listener.set_nonblocking(true)?;
    let mut streams: Vec<Option<UnixStream>> = (0..size).map(|_| None).collect();
    for (rank, stream) in streams.iter_mut().enumerate().take(me) {
        *stream = Some(loop {
            match UnixStream::connect(socket(rank)) {
                Ok(stream) => break stream,
                Err(_) if began.elapsed() < CONNECT_TIMEOUT => thread::sleep(Duration::from_millis(1)),
                Err(error) => return Err(error),
            }
        });
        stream.as_mut().expect("connected above").write_all(&[me as u8])?;
    }
    while streams.iter().flatten().count() + 1 < size {
        match listener.accept() {
            Ok((mut stream, _)) => {
                stream.set_nonblocking(false)?;
                let mut rank = [0];
                stream.read_exact(&mut rank)?;
                streams[usize::from(rank[0])] = Some(stream);
            }
            Err(_) if began.elapsed() < CONNECT_TIMEOUT => thread::sleep(Duration::from_millis(1)),
            Err(_) => return Err(late()),
        }
    }

    let (arrived, events) = mpsc::channel();
    let mut sockets = Sockets {
        me,
        size,
        outboxes: Vec::new(),
        events: Mutex::new(events),
        writers: Vec::new(),
        streams: Vec::new(),
    };
    for (peer, stream) in streams.into_iter().enumerate() {
        let Some(stream) = stream else {
            sockets.outboxes.push(None);
            continue;
        };
        let (outbox, frames) = mpsc::channel();
        let (reading, writing, arrived) = (stream.try_clone()?, stream.try_clone()?, arrived.clone());
        thread::spawn(move || read_all(peer, reading, &arrived));
        sockets.writers.push(thread::spawn(move || write_all(writing, &frames)));
        sockets.outboxes.push(Some(outbox));
        sockets.streams.push(stream);
    }
    Ok(MessageExchange::new(sockets))
}

/// Passes on the frames of `peer`, until its socket closes.
fn read_all(peer: usize, mut stream: UnixStream, arrived: &Sender<Event>) {
    while let Ok(bytes) = read_frame(&mut stream) {
        if arrived.send(Event::Frame { from: peer, bytes }).is_err() {
            return;
        }
    }
    // This only fails where nobody receives any more.
    let _ = arrived.send(Event::Gone { member: peer });
}

fn read_frame(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; FRAME_HEADER_BYTES];
    stream.read_exact(&mut bytes)?;
    let length = frame_length(&bytes).filter(|length| *length <= MOST_BYTES);
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "no frame, or a longer one than any test's");
    bytes.resize(length.ok_or_else(invalid)?, 0);
    stream.read_exact(&mut bytes[FRAME_HEADER_BYTES..])?;
    Ok(bytes)
}

/// Writes the frames from the queue, and closes this direction of the socket when the queue has ended.
fn write_all(mut stream: UnixStream, frames: &Receiver<Arc<Vec<u8>>>) {
    for bytes in frames {
        // The reading thread notices a peer that is gone.
        if stream.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

impl Link for Sockets {
    fn name(&self) -> &'static str {
        "processes"
    }

    fn size(&self) -> usize {
        self.size
    }

    fn me(&self) -> usize {
        self.me
    }

    fn send(&self, to: usize, frame: Arc<Vec<u8>>) {
        // If the writing thread has ended, the peer is gone, which is noticed when something is wanted of it.
        if let Some(Some(outbox)) = self.outboxes.get(to) {
            let _ = outbox.send(frame);
        }
    }

    fn receive(&self, until: Instant, take: &mut dyn FnMut(Event)) {
        let events = self.events.lock().expect("one thread receives at a time");
        match events.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(event) => take(event),
            Err(RecvTimeoutError::Timeout) => return,
            // Every peer is gone, and that has been passed on.
            Err(RecvTimeoutError::Disconnected) => {
                return thread::sleep(until.saturating_duration_since(Instant::now()));
            }
        }
        events.try_iter().for_each(take);
    }

    fn sends_by_itself(&self) -> bool {
        true
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        self.outboxes.clear();
        // Gives the last frames, such as a notice, time to go out; not forever, since a stopped peer reads
        // nothing.
        let began = Instant::now();
        while !self.writers.iter().all(JoinHandle::is_finished) && began.elapsed() < DRAIN_TIMEOUT {
            thread::sleep(Duration::from_millis(1));
        }
        for stream in &self.streams {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
