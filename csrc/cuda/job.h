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
  kLse,   // float, of an anchor: log-sum-exp of its denominator; in a gradient base 2, kLargest: not counted
  kPush,  // float, of an anchor: factor of exp(s - lse) in its gradient
  kDraw,  // float, of an anchor: factor of the attraction in its gradient
  kWeight,  // float, of an anchor: push * exp(-lse)
  kFields,
  // A side of keys alone has other numbers in the anchors' places.
  kFactor = kWeight,  // float, in the forward passes: what its features are multiplied by
  kMass = kPush,      // float: how many keys it counts as
  // Of an anchor whose sigmoid loss is taken back to the keys.
  kUpstream = kPush,  // float: the weight of its loss
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
  bool weighted;        // keys count as often as their mass says; then the anchors are no keys
  float scale;
  float scale2;  // scale * log2(e)
};

// What makes a sigmoid's logit of a similarity; a number that learns lies on the device.
struct Logit {
  float scale = 1, bias = 0;
  const float *learned_scale = nullptr, *learned_bias = nullptr;  // [1] each, or null
};

// kSigmoid is all of the sigmoid loss: sums of losses and slopes, and the rows' gradient.
enum class Pass { kDenominator, kPositive, kGradient, kSigmoid };

// One pass: rows stay, columns stream past. In the forward passes the rows are the anchors.
struct Job {
  Side rows, columns;
  Rules rules;
  Logit logit;
  int32_t width;
  bool rows_are_anchors = true, rows_are_keys = false;
  bool known = false;             // the positives: the log-sum-exp is the caller's, and constant
  float mean_scale = 1;           // the denominator: factor of the softmax mean of its keys
  float* lse = nullptr;           // [rows] of the denominator
  float* loss = nullptr;          // [rows] of the positives, as the next three; of a sigmoid's anchors
  float* pull = nullptr;          // [rows] of a sigmoid the sum of slopes
  int32_t* count = nullptr;       // [rows] of keys that count once, or of a sigmoid's pairs
  float* mass = nullptr;          // [rows] the sum of the weights of keys
  float* grad = nullptr;          // [rows, width], or null: no value product
  int32_t stages = 1;             // tiles of columns in shared memory
  int32_t splits = 1;             // runs of the columns, each with blocks of its own
  float* part_numbers = nullptr;  // [splits, rows, 3] where there are several
  float* part_grad = nullptr;     // [splits, rows, width]
};

// The fields of each anchor that a gradient reads, and the saved state that they are made of.
struct AnchorFields {
  int32_t count;
  const float* grad_loss;  // [count] of any stride
  int64_t grad_loss_stride;
  const float* push;       // [count]
  const float* draw;       // [count]
  const float* lse;        // [count]
  const int32_t* label;    // [count]
  const int64_t* exclude;  // [count] or null
  float scale;
  uint32_t* field[kFields];  // [count] each, those that are written; null: not wanted
};

}  // namespace secl::cuda
