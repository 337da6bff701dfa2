//! A kernel that has been loaded and can be launched.

use super::device::CudaDevice;
use super::driver::failed;
use super::launch::{Launch, Launched};
use super::stream::CudaStream;
use crate::backend::device::KernelDevice;
use crate::error::{Error, Result};
use cudarc::driver::{DriverError, result, sys};
use std::ffi::c_void;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

/// What the driver reports of a loaded kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Per thread.
    pub registers: usize,
    /// Bytes per thread: spilled registers and local arrays.
    pub local: usize,
    /// Bytes per block that the kernel declares itself.
    pub static_shared: usize,
    /// Bytes per block that a launch may add.
    pub max_dynamic_shared: usize,
    pub max_threads: usize,
    /// The virtual architecture that the code was compiled for: 80 for 8.0.
    pub virtual_architecture: usize,
}

impl Launch {
    /// Refuses a launch that cannot be right, before the driver is called.
    fn check(&self, kernel: &str, attributes: &Attributes) -> Result<()> {
        let wrong = |wanted: String, fix: &str| {
            Err(Error::shape(format!("kernel {kernel}"), wanted, format!("a launch of {self}"), fix))
        };
        let product = |sizes: [u32; 3]| sizes.into_iter().map(u64::from).product::<u64>();
        // CUDA programming guide, "Compute Capabilities": the same from 8.0 to 12.x.
        let largest = [0x7fff_ffff, 0xffff, 0xffff];
        if self.grid.iter().zip(largest).any(|(&n, largest)| n == 0 || n > largest) {
            return wrong(
                format!("a grid of 1 to {largest:?} blocks"),
                "launch nothing where there is no work",
            );
        }
        let threads = attributes.max_threads as u64;
        let widest = [1024, 1024, 64];
        let beyond = self.block.iter().zip(widest).any(|(&n, widest)| n == 0 || n > widest);
        if beyond || product(self.block) > threads {
            return wrong(
                format!("1 to {threads} threads per block, at most {widest:?} along x, y, z"),
                "use the block that the kernel is written for",
            );
        }
        if self.dynamic_shared > attributes.max_dynamic_shared {
            let wanted =
                format!("at most {} bytes of dynamic shared memory here", attributes.max_dynamic_shared);
            return wrong(wanted, "use fewer stages or smaller tiles");
        }
        let divides = self.grid.iter().zip(self.cluster).all(|(&grid, n)| n != 0 && grid.is_multiple_of(n));
        if !divides || product(self.cluster) > 8 {
            return wrong("a cluster of at most 8 blocks that divides the grid".into(), "round the grid up");
        }
        Ok(())
    }
}

impl fmt::Display for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Launch { grid, block, dynamic_shared, cluster, programmatic } = self;
        write!(f, "grid {grid:?}, block {block:?}, {dynamic_shared} bytes of shared memory")?;
        if *cluster != [1; 3] {
            write!(f, ", cluster {cluster:?}")?;
        }
        if *programmatic { write!(f, ", programmatic") } else { Ok(()) }
    }
}

/// A kernel with one parameter, the struct `P`, on one device.
#[derive(Debug)]
pub struct Kernel<P> {
    device: CudaDevice,
    name: Arc<str>,
    architecture: &'static str,
    function: sys::CUfunction,
    attributes: Attributes,
    parameter: PhantomData<fn(P)>,
}

// SAFETY: the function is a handle, which the driver takes from any thread.
unsafe impl<P> Send for Kernel<P> {}
// SAFETY: as above.
unsafe impl<P> Sync for Kernel<P> {}

impl<P: Copy> Kernel<P> {
    /// `architecture`: the embedded code that this device runs. The device's context must be current.
    pub(super) fn new(
        device: CudaDevice,
        name: &str,
        architecture: &'static str,
        function: sys::CUfunction,
    ) -> Result<Self> {
        let what = || format!("kernel {name} ({architecture}, {})", device.info().name);
        let sizes =
            parameter_sizes(function).map_err(|e| failed(format!("{}: its parameters", what()), e))?;
        if sizes != [size_of::<P>()] {
            let got = format!("parameters of {sizes:?} bytes");
            let fix = "launch it with the struct that it takes";
            return Err(Error::unsupported(what(), format!("one of {} bytes", size_of::<P>()), got, fix));
        }
        let attributes = allow_shared(function, device.shared_limit())
            .map_err(|e| failed(format!("{}: its attributes", what()), e))?;
        // A driver may put off a kernel's loading until it is first launched (CUDA programming guide, "Lazy
        // Loading"), which would allocate and wait where launches promise not to. SAFETY: a loaded module's
        // function.
        let load = unsafe { sys::cuFuncLoad(function) };
        load.result().map_err(|e| failed(format!("{}: its loading", what()), e))?;
        let name = name.into();
        Ok(Kernel { device, name, architecture, function, attributes, parameter: PhantomData })
    }

