// SPDX-License-Identifier: Apache-2.0
// What crosses the seam between an operation and its kernels: the flags, one side's rows, and the job of one
// block of rows against all columns. Plain pointers, so that a kernel's translation unit needs no library
// code.
#pragma once

#include <cstdint>

namespace secl {

// The bits of secl_ops.spec.Flag.
enum Flag : int64_t {
  kNegatives = 1,
  kSelf = 2,
  kUnit = 4,
  kAnchorGradient = 8,
  kKeyGradient = 16,
};

// The rows that are not ignored, sorted by (group, label, index) so that equal labels lie together. Every
// array is padded far enough for a whole strip to be read; padding is never positive nor negative.
struct Side {
  int64_t count;
  const int32_t* label;    // [padded]
  const int32_t* group;    // [padded]
  const int32_t* attract;  // [padded] -1 where the row may be a positive key, else 0
  const int32_t* repel;    // [padded] -1 where the row may be a negative key, else 0
  const int32_t* skip_a;   // [padded] position on the other side that this anchor must not see, or -1
  const int32_t* skip_b;   // [padded] a second one
  float* lse;              // [padded] of the anchor, base 2
  const float* push;       // [padded] factor of exp(s - lse) in the anchor's gradient
  const float* draw;       // [padded] factor of the attraction in the anchor's gradient
  const float* weight;     // [padded] push * 2^(maximum - lse)
};

// What is known of several neighbouring rows of a side at once: decides whether a tile needs masks, or a
// visit.
struct Span {
  int64_t low, high;            // range of (group << 32 | label)
  int32_t skip_low, skip_high;  // range of the positions they must not see; empty: low > high
  bool all_attract, all_repel;  // false where padding is among them
};

// One block of rows, which stay, against all columns, which stream past.
struct Sweep {
  Side rows, columns;
  const Span* row_spans;     // one per `Kernels::rows` rows
  const Span* column_spans;  // one per `Kernels::strip` columns
  const float* strips;       // [columns / strip, depth, strip] packed for the similarity
  const float* values;       // [stride / strip, values_rows, strip] packed for the value product
  int64_t depth, stride, values_rows;
  float to_log2;                 // scale * log2(e)
  float maximum;                 // bound of the similarity in base 2, where `bounded`
  bool bounded;                  // exp2(s - maximum) can neither overflow nor vanish
  bool negatives_only;           // the denominator holds negatives only
  int64_t first = 0;             // position of the block's first row; a multiple of `Kernels::rows`
  int64_t tiles = 0;             // number of row tiles in the block
  const float* block = nullptr;  // [tiles, depth, rows] the block's rows
  float* panel = nullptr;        // [tiles * rows, panel] scratch: the similarity, then its coefficients
  float* output =
      nullptr;  // [tiles * rows, stride] sum of coefficient times column, added to; null: not wanted
  double* total = nullptr;  // [tiles * rows] result: sum of exp2(s - peak), or sum of softplus
  double* other = nullptr;  // [tiles * rows] result: peak, or sum of sigmoid
};

}  // namespace secl
