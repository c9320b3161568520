// SPDX-License-Identifier: Apache-2.0
// What every operation demands of its tensors; the Python side has already refused what a user can get wrong.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>

#include "params.h"

namespace secl {

using torch::headeronly::ScalarType;

// Any one tensor on a GPU sends the call to the CUDA kernels; those must ask where the others are.
inline void check_device(const char* name, const Tensor& tensor, const Tensor& like) {
  STD_TORCH_CHECK(tensor.is_cuda() == like.is_cuda() && tensor.get_device_index() == like.get_device_index(),
                  name, " must be on the device of the other arguments");
}

inline void check_device(const char* name, const std::optional<Tensor>& tensor, const Tensor& like) {
  if (tensor.has_value()) check_device(name, *tensor, like);
}

inline void check_dense(const char* name, const Tensor& tensor, int64_t dimensions) {
  STD_TORCH_CHECK(tensor.dim() == dimensions, name, " must have ", dimensions, " dimensions; got ",
                  tensor.dim());
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
}

inline bool is_row_type(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16;
}

// Calls body with a zero of the C++ type that stores such rows.
template <class Body>
void with_row_type(ScalarType type, const Body& body) {
  switch (type) {
    case ScalarType::Half:
      return body(torch::headeronly::Half());
    case ScalarType::BFloat16:
      return body(torch::headeronly::BFloat16());
    default:
      return body(float());
  }
}

inline void check_type(const char* name, const Tensor& tensor, ScalarType type) {
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, " has the wrong dtype");
}

inline void check_choice(const char* name, int64_t choice, int64_t last) {
  STD_TORCH_CHECK(choice >= 0 && choice <= last, name, " must lie in 0..", last, "; got ", choice);
}

// Rows are counted in 32 bits inside the kernels, pairs in 64.
inline void check_rows(const char* name, const Tensor& rows /* [n, D] */) {
  check_dense(name, rows, 2);
  STD_TORCH_CHECK(is_row_type(rows.scalar_type()), name,
                  " must be float32, float16 or bfloat16; fp64 is served by the reference backend");
  STD_TORCH_CHECK(rows.size(0) < std::numeric_limits<int32_t>::max() - 4096, name, " has too many rows");
  STD_TORCH_CHECK(rows.size(1) >= 1, name, " must be at least one wide");
}

inline void check_vector(const char* name, const Tensor& values /* [n] */, int64_t length, ScalarType type) {
  check_dense(name, values, 1);
  check_type(name, values, type);
  STD_TORCH_CHECK(values.size(0) == length, name, " must have ", length, " elements; got ", values.size(0));
}

inline void check_vector(const char* name, const std::optional<Tensor>& values /* [n] */, int64_t length,
                         ScalarType type) {
  if (values.has_value()) check_vector(name, *values, length, type);
}

// Numbers [n] of any stride, so that one number may stand for all.
inline void check_strided_vector(const char* name, const Tensor& values, int64_t length) {
  STD_TORCH_CHECK(values.dim() == 1 && values.size(0) == length, name, " must have ", length, " elements");
  check_type(name, values, ScalarType::Float);
}

// The layout and the sizes of a contrast; which dtypes and widths are served is each device's own.
inline void check_call(const ContrastCall& call) {
  check_rows("anchors", call.anchors);
  check_rows("keys", call.keys);
  const int64_t n = call.anchors.size(0), m = call.keys.size(0);
  STD_TORCH_CHECK(call.anchors.size(1) == call.keys.size(1), "anchors and keys must have the same width");
  STD_TORCH_CHECK(!call.has(kSelf) || n == m, "under SELF the keys are the anchors");
  check_vector("anchor_labels", call.anchor_labels, n, ScalarType::Int);
  check_vector("key_labels", call.key_labels, m, ScalarType::Int);
  check_vector("anchor_groups", call.anchor_groups, n, ScalarType::Int);
  check_vector("key_groups", call.key_groups, m, ScalarType::Int);
  check_vector("exclude", call.exclude, n, ScalarType::Long);
  check_vector("key_weights", call.key_weights, m, ScalarType::Float);
  STD_TORCH_CHECK(!call.key_weights.has_value() || !call.has(kSelf), "under SELF key_weights must be None");
}

// What scales each row of a gradient: both or none.
inline void check_factors(const std::optional<Tensor>& factor, const std::optional<Tensor>& upstream,
                          int64_t length) {
  STD_TORCH_CHECK(factor.has_value() == upstream.has_value(), "factor and upstream go together");
  if (!factor.has_value()) return;
  check_vector("factor", *factor, length, ScalarType::Float);
  check_strided_vector("upstream", *upstream, length);
}

// The layout and the sizes of a draw; the dtype of the labels and scores is each device's own.
inline void check_sample(const Tensor& labels, const std::optional<Tensor>& eligible,
                         const std::optional<Tensor>& scores, const Tensor& seed, int64_t per_class,
                         int64_t num_classes) {
  constexpr int64_t kMostPlaces = (int64_t{1} << 31) - 1, kMostPixels = (int64_t{1} << 28) - 1;
  check_dense("labels", labels, labels.dim());
  STD_TORCH_CHECK(labels.dim() >= 2, "labels must have shape [B, *spatial]");
  const int64_t images = labels.size(0), pixels = images ? labels.numel() / images : 0;
  STD_TORCH_CHECK(pixels <= kMostPixels, "an image may have at most 2^28 - 1 pixels; got ", pixels);
  check_vector("seed", seed, 1, ScalarType::Long);
  STD_TORCH_CHECK(per_class >= 0 && num_classes >= 0 && per_class <= kMostPlaces && images <= kMostPlaces &&
                      num_classes <= kMostPlaces / std::max<int64_t>(per_class * images, 1),
                  "images * num_classes * per_class must lie in 0..2^31 - 1");
  for (const auto* map : {&eligible, &scores}) {
    if (!map->has_value()) continue;
    check_dense("eligible and scores", **map, labels.dim());
    STD_TORCH_CHECK((*map)->numel() == labels.numel(), "eligible and scores must have the shape of labels");
  }
  if (eligible.has_value()) check_type("eligible", *eligible, ScalarType::Bool);
}

}  // namespace secl
