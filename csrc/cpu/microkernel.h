// SPDX-License-Identifier: Apache-2.0
// What is done with each similarity tile: the sums of the forward pass and the coefficients of the gradient.
// Written once over vectors; a translation unit per instruction set defines SECL_ISA, SECL_LANES and
// SECL_COLUMNS under its target and includes this file last, so that no code of one set leaks into another.

#include "box.h"
#include "packing.h"
#include "row_math.h"
#if defined(SECL_AMX)
#define SECL_HALVES
#include "amx.h"
#elif defined(SECL_BFMMLA)
#define SECL_HALVES
#include "bfmmla.h"
#else
#include "products.h"
#include "small_products.h"
#include "small_tile.h"
#endif
#include "sigmoid_tile.h"
#include "sweep.h"

namespace secl::SECL_ISA {
namespace {

// Visits where a denominator pair can be, masks where another can be too.
template <bool kSelf>
SECL_INLINE Visit denominator_visit(const Sweep& s, const Meeting& meeting, const Span& columns) {
  if (!meeting.groups || (s.negatives_only && meeting.one_label)) return Visit::kNone;
  if (kSelf && meeting.none_ascend) return Visit::kNone;
  const bool every = kSelf ? meeting.all_ascend
                           : !meeting.skips && columns.all_repel &&
                                 (!meeting.labels || (!s.negatives_only && columns.all_attract));
  const bool open = meeting.one_group && every && !(s.negatives_only && meeting.labels);
  return open ? Visit::kOpen : Visit::kMasked;
}

template <bool kSelf>
SECL_INLINE Int denominator_mask(const Sweep& s, int64_t i, int64_t j) {
  const PairMask<Int> pair = kSelf ? self_mask(s, i, j) : anchor_mask(s, i, j);
  return s.negatives_only ? pair.negative : pair.negative | pair.positive;
}

// Sum of exp2(s - maximum) where a bound on s is known beforehand. A weighted key counts as often as it has
// copies, here and in what follows.
template <bool kSelf, bool kWeighted = false>
struct BoundedSum {
  const Sweep& s;
  Float part[kBlockVectors] = {};
  Float across[kSelf ? kPanel : 1] = {};

  Visit visit(const Meeting& meeting, const Span&, const Span& columns) const {
    return denominator_visit<kSelf>(s, meeting, columns);
  }

  void operator()(bool open, float* tile, int64_t row, int64_t column, int64_t in_panel) {
    const bool keep = s.output.data != nullptr;
    Float sum[kVectors];
    for (int v = 0; v < kVectors; ++v) sum[v] = part[row / kLanes + v];
    for_vectors(s, tile, row, column, [&](int c, int v, float* place, int64_t i, int64_t j) {
      Float e = exp2_bounded(load(place) * s.to_log2 - s.maximum);
      if (kWeighted) e *= s.columns.copies[j];
      if (!open) e = denominator_mask<kSelf>(s, i, j) ? e : Float{};
      sum[v] += e;
      if (kSelf) across[in_panel + c] += e;
      if (keep) store(place, e);
    });
    for (int v = 0; v < kVectors; ++v) part[row / kLanes + v] = sum[v];
  }

  void flush(int64_t column) {
    for (int64_t v = 0; v < s.row_tiles * kVectors; ++v) {
      add_lanes(part[v], s.total + v * kLanes);
      part[v] = Float{};
    }
    if (!kSelf) return;
    for (int64_t c = 0; c < kPanel && column + c < s.column_tiles * kColumns; ++c) {
      s.column_total[column + c] += lane_sum(across[c]);
      across[c] = Float{};
    }
  }
};

// Sum of exp2(s - peak) with a running peak for every row.
template <bool kWeighted>
struct RunningSum {
  const Sweep& s;
  Running<Float> running[kBlockVectors];

  explicit RunningSum(const Sweep& sweep) : s(sweep) { restart(); }

  Visit visit(const Meeting& meeting, const Span&, const Span& columns) const {
    return denominator_visit<false>(s, meeting, columns);
  }

