//! A stand-in for a processor with AMX, so that the `asm!` of [`hardware`](super::hardware) is tested on
//! every x86-64. A processor without AMX raises an exception at each tile instruction. The handler of the
//! resulting signal decodes the instruction, runs it in the emulation, and continues behind it.

use super::Tiles;
use super::emulated::Emulated;
use super::{STEP, Shape};
use std::cell::RefCell;
use std::sync::Once;

thread_local! {
    /// The emulated tiles of this thread.
    static TILES: RefCell<Option<Emulated>> = const { RefCell::new(None) };
}

/// Makes tile instructions of this process work, on a processor that has none.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler has the signature that SA_SIGINFO asks for; the mask is empty.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = trap as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            assert_eq!(libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()), 0);
        }
    });
}

/// Whether this thread has tiles.
pub(crate) fn has_tiles() -> bool {
    TILES.with_borrow(Option::is_some)
}

/// The signal handler. It runs on the thread that executes a tile instruction, where no lock is held and no
/// allocation is under way.
extern "C" fn trap(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the system hands over the registers of the thread that was interrupted, and the instruction
    // that `rip` points to is in memory.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let code = registers[libc::REG_RIP as usize] as *const u8;
        let length = step(code, registers);
        registers[libc::REG_RIP as usize] += length;
    }
}

