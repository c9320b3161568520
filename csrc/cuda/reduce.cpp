// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include "tensors.h"

namespace secl::cuda {

std::tuple<Tensor, Tensor, Tensor, Tensor> Operations::reduce(const Tensor& loss, const Tensor& pull,
                                                              const Tensor& count, const Maybe& weights,
                                                              int64_t reduction) {
  const int64_t rows = loss.numel();
  check_vector("loss", loss, rows, ScalarType::Float);
  check_vector("pull", pull, rows, ScalarType::Float);
  const bool weighted = count.scalar_type() == ScalarType::Float;
  check_vector("count", count, rows, weighted ? ScalarType::Float : ScalarType::Int);
  check_vector("weights", weights, rows, ScalarType::Float);
  for (const Tensor* other : {&pull, &count}) check_device("pull and count", *other, loss);
  check_device("weights", weights, loss);
  check_choice("reduction", reduction, kNone);
  const bool none = reduction == kNone;
  const auto numbers = [&](std::vector<int64_t> size) {
    return torch::stable::new_empty(loss, size, ScalarType::Float);
  };
  Tensor value = none ? numbers({rows}) : numbers({}), factor = numbers({rows}), push = numbers({rows}),
         draw = numbers({rows}), partial = numbers({reduce_partials(rows)});
  const Place place(loss);
  launch_reduce(
      Reduce{loss.const_data_ptr<float>(), pull.const_data_ptr<float>(),
             weighted ? nullptr : count.const_data_ptr<int32_t>(),
             weighted ? count.const_data_ptr<float>() : nullptr, data_of<float>(weights),
             value.mutable_data_ptr<float>(), factor.mutable_data_ptr<float>(),
             push.mutable_data_ptr<float>(), draw.mutable_data_ptr<float>(),
             partial.numel() ? partial.mutable_data_ptr<float>() : nullptr, rows, reduction == kMean, none},
      place.stream);
  return {value, factor, push, draw};
}

}  // namespace secl::cuda
