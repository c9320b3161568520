// SPDX-License-Identifier: Apache-2.0
// The seam between the operations, which know tensors, and the kernels, which know pointers: one job per
// kernel.
#pragma once

#include <cstdint>

#include "runtime.h"

namespace secl::cuda {

// The type of the numbers behind a pointer.
enum class Number { kFloat, kHalf, kBfloat16 };

// Rows over their norms; an ignored row is not read, it and a zero row give zeros.
struct UnitRows {
  Number type;            // of rows and unit
  const void* rows;       // [n, D]
  const int32_t* labels;  // [n]
  void* unit;             // [n, D] or null: norms alone
  float* inverse;         // [n] 1 / norm
  int64_t count, depth;
};
void launch_unit_rows(const UnitRows& job, Stream stream);

// (g - u <u, g>) / norm; a zero gradient stays zero, whatever stands in the row.
struct UnitRowsBackward {
  Number type;           // of unit and result
  const float* grad;     // [n, D]
  const void* unit;      // [n, D]
  const float* inverse;  // [n]
  void* result;          // [n, D]
  int64_t count, depth;
};
void launch_unit_rows_backward(const UnitRowsBackward& job, Stream stream);

}  // namespace secl::cuda
