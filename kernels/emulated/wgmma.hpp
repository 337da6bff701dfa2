// wgmma: an instruction until somebody waits for it (wgmma.cpp), and the registers that it works on
// (wgmma_registers.cpp).
#pragma once
#include "machine.hpp"

namespace emulated {

constexpr int kM = 64, kLanes = 128, kRowBytes = 32;  // rows of a, lanes, bytes of k of one instruction

// The accumulators of 128 lanes while instructions work on them.
struct Accumulators {
  void *registers[kLanes];       // null: this lane's are not (or no longer) here
  uint64_t last_issued[kLanes];  // the lane's latest instruction on them, counted from 1
  uint32_t here;
  uint32_t noise;
  int n;
  uint32_t values[kM * 256];  // [64][n]
};

struct WgmmaRecord {
  WgmmaOperands operands;
  Place place;
  int issued;
  bool warps[kLanes / 32];      // whether the warp's first lane has come,
  uint64_t steps[kLanes / 32];  // and its wgmma_steps then
  uint32_t a[kLanes][4];
  Accumulators *accumulators;
};

// Opens a set of accumulators, which no instruction works on yet.
Accumulators *open_accumulators(Fiber &self, const WgmmaOperands &operands);
// Moves this lane's accumulators into the tile, and puts noise into its registers.
void take_registers(Fiber &self, Accumulators &accumulators, void *registers, const WgmmaOperands &operands);
void give_back_registers(Fiber &self, Accumulators &accumulators);
void check_untouched(Fiber &self, const Accumulators &accumulators);
// Notes four registers of a that instruction `number` reads, from now until somebody waits for it.
void take_fragment(Fiber &self, const uint32_t *registers, uint64_t number);
void forget_fragments(Fiber &self);  // those that were waited for
void fence_registers(Fiber &self);   // wgmma.fence

}  // namespace emulated
