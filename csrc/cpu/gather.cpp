// SPDX-License-Identifier: Apache-2.0
// Rows of a feature map at pixel indices, and the gradient that puts them back.
#include <algorithm>
#include <cstring>
#include <vector>

#include "../checks.h"
#include "operations.h"
#include "parallel.h"

namespace secl::cpu {
namespace {

constexpr int64_t kGrain = 64;  // pixels below which a thread costs more than it saves

// Where the channels of a pixel lie in a map [B, D, *spatial] of any strides.
class PixelMap {
 public:
  explicit PixelMap(const Tensor& map) {
    const auto sizes = map.sizes(), strides = map.strides();
    channels_ = sizes[1];
    channel_stride_ = strides[1];
    for (size_t axis = 0; axis < sizes.size(); ++axis) {
      if (axis == 1) continue;
      sizes_.push_back(sizes[axis]);
      strides_.push_back(strides[axis]);
      pixels_ *= sizes[axis];
    }
  }
  int64_t channels() const { return channels_; }
  int64_t channel_stride() const { return channel_stride_; }
  int64_t pixels() const { return pixels_; }
  int64_t offset(int64_t pixel) const {
    int64_t offset = 0;
    for (size_t axis = sizes_.size(); axis-- > 0; pixel /= sizes_[axis])
      offset += pixel % sizes_[axis] * strides_[axis];
    return offset;
  }

 private:
  std::vector<int64_t> sizes_, strides_;
  int64_t channels_, channel_stride_, pixels_ = 1;
};

void check_map(const char* name, const Tensor& map, const Tensor& index) {
  STD_TORCH_CHECK(map.is_cpu(), name, " must be on the CPU; this build has no CUDA kernels");
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
void copy_rows(const PixelMap& map, const T* features, const int64_t* index, int64_t begin, int64_t end,
               T* rows) {
  for (int64_t i = begin; i < end; ++i) {
    T* row = rows + i * map.channels();
    if (index[i] < 0) {
      std::memset(static_cast<void*>(row), 0, map.channels() * sizeof(T));
      continue;
    }
    const T* pixel = features + map.offset(index[i]);
    for (int64_t d = 0; d < map.channels(); ++d) row[d] = pixel[d * map.channel_stride()];
  }
}

// Positions order[begin..end) of draws sorted by pixel; a run of one pixel belongs to the thread that holds
// its head.
template <class T>
void add_rows(const PixelMap& map, const T* rows, const int64_t* index, const std::vector<int64_t>& order,
              int64_t begin, int64_t end, T* result) {
  std::vector<float> sum(map.channels());
  for (int64_t head = begin; head < end; ++head) {
    if (head > 0 && index[order[head - 1]] == index[order[head]]) continue;
    std::fill(sum.begin(), sum.end(), 0.0f);
    for (size_t p = head; p < order.size() && index[order[p]] == index[order[head]]; ++p) {
      const T* row = rows + order[p] * map.channels();
      for (int64_t d = 0; d < map.channels(); ++d) sum[d] += static_cast<float>(row[d]);
    }
    T* pixel = result + map.offset(index[order[head]]);
    for (int64_t d = 0; d < map.channels(); ++d) pixel[d * map.channel_stride()] = static_cast<T>(sum[d]);
  }
}

}  // namespace

Tensor gather(const Tensor& features, const Tensor& index) {
  check_map("features", features, index);
  const PixelMap map(features);
  const int64_t* pixel = index.const_data_ptr<int64_t>();
  check_range(pixel, index.size(0), map.pixels());
  Tensor rows = torch::stable::empty({index.size(0), map.channels()}, features.scalar_type());
  parallel_for(0, index.size(0), kGrain, [&](int64_t begin, int64_t end) {
    with_row_type(features.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      copy_rows(map, static_cast<const T*>(features.const_data_ptr()), pixel, begin, end,
                static_cast<T*>(rows.mutable_data_ptr()));
    });
  });
  return rows;
}

void gather_backward(const Tensor& grad, const Tensor& index, Tensor result) {
  check_map("result", result, index);
  check_dense("grad", grad, 2);
  check_type("grad", grad, result.scalar_type());
  const PixelMap map(result);
  STD_TORCH_CHECK(grad.size(0) == index.size(0) && grad.size(1) == map.channels(),
                  "grad must have shape [n, D]");
  const int64_t* pixel = index.const_data_ptr<int64_t>();
  check_range(pixel, index.size(0), map.pixels());
  std::vector<int64_t> order;
  for (int64_t i = 0; i < index.size(0); ++i) {
    if (pixel[i] >= 0) order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return pixel[a] < pixel[b]; });
  parallel_for(0, static_cast<int64_t>(order.size()), kGrain, [&](int64_t begin, int64_t end) {
    with_row_type(result.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      add_rows(map, static_cast<const T*>(grad.const_data_ptr()), pixel, order, begin, end,
               static_cast<T*>(result.mutable_data_ptr()));
    });
  });
}

}  // namespace secl::cpu
