// SPDX-License-Identifier: Apache-2.0
// The CUDA implementations behind the schema table, and what they share. The emulated library of the tests
// registers the same functions.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>

#include "../checks.h"
#include "kernels.h"
#include "runtime.h"

namespace secl::cuda {

using torch::stable::Tensor;
using Maybe = std::optional<Tensor>;

std::tuple<Tensor, Tensor> unit_rows(const Tensor& rows, const Tensor& labels);
Tensor row_inverse(const Tensor& rows, const Tensor& labels);
Tensor unit_rows_backward(const Tensor& grad, const Tensor& unit, const Tensor& inverse);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> contrast_forward(const Tensor& anchors,        // [N, D]
                                                                    const Tensor& keys,           // [M, D]
                                                                    const Tensor& anchor_labels,  // [N] int32
                                                                    const Tensor& key_labels,     // [M] int32
                                                                    const Maybe& anchor_groups,   // [N] int32
                                                                    const Maybe& key_groups,      // [M] int32
                                                                    const Maybe& exclude,         // [N] int64
                                                                    int64_t positive_start,
                                                                    int64_t negative_stop,
                                                                    const Maybe& key_inverse,  // [M] float32
                                                                    const Maybe& known_lse,    // [N] float32
                                                                    double scale, int64_t flags);

// An anchor whose push and draw are 0 does not count: nothing of its row reaches a key's gradient.
std::tuple<Tensor, Tensor> contrast_backward(
    const Tensor& grad_loss,  // [N] float32 of any stride
    const Tensor& push,       // [N] float32
    const Tensor& draw,       // [N] float32
    const Tensor& anchors,    // [N, D]; the rest as in the forward pass
    const Tensor& keys, const Tensor& anchor_labels, const Tensor& key_labels, const Maybe& anchor_groups,
    const Maybe& key_groups, const Maybe& exclude, int64_t positive_start, int64_t negative_stop,
    const Tensor& lse,  // [N] float32
    double scale, int64_t flags);

// Where a call runs: the device of its tensors is current, and its launches go to torch's stream.
struct Place {
  explicit Place(const Tensor& like)
      : guard(like.get_device_index()), stream(current_stream(like.get_device_index())) {}
  DeviceGuard guard;
  Stream stream;
};

inline Number number_of(ScalarType type) {
  switch (type) {
    case ScalarType::Half:
      return Number::kHalf;
    case ScalarType::BFloat16:
      return Number::kBfloat16;
    default:
      return Number::kFloat;
  }
}

template <class Library>
void implement_operations(Library& m) {
  m.impl("unit_rows", TORCH_BOX(&unit_rows));
  m.impl("row_inverse", TORCH_BOX(&row_inverse));
  m.impl("contrast_forward", TORCH_BOX(&contrast_forward));
  m.impl("contrast_backward", TORCH_BOX(&contrast_backward));
  m.impl("unit_rows_backward", TORCH_BOX(&unit_rows_backward));
}

}  // namespace secl::cuda
