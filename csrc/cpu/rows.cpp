// SPDX-License-Identifier: Apache-2.0
// Normalisation of rows and its gradient; the work of one row is one thread's.
#include "rows.h"

#include <algorithm>

#include "../checks.h"
#include "../operations.h"
#include "parallel.h"

namespace secl::cpu {
namespace {

template <class T>
void normalize(const RowReader& reader, const int32_t* labels, int64_t begin, int64_t end,
               T* unit /* or null */, float* inverse) {
  const Kernels& kernel = kernels();
  const int64_t depth = reader.depth();
  std::vector<float> wide(depth);
  for (int64_t row = begin; row < end; ++row) {
    if (labels[row] >= 0) {
      reader.read(row, wide.data());
    } else {
      std::fill(wide.begin(), wide.end(), 0.0f);
    }
    inverse[row] = kernel.to_unit(wide.data(), depth);
    if (unit == nullptr) continue;
    for (int64_t d = 0; d < depth; ++d) unit[row * depth + d] = static_cast<T>(wide[d]);
  }
}

template <class T>
void normalize_backward(const RowReader& reader, const float* grad, const RowScale& scale,
                        const float* inverse, int64_t begin, int64_t end, T* result) {
  const Kernels& kernel = kernels();
  const int64_t depth = reader.depth();
  std::vector<float> unit(depth), tangential(depth);
  for (int64_t row = begin; row < end; ++row) {
    reader.read(row, unit.data());
    std::copy(grad + row * depth, grad + (row + 1) * depth, tangential.data());
    scale.apply(row, tangential.data(), depth);
    kernel.through_norm(tangential.data(), unit.data(), inverse[row], depth);
    for (int64_t d = 0; d < depth; ++d) result[row * depth + d] = static_cast<T>(tangential[d]);
  }
}

// Writes the unit rows where they are wanted; returns the inverse norms [n].
Tensor normalize_all(const Tensor& rows, const Tensor& labels, void* unit) {
  check_rows("rows", rows);
  check_vector("labels", labels, rows.size(0), ScalarType::Int);
  Tensor inverse = torch::stable::empty({rows.size(0)}, ScalarType::Float);
  const RowReader reader(rows);
  const int32_t* label = labels.const_data_ptr<int32_t>();
  parallel_for(0, rows.size(0), grain(reader.depth()), [&](int64_t begin, int64_t end) {
    with_row_type(rows.scalar_type(), [&](auto zero) {
      normalize(reader, label, begin, end, static_cast<decltype(zero)*>(unit),
                inverse.mutable_data_ptr<float>());
    });
  });
  return inverse;
}

}  // namespace

std::tuple<Tensor, Tensor> Operations::unit_rows(const Tensor& rows, const Tensor& labels) {
  Tensor unit = torch::stable::empty_like(rows);
  return {unit, normalize_all(rows, labels, unit.mutable_data_ptr())};
}

Tensor Operations::row_inverse(const Tensor& rows, const Tensor& labels) {
  return normalize_all(rows, labels, nullptr);
}

Tensor Operations::unit_rows_backward(const Tensor& grad, const Maybe& factor, const Maybe& upstream,
                                      const Tensor& unit, const Tensor& inverse) {
  check_rows("unit", unit);
  check_rows("grad", grad);
  check_type("grad", grad, ScalarType::Float);
  STD_TORCH_CHECK(grad.size(0) == unit.size(0) && grad.size(1) == unit.size(1),
                  "grad and unit must have one shape");
  check_vector("inverse", inverse, unit.size(0), ScalarType::Float);
  check_factors(factor, upstream, unit.size(0));
  const RowScale scale(factor, upstream);
  Tensor result = torch::stable::empty_like(unit);
  const RowReader reader(unit);
  parallel_for(0, unit.size(0), grain(reader.depth()), [&](int64_t begin, int64_t end) {
    with_row_type(unit.scalar_type(), [&](auto zero) {
      normalize_backward(reader, grad.const_data_ptr<float>(), scale, inverse.const_data_ptr<float>(), begin,
                         end, static_cast<decltype(zero)*>(result.mutable_data_ptr()));
    });
  });
  return result;
}

}  // namespace secl::cpu
