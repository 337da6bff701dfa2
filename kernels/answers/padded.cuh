// Rows of a fixed shape: the own rows in parts of even sizes, each with room behind its last row.
#pragma once
#include "ptx.cuh"

namespace answers {

// Which own row is at that place of `parts` times `part_rows`; UINT32_MAX behind the last one of a part.
DEVICE uint32_t own_row(uint32_t place, uint32_t rows, uint32_t parts, uint32_t part_rows) {
  const uint32_t part = place / part_rows, i = place % part_rows;
  // The first parts are larger by one where they do not divide.
  const uint32_t each = rows / parts, more = rows % parts;
  return i < each + (part < more) ? part * each + (part < more ? part : more) + i : UINT32_MAX;
}

}  // namespace answers
