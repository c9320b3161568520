// SPDX-License-Identifier: Apache-2.0
// A feature map of any strides as a list of pixels.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace secl::cpu {

// Where the channels of a pixel lie in a map [B, D, *spatial] of any strides.
class PixelMap {
 public:
  explicit PixelMap(const torch::stable::Tensor& map) {
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
  // Of one pixel: where its channels are not neighbours, each is a cache line of its own.
  int64_t work() const { return channel_stride_ == 1 ? channels_ : 8 * channels_; }
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

// Widened rows of the map; index -1 gives zeros.
template <class T>
void read_pixel(const PixelMap& map, const T* features, int64_t index, float* row /* [D] */) {
  if (index < 0) return std::fill(row, row + map.channels(), 0.0f);
  const T* pixel = features + map.offset(index);
  for (int64_t d = 0; d < map.channels(); ++d) row[d] = static_cast<float>(pixel[d * map.channel_stride()]);
}

}  // namespace secl::cpu