  void operator()(bool open, float* tile, int64_t row, int64_t column, int64_t) {
    for_vectors(s, tile, row, column, [&](int, int v, float* place, int64_t i, int64_t j) {
      Float x = load(place) * s.to_log2;
      if (!open) x = denominator_mask<false>(s, i, j) ? x : splat(-__builtin_inff());
      Running<Float>& found = running[row / kLanes + v];
      Float peak = x > found.peak ? x : found.peak;
      peak = peak > kLargest ? splat(kLargest) : peak;
      Float e = exp2_any(x - peak);
      if (kWeighted) e *= s.columns.copies[j];
      found.sum = found.sum * exp2_any(found.peak - peak) + e;
      found.peak = peak;
    });
  }

  void flush(int64_t) {
    for (int64_t r = 0; r < s.row_tiles * kTile; ++r) {
      const Running<Float>& vector = running[r / kLanes];
      const Running<double> found{vector.peak[r % kLanes], vector.sum[r % kLanes]};
      const auto exp2 = [](double x) { return __builtin_exp2(x); };
      const Running<double> merged = merge(Running<double>{s.other[r], s.total[r]}, found, exp2);
      s.other[r] = merged.peak;
      s.total[r] = merged.sum;
    }
    restart();
  }

  void restart() {
    for (Running<Float>& each : running) each = {splat(-kLargest), Float{}};
  }
};

// Sums of softplus and sigmoid of lse - s over the positives; minus sigmoid multiplies the values.
template <bool kSelf, bool kWeighted = false>
struct PositiveSum {
  const Sweep& s;
  Float softplus[kBlockVectors] = {}, sigmoid[kBlockVectors] = {};
  Float across_softplus[kSelf ? kPanel : 1] = {}, across_sigmoid[kSelf ? kPanel : 1] = {};

  Visit visit(const Meeting& meeting, const Span&, const Span&) const {
    const bool here = meeting.labels && !(kSelf && meeting.none_ascend);
    return here ? Visit::kMasked : Visit::kNone;
  }

  void operator()(bool, float* tile, int64_t row, int64_t column, int64_t in_panel) {
    for_vectors(s, tile, row, column, [&](int c, int v, float* place, int64_t i, int64_t j) {
      const Int positive = (kSelf ? self_mask(s, i, j) : anchor_mask(s, i, j)).positive;
      const Float x = load(place) * s.to_log2;
      Attraction<Float> found = positive_terms(positive, load(s.rows.lse + i) - x);
      if (kWeighted) found = {found.softplus * s.columns.copies[j], found.sigmoid * s.columns.copies[j]};
      softplus[row / kLanes + v] += found.softplus;
      sigmoid[row / kLanes + v] += found.sigmoid;
      if (kSelf) {
        const Attraction<Float> back = positive_terms(positive, s.columns.lse[j] - x);
        across_softplus[in_panel + c] += back.softplus;
        across_sigmoid[in_panel + c] += back.sigmoid;
      } else {
        store(place, -found.sigmoid);
      }
    });
  }

  void flush(int64_t column) {
    for (int64_t v = 0; v < s.row_tiles * kVectors; ++v) {
      add_lanes(softplus[v], s.total + v * kLanes);
      add_lanes(sigmoid[v], s.other + v * kLanes);
      softplus[v] = sigmoid[v] = Float{};
    }
    if (!kSelf) return;
    for (int64_t c = 0; c < kPanel && column + c < s.column_tiles * kColumns; ++c) {
      s.column_total[column + c] += lane_sum(across_softplus[c]);
      s.column_other[column + c] += lane_sum(across_sigmoid[c]);
      across_softplus[c] = across_sigmoid[c] = Float{};
    }
  }
};

// Coefficients of the gradient of the rows as anchors, or else as keys.
template <bool kAnchors, bool kWeighted>
struct Gradient {
  const Sweep& s;

  // Of a pair, as often as its key counts.
  SECL_INLINE Float counted(int64_t i, int64_t j, Float value) const {
    if (!kWeighted) return value;
    return kAnchors ? value * s.columns.copies[j] : value * load(s.rows.copies + i);
  }

  Visit visit(const Meeting& meeting, const Span& rows, const Span& columns) const {
    if (!meeting.groups) return Visit::kNone;
    const bool repel = kAnchors ? columns.all_repel : rows.all_repel;
    return meeting.one_group && !meeting.labels && !meeting.skips && repel ? Visit::kOpen : Visit::kMasked;
  }

