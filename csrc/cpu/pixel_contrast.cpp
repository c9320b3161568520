// SPDX-License-Identifier: Apache-2.0
// The whole pixel step of few draws as one operation: labels are brought to the map's size, pixels drawn,
// read as rows and contrasted, gradients included.
#include <algorithm>
#include <optional>
#include <vector>

#include "../checks.h"
#include "../operations.h"
#include "draw.h"
#include "parallel.h"
#include "pixel_map.h"
#include "small_loss.h"

namespace secl::cpu {
namespace {

// Where the value of each pixel of the new grid stands in the old one [B, *spatial]: at the centre of its
// cell.
std::vector<int64_t> nearest(const Tensor& values, const Tensor& map /* [B, D, *spatial] */) {
  std::vector<int64_t> found{0};
  for (int64_t axis = 0; axis < values.dim(); ++axis) {
    const int64_t old = values.size(axis), size = axis == 0 ? old : map.size(axis + 1);
    std::vector<int64_t> next;
    next.reserve(found.size() * size);
    for (const int64_t place : found) {
      for (int64_t x = 0; x < size; ++x) next.push_back(place * old + (2 * x + 1) * old / (2 * size));
    }
    found.swap(next);
  }
  return found;
}

template <class To, class From>
std::vector<To> taken(const Tensor& values, const std::vector<int64_t>& places) {
  const From* from = static_cast<const From*>(values.const_data_ptr());
  std::vector<To> found;
  found.reserve(places.size());
  for (const int64_t place : places) found.push_back(static_cast<To>(from[place]));
  return found;
}

std::vector<int64_t> taken_labels(const Tensor& labels, const std::vector<int64_t>& places) {
  switch (labels.scalar_type()) {
    case ScalarType::Byte:
      return taken<int64_t, uint8_t>(labels, places);
    case ScalarType::Int:
      return taken<int64_t, int32_t>(labels, places);
    default:
      return taken<int64_t, int64_t>(labels, places);
  }
}

bool is_label_map(const Tensor& labels, const Tensor& features) {
  const ScalarType type = labels.scalar_type();
  return labels.is_cpu() && labels.is_contiguous() && labels.numel() > 0 &&
         labels.dim() == features.dim() - 1 && labels.size(0) == features.size(0) &&
         (type == ScalarType::Long || type == ScalarType::Int || type == ScalarType::Byte);
}

bool is_feature_map(const Tensor& features) {
  return features.is_cpu() && features.dim() >= 3 && features.dim() <= 5 &&
         is_row_type(features.scalar_type()) && features.numel() > 0;
}

bool goes_with(const Maybe& values, const Tensor& labels, bool is_type) {
  return !values || (is_type && values->is_cpu() && values->is_contiguous() &&
                     std::ranges::equal(values->sizes(), labels.sizes()));
}

bool is_served(const PixelSide& side) {
  if (!is_feature_map(side.features) || !is_label_map(side.labels, side.features)) return false;
  const bool is_bool = side.eligible && side.eligible->scalar_type() == ScalarType::Bool;
  const bool is_real = side.scores && (side.scores->scalar_type() == ScalarType::Float ||
                                       side.scores->scalar_type() == ScalarType::Double);
  if (side.seed && (side.seed->numel() != 1 || side.seed->scalar_type() != ScalarType::Long)) return false;
  const int64_t pixels = side.features.numel() / side.features.size(1) / side.features.size(0);
  return pixels < int64_t{1} << kIndexBits && goes_with(side.eligible, side.labels, is_bool) &&
         goes_with(side.scores, side.labels, is_real);
}

bool is_served(const PixelOptions& options, int64_t images) {
  constexpr int64_t kMostPlaces = (int64_t{1} << 31) - 1;
  const bool counts = options.per_class >= 1 && options.num_classes >= 1 &&
                      options.per_class <= kMostPlaces / images / options.num_classes;
  return counts && options.strategy >= kUniform && options.strategy <= kHard &&
         (options.reduction == kMean || options.reduction == kSum);
}

// The pixels drawn from one map: their numbers in the batch and their classes, -1 in free places.
struct Drawn {
  std::vector<int64_t> index;
  std::vector<int32_t> label;

