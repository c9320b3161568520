// SPDX-License-Identifier: Apache-2.0
// Normalisation of rows and its gradient; the work of one row is one thread's.
#include "rows.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "../checks.h"
#include "operations.h"
#include "parallel.h"

namespace secl::cpu {
namespace {

constexpr int64_t kGrain = 64;  // rows below which a thread costs more than it saves

// Sum of products in double precision, in eight running sums that a vector holds.
double dot(const float* a, const float* b, int64_t depth) {
  constexpr int64_t kSums = 8;
  double sums[kSums] = {};
  int64_t d = 0;
  for (; d + kSums <= depth; d += kSums) {
    for (int64_t k = 0; k < kSums; ++k) sums[k] += static_cast<double>(a[d + k]) * b[d + k];
  }
  for (; d < depth; ++d) sums[0] += static_cast<double>(a[d]) * b[d];
  double sum = 0;
  for (const double each : sums) sum += each;
  return sum;
}

template <class T>
void normalize(const RowReader& reader, const int32_t* labels, int64_t begin, int64_t end,
               T* unit /* or null */, float* inverse) {
  const int64_t depth = reader.depth();
  std::vector<float> wide(depth);
  for (int64_t row = begin; row < end; ++row) {
    if (labels[row] >= 0) {
      reader.read(row, wide.data());
    } else {
      std::fill(wide.begin(), wide.end(), 0.0f);
    }
    inverse[row] = to_unit(wide.data(), depth);
    if (unit == nullptr) continue;
    for (int64_t d = 0; d < depth; ++d) unit[row * depth + d] = static_cast<T>(wide[d]);
  }
}

template <class T>
void normalize_backward(const RowReader& reader, const float* grad, const RowScale& scale,
                        const float* inverse, int64_t begin, int64_t end, T* result) {
  const int64_t depth = reader.depth();
  std::vector<float> unit(depth), tangential(depth);
  for (int64_t row = begin; row < end; ++row) {
    reader.read(row, unit.data());
    std::copy(grad + row * depth, grad + (row + 1) * depth, tangential.data());
    scale.apply(row, tangential.data(), depth);
    through_norm(tangential.data(), unit.data(), inverse[row], depth);
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
  parallel_for(0, rows.size(0), kGrain, [&](int64_t begin, int64_t end) {
    with_row_type(rows.scalar_type(), [&](auto zero) {
      normalize(reader, label, begin, end, static_cast<decltype(zero)*>(unit),
                inverse.mutable_data_ptr<float>());
    });
  });
  return inverse;
}

}  // namespace

float to_unit(float* row, int64_t depth) {
  const double square = dot(row, row, depth);
  const double factor = square == 0 ? 0.0 : 1.0 / std::sqrt(square);
  for (int64_t d = 0; d < depth; ++d) row[d] = static_cast<float>(row[d] * factor);
  // The inverse of a subnormal norm is no float; std::min in this order lets a NaN through.
  return static_cast<float>(std::min(factor, double{std::numeric_limits<float>::max()}));
}

void through_norm(float* grad, const float* unit, float inverse, int64_t depth) {
  if (std::all_of(grad, grad + depth, [](float value) { return value == 0; })) return;
  const double radial = dot(unit, grad, depth);
  for (int64_t d = 0; d < depth; ++d) grad[d] = static_cast<float>((grad[d] - unit[d] * radial) * inverse);
}

std::tuple<Tensor, Tensor> unit_rows(const Tensor& rows, const Tensor& labels) {
  Tensor unit = torch::stable::empty_like(rows);
  return {unit, normalize_all(rows, labels, unit.mutable_data_ptr())};
}

Tensor row_inverse(const Tensor& rows, const Tensor& labels) { return normalize_all(rows, labels, nullptr); }

Tensor unit_rows_backward(const Tensor& grad, const Maybe& factor, const Maybe& upstream, const Tensor& unit,
                          const Tensor& inverse) {
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
  parallel_for(0, unit.size(0), kGrain, [&](int64_t begin, int64_t end) {
    with_row_type(unit.scalar_type(), [&](auto zero) {
      normalize_backward(reader, grad.const_data_ptr<float>(), scale, inverse.const_data_ptr<float>(), begin,
                         end, static_cast<decltype(zero)*>(result.mutable_data_ptr()));
    });
  });
  return result;
}

}  // namespace secl::cpu