  void operator()(bool open, float* tile, int64_t row, int64_t column, int64_t) const {
    for_vectors(s, tile, row, column, [&](int, int, float* place, int64_t i, int64_t j) {
      const Float push = kAnchors ? load(s.rows.push + i) : splat(s.columns.push[j]);
      const Float lse = kAnchors ? load(s.rows.lse + i) : splat(s.columns.lse[j]);
      const Float e = exp2_any(load(place) * s.to_log2 - lse);
      if (open) return store(place, counted(i, j, e * push));
      const PairMask<Int> pair = kAnchors ? anchor_mask(s, i, j) : key_mask(s, i, j);
      const Float draw = kAnchors ? load(s.rows.draw + i) : splat(s.columns.draw[j]);
      store(place, counted(i, j, coefficient(pair, e, push, draw, s.negatives_only)));
    });
  }

  void flush(int64_t) const {}
};

// Coefficients of both gradients of a pair of one side: what (i, j) gives to i and, being symmetric, to j.
template <bool kBounded>
struct SelfGradient {
  const Sweep& s;

  Visit visit(const Meeting& meeting, const Span&, const Span&) const {
    if (!meeting.groups || meeting.none_ascend) return Visit::kNone;
    return meeting.one_group && !meeting.labels && meeting.all_ascend ? Visit::kOpen : Visit::kMasked;
  }

  SECL_INLINE Float open(int64_t i, int64_t j, Float x) const {
    if (kBounded) return exp2_bounded(x - s.maximum) * (load(s.rows.weight + i) + s.columns.weight[j]);
    return exp2_any(x - load(s.rows.lse + i)) * load(s.rows.push + i) +
           exp2_any(x - s.columns.lse[j]) * s.columns.push[j];
  }

  SECL_INLINE Float masked(int64_t i, int64_t j, Float x) const {
    const PairMask<Int> pair = self_mask(s, i, j);
    return coefficient(pair, exp2_any(x - load(s.rows.lse + i)), load(s.rows.push + i), load(s.rows.draw + i),
                       s.negatives_only) +
           coefficient(pair, exp2_any(x - s.columns.lse[j]), splat(s.columns.push[j]),
                       splat(s.columns.draw[j]), s.negatives_only);
  }

  void operator()(bool is_open, float* tile, int64_t row, int64_t column, int64_t) const {
    for_vectors(s, tile, row, column, [&](int, int, float* place, int64_t i, int64_t j) {
      const Float x = load(place) * s.to_log2;
      store(place, is_open ? open(i, j, x) : masked(i, j, x));
    });
  }

  void flush(int64_t) const {}
};

template <class Tile>
void run(const Sweep& s) {
  Tile tile{s};
  sweep(s, tile);
}

void log_sum_exp(const Sweep& s) {
  if (s.columns.copies) return s.bounded ? run<BoundedSum<false, true>>(s) : run<RunningSum<true>>(s);
  s.bounded ? run<BoundedSum<false>>(s) : run<RunningSum<false>>(s);
}

void positives(const Sweep& s) {
  s.columns.copies ? run<PositiveSum<false, true>>(s) : run<PositiveSum<false>>(s);
}

void gradient(const Sweep& s, bool as_anchors) {
  if (as_anchors) return s.columns.copies ? run<Gradient<true, true>>(s) : run<Gradient<true, false>>(s);
  s.rows.copies ? run<Gradient<false, true>>(s) : run<Gradient<false, false>>(s);
}

void self_gradient(const Sweep& s) { s.bounded ? run<SelfGradient<true>>(s) : run<SelfGradient<false>>(s); }

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
  return {name,
          kLanes,
          kTile,
          kColumns,
#ifdef SECL_HALVES
          kHalves,
          spread_halves,
          pair_rows,
#else
          kLanes,
          spread,
          nullptr,
#endif
          transpose,
          to_unit,
          through_norm,
          square,
          weighted_sum,
          log_sum_exp,
          positives,
          gradient,
          run<BoundedSum<true>>,
          run<PositiveSum<true>>,
          self_gradient,
          run<SigmoidSum<false>>,
          run<SigmoidKeys>,
          run<SigmoidSum<true>>,
#ifdef SECL_HALVES
          nullptr,
          nullptr,
          nullptr,
          nullptr,
          nullptr,
          nullptr,  // few rows are widened
#else
          small_pack,
          small_tile,
          small_flip,
          small_mirror,
          small_anchors,
          small_keys,
#endif
          probe};
}

}  // namespace
}  // namespace secl::SECL_ISA
