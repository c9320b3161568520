// SPDX-License-Identifier: Apache-2.0
// Rows of a feature map at pixel indices, and the gradient that puts them back.
#include <algorithm>
#include <optional>
#include <vector>

#include "../checks.h"
#include "../operations.h"
#include "parallel.h"
#include "pixel_map.h"
#include "rows.h"

namespace secl::cpu {
namespace {

void check_map(const char* name, const Tensor& map, const Tensor& index) {
  STD_TORCH_CHECK(is_row_type(map.scalar_type()), name,
                  " must be float32, float16 or bfloat16; fp64 is served by the reference backend");
  STD_TORCH_CHECK(map.dim() >= 3, name, " must have shape [B, D, *spatial]");
  check_dense("index", index, 1);
  check_type("index", index, ScalarType::Long);
}

void check_range(const int64_t* index, int64_t count, int64_t pixels) {
  for (int64_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(index[i] >= -1 && index[i] < pixels, "index must lie in -1..", pixels - 1, "; got ",
                    index[i]);
  }
}

template <class T>
void write_row(const float* row /* [D] */, int64_t depth, T* to) {
  for (int64_t d = 0; d < depth; ++d) to[d] = static_cast<T>(row[d]);
}

template <class T>
void copy_rows(const PixelMap& map, const T* features, const int64_t* index, int64_t begin, int64_t end,
               Tensor& rows, float* inverse) {
  const int64_t depth = map.channels();
  std::vector<float> row(depth);
  for (int64_t i = begin; i < end; ++i) {
    read_pixel(map, features, index[i], row.data());
    if (inverse != nullptr) inverse[i] = kernels().to_unit(row.data(), depth);
    with_row_type(rows.scalar_type(), [&](auto zero) {
      write_row(row.data(), depth, static_cast<decltype(zero)*>(rows.mutable_data_ptr()) + i * depth);
    });
  }
}

// What a draw adds to the gradient of its pixel.
struct DrawGradient {
  const RowReader grad;
  const RowScale scale;
  const std::optional<RowReader> unit;
  const float* inverse;  // [n], goes with unit

  void read(int64_t draw, float* row /* [D] */, float* scratch /* [D] */) const {
    grad.read(draw, row);
    scale.apply(draw, row, grad.depth());
    if (!unit.has_value()) return;
    unit->read(draw, scratch);
    kernels().through_norm(row, scratch, inverse[draw], grad.depth());
  }
};

// Positions order[begin..end), where draws of one pixel lie together; a run of them belongs to the thread
// that holds its head.
template <class T>
void add_rows(const PixelMap& map, const DrawGradient& draws, const int64_t* index,
              const std::vector<int64_t>& order, int64_t begin, int64_t end, T* result) {
  std::vector<float> sum(map.channels()), row(map.channels()), scratch(map.channels());
  for (int64_t head = begin; head < end; ++head) {
    if (head > 0 && index[order[head - 1]] == index[order[head]]) continue;
    std::fill(sum.begin(), sum.end(), 0.0f);
    for (size_t p = head; p < order.size() && index[order[p]] == index[order[head]]; ++p) {
      draws.read(order[p], row.data(), scratch.data());
      for (int64_t d = 0; d < map.channels(); ++d) sum[d] += row[d];
    }
    T* pixel = result + map.offset(index[order[head]]);
    for (int64_t d = 0; d < map.channels(); ++d) pixel[d * map.channel_stride()] = static_cast<T>(sum[d]);
  }
}

}  // namespace

void Operations::gather(const Tensor& features, const Tensor& index, Tensor rows, Maybe inverse) {
  check_map("features", features, index);
  const PixelMap map(features);
  const int64_t* pixel = index.const_data_ptr<int64_t>();
  check_range(pixel, index.size(0), map.pixels());
  check_rows("rows", rows);
  STD_TORCH_CHECK(rows.size(0) == index.size(0) && rows.size(1) == map.channels(),
                  "rows must have shape [n, D]");
  check_vector("inverse", inverse, index.size(0), ScalarType::Float);
  float* norms = inverse.has_value() ? inverse->mutable_data_ptr<float>() : nullptr;
  parallel_for(0, index.size(0), grain(map.work()), [&](int64_t begin, int64_t end) {
    with_row_type(features.scalar_type(), [&](auto zero) {
      copy_rows(map, static_cast<const decltype(zero)*>(features.const_data_ptr()), pixel, begin, end, rows,
                norms);
    });
  });
}

void Operations::gather_backward(const Tensor& grad, const Maybe& factor, const Maybe& upstream,
                                 const Tensor& index, const Maybe& unit, const Maybe& inverse, bool unique,
                                 Tensor result) {
  check_map("result", result, index);
  check_rows("grad", grad);
  const PixelMap map(result);
  const int64_t count = index.size(0);
  STD_TORCH_CHECK(grad.size(0) == count && grad.size(1) == map.channels(), "grad must have shape [n, D]");
  STD_TORCH_CHECK(unit.has_value() == inverse.has_value(), "unit and inverse go together");
  check_vector("inverse", inverse, count, ScalarType::Float);
  if (unit.has_value()) {
    check_rows("unit", *unit);
    STD_TORCH_CHECK(unit->size(0) == count && unit->size(1) == map.channels(), "unit must have shape [n, D]");
  }
  const int64_t* pixel = index.const_data_ptr<int64_t>();
  check_range(pixel, count, map.pixels());
  std::vector<int64_t> order;
  for (int64_t i = 0; i < count; ++i) {
    if (pixel[i] >= 0) order.push_back(i);
  }
  if (!unique)
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return pixel[a] < pixel[b]; });
  check_factors(factor, upstream, count);
  const DrawGradient draws{RowReader(grad), RowScale(factor, upstream),
                           unit.has_value() ? std::optional<RowReader>(RowReader(*unit)) : std::nullopt,
                           inverse.has_value() ? inverse->const_data_ptr<float>() : nullptr};
  parallel_for(0, static_cast<int64_t>(order.size()), grain(map.work()), [&](int64_t begin, int64_t end) {
    with_row_type(result.scalar_type(), [&](auto zero) {
      add_rows(map, draws, pixel, order, begin, end, static_cast<decltype(zero)*>(result.mutable_data_ptr()));
    });
  });
}

}  // namespace secl::cpu
