// SPDX-License-Identifier: Apache-2.0
// A draw of pixels of every class of every image, for whoever wants one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../params.h"
#include "../random.h"

namespace secl::cpu {

struct Draw {
  int64_t images, pixels, per_class, num_classes, ignore_index;
  std::vector<int64_t> spatial;
  const int64_t* labels;  // [B, pixels]
  const bool* eligible;   // [B, pixels] or null
  const double* scores;   // [B, pixels] or null
  uint64_t seed;
  int64_t* index;  // [num_classes, B, per_class]: positives of a class lie in one run
  int32_t* label;  // the same

  uint64_t random(int64_t image, int64_t pixel) const {
    return chance(mix(seed), static_cast<uint64_t>(image * pixels + pixel));
  }

  int64_t priority(int64_t image, int64_t pixel) const {
    return static_cast<int64_t>(random(image, pixel) << kIndexBits) | pixel;
  }

  // Number of the grid cell of a pixel, for draws that spread evenly over the image.
  int64_t cell(int64_t pixel) const {
    int64_t found = 0, factor = 1;
    for (size_t axis = spatial.size(); axis-- > 0; pixel /= spatial[axis], factor *= kCellsPerAxis) {
      found += pixel % spatial[axis] * kCellsPerAxis / spatial[axis] * factor;
    }
    return found;
  }

  // The usable pixels of each class of one image, ascending.
  std::vector<std::vector<int64_t>> members(int64_t image) const {
    std::vector<std::vector<int64_t>> found(num_classes);
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      const int64_t value = labels[image * pixels + pixel];
      if (value == ignore_index || value < 0 || value >= num_classes) continue;
      if (eligible == nullptr || eligible[image * pixels + pixel]) found[value].push_back(pixel);
    }
    return found;
  }

  void write(int64_t image, int64_t of_class, const std::vector<int64_t>& drawn) const {
    const int64_t first = (of_class * images + image) * per_class;
    for (int64_t k = 0; k < per_class; ++k) {
      const bool exists = k < static_cast<int64_t>(drawn.size());
      index[first + k] = exists ? image * pixels + drawn[k] : -1;
      label[first + k] = exists ? static_cast<int32_t>(of_class) : -1;
    }
  }
};

// Writes the drawn pixels, image by image.
void draw_pixels(const Draw& draw, int64_t strategy);

}  // namespace secl::cpu