    pub fn attributes(&self) -> &Attributes {
        &self.attributes
    }

    /// Lets the driver divide what L1 cache and shared memory have together: for kernels that use no shared
    /// memory.
    ///
    /// # Errors
    /// `Device`.
    pub fn leave_carveout(&self) -> Result<()> {
        let driver = sys::CUshared_carveout_enum::CU_SHAREDMEM_CARVEOUT_DEFAULT as i32;
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
        let what = || format!("kernel {}: its shared memory", self.name);
        // SAFETY: a loaded function.
        self.device.call(what, || unsafe {
            result::function::set_function_attribute(self.function, attribute, driver)
        })
    }

    /// Which of the embedded architectures this device runs.
    pub fn architecture(&self) -> &'static str {
        self.architecture
    }

    /// Whether the loaded code has `griddepcontrol.wait` where the kernel's source does: code for 9.0 or
    /// later has. The driver is asked, since it may have been told to translate PTX for 8.0 instead. Code
    /// without it must not be launched as [`Launch::programmatic`].
    pub(super) fn waits(&self) -> bool {
        self.attributes.virtual_architecture >= 90
    }

    /// [`Kernel::launch_on`] the device's own stream.
    ///
    /// # Errors
    /// As [`Kernel::launch_on`].
    ///
    /// # Safety
    /// As [`Kernel::launch_on`].
    pub unsafe fn launch(&self, launch: &Launch, params: &P) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.launch_on(self.device.stream(), launch, params) }
    }

    /// Puts the kernel on the stream and does not wait for it: a failure while it runs is reported by
    /// [`KernelDevice::wait`].
    ///
    /// # Errors
    /// `Shape` where the launch cannot be; nothing is launched then. `Device` where the driver refuses it.
    ///
    /// # Safety
    /// The addresses in `params` are of this device and as large as its sizes say, and stay so until the
    /// kernel has ended.
    pub unsafe fn launch_on(&self, stream: CudaStream, launch: &Launch, params: &P) -> Result<()> {
        launch.check(&self.name, &self.attributes)?;
        let (name, architecture) = (self.name.clone(), self.architecture);
        let launched = Launched::Kernel { name, architecture, launch: *launch };
        let [x, y, z] = launch.cluster;
        let cluster = attribute(
            sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
            sys::CUlaunchAttributeValue {
                clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z },
            },
        );
        let programmatic = attribute(
            sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        );
        // Only the first `count` are read.
        let clustered = launch.cluster != [1; 3];
        let mut attributes = if clustered { [cluster, programmatic] } else { [programmatic, cluster] };
        let count = u32::from(clustered) + u32::from(launch.programmatic);
        let config = sys::CUlaunchConfig {
            gridDimX: launch.grid[0],
            gridDimY: launch.grid[1],
            gridDimZ: launch.grid[2],
            blockDimX: launch.block[0],
            blockDimY: launch.block[1],
            blockDimZ: launch.block[2],
            sharedMemBytes: u32::try_from(launch.dynamic_shared).expect("checked against the device's limit"),
            hStream: stream.0,
            attrs: attributes.as_mut_ptr(),
            numAttrs: count,
        };
        let mut arguments = [std::ptr::from_ref(params).cast_mut().cast::<c_void>()];
        // SAFETY: `config` and its attributes outlive the call, and so does the parameter, which the driver
        // copies: it has the size that the kernel takes (checked when it was loaded). What it points to is
        // the caller's promise.
        let put = || unsafe {
            sys::cuLaunchKernelEx(&config, self.function, arguments.as_mut_ptr(), std::ptr::null_mut())
                .result()
        };
        self.device.call(|| launched.to_string(), put)?;
        self.device.launched(stream, launched);
        Ok(())
    }
}

fn attribute(id: sys::CUlaunchAttributeID, value: sys::CUlaunchAttributeValue) -> sys::CUlaunchAttribute {
    sys::CUlaunchAttribute { id, pad: [0; 4], value }
}

