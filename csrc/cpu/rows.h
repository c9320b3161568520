// SPDX-License-Identifier: Apache-2.0
// What each row of a gradient is multiplied with, be it a row's or a pixel's.
#pragma once

#include <cstdint>
#include <optional>

#include "../checks.h"
#include "sides.h"

namespace secl::cpu {

// The factor and the upstream number of each row, or neither; a zero stays zero.
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