  Drawn(const PixelSide& side, const PixelOptions& options) {
    const std::vector<int64_t> places = nearest(side.labels, side.features);
    const std::vector<int64_t> labels = taken_labels(side.labels, places);
    std::vector<uint8_t> eligible;
    std::vector<double> scores;
    if (side.eligible) eligible = taken<uint8_t, bool>(*side.eligible, places);
    if (side.scores && side.scores->scalar_type() == ScalarType::Float)
      scores = taken<double, float>(*side.scores, places);
    else if (side.scores)
      scores = taken<double, double>(*side.scores, places);
    const int64_t images = side.features.size(0);
    index.resize(images * options.num_classes * options.per_class);
    label.resize(index.size());
    const int64_t seed = side.seed ? *side.seed->const_data_ptr<int64_t>() : side.seed_number;
    const auto sizes = side.features.sizes();
    draw_pixels({images, static_cast<int64_t>(places.size()) / images, options.per_class, options.num_classes,
                 options.ignore_index, std::vector<int64_t>(sizes.begin() + 2, sizes.end()), labels.data(),
                 side.eligible ? reinterpret_cast<const bool*>(eligible.data()) : nullptr,
                 side.scores ? scores.data() : nullptr, static_cast<uint64_t>(seed ^ side.stream),
                 index.data(), label.data()},
                options.strategy);  // "hard" without scores is uniform
  }
};

// The drawn pixels as rows.
SmallSource source(const Tensor& features, const PixelMap& map, const Drawn& drawn) {
  const auto read = [&](int64_t row, float* to) {
    with_row_type(features.scalar_type(), [&](auto zero) {
      read_pixel(map, static_cast<const decltype(zero)*>(features.const_data_ptr()), drawn.index[row], to);
    });
  };
  return {static_cast<int64_t>(drawn.index.size()), drawn.label.data(), nullptr, read, nullptr};
}

// Gradient rows of the pixels that were drawn, and their numbers.
std::tuple<Tensor, Tensor> gradient(const SmallSide& side, const Drawn& drawn, int64_t depth, bool wanted,
                                    const auto& write) {
  const int64_t count = wanted ? side.count : 0;
  Tensor rows = torch::stable::empty({count, depth}, ScalarType::Float),
         pixels = torch::stable::empty({count}, ScalarType::Long);
  if (!wanted) return {rows, pixels};
  for (int64_t p = 0; p < count; ++p) pixels.mutable_data_ptr<int64_t>()[p] = drawn.index[side.index[p]];
  float* to = rows.mutable_data_ptr<float>();
  write([=](int64_t place) { return to + place * depth; });
  return {rows, pixels};
}

// Numbers of a gradient times the upstream number; a zero stays a zero.
template <class T>
void write_scaled(const float* from, float scale, int64_t count, int64_t stride, T* to) {
  for (int64_t d = 0; d < count; ++d) to[d * stride] = static_cast<T>(from[d] == 0 ? 0.0f : from[d] * scale);
}

}  // namespace

PixelState pixel_contrast(const PixelSide& anchors, const PixelSide* keys, const PixelOptions& options) {
  const Tensor none = torch::stable::empty({0}, ScalarType::Float);
  const PixelState unserved{none, none, none, none, none, false};
  if (!is_served(anchors) || !is_served(options, anchors.features.size(0))) return unserved;
  const int64_t depth = anchors.features.size(1);
  if (keys && (!is_served(*keys) || keys->features.size(1) != depth ||
               keys->features.scalar_type() != anchors.features.scalar_type() ||
               !is_served(options, keys->features.size(0))))
    return unserved;
  const Drawn anchor_pixels(anchors, options);
  std::optional<Drawn> key_pixels;
  if (keys) key_pixels.emplace(*keys, options);
  const PixelMap anchor_map(anchors.features), key_map(keys ? keys->features : anchors.features);
  const SmallSource rows = source(anchors.features, anchor_map, anchor_pixels);
  SmallSource key_rows = rows;
  if (keys) key_rows = source(keys->features, key_map, *key_pixels);
  const bool of_anchors = (options.flags & kAnchorGradient) != 0;
  const bool of_keys = keys && (options.flags & kKeyGradient) != 0;
  SmallLoss loss({depth, options.scale, options.normalize, (options.flags & kNegatives) != 0, of_anchors,
                  of_keys, options.reduction == kMean},
                 rows, keys ? &key_rows : nullptr, nullptr, nullptr);
  Tensor value = torch::stable::empty({}, ScalarType::Float);
  *value.mutable_data_ptr<float>() = loss.value();
  const auto [grad, index] = gradient(loss.anchors(), anchor_pixels, depth, of_anchors,
                                      [&](const auto& to) { loss.write_anchors(to); });
  const auto [key_grad, key_index] = gradient(loss.keys(), keys ? *key_pixels : anchor_pixels, depth, of_keys,
                                              [&](const auto& to) { loss.write_keys(to); });
  return {value, grad, index, key_grad, key_index, true};
}

void small_backward(const Tensor& rows, const Maybe& pixels, const Tensor& upstream, Tensor result) {
  check_rows("rows", rows);
  check_type("rows", rows, ScalarType::Float);
  STD_TORCH_CHECK(upstream.numel() == 1, "upstream must be one number");
  check_type("upstream", upstream, ScalarType::Float);
  STD_TORCH_CHECK(is_row_type(result.scalar_type()), "result must be float32, float16 or bfloat16");
  check_device("result", result, rows);
  const int64_t depth = rows.size(1);
  const float scale = *upstream.const_data_ptr<float>();
  const float* from = rows.const_data_ptr<float>();
  if (!pixels) {
    check_dense("result", result, 2);
    STD_TORCH_CHECK(result.numel() == rows.numel(), "result must have the shape of the rows");
    return with_row_type(result.scalar_type(), [&](auto zero) {
      write_scaled(from, scale, rows.numel(), 1, static_cast<decltype(zero)*>(result.mutable_data_ptr()));
    });
  }
  check_vector("pixels", *pixels, rows.size(0), ScalarType::Long);
  STD_TORCH_CHECK(result.dim() >= 3, "result must have shape [B, D, *spatial]");
  const PixelMap map(result);
  STD_TORCH_CHECK(map.channels() == depth, "result must have the channels of the rows");
  const int64_t* pixel = pixels->const_data_ptr<int64_t>();
  for (int64_t i = 0; i < rows.size(0); ++i) {
    STD_TORCH_CHECK(pixel[i] >= 0 && pixel[i] < map.pixels(), "pixels must lie in 0..", map.pixels() - 1,
                    "; got ", pixel[i]);
    with_row_type(result.scalar_type(), [&](auto zero) {
      write_scaled(from + i * depth, scale, depth, map.channel_stride(),
                   static_cast<decltype(zero)*>(result.mutable_data_ptr()) + map.offset(pixel[i]));
    });
  }
}

}  // namespace secl::cpu
