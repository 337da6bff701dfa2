//! PyTorch on the same shapes, by turns: a program of its own (`benches/gpu_peers.py`) that is told what to
//! replay when.

use crate::heads::{Turn, quantiles};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How long an answer may take where there is time: the first, while libraries are loaded; a head's weights
/// and graphs; one replay.
const LOADING: Duration = Duration::from_secs(60);
const PREPARING: Duration = Duration::from_secs(30);
const REPLAYING: Duration = Duration::from_secs(10);
/// How long it may take when time is up, so that what has been measured so far is told with its peers.
const AT_LEAST: Duration = Duration::from_secs(1);

struct Program {
    child: Child,
    to: ChildStdin,
    lines: Receiver<String>,
}

impl Drop for Program {
    fn drop(&mut self) {
        // Not waited for: it may hang in the driver.
        let _ = self.child.kill();
        let _ = self.child.try_wait();
    }
}

/// The program, or why there is none.
pub struct Peers {
    program: Result<Program, String>,
    /// What it said of itself.
    ready: Option<Value>,
    /// When the time for all of it is up.
    end: Instant,
}

impl Peers {
    /// Starts the program that `LMHEAD_GPU_PEERS` names, with these arguments, and does not wait for it. It
    /// has until `end`.
    pub fn start(end: Instant, arguments: &[&str]) -> Self {
        let start = || {
            let path = std::env::var_os("LMHEAD_GPU_PEERS").filter(|path| !path.is_empty());
            let path = path.ok_or("LMHEAD_GPU_PEERS names no program; the bundle's run.sh does")?;
            let mut command = Command::new("python3");
            command.arg(&path).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn().map_err(|e| format!("python3: {e}"))?;
            let (to, from) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
            let (sender, lines) = channel();
            std::thread::spawn(move || {
                for line in BufReader::new(from).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            });
            Ok(Program { child, to, lines })
        };
        Peers { program: start(), ready: None, end }
    }

    fn answer(&mut self, patience: Duration) -> Result<Value, String> {
        let patience = patience.min(self.end.saturating_duration_since(Instant::now()).max(AT_LEAST));
        let program = self.program.as_mut().map_err(|reason| reason.clone())?;
        let line = program.lines.recv_timeout(patience).map_err(|e| match e {
            RecvTimeoutError::Timeout => format!("no answer within {:.0} s", patience.as_secs_f64()),
            RecvTimeoutError::Disconnected => "it ended".into(),
        });
        let answer = line.and_then(|line| serde_json::from_str(&line).map_err(|e| format!("{e}: {line}")));
        answer.map_err(|problem| self.gone(problem))
    }

    /// Gives the program up for that reason. Returns the reason.
    fn gone(&mut self, reason: String) -> String {
        let reason = format!("the peers' program: {reason}");
        self.program = Err(reason.clone());
        // For readers of the log: the products are measured without peers.
        println!("no peers: {reason}");
        reason
    }

    fn ask(&mut self, request: &Value, patience: Duration) -> Result<Value, String> {
        let program = self.program.as_mut().map_err(|reason| reason.clone())?;
        if let Err(e) = writeln!(program.to, "{request}").and_then(|()| program.to.flush()) {
            return Err(self.gone(e.to_string()));
        }
        self.answer(patience)
    }

    /// What the program says of itself, or why there is none. The first call waits for it.
    pub fn about(&mut self) -> Value {
        if self.ready.is_none() && self.program.is_ok() {
            match self.answer(LOADING) {
                Ok(said) if said["ready"].is_object() => self.ready = Some(said["ready"].clone()),
                Ok(said) => drop(self.gone(said["none"].as_str().unwrap_or("no word of itself").to_string())),
                Err(_) => {}
            }
        } else if let Err(reason) = &self.program {
            println!("no peers: {reason}");
        }
        match (&self.program, &self.ready) {
            (Ok(_), Some(ready)) => ready.clone(),
            (Err(reason), _) => json!({ "none": reason }),
            (Ok(_), None) => json!({ "none": "it said nothing" }),
        }
    }

    /// Prepares the peers of a shape. Returns what is known of each, and what was refused.
    pub fn prepare(
        &mut self,
        vocab: usize,
        hidden: usize,
        rows: usize,
        launches: usize,
        weights: &str,
    ) -> Value {
        let ask = json!({
            "vocab": vocab, "hidden": hidden, "rows": rows, "launches": launches, "weights": weights
        });
        match self.ask(&json!({ "prepare": ask }), PREPARING) {
            Ok(said) => said,
            Err(reason) => json!({ "peers": [], "refusals": [{ "peer": "all", "said": reason }] }),
        }
    }

    /// A turn for each peer that [`Peers::prepare`] has told of. A peer that is gone has no time (NaN), and
    /// stops nobody.
    pub fn turns<'p>(peers: &'p RefCell<&mut Peers>, told: &Value) -> Vec<Turn<'p>> {
        let count = told["peers"].as_array().map_or(0, Vec::len);
        let turn =
            |peer| Box::new(move || Ok(peers.borrow_mut().replay(peer).unwrap_or(f64::NAN))) as Turn<'p>;
        (0..count).map(turn).collect()
    }

    /// What [`Peers::prepare`] has told of each peer, with its times in seconds.
    pub fn with_times(told: &Value, times: &[Vec<f64>]) -> Vec<Value> {
        let row = |(told, times): (&Value, &Vec<f64>)| {
            let seen: Vec<f64> = times.iter().copied().filter(|t| t.is_finite()).collect();
            let bytes = told["bytes"].as_u64().unwrap_or(0) as usize;
            let mut row = if seen.is_empty() { json!({}) } else { quantiles(&seen, bytes) };
            for key in ["name", "request", "output", "bytes", "error", "correct"] {
                row[key] = told[key].clone();
            }
            row
        };
        told["peers"].as_array().into_iter().flatten().zip(times).map(row).collect()
    }

    /// Seconds of one launch of that peer.
    ///
    /// # Errors
    /// Where the program is gone.
    pub fn replay(&mut self, peer: usize) -> Result<f64, String> {
        let said = self.ask(&json!({ "replay": peer }), REPLAYING)?;
        said["us"].as_f64().map(|us| us / 1e6).ok_or_else(|| format!("no time of peer {peer}: {said}"))
    }

    /// Frees the memory of what was prepared.
    pub fn release(&mut self) {
        let _ = self.ask(&json!({ "release": {} }), PREPARING);
    }
}
