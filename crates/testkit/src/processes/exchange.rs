//! A transport between processes: a Unix socket for each pair of ranks, a thread that reads and one that
//! writes for each peer.
//!
//! Nothing that a rank calls waits for a socket: what is sent goes to the peer's writing thread, what has
//! come is in a queue. So every wait has its deadline, also where a peer is stopped and its socket is full. A
//! peer whose process ends is seen at once, since its sockets close.

use lmhead::exchange::messages::{Event, FRAME_HEADER_BYTES, Link, MessageExchange, frame_length};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long ranks wait for each other's sockets, and a rank that leaves for what it has sent last.
const CONNECTING: Duration = Duration::from_secs(30);
const LEAVING: Duration = Duration::from_secs(2);

/// No test sends as much: a longer frame is none.
const MOST_BYTES: usize = 1 << 30;

/// The sockets of one rank. They close when its last endpoint is dropped.
struct Sockets {
    me: usize,
    size: usize,
    /// By peer; nothing for the rank itself.
    outboxes: Vec<Option<Sender<Arc<Vec<u8>>>>>,
    events: Mutex<Receiver<Event>>,
    writers: Vec<JoinHandle<()>>,
    streams: Vec<UnixStream>,
}

/// Connects this rank with the others of its scenario, which meet in `folder`.
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
                Err(_) if began.elapsed() < CONNECTING => thread::sleep(Duration::from_millis(1)),
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
            Err(_) if began.elapsed() < CONNECTING => thread::sleep(Duration::from_millis(1)),
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

/// Hands on what `peer` sends, until its socket closes.
fn read_all(peer: usize, mut stream: UnixStream, arrived: &Sender<Event>) {
    while let Ok(bytes) = read_frame(&mut stream) {
        if arrived.send(Event::Frame { from: peer, bytes }).is_err() {
            return;
        }
    }
    // Nobody is left to be told where this fails.
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

/// Sends what comes, and closes this direction when nothing can come any more.
fn write_all(mut stream: UnixStream, frames: &Receiver<Arc<Vec<u8>>>) {
    for bytes in frames {
        // A peer that is gone is seen by the thread that reads.
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
        // Where the writing thread has ended, the peer is gone: that is seen when something is wanted of it.
        if let Some(Some(outbox)) = self.outboxes.get(to) {
            let _ = outbox.send(frame);
        }
    }

    fn receive(&self, until: Instant, take: &mut dyn FnMut(Event)) {
        let events = self.events.lock().expect("one thread receives at a time");
        match events.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(event) => take(event),
            Err(RecvTimeoutError::Timeout) => return,
            // Every peer is gone, and that was handed over.
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
        // What was sent last, such as a notice, still goes out; a peer that is stopped takes nothing.
        let began = Instant::now();
        while !self.writers.iter().all(JoinHandle::is_finished) && began.elapsed() < LEAVING {
            thread::sleep(Duration::from_millis(1));
        }
        for stream in &self.streams {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
