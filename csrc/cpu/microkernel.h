// SPDX-License-Identifier: Apache-2.0
// What is done with each similarity tile: the sums of the forward pass and the coefficients of the gradient.
// Written once over vectors; a translation unit per instruction set defines SECL_ISA, SECL_LANES, SECL_ROWS
// and SECL_PANEL_STRIPS under its target and includes this file last, so that no code of one set leaks into
// another.

#include "sweep.h"

namespace secl::SECL_ISA {
namespace {

// Visits where a denominator pair can be, masks where another can be too.
SECL_INLINE Visit denominator_visit(const Sweep& s, const Meeting& meeting, const Span& columns) {
  if (!meeting.groups || (s.negatives_only && meeting.one_label)) return Visit::kNone;
  const bool open = meeting.one_group && !meeting.skips && columns.all_repel &&
                    (!meeting.labels || (!s.negatives_only && columns.all_attract));
  return open ? Visit::kOpen : Visit::kMasked;
}

SECL_INLINE Int denominator_mask(const Sweep& s, int64_t row, int64_t column) {
  const PairMask<Int> pair = anchor_mask(s, row, column);
  return s.negatives_only ? pair.negative : pair.negative | pair.positive;
}

// Sum of exp2(s - maximum) where a bound on s is known beforehand.
struct BoundedSum {
  const Sweep& s;
  Float part[kBlock] = {};
  double total[kBlock] = {};

  Visit visit(const Meeting& meeting, const Span&, const Span& columns) const {
    return denominator_visit(s, meeting, columns);
  }

  void operator()(bool open, float* tile /* [kRows, kPanel] */, int64_t row, int64_t column) {
    for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        float* place = tile + r * kPanel + v * kLanes;
        Float e = exp2_bounded(load(place) * s.to_log2 - s.maximum);
        if (!open) e = denominator_mask(s, s.first + row + r, column + v * kLanes) ? e : Float{};
        part[row + r] += e;
        store(place, e);
      }
    }
  }

  void flush() {
    for (int r = 0; r < kBlock; ++r) {
      total[r] += lane_sum(part[r]);
      part[r] = Float{};
    }
  }
};

// Sum of exp2(s - peak) with a running peak in every lane.
struct RunningSum {
  const Sweep& s;
  Running<Float> inner[kBlock], outer[kBlock];

  explicit RunningSum(const Sweep& sweep) : s(sweep) {
    for (int r = 0; r < kBlock; ++r) inner[r] = outer[r] = {splat(-kLargest), Float{}};
  }

  Visit visit(const Meeting& meeting, const Span&, const Span& columns) const {
    return denominator_visit(s, meeting, columns);
  }

  void operator()(bool open, const float* tile /* [kRows, kPanel] */, int64_t row, int64_t column) {
    for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        Float x = load(tile + r * kPanel + v * kLanes) * s.to_log2;
        if (!open)
          x = denominator_mask(s, s.first + row + r, column + v * kLanes) ? x : splat(-__builtin_inff());
        Running<Float>& running = inner[row + r];
        Float peak = x > running.peak ? x : running.peak;
        peak = peak > kLargest ? splat(kLargest) : peak;
        running.sum = running.sum * exp2_any(running.peak - peak) + exp2_any(x - peak);
        running.peak = peak;
      }
    }
  }

  void flush() {
    for (int r = 0; r < kBlock; ++r) {
      outer[r] = merge(outer[r], inner[r], Exp2{});
      inner[r] = {splat(-kLargest), Float{}};
    }
  }
};

// Sums of softplus and sigmoid of lse - s over the positives; minus sigmoid multiplies the values.
struct PositiveSum {
  const Sweep& s;
  Float softplus[kBlock] = {}, sigmoid[kBlock] = {};

  Visit visit(const Meeting& meeting, const Span&, const Span&) const {
    return meeting.labels ? Visit::kMasked : Visit::kNone;
  }

  void operator()(bool, float* tile /* [kRows, kPanel] */, int64_t row, int64_t column) {
    for (int64_t r = 0; r < kRows; ++r) {
      const float lse = s.rows.lse[s.first + row + r];
      for (int v = 0; v < kVectors; ++v) {
        float* place = tile + r * kPanel + v * kLanes;
        const Int positive = anchor_mask(s, s.first + row + r, column + v * kLanes).positive;
        const Float gap = lse - load(place) * s.to_log2;
        const Attraction<Float> found = attraction(gap * kLn2, exp2_any(minus_magnitude(gap)));
        softplus[row + r] += positive ? found.softplus : Float{};
        sigmoid[row + r] += positive ? found.sigmoid : Float{};
        store(place, positive ? -found.sigmoid : Float{});
      }
    }
  }

