// SPDX-License-Identifier: Apache-2.0
// What the CUDA operations share: where a call runs, and the numbers behind its tensors.
#pragma once

#include "../checks.h"
#include "../operations.h"
#include "kernels.h"
#include "runtime.h"

namespace secl::cuda {

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

// The numbers behind an optional tensor, or null.
template <class T>
const T* data_of(const Maybe& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr<T>() : nullptr;
}

inline RowScale scale_of(const Maybe& factor, const Maybe& upstream, const Tensor& rows) {
  check_factors(factor, upstream, rows.size(0));
  check_device("factor", factor, rows);
  check_device("upstream", upstream, rows);
  return {data_of<float>(factor), data_of<float>(upstream), upstream.has_value() ? upstream->stride(0) : 0};
}

}  // namespace secl::cuda