/// Bytes of each of a kernel's parameters.
fn parameter_sizes(function: sys::CUfunction) -> std::result::Result<Vec<usize>, DriverError> {
    let mut sizes = Vec::new();
    loop {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: a loaded function and two pointers of this frame.
        let said = unsafe { sys::cuFuncGetParamInfo(function, sizes.len(), &mut offset, &mut size) };
        match said {
            // The driver's word for "no parameter of that number".
            sys::CUresult::CUDA_ERROR_INVALID_VALUE => return Ok(sizes),
            other => other.result()?,
        }
        sizes.push(size);
    }
}

/// Reads the attributes and lifts the limit of dynamic shared memory from 48 KB to all that the device has:
/// once, at loading, so that no launch has to. L1 cache and shared memory divide one memory: asks for the
/// largest shared part. Plans count on it, and an SM is not reconfigured between kernels that ask for the
/// same.
fn allow_shared(function: sys::CUfunction, limit: usize) -> std::result::Result<Attributes, DriverError> {
    use sys::CUfunction_attribute as A;
    let number = |attribute| {
        // SAFETY: a loaded function, here and below.
        unsafe { result::function::get_function_attribute(function, attribute) }
            .map(|n| usize::try_from(n).unwrap_or(0))
    };
    let static_shared = number(A::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
    let max_dynamic_shared = limit.saturating_sub(static_shared);
    let bytes = i32::try_from(max_dynamic_shared).unwrap_or(i32::MAX);
    let attribute = A::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    // SAFETY: as above.
    unsafe { result::function::set_function_attribute(function, attribute, bytes) }?;
    let all = sys::CUshared_carveout_enum::CU_SHAREDMEM_CARVEOUT_MAX_SHARED as i32;
    let attribute = A::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
    // SAFETY: as above.
    unsafe { result::function::set_function_attribute(function, attribute, all) }?;
    Ok(Attributes {
        registers: number(A::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
        local: number(A::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
        static_shared,
        max_dynamic_shared,
        max_threads: number(A::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
        virtual_architecture: number(A::CU_FUNC_ATTRIBUTE_PTX_VERSION)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ATTRIBUTES: Attributes = Attributes {
        registers: 168,
        local: 0,
        static_shared: 1024,
        max_dynamic_shared: 231_424,
        max_threads: 384,
        virtual_architecture: 90,
    };

    #[test]
    fn launches_that_cannot_be_are_refused_with_kernel_and_shape() {
        let good =
            Launch { dynamic_shared: 231_424, cluster: [2, 1, 1], ..Launch::new([132, 1, 1], [384, 1, 1]) };
        assert_eq!(good.check("matmul", &ATTRIBUTES), Ok(()));
        for (launch, wanted) in [
            (Launch { grid: [0, 1, 1], ..good }, "wanted a grid of 1 to [2147483647, 65535, 65535] blocks"),
            (Launch { grid: [2, 65536, 1], ..good }, "wanted a grid of 1 to"),
            (Launch { block: [385, 1, 1], ..good }, "wanted 1 to 384 threads per block"),
            (Launch { block: [u32::MAX, u32::MAX, 1], ..good }, "wanted 1 to 384 threads per block"),
            (Launch { block: [u32::MAX; 3], ..good }, "wanted 1 to 384 threads per block"),
            (Launch { block: [32, 0, 1], ..good }, "wanted 1 to 384 threads per block"),
            (
                Launch { block: [1, 1, 65], ..good },
                "wanted 1 to 384 threads per block, at most [1024, 1024, 64]",
            ),
            (
                Launch { dynamic_shared: 231_425, ..good },
                "wanted at most 231424 bytes of dynamic shared memory here",
            ),
            (Launch { dynamic_shared: usize::MAX, ..good }, "wanted at most 231424 bytes"),
            (
                Launch { cluster: [5, 1, 1], ..good },
                "wanted a cluster of at most 8 blocks that divides the grid",
            ),
            (Launch { cluster: [0, 1, 1], ..good }, "wanted a cluster"),
            (Launch { cluster: [12, 1, 1], ..good }, "wanted a cluster"),
        ] {
            let error = launch.check("matmul", &ATTRIBUTES).expect_err("cannot be").to_string();
            assert!(error.starts_with(&format!("kernel matmul: {wanted}")), "{error}");
            assert!(error.contains(&format!("got a launch of {launch}; ")), "{error}");
        }
    }

    #[test]
    fn a_launch_prints_itself() {
        let launch = Launch { programmatic: true, cluster: [2, 1, 1], ..Launch::new([4, 2, 1], [128, 1, 1]) };
        let text =
            "grid [4, 2, 1], block [128, 1, 1], 0 bytes of shared memory, cluster [2, 1, 1], programmatic";
        assert_eq!(launch.to_string(), text);
    }
}
