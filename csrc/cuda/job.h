// SPDX-License-Identifier: Apache-2.0
// What crosses the seam between a contrast operation and its CUDA kernels: one job, passed by value.
#pragma once

#include <cstdint>

namespace secl::cuda {

// What is known of each row of a side beside its features: numbers of 4 bytes.
enum Field {
  kLabel,    // int32, -1: neither read nor compared
  kGroup,    // int32
  kExclude,  // int32, of an anchor: the key it must not see, -1 for none
  kFactor,   // float, of a key: what its features are multiplied by
  kLse,      // float, of an anchor: log-sum-exp of its denominator; in a gradient in base 2, kLargest: not
             // counted
  kPush,     // float, of an anchor: factor of exp(s - lse) in its gradient
  kDraw,     // float, of an anchor: factor of the attraction in its gradient
  kWeight,   // float, of an anchor: push * exp(-lse)
  kFields,
};

struct Side {
  const void* rows = nullptr;           // [count, width] bf16 or fp16
  const uint32_t* field[kFields] = {};  // [count] each, or null
  int32_t count = 0;
};

// Which pairs are positive and negative, and how a similarity becomes a logit.
struct Rules {
  int32_t positive_start, negative_stop;
  bool self;            // pair (i, i) is not comparable
  bool negatives_only;  // the denominator holds negatives only
  bool bounded;         // |scale * similarity| is small enough for exp2 without a maximum
  float scale;
  float scale2;  // scale * log2(e)
};

// Rows stay, columns stream past.
struct Job {
  Side rows, columns;
  Rules rules;
  int32_t width;
  bool rows_are_anchors = true, rows_are_keys = false;
  bool known = false;             // the positive pass: the log-sum-exp is the caller's, and constant
  float mean_scale = 1;           // the denominator's pass: factor of the mean of the keys
  float* lse = nullptr;           // [rows] outputs, where the pass has them
  float* loss = nullptr;          // [rows]
  float* pull = nullptr;          // [rows]
  int32_t* count = nullptr;       // [rows]
  float* grad = nullptr;          // [rows, width]; null: no value product
  int32_t splits = 1;             // runs of columns that blocks of their own take
  float* part_numbers = nullptr;  // [3, splits, rows] where there are several
  float* part_grad = nullptr;     // [splits, rows, width]
};

}  // namespace secl::cuda
