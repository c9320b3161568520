// SPDX-License-Identifier: Apache-2.0
// Draws pixels of every class of every image: the same pixels for the same seed as the reference backend.
#include <algorithm>
#include <cmath>
#include <vector>

#include "../checks.h"
#include "../operations.h"
#include "draw.h"
#include "parallel.h"

namespace secl::cpu {
namespace {

// The `count` pixels of the lowest priority.
std::vector<int64_t> uniform(const Draw& draw, int64_t image, const std::vector<int64_t>& members,
                             int64_t count) {
  std::vector<int64_t> priorities;
  for (const int64_t pixel : members) priorities.push_back(draw.priority(image, pixel));
  count = std::min<int64_t>(count, priorities.size());
  std::partial_sort(priorities.begin(), priorities.begin() + count, priorities.end());
  std::vector<int64_t> drawn;
  for (int64_t k = 0; k < count; ++k) drawn.push_back(priorities[k] & ((int64_t{1} << kIndexBits) - 1));
  return drawn;
}

// A systematic draw: pixels in order of (cell, chance), every (available / count)-th from a random start.
std::vector<int64_t> stratified(const Draw& draw, int64_t image, int64_t of_class,
                                const std::vector<int64_t>& members) {
  std::vector<std::pair<int64_t, int64_t>> order;
  for (const int64_t pixel : members) {
    order.emplace_back(draw.cell(pixel) << kRandomBits | static_cast<int64_t>(draw.random(image, pixel)),
                       pixel);
  }
  std::sort(order.begin(), order.end());
  const int64_t available = static_cast<int64_t>(order.size());
  const uint64_t counter = static_cast<uint64_t>(of_class * draw.images + image);
  const int64_t start =
      static_cast<int64_t>(mix(mix(draw.seed ^ kGolden) + counter * kGolden) >> 24 & 0xFFFFFF);
  const int64_t count = std::min(available, draw.per_class);
  std::vector<int64_t> drawn;
  for (int64_t k = 0; k < count; ++k)
    drawn.push_back(order[(k * available + (start * available >> 24)) / count].second);
  return drawn;
}

// The lowest scores for half of the budget, chance for the rest.
//
// The reference ranks every pixel of the image, those of other classes as infinite: an infinite score
// competes with them.
std::vector<int64_t> hard(const Draw& draw, int64_t image, const std::vector<int64_t>& members) {
  const double* scores = draw.scores + image * draw.pixels;
  std::vector<double> ranked(draw.pixels, HUGE_VAL);
  for (const int64_t pixel : members) ranked[pixel] = scores[pixel];
  std::vector<int64_t> order(draw.pixels);
  for (int64_t pixel = 0; pixel < draw.pixels; ++pixel) order[pixel] = pixel;
  const int64_t half = std::min(draw.per_class / 2, draw.pixels);
  std::partial_sort(order.begin(), order.begin() + half, order.end(), [&](int64_t a, int64_t b) {
    const double x = ranked[a], y = ranked[b];
    if (std::isnan(x) != std::isnan(y)) return std::isnan(y);
    return x < y || (!(y < x) && a < b);
  });
  std::vector<bool> member(draw.pixels, false);
  for (const int64_t pixel : members) member[pixel] = true;
  std::vector<int64_t> drawn, rest;
  for (int64_t rank = 0; rank < half; ++rank) {
    if (member[order[rank]]) drawn.push_back(order[rank]);
    member[order[rank]] = false;
  }
  for (const int64_t pixel : members) {
    if (member[pixel]) rest.push_back(pixel);
  }
  const int64_t missing = draw.per_class - static_cast<int64_t>(drawn.size());
  for (const int64_t pixel : uniform(draw, image, rest, missing)) drawn.push_back(pixel);
  return drawn;
}

void draw_image(const Draw& draw, int64_t image, int64_t strategy) {
  const std::vector<std::vector<int64_t>> members = draw.members(image);
  for (int64_t of_class = 0; of_class < draw.num_classes; ++of_class) {
    if (strategy == kHard && draw.scores != nullptr) {
      draw.write(image, of_class, hard(draw, image, members[of_class]));
    } else if (strategy == kStratified) {
      draw.write(image, of_class, stratified(draw, image, of_class, members[of_class]));
    } else {
      draw.write(image, of_class, uniform(draw, image, members[of_class], draw.per_class));
    }
  }
}

}  // namespace

void draw_pixels(const Draw& draw, int64_t strategy) {
  const int64_t pixels = draw.images * draw.pixels;
  parallel_for(0, draw.images, pixels < kWork ? draw.images : 1, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) draw_image(draw, image, strategy);
  });
}

std::tuple<Tensor, Tensor> Operations::sample(const Tensor& labels, const Maybe& eligible,
                                              const Maybe& scores, const Tensor& seed, int64_t per_class,
                                              int64_t num_classes, int64_t ignore_index, int64_t strategy,
                                              int64_t stream) {
  check_sample(labels, eligible, scores, seed, per_class, num_classes);
  check_choice("strategy", strategy, kHard);
  check_type("labels", labels, ScalarType::Long);
  if (scores.has_value()) check_type("scores", *scores, ScalarType::Double);
  const int64_t images = labels.size(0), pixels = images ? labels.numel() / images : 0;
  const int64_t size = images * num_classes * per_class;
  Tensor index = torch::stable::empty({size}, ScalarType::Long),
         label = torch::stable::empty({size}, ScalarType::Int);
  const Draw draw{images,
                  pixels,
                  per_class,
                  num_classes,
                  ignore_index,
                  std::vector<int64_t>(labels.sizes().begin() + 1, labels.sizes().end()),
                  labels.const_data_ptr<int64_t>(),
                  eligible ? eligible->const_data_ptr<bool>() : nullptr,
                  scores ? scores->const_data_ptr<double>() : nullptr,
                  static_cast<uint64_t>(*seed.const_data_ptr<int64_t>() ^ stream),
                  index.mutable_data_ptr<int64_t>(),
                  label.mutable_data_ptr<int32_t>()};
  draw_pixels(draw, strategy);
  return {index, label};
}

}  // namespace secl::cpu
