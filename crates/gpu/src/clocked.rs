//! A graph with a clock.

use lmhead::Result;
use lmhead::backend::cuda::{CudaDevice, CudaStream, Event, Graph};

/// Work of several alike launches, recorded once, and how long a replay of it takes.
pub struct Clocked {
    graph: Graph,
    stream: CudaStream,
    from: Event,
    to: Event,
    /// Launches of one replay.
    pub launches: usize,
}

impl Clocked {
    /// `launch(i)` puts launch `i` on the stream. What it works on must live until the last replay has ended, and be nobody else's.
    pub fn new(
        device: &CudaDevice,
        stream: CudaStream,
        launches: usize,
        launch: impl FnMut(usize) -> Result<()>,
    ) -> Result<Self> {
        let graph = Graph::capture(device, stream, || (0..launches).try_for_each(launch))?;
        Ok(Clocked { graph, stream, from: Event::new(device)?, to: Event::new(device)?, launches })
    }

    /// Seconds of one launch, by a replay of all.
    pub fn replay(&self) -> Result<f64> {
        self.from.record(self.stream)?;
        // SAFETY: the promise that `new` asks for.
        unsafe { self.graph.launch(self.stream)? };
        self.to.record(self.stream)?;
        Ok(self.from.seconds_to(&self.to)? / self.launches as f64)
    }
}
