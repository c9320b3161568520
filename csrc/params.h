// SPDX-License-Identifier: Apache-2.0
// What crosses from Python as numbers, and what both passes of the contrast share on every device.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

namespace secl {

using torch::stable::Tensor;
using Maybe = std::optional<Tensor>;

// The bits of secl_ops.spec.Flag.
enum Flag : int64_t {
  kNegatives = 1,
  kSelf = 2,
  kUnit = 4,
  kAnchorGradient = 8,
  kKeyGradient = 16,
  kScan = 32,
  kOrdered = 64,
};

// The places in secl_ops.spec.REDUCTIONS and STRATEGIES.
enum Reduction : int64_t { kMean, kSum, kNone };
enum Strategy : int64_t { kUniform, kStratified, kHard };

struct ContrastCall {
  const Tensor& anchors;        // [N, D]
  const Tensor& keys;           // [M, D]; under kSelf the anchors
  const Tensor& anchor_labels;  // [N] int32, -1: ignored
  const Tensor& key_labels;     // [M] int32
  const Maybe& anchor_groups;   // [N] int32; pairs of one group count, where both sides have groups
  const Maybe& key_groups;      // [M] int32
  const Maybe& exclude;         // [N] int64, the key that an anchor must not see
  int64_t positive_start;       // keys before it attract no anchor
  int64_t negative_stop;        // keys from here on repel none
  const Maybe& key_weights;     // [M] float32 above 0, how many keys each counts as
  double scale;                 // of a similarity
  int64_t flags;

  bool has(Flag flag) const { return (flags & flag) != 0; }
  bool grouped() const { return anchor_groups.has_value() && key_groups.has_value(); }
};

// What makes a sigmoid's logit of a similarity besides the call's scale. A number that learns takes the place
// of the other; on a CPU it has been read.
struct SigmoidLogit {
  double bias;
  const Maybe& learned_scale;  // [1] float32
  const Maybe& learned_bias;   // [1] float32
};

}  // namespace secl
