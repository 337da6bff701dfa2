//! Device memory and tensor maps.

use libtest_mimic::Failed;
use lmhead::backend::cuda::fatbins::Capability;
use lmhead::backend::cuda::{CudaDevice, encode};
use lmhead::backend::tensor_map::{Swizzle, Tiled2d};
use lmhead_gpu::needs::{GpuTest, Needs};

pub const TESTS: &[GpuTest] = &[
    GpuTest {
        name: "memory::comes_back_as_written",
        needs: Needs::Capability(Capability(8, 0)),
        run: comes_back_as_written,
    },
    GpuTest {
        name: "memory::more_than_there_is_is_an_error",
        needs: Needs::Capability(Capability(8, 0)),
        run: more_than_there_is,
    },
    GpuTest {
        name: "memory::the_driver_takes_what_passes_our_rules",
        needs: Needs::Capability(Capability(9, 0)),
        run: tensor_maps,
    },
    GpuTest {
        name: "memory::a_device_that_is_not_there_is_an_error",
        needs: Needs::Capability(Capability(8, 0)),
        run: no_such_device,
    },
];

fn comes_back_as_written(device: &CudaDevice) -> Result<(), Failed> {
    for count in [0, 1, 1023, 1 << 20] {
        let values: Vec<u32> = (0..count).map(|i| i ^ 0x5a5a_0000).collect();
        let mut buffer = device.upload(&values)?;
        if buffer.read::<u32>()? != values {
            return Err(format!("{count} values came back changed").into());
        }
        let reversed: Vec<u32> = values.iter().rev().copied().collect();
        buffer.write(&reversed)?;
        if buffer.read::<u32>()? != reversed {
            return Err(format!("{count} values, written again, came back changed").into());
        }
        if buffer.write(&[0u32; 7]).is_ok() || !buffer.address().is_multiple_of(256) {
            return Err("a write of another size was taken, or the address is odd".into());
        }
    }
    let filled = device.filled(1000, 0xab)?;
    if filled.read::<u8>()? != [0xab; 1000] || filled.read::<[u8; 3]>().is_ok() {
        return Err("1000 bytes of 0xab came back changed, or as three-byte elements".into());
    }
    Ok(())
}

fn more_than_there_is(device: &CudaDevice) -> Result<(), Failed> {
    match device.filled(1 << 50, 0) {
        Ok(_) => Err("a petabyte was allocated".into()),
        Err(e) if e.to_string().contains("CUDA_ERROR_OUT_OF_MEMORY") => Ok(()),
        Err(e) => Err(format!("wanted CUDA_ERROR_OUT_OF_MEMORY, got {e}").into()),
    }
}

fn no_such_device(_: &CudaDevice) -> Result<(), Failed> {
    match CudaDevice::open(1000) {
        Ok(_) => Err("device 1000 was opened".into()),
        Err(e) if e.to_string().starts_with("CUDA device: wanted 0 to ") => Ok(()),
        Err(e) => Err(format!("wanted another error than {e}").into()),
    }
}

/// The limits of our own rules: one that is laxer than the driver's would show here.
fn tensor_maps(device: &CudaDevice) -> Result<(), Failed> {
    let buffer = device.filled(1 << 20, 0)?;
    let map = |element_bytes, rows, columns, pitch, box_rows, box_columns, swizzle| {
        let address = buffer.address();
        Tiled2d { address, element_bytes, columns, rows, pitch, box_columns, box_rows, swizzle }
    };
    for tiled in [
        map(2, 100, 64, 128, 64, 64, Swizzle::Bytes128),
        map(2, 1, 1, 16, 1, 64, Swizzle::Bytes128),
        map(1, 77, 128, 128, 256, 128, Swizzle::Bytes128),
        map(1, 3, 16, 1 << 14, 8, 256, Swizzle::None),
        map(4, 5, 7, 32, 256, 256, Swizzle::None),
        map(2, 5, 32, 64, 256, 32, Swizzle::Bytes64),
        map(4, 5, 8, 32, 256, 8, Swizzle::Bytes32),
        map(2, 1 << 32, 1 << 32, 1 << 33, 256, 64, Swizzle::Bytes128),
        map(1, 1, 1, (1 << 40) - 16, 1, 16, Swizzle::None),
    ] {
        encode(&tiled)?;
        encode(&Tiled2d { address: tiled.address + 16, ..tiled })?;
    }
    Ok(())
}
