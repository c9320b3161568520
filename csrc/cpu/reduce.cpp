// SPDX-License-Identifier: Apache-2.0
// The reduced loss, and what it makes of each anchor; sums in double precision, in the order of the anchors.
#include "../checks.h"
#include "../operations.h"

namespace secl::cpu {

std::tuple<Tensor, Tensor, Tensor, Tensor> Operations::reduce(const Tensor& loss, const Tensor& pull,
                                                              const Tensor& count, const Maybe& weights,
                                                              int64_t reduction) {
  const int64_t rows = loss.numel();
  check_vector("loss", loss, rows, ScalarType::Float);
  check_vector("pull", pull, rows, ScalarType::Float);
  const bool weighted = count.scalar_type() == ScalarType::Float;
  check_vector("count", count, rows, weighted ? ScalarType::Float : ScalarType::Int);
  check_vector("weights", weights, rows, ScalarType::Float);
  check_choice("reduction", reduction, kNone);
  const bool none = reduction == kNone;
  Tensor value = none ? torch::stable::empty({rows}, ScalarType::Float)
                      : torch::stable::empty({}, ScalarType::Float),
         factor = torch::stable::empty({rows}, ScalarType::Float), push = torch::stable::empty_like(factor),
         draw = torch::stable::empty_like(factor);
  const float *losses = loss.const_data_ptr<float>(), *pulls = pull.const_data_ptr<float>(),
              *given = weights.has_value() ? weights->const_data_ptr<float>() : nullptr;
  const int32_t* counts = weighted ? nullptr : count.const_data_ptr<int32_t>();
  const float* copies = weighted ? count.const_data_ptr<float>() : nullptr;
  const auto positives = [=](int64_t row) {
    return copies != nullptr ? copies[row] : static_cast<float>(counts[row]);
  };
  const auto weight = [=](int64_t row) {
    return !(positives(row) > 0) ? 0.0f : given == nullptr ? 1.0f : given[row];
  };
  float *values = value.mutable_data_ptr<float>(), *factors = factor.mutable_data_ptr<float>(),
        *pushes = push.mutable_data_ptr<float>(), *draws = draw.mutable_data_ptr<float>();
  double sum = 0, total = 0;
  for (int64_t row = 0; row < rows; ++row) {
    sum += losses[row] * weight(row);
    total += weight(row);
    if (none) values[row] = losses[row] * weight(row);
  }
  const double divisor = reduction == kMean && total > 0 ? total : 1.0;
  if (!none) values[0] = static_cast<float>(sum / divisor);
  for (int64_t row = 0; row < rows; ++row) {
    const float share = static_cast<float>(weight(row) / divisor);
    factors[row] = share;
    pushes[row] = pulls[row] * share;
    draws[row] = positives(row) > 0 ? share / positives(row) : 0.0f;
  }
  return {value, factor, push, draw};
}

}  // namespace secl::cpu
