// SPDX-License-Identifier: Apache-2.0
// Normalisation of one widened row, and its gradient: what rows and pixels have in common.
#pragma once

#include <cstdint>
#include <optional>

#include "../checks.h"
#include "sides.h"

namespace secl::cpu {

// Divides a row by its norm and returns 1 / norm; a zero row stays, with 0.
float to_unit(float* row /* [D] */, int64_t depth);

// Turns the gradient of a unit row into that of the row, (g - u <u, g>) / norm; a zero gradient stays zero,
// whatever stands in the row.
void through_norm(float* grad /* [D] */, const float* unit /* [D] */, float inverse, int64_t depth);

// What each row of a gradient is multiplied with; a zero stays zero.
class RowScale {
 public:
  RowScale(const std::optional<Tensor>& factor, const std::optional<Tensor>& upstream) {
    if (!factor.has_value()) return;
    factor_ = factor->const_data_ptr<float>();
    upstream_ = upstream->const_data_ptr<float>();
    stride_ = upstream->stride(0);
  }
  void apply(int64_t row, float* grad /* [D] */, int64_t depth) const {
    if (factor_ == nullptr) return;
    const float scale = factor_[row] * upstream_[row * stride_];
    for (int64_t d = 0; d < depth; ++d) grad[d] = grad[d] == 0 ? 0.0f : grad[d] * scale;
  }

 private:
  const float* factor_ = nullptr;
  const float* upstream_ = nullptr;
  int64_t stride_ = 0;
};

}  // namespace secl::cpu
