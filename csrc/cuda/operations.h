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
  m.impl("unit_rows_backward", TORCH_BOX(&unit_rows_backward));
}

}  // namespace secl::cuda