  void flush() {
    for (int r = 0; r < s.tiles * kRows; ++r) {
      s.total[r] += lane_sum(softplus[r]);
      s.other[r] += lane_sum(sigmoid[r]);
      softplus[r] = sigmoid[r] = Float{};
    }
  }
};

// Coefficients of the gradient: the rows as anchors, as keys, or as both at once.
template <bool kAsAnchors, bool kAsKeys, bool kShared>
struct Gradient {
  const Sweep& s;

  Visit visit(const Meeting& meeting, const Span& rows, const Span& columns) const {
    if (!meeting.groups) return Visit::kNone;
    const bool repel = (!kAsAnchors || columns.all_repel) && (!kAsKeys || rows.all_repel);
    return meeting.one_group && !meeting.labels && !meeting.skips && repel ? Visit::kOpen : Visit::kMasked;
  }

  SECL_INLINE Float open(int64_t row, int64_t j, Float x) const {
    if (kShared) return exp2_bounded(x - s.maximum) * (load(s.columns.weight + j) + s.rows.weight[row]);
    Float sum{};
    if (kAsAnchors) sum += exp2_any(x - s.rows.lse[row]) * s.rows.push[row];
    if (kAsKeys) sum += exp2_any(x - load(s.columns.lse + j)) * load(s.columns.push + j);
    return sum;
  }

  SECL_INLINE Float masked(int64_t row, int64_t j, Float x) const {
    Float sum{};
    if (kAsAnchors) {
      sum += coefficient(anchor_mask(s, row, j), exp2_any(x - s.rows.lse[row]), splat(s.rows.push[row]),
                         splat(s.rows.draw[row]), s.negatives_only);
    }
    if (kAsKeys) {
      sum += coefficient(key_mask(s, row, j), exp2_any(x - load(s.columns.lse + j)), load(s.columns.push + j),
                         load(s.columns.draw + j), s.negatives_only);
    }
    return sum;
  }

  void operator()(bool is_open, float* tile /* [kRows, kPanel] */, int64_t row, int64_t column) const {
    for (int64_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        float* place = tile + r * kPanel + v * kLanes;
        const int64_t i = s.first + row + r, j = column + v * kLanes;
        const Float x = load(place) * s.to_log2;
        store(place, is_open ? open(i, j, x) : masked(i, j, x));
      }
    }
  }

  void flush() const {}
};

void log_sum_exp(const Sweep& s) {
  if (s.bounded) {
    BoundedSum tile{s};
    sweep(s, tile);
    for (int r = 0; r < s.tiles * kRows; ++r) {
      s.total[r] = tile.total[r];
      s.other[r] = s.maximum;
    }
    return;
  }
  RunningSum tile(s);
  sweep(s, tile);
  for (int r = 0; r < s.tiles * kRows; ++r) {
    double peak = -kLargest, total = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      peak = tile.outer[r].peak[lane] > peak ? tile.outer[r].peak[lane] : peak;
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      total += tile.outer[r].sum[lane] * __builtin_exp2(tile.outer[r].peak[lane] - peak);
    }
    s.total[r] = total;
    s.other[r] = peak;
  }
}

void positives(const Sweep& s) {
  for (int r = 0; r < s.tiles * kRows; ++r) s.total[r] = s.other[r] = 0;
  PositiveSum tile{s};
  sweep(s, tile);
}

template <bool kAsAnchors, bool kAsKeys, bool kShared>
void gradient_as(const Sweep& s) {
  Gradient<kAsAnchors, kAsKeys, kShared> tile{s};
  sweep(s, tile);
}

void gradient(const Sweep& s, bool as_anchors, bool as_keys) {
  if (as_anchors && as_keys)
    return s.bounded ? gradient_as<true, true, true>(s) : gradient_as<true, true, false>(s);
  return as_anchors ? gradient_as<true, false, false>(s) : gradient_as<false, true, false>(s);
}

// Vector functions at any input, for tests: "exp2", "softplus" and "sigmoid".
void probe(const char* function, const float* x, float* y, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t size = (count - i < kLanes ? count - i : kLanes) * static_cast<int64_t>(sizeof(float));
    Float in{};
    __builtin_memcpy(&in, x + i, size);
    Float out = exp2_any(in);
    if (function[0] == 's') {
      const Attraction<Float> found = attraction(in, exp2_any(minus_magnitude(in) * kLog2E));
      out = function[1] == 'o' ? found.softplus : found.sigmoid;
    }
    __builtin_memcpy(y + i, &out, size);
  }
}

constexpr Kernels make_kernels(const char* name) {
  return {name, kLanes, kRows, kStrip, kPanel, kMaxTiles, log_sum_exp, positives, gradient, probe};
}

}  // namespace
}  // namespace secl::SECL_ISA
