//! What is launched: its shape, and its name in messages.

use std::fmt;
use std::sync::Arc;

/// The shape of one launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads in x, y, z.
    pub block: [u32; 3],
    /// Bytes per block.
    pub dynamic_shared: usize,
    /// Blocks of a cluster in x, y, z; `[1, 1, 1]`: no cluster.
    pub cluster: [u32; 3],
    /// May start before the previous kernel on the stream has ended: the kernel itself waits
    /// (`griddepcontrol.wait`) before it reads that one's results.
    pub programmatic: bool,
}

impl Launch {
    /// Without shared memory, cluster or overlap.
    pub fn new(grid: [u32; 3], block: [u32; 3]) -> Self {
        Launch { grid, block, dynamic_shared: 0, cluster: [1; 3], programmatic: false }
    }
}

/// What was put on a stream. It becomes text only in a message, since a launch must not allocate.
#[derive(Debug, Clone)]
pub(super) enum Launched {
    Kernel {
        name: Arc<str>,
        architecture: &'static str,
        launch: Launch,
    },
    /// A graph, by the text of what it holds.
    Graph(Arc<str>),
}

impl fmt::Display for Launched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Launched::Kernel { name, architecture, launch } => {
                write!(f, "kernel {name} ({architecture}), {launch}")
            }
            Launched::Graph(contents) => f.write_str(contents),
        }
    }
}
