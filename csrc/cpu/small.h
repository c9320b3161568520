// SPDX-License-Identifier: Apache-2.0
// The seam between a contrast of few rows and its kernels: every similarity is kept, in a matrix no larger
// than the rows, and becomes in place what multiplies them. Plain pointers, as in job.h.
#pragma once

#include <cstdint>

namespace secl {

// Rows of both sides without those that are ignored, and what the kernels make of each pair. Anchors are
// padded to whole tiles: with rows of zeros, weight 0 and label -1. Where the keys are the anchors, the two
// sides are one.
struct Small {
  int64_t anchors, keys, depth;
  int64_t width;                // of a row in memory: the depth padded to whole vectors
  int64_t places;               // the keys padded to whole vectors
  const float* anchor_rows;     // [padded, width]
  const float* anchor_tiles;    // [padded / tile, depth, tile]
  const float* key_rows;        // [keys, width], at least one register tile of them
  const float* key_factor;      // [keys] what a row that lies as it was given is multiplied with
  const int32_t* anchor_label;  // [padded]
  const int32_t* key_label;     // [keys]
  const int32_t* anchor_group;  // [padded], or null
  const int32_t* key_group;     // [keys], or null
  const int32_t* skip;          // [padded] the key that an anchor must not see, or -1; or null
  const float* weight;          // [padded] of each anchor's loss
  float scale;                  // of a similarity
  float to_log2;                // scale * log2(e)
  float maximum;                // bound of the similarity in base 2, where `bounded`
  bool bounded, negatives_only, gradient;
  bool finite;          // no row holds a NaN or an infinity
  float* coefficients;  // [padded / lanes, places, lanes]
  double* loss;         // [padded], written
  int32_t* count;       // [padded] positive keys, written
};

// What is done with a tile of anchors: all of it; or only its similarities with the columns from its own
// first on, and when those of each pair stand in both of its places, the rest.
enum class SmallPass { kAll, kSimilarities, kRest };

}  // namespace secl
