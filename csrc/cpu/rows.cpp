// SPDX-License-Identifier: Apache-2.0
// Normalisation of rows and its gradient; the work of one row is one thread's.
#include <algorithm>
#include <cmath>
#include <limits>

#include "../checks.h"
#include "operations.h"
#include "parallel.h"
#include "sides.h"

namespace secl::cpu {
namespace {

constexpr int64_t kGrain = 64;  // rows below which a thread costs more than it saves

template <class T>
void normalize(const RowReader& reader, const int32_t* labels, int64_t begin, int64_t end, T* unit,
               float* inverse) {
  const int64_t depth = reader.depth();
  std::vector<float> wide(depth);
  for (int64_t row = begin; row < end; ++row) {
    double square = 0;
    if (labels[row] >= 0) {
      reader.read(row, wide.data());
      for (const float value : wide) square += static_cast<double>(value) * value;
    } else {
      std::fill(wide.begin(), wide.end(), 0.0f);
    }
    const double factor = square == 0 ? 0.0 : 1.0 / std::sqrt(square);
    // The inverse of a subnormal norm is no float; std::min in this order lets a NaN through.
    inverse[row] = static_cast<float>(std::min(factor, double{std::numeric_limits<float>::max()}));
    for (int64_t d = 0; d < depth; ++d)
      unit[row * depth + d] = static_cast<T>(static_cast<float>(wide[d] * factor));
  }
}

template <class T>
void normalize_backward(const RowReader& reader, const float* grad, const float* inverse, int64_t begin,
                        int64_t end, T* result) {
  const int64_t depth = reader.depth();
  std::vector<float> unit(depth);
  for (int64_t row = begin; row < end; ++row) {
    reader.read(row, unit.data());
    double radial = 0;
    for (int64_t d = 0; d < depth; ++d) radial += static_cast<double>(unit[d]) * grad[row * depth + d];
    for (int64_t d = 0; d < depth; ++d) {
      const double tangential = grad[row * depth + d] - unit[d] * radial;
      result[row * depth + d] = static_cast<T>(static_cast<float>(tangential * inverse[row]));
    }
  }
}

}  // namespace

std::tuple<Tensor, Tensor> unit_rows(const Tensor& rows, const Tensor& labels) {
  check_rows("rows", rows);
  check_vector("labels", labels, rows.size(0), ScalarType::Int);
  Tensor unit = torch::stable::empty_like(rows);
  Tensor inverse = torch::stable::empty({rows.size(0)}, ScalarType::Float);
  const RowReader reader(rows);
  const int32_t* label = labels.const_data_ptr<int32_t>();
  parallel_for(0, rows.size(0), kGrain, [&](int64_t begin, int64_t end) {
    with_row_type(rows.scalar_type(), [&](auto zero) {
      normalize(reader, label, begin, end, static_cast<decltype(zero)*>(unit.mutable_data_ptr()),
                inverse.mutable_data_ptr<float>());
    });
  });
  return {unit, inverse};
}

Tensor unit_rows_backward(const Tensor& grad, const Tensor& unit, const Tensor& inverse) {
  check_rows("unit", unit);
  check_rows("grad", grad);
  check_type("grad", grad, ScalarType::Float);
  STD_TORCH_CHECK(grad.size(0) == unit.size(0) && grad.size(1) == unit.size(1),
                  "grad and unit must have one shape");
  check_vector("inverse", inverse, unit.size(0), ScalarType::Float);
  Tensor result = torch::stable::empty_like(unit);
  const RowReader reader(unit);
  parallel_for(0, unit.size(0), kGrain, [&](int64_t begin, int64_t end) {
    with_row_type(unit.scalar_type(), [&](auto zero) {
      normalize_backward(reader, grad.const_data_ptr<float>(), inverse.const_data_ptr<float>(), begin, end,
                         static_cast<decltype(zero)*>(result.mutable_data_ptr()));
    });
  });
  return result;
}

}  // namespace secl::cpu
