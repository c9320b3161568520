// SPDX-License-Identifier: Apache-2.0
// The sigmoid loss of a tile of pairs: each is judged on its own, by the sign of its logit.

#pragma once

#include "sweep.h"

namespace secl::SECL_ISA {
namespace {

// Open where all pairs count and are of one kind.
template <bool kSelf>
SECL_INLINE Visit sigmoid_visit(const Meeting& meeting, const Span& keys) {
  if (!meeting.groups || (kSelf && meeting.none_ascend)) return Visit::kNone;
  const bool every = meeting.one_group && (kSelf ? meeting.all_ascend : !meeting.skips);
  const bool attract = meeting.one_label && (kSelf || keys.all_attract);
  const bool repel = !meeting.labels && (kSelf || keys.all_repel);
  return every && (attract || repel) ? Visit::kOpen : Visit::kMasked;
}

struct Verdict {
  Float loss, slope;
};

// Of logits in base 2, all of pairs that repel, or with sign -1 of pairs that attract.
SECL_INLINE Verdict verdict(Float logit, float sign) {
  const Float gap = logit * sign;
  const Attraction<Float> found = attraction(gap * kLn2, exp2_any(minus_magnitude(gap)));
  return {found.softplus, found.sigmoid * sign};
}

SECL_INLINE Verdict verdict(Float logit, PairMask<Int> pair) {
  const Float gap = pair.positive ? -logit : logit, zero{};
  const Attraction<Float> found = attraction(gap * kLn2, exp2_any(minus_magnitude(gap)));
  const Float repelled = pair.negative ? found.sigmoid : zero;
  return {denominator(pair, false) ? found.softplus : zero, pair.positive ? -found.sigmoid : repelled};
}

SECL_INLINE Float logit2(const Sweep& s, const float* similarity) {
  return load(similarity) * s.to_log2 + s.bias2;
}

// Sums of losses and slopes of the rows as anchors; the slope multiplies the values.
template <bool kSelf>
struct SigmoidSum {
  const Sweep& s;
  float sign = 1;  // of an open tile
  Float loss[kBlockVectors] = {}, slope[kBlockVectors] = {};
  Float across_loss[kSelf ? kPanel : 1] = {}, across_slope[kSelf ? kPanel : 1] = {};

  Visit visit(const Meeting& meeting, const Span&, const Span& columns) {
    sign = meeting.one_label ? -1.0f : 1.0f;
    return sigmoid_visit<kSelf>(meeting, columns);
  }

  void operator()(bool open, float* tile, int64_t row, int64_t column, int64_t in_panel) {
    Float losses[kVectors] = {}, slopes[kVectors] = {};
    for_vectors(s, tile, row, column, [&](int c, int v, float* place, int64_t i, int64_t j) {
      const Float x = logit2(s, place);
      const Verdict found =
          open ? verdict(x, sign) : verdict(x, kSelf ? self_mask(s, i, j) : anchor_mask(s, i, j));
      losses[v] += found.loss;
      slopes[v] += found.slope;
      if (kSelf) {
        across_loss[in_panel + c] += found.loss;
        across_slope[in_panel + c] += found.slope;
      }
      store(place, found.slope);
    });
    for (int v = 0; v < kVectors; ++v) {
      loss[row / kLanes + v] += losses[v];
      slope[row / kLanes + v] += slopes[v];
    }
  }

  void flush(int64_t column) {
    for (int64_t v = 0; v < s.row_tiles * kVectors; ++v) {
      add_lanes(loss[v], s.total + v * kLanes);
      add_lanes(slope[v], s.other + v * kLanes);
      loss[v] = slope[v] = Float{};
    }
    if (!kSelf) return;
    for (int64_t c = 0; c < kPanel && column + c < s.column_tiles * kColumns; ++c) {
      s.column_total[column + c] += lane_sum(across_loss[c]);
      s.column_other[column + c] += lane_sum(across_slope[c]);
      across_loss[c] = across_slope[c] = Float{};
    }
  }
};

// Slopes times the weight of their anchor, of rows that are keys.
struct SigmoidKeys {
  const Sweep& s;
  float sign = 1;

  Visit visit(const Meeting& meeting, const Span& rows, const Span&) {
    sign = meeting.one_label ? -1.0f : 1.0f;
    return sigmoid_visit<false>(meeting, rows);
  }

  void operator()(bool open, float* tile, int64_t row, int64_t column, int64_t) const {
    for_vectors(s, tile, row, column, [&](int, int, float* place, int64_t i, int64_t j) {
      const Float x = logit2(s, place);
      const Verdict found = open ? verdict(x, sign) : verdict(x, key_mask(s, i, j));
      store(place, found.slope * s.columns.push[j]);
    });
  }

  void flush(int64_t) const {}
};

}  // namespace
}  // namespace secl::SECL_ISA
