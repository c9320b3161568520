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
Tensor unit_rows_backward(const Tensor& grad, const Maybe& factor, const Maybe& upstream, const Tensor& unit,
                          const Tensor& inverse);
std::tuple<Tensor, Tensor, Tensor, Tensor> reduce(const Tensor& loss, const Tensor& pull, const Tensor& count,
                                                  const Maybe& weights, std::string reduction);
void gather(const Tensor& features, const Tensor& index, Tensor rows, Maybe inverse);
void gather_backward(const Tensor& grad, const Maybe& factor, const Maybe& upstream, const Tensor& index,
                     const Maybe& unit, const Maybe& inverse, bool unique, Tensor result);
std::tuple<Tensor, Tensor> sample(const Tensor& labels, const Maybe& eligible, const Maybe& scores,
                                  const Tensor& seed, int64_t per_class, int64_t num_classes,
                                  int64_t ignore_index, std::string strategy, int64_t stream);

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

template <class Library>
void implement_operations(Library& m) {
  m.impl("unit_rows", TORCH_BOX(&unit_rows));
  m.impl("row_inverse", TORCH_BOX(&row_inverse));
  m.impl("contrast_forward", TORCH_BOX(&contrast_forward));
  m.impl("contrast_backward", TORCH_BOX(&contrast_backward));
  m.impl("unit_rows_backward", TORCH_BOX(&unit_rows_backward));
  m.impl("reduce", TORCH_BOX(&reduce));
  m.impl("gather", TORCH_BOX(&gather));
  m.impl("gather_backward", TORCH_BOX(&gather_backward));
  m.impl("sample", TORCH_BOX(&sample));
}

}  // namespace secl::cuda