/// The general registers, ordered by their numbers in instructions.
const REGISTERS: [libc::c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// Runs one instruction, and returns its length. (Intel's manual, volume 2: 2.3 has the VEX prefix, 2.1 what
/// follows the opcode.)
///
/// # Safety
/// `code` must point to an instruction whose operands are as its `asm!` promises.
unsafe fn step(code: *const u8, registers: &[i64; 23]) -> i64 {
    // SAFETY: a tile instruction has at least as many bytes as are read here.
    let byte = |i: usize| unsafe { *code.add(i) };
    // Three bytes of VEX, W0, 128 bits, and the opcodes of 0F38.
    let (vex1, vex2, opcode, modrm) = (byte(1), byte(2), byte(3), byte(4));
    let known = byte(0) == 0xc4 && vex1 & 0x1f == 2 && vex2 & 0x84 == 0;
    if !known {
        abort("not a tile instruction");
    }
    let (prefix, vvvv) = (vex2 & 3, usize::from(!vex2 >> 3 & 15));
    let (mode, reg, rm) = (modrm >> 6, usize::from(modrm >> 3 & 7), usize::from(modrm & 7));
    // The extensions of register numbers are stored inverted.
    let extended = |number: usize, bit: u8| number + if vex1 >> bit & 1 == 0 { 8 } else { 0 };
    let register = |number: usize| registers[REGISTERS[number] as usize] as usize;
    // Returns the address, the stride from row to row, and the length of the whole instruction.
    let memory = || {
        if mode == 3 {
            abort("wanted an address in memory");
        }
        let (base, index, mut at) = match rm {
            4 => {
                let sib = byte(5);
                let index = extended(usize::from(sib >> 3 & 7), 6);
                let index = if index == 4 { 0 } else { register(index) << (sib >> 6) };
                (usize::from(sib & 7), index, 6)
            }
            base => (base, 0, 5),
        };
        if mode == 0 && base == 5 {
            abort("an address without a base");
        }
        let displacement = match mode {
            1 => byte(5 + usize::from(rm == 4)) as i8 as isize,
            // SAFETY: a displacement of four bytes follows.
            2 => unsafe { code.add(at).cast::<i32>().read_unaligned() as isize },
            _ => 0,
        };
        at += [0, 1, 4][usize::from(mode)];
        (register(extended(base, 5)).wrapping_add_signed(displacement), index, at as i64)
    };
    TILES.with_borrow_mut(|tiles| match (prefix, opcode) {
        // ldtilecfg
        (0, 0x49) if mode != 3 && reg == 0 => {
            let (address, stride, length) = memory();
            if stride != 0 {
                abort("a configuration has no stride");
            }
            // SAFETY: it reads 64 bytes.
            let bytes = unsafe { *(address as *const [u8; 64]) };
            let shape = Shape { ids: usize::from(bytes[48]), rows: usize::from(bytes[16]) / 4 };
            if shape.config().0 != bytes {
                abort("a configuration that is no shape of ours");
            }
            *tiles = Some(Emulated::configure(shape));
            length
        }
        // tilerelease
        (0, 0x49) if modrm == 0xc0 => {
            *tiles = None;
            5
        }
        _ => {
            let Some(tiles) = tiles else { abort("#UD: no tiles are configured") };
            match (prefix, opcode) {
                // tilezero
                (3, 0x49) if mode == 3 && rm == 0 => {
                    tiles.zero(reg);
                    5
                }
                // tileloadd, tilestored: rm 4, always with a stride
                (3 | 2, 0x4b) if mode != 3 && rm == 4 => {
                    let (address, stride, length) = memory();
                    let (rows, row_bytes) = tiles.shape().of(reg);
                    let len = (rows - 1) * stride + row_bytes;
                    if prefix == 3 {
                        // SAFETY: it reads these rows.
                        tiles.load(
                            reg,
                            unsafe { std::slice::from_raw_parts(address as *const u8, len) },
                            0,
                            stride,
                        );
                    } else {
                        for row in 0..rows {
                            // SAFETY: the instruction writes these rows. One slice per row: the bytes between
                            // rows may belong to somebody else.
                            let to = unsafe {
                                std::slice::from_raw_parts_mut((address + row * stride) as *mut u8, row_bytes)
                            };
                            tiles.store_row(reg, row, to);
                        }
                    }
                    length
                }
                // tdpbf16ps, tdpbssd
                (2, 0x5c) if mode == 3 => {
                    tiles.dot_bf16(reg, rm, vvvv);
                    5
                }
                (3, 0x5e) if mode == 3 => {
                    tiles.dot_i8(reg, rm, vvvv);
                    5
                }
                _ => abort("not a tile instruction"),
            }
        }
    })
}

/// Ends the process, since a signal handler cannot unwind.
fn abort(why: &str) -> ! {
    eprintln!("a tile instruction that cannot be emulated: {why}");
    std::process::abort();
}

#[test]
fn operands_are_decoded() {
    // Encoded by GNU's assembler: with extended registers, displacements of one and four bytes, a scale.
    let mut registers = [0i64; 23];
    let memory: Vec<u8> = (0..4096).map(|i| (i * 7 + i / 256) as u8).collect();
    let set = |registers: &mut [i64; 23], which: libc::c_int, value: usize| {
        registers[which as usize] = value as i64
    };
    let config = Box::new(Shape { ids: 16, rows: 16 }.config());
    set(&mut registers, libc::REG_RAX, config.0.as_ptr() as usize);
    // SAFETY: the addresses are those of memory above.
    let run = |code: &[u8], registers: &[i64; 23]| unsafe { step(code.as_ptr(), registers) };
    // ldtilecfg [rax]
    assert_eq!(run(&[0xc4, 0xe2, 0x78, 0x49, 0x00], &registers), 5);
    set(&mut registers, libc::REG_R13, memory.as_ptr() as usize - 8);
    set(&mut registers, libc::REG_R12, 64);
    // tileloadd tmm5, [r13 + r12*1 + 8]
    assert_eq!(run(&[0xc4, 0x82, 0x7b, 0x4b, 0x6c, 0x25, 0x08], &registers), 7);
    set(&mut registers, libc::REG_RBX, memory.as_ptr() as usize - 0x1000);
    set(&mut registers, libc::REG_RCX, 32);
    // tileloadd tmm6, [rbx + rcx*2 + 0x1000]
    assert_eq!(run(&[0xc4, 0xe2, 0x7b, 0x4b, 0xb4, 0x4b, 0x00, 0x10, 0x00, 0x00], &registers), 10);
    // tdpbssd tmm2, tmm5, tmm6
    assert_eq!(run(&[0xc4, 0xe2, 0x4b, 0x5e, 0xd5], &registers), 5);
    let mut want = Emulated::configure(Shape { ids: 16, rows: 16 });
    want.load(4, &memory, 0, STEP);
    want.load(7, &memory, 0, STEP);
    want.dot_i8(1, 4, 7);
    let (mut got, mut sums) = (vec![0u8; 1024], vec![0u8; 1024]);
    want.store(1, &mut sums, 0, STEP);
    set(&mut registers, libc::REG_RDI, got.as_mut_ptr() as usize);
    set(&mut registers, libc::REG_R12, 64);
    // tilestored [rdi + r12*1], tmm2
    assert_eq!(run(&[0xc4, 0xa2, 0x7a, 0x4b, 0x14, 0x27], &registers), 6);
    assert_eq!(got, sums);
    // tilezero tmm2, and again
    assert_eq!(run(&[0xc4, 0xe2, 0x7b, 0x49, 0xd0], &registers), 5);
    run(&[0xc4, 0xa2, 0x7a, 0x4b, 0x14, 0x27], &registers);
    assert_eq!(got, [0; 1024]);
    // tilerelease
    assert_eq!(run(&[0xc4, 0xe2, 0x78, 0x49, 0xc0], &registers), 5);
    assert!(!has_tiles());
}
