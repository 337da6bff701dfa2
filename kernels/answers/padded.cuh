// Rows of a static (padded) shape: a rank's own rows in parts of even sizes, each padded to `part_rows`.
#pragma once
#include "ptx.cuh"

namespace answers {

// The own row at `place` of `parts` times `part_rows` places; UINT32_MAX where that is padding.
DEVICE uint32_t own_row(uint32_t place, uint32_t rows, uint32_t parts, uint32_t part_rows) {
  const uint32_t part = place / part_rows, i = place % part_rows;
  // Where the rows do not divide evenly, the first parts have one more.
  const uint32_t each = rows / parts, more = rows % parts;
  return i < each + (part < more) ? part * each + (part < more ? part : more) + i : UINT32_MAX;
}

}  // namespace answers
