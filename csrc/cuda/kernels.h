// SPDX-License-Identifier: Apache-2.0
// The seam between the operations, which know tensors, and the kernels, which know pointers: one job per
// kernel.
#pragma once

#include <cstdint>

#include "../contrast_math.h"
#include "../random.h"
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

// What each row of a gradient is multiplied with: factor * upstream; nothing where the factor is null.
struct RowScale {
  const float* factor;    // [n]
  const float* upstream;  // [n] of this stride
  int64_t stride;

  SECL_INLINE float of(int64_t row) const {
    return factor == nullptr ? 1.0f : factor[row] * upstream[row * stride];
  }
};

// (g - u <u, g>) / norm of the scaled gradient; a zero gradient stays zero, whatever stands in the row.
struct UnitRowsBackward {
  Number type;        // of unit and result
  const float* grad;  // [n, D]
  RowScale scale;
  const void* unit;      // [n, D]
  const float* inverse;  // [n]
  void* result;          // [n, D]
  int64_t count, depth;
};
void launch_unit_rows_backward(const UnitRowsBackward& job, Stream stream);

// Where the channels of a pixel lie in a map [B, D, Z, Y, X] of any strides.
struct PixelMap {
  int64_t pixels;                 // B Z Y X, below 2^32
  int64_t size[3];                // Z, Y, X
  int64_t image, channel, at[3];  // strides of B, of D, and of Z, Y, X

  SECL_INLINE bool holds(int64_t pixel) const { return pixel >= 0 && pixel < pixels; }
  // Of its channel 0. Divisions of 64 bits would take several times as long.
  SECL_INLINE int64_t offset(int64_t pixel) const {
    uint32_t rest = static_cast<uint32_t>(pixel);
    int64_t offset = 0;
    for (int axis = 2; axis >= 0; --axis) {
      const uint32_t length = static_cast<uint32_t>(size[axis]), above = rest / length;
      offset += static_cast<int64_t>(rest - above * length) * at[axis];
      rest = above;
    }
    return offset + static_cast<int64_t>(rest) * image;
  }
};

// Rows of a map at pixels, over their norms where `inverse` is given; a pixel outside the map gives zeros.
struct Gather {
  Number map_type, row_type;
  PixelMap layout;
  const void* map;       // [B, D, Z, Y, X]
  const int64_t* index;  // [n]
  void* rows;            // [n, D]
  float* inverse;        // [n] or null
  int64_t count, depth;
};
void launch_gather(const Gather& job, Stream stream);

// The scaled gradient of each row, through its norm where `unit` is given, summed into its pixel by plain
// stores: the pixels of the index differ, or they are sorted, and then the first of a run sums it in the
// order of the rows.
struct GatherBackward {
  Number map_type, row_type, unit_type;  // of result, grad and unit
  PixelMap layout;
  const void* grad;  // [n, D]
  RowScale scale;
  const int64_t* index;  // [n]
  const int64_t* order;  // [n] row behind each place of the sorted index; null: as they are, all differ
  const void* unit;      // [n, D] or null
  const float* inverse;  // [n], goes with unit
  void* result;          // [B, D, Z, Y, X]
  int64_t count, depth;
};
void launch_gather_backward(const GatherBackward& job, Stream stream);

// The weighted losses added up, over the sum of the weights or not, and what that makes of each anchor.
struct Reduce {
  const float *loss, *pull;     // [n]
  const int32_t* positives;     // [n] an anchor without one has no weight; null: mass
  const float* mass;            // [n] the sum of the positives' weights
  const float* weights;         // [n] or null
  float* value;                 // [] or, where `none`, [n]
  float *factor, *push, *draw;  // [n]
  float* partial;               // [reduce_partials(n)] scratch; null where that is 0
  int64_t count;
  bool mean, none;
};
int64_t reduce_partials(int64_t count);
void launch_reduce(const Reduce& job, Stream stream);

// Exactly min(per_class, available) pixels of each class of each image, without replacement; the rest is -1.
struct Sample {
  int64_t images, num_classes, per_class, ignore_index, stream;
  int32_t size[3], axes;  // of an image, 1 before its own; the number of its own
  int label_bytes;        // 1 (unsigned), 4 or 8
  bool stratified, hard;
  const void* labels;    // [B, pixels]
  const bool* eligible;  // [B, pixels] or null
  const float* scores;   // [B, pixels] or null; goes with hard
  const int64_t* seed;   // [1]
  int32_t* scratch;      // [sample_scratch] or null where that is 0
  int64_t* index;        // [C, B, per_class]
  int32_t* label;        // the same

  SECL_INLINE int64_t pixels() const { return int64_t{size[0]} * size[1] * size[2]; }
  // Of the grid that a stratified draw spreads over.
  SECL_INLINE int cells_along(int axis) const {
    return stratified && axis >= 3 - axes ? static_cast<int>(kCellsPerAxis) : 1;
  }
  SECL_INLINE int cells() const { return cells_along(0) * cells_along(1) * cells_along(2); }
};
int64_t sample_scratch(const Sample& job);
void launch_sample(const Sample& job, Stream stream);

}  // namespace secl::cuda
