// SPDX-License-Identifier: Apache-2.0
// Few rows: a tile of anchors against all keys, from the similarities to the coefficients of the gradient.

#include "small.h"
#include "vectors.h"

namespace secl::SECL_ISA {
namespace {

constexpr int kSmallPanel = 96;  // columns between two sums in double precision
static_assert(kColumns % 3 == 0, "a pointer reaches three columns");

// Similarities of the tile's rows and kColumns columns, which lie as rows of `width` numbers.
SECL_OWN_REGISTERS void dot_columns(const float* rows /* [depth, kTile] */, const float* columns,
                                    int64_t width, int64_t depth, float* tile /* [kColumns, kTile] */) {
  Float sum[kColumns][kVectors] = {};
  const float* third[kColumns / 3];
#pragma GCC unroll 4
  for (int c = 0; c < kColumns / 3; ++c) third[c] = columns + 3 * c * width;
  for (int64_t k = 0; k < depth; ++k, rows += kTile) {
    Float row[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) row[v] = load(rows + v * kLanes);
#pragma GCC unroll 16
    for (int c = 0; c < kColumns; ++c) {
      const Float column = splat(third[c / 3][c % 3 * width]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[c][v] += row[v] * column;
    }
#pragma GCC unroll 4
    for (int c = 0; c < kColumns / 3; ++c) ++third[c];
  }
#pragma GCC unroll 16
  for (int c = 0; c < kColumns; ++c) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(tile + c * kTile + v * kLanes, sum[c][v]);
  }
}

// A sum over many columns of each anchor: in floats over a panel, in double precision over all.
struct LongSum {
  Float part[kVectors] = {};
  double total[kTile] = {};
  void flush() {
    for (int v = 0; v < kVectors; ++v) {
      add_lanes(part[v], total + v * kLanes);
      part[v] = Float{};
    }
  }
};

// One tile of anchors on its way through the passes.
class SmallTile {
 public:
  SmallTile(const Small& s, int64_t tile)
      : s_(s), first_(tile * kTile), place_(s.coefficients + first_ * s.places) {
    for (int v = 0; v < kVectors; ++v) {
      label_[v] = load(s.anchor_label + first_ + v * kLanes);
      if (s.anchor_group) group_[v] = load(s.anchor_group + first_ + v * kLanes);
      if (s.skip) skip_[v] = load(s.skip + first_ + v * kLanes);
      peak_[v] = splat(s.bounded ? s.maximum : -kLargest);
    }
    for (int64_t i = first_; i < first_ + kTile && i < s.anchors; ++i) {
      low_ = s.anchor_label[i] < low_ ? s.anchor_label[i] : low_;
      high_ = s.anchor_label[i] > high_ ? s.anchor_label[i] : high_;
      if (!s.skip || s.skip[i] < 0) continue;
      skip_low_ = s.skip[i] < skip_low_ ? s.skip[i] : skip_low_;
      skip_high_ = s.skip[i] > skip_high_ ? s.skip[i] : skip_high_;
    }
  }

  void run() {
    similarities();
    if (!s_.bounded) exponentials();
    for (int lane = 0; lane < kTile; ++lane) {
      const double total = total_.total[lane];
      lse_[lane] = total == 0 ? -__builtin_inf() : peak_[lane / kLanes][lane % kLanes] + __builtin_log2(total);
    }
    if (s_.negatives_only) attract();
    finish();
    if (s_.gradient) coefficients();
  }

 private:
  // Whether every anchor of the tile has this key as a negative.
  bool open(int64_t j) const {
    return (s_.key_label[j] < low_ || s_.key_label[j] > high_) && !s_.anchor_group &&
           (j < skip_low_ || j > skip_high_);
  }

  SECL_INLINE PairMask<Int> mask(int64_t j, int v) const {
    Int comparable = splat(-1);
    if (s_.anchor_group) comparable &= group_[v] == s_.key_group[j];
    if (s_.skip) comparable &= skip_[v] != static_cast<int32_t>(j);
    return pair_mask(comparable, label_[v] == s_.key_label[j], splat(-1), splat(-1));
  }

  SECL_INLINE float* at(int64_t j, int v) const { return place_ + (v * s_.places + j) * kLanes; }

  // Writes the similarities in base 2, or where they are bounded what `exponential` makes of them.
  void similarities() {
    float tile[kColumns * kTile];
    for (int64_t begin = 0, panel = kSmallPanel; begin < s_.keys; begin += kColumns) {
      // The last columns again where fewer are left than a register tile has.
      const int64_t last = s_.keys - kColumns, from = begin < last || last < 0 ? begin : last;
      dot_columns(s_.anchor_tiles + first_ * s_.depth, s_.key_rows + from * s_.width, s_.width, s_.depth, tile);
      for (int64_t j = begin; j < begin + kColumns && j < s_.keys; ++j) {
        const float factor = s_.key_factor[j] * s_.to_log2;
        const bool open = this->open(j);
        for (int v = 0; v < kVectors; ++v) {
          const Float x = load(tile + (j - from) * kTile + v * kLanes) * factor;
          s_.bounded ? exponential(open, j, v, x) : similarity(open, j, v, x);
        }
      }
      if (begin + kColumns >= panel || begin + kColumns >= s_.keys) flush(), panel += kSmallPanel;
    }
  }

  SECL_INLINE void similarity(bool open, int64_t j, int v, Float x) {
    Float seen = x;
    if (!open) {
      const Int in = denominator(mask(j, v), s_.negatives_only);
      seen = in ? x : splat(-kLargest);
    }
    seen = seen > kLargest ? splat(kLargest) : seen;  // a finite peak leaves an infinite sum, not a NaN
    peak_[v] = seen > peak_[v] ? seen : peak_[v];
    store(at(j, v), x);
  }

  // The term of the denominator; in place of a positive key that is none of its keys, the similarity.
  SECL_INLINE void exponential(bool open, int64_t j, int v, Float x) {
    Float e = s_.bounded ? exp2_bounded(x - peak_[v]) : exp2_any(x - peak_[v]);
    if (!open) {
      const PairMask<Int> pair = mask(j, v);
      e = denominator(pair, s_.negatives_only) ? e : Float{};
      count_[v] -= pair.positive;
      if (!s_.negatives_only) near_.part[v] += pair.positive ? x : Float{};
      store(at(j, v), s_.negatives_only ? (pair.positive ? x : e) : e);
    } else {
      store(at(j, v), e);
    }
    total_.part[v] += e;
  }

  void exponentials() {
    for (int64_t j = 0; j < s_.keys; ++j) {
      const bool open = this->open(j);
      for (int v = 0; v < kVectors; ++v) exponential(open, j, v, load(at(j, v)));
      if (j % kSmallPanel == kSmallPanel - 1 || j == s_.keys - 1) flush();
    }
  }

  // Softplus and sigmoid of lse - s over the positives, where the sigmoid takes the place of the similarity.
  void attract() {
    Float lse[kVectors];
    for (int lane = 0; lane < kTile; ++lane) lse[lane / kLanes][lane % kLanes] = static_cast<float>(lse_[lane]);
    for (int64_t j = 0; j < s_.keys; ++j) {
      if (s_.key_label[j] >= low_ && s_.key_label[j] <= high_) {
        for (int v = 0; v < kVectors; ++v) {
          const Int positive = mask(j, v).positive;
          const Float x = load(at(j, v));
          const Attraction<Float> found = positive_terms(positive, lse[v] - x);
          near_.part[v] += found.softplus;
          pull_.part[v] += found.sigmoid;
          store(at(j, v), positive ? found.sigmoid : x);
        }
      }
      if (j % kSmallPanel == kSmallPanel - 1 || j == s_.keys - 1) flush();
    }
  }

  void flush() {
    total_.flush();
    near_.flush();
    pull_.flush();
  }

  // Loss and count of each anchor, and the factors of its coefficients.
  void finish() {
    for (int lane = 0; lane < kTile; ++lane) {
      const int64_t i = first_ + lane;
      const int32_t count = count_[lane / kLanes][lane % kLanes];
      const double share = count > 0 ? 1.0 / count : 0.0, mean = near_.total[lane] * share;
      s_.count[i] = i < s_.anchors ? count : 0;
      s_.loss[i] = s_.negatives_only ? mean : mean_loss(lse_[lane], mean);
      const double weight = static_cast<double>(s_.weight[i]) * s_.scale * (count > 0 ? 1 : 0);
      const double pull = s_.negatives_only ? pull_.total[lane] * share : 1, total = total_.total[lane];
      push_[lane / kLanes][lane % kLanes] = total == 0 ? 0.0f : static_cast<float>(weight * pull / total);
      draw_[lane / kLanes][lane % kLanes] = static_cast<float>(weight * share);
    }
  }

  // Exactly 0 for a lone pair, as in the sweeps.
  double mean_loss(double lse, double mean) const {
    const double magnitude = s_.bounded ? 2.0 * kLn2 * s_.maximum : 0.0, own = lse < 0 ? -lse : lse;
    return above_noise((lse - mean) * 0.6931471805599453, own > magnitude ? own : magnitude);
  }

  void coefficients() {
    for (int64_t j = 0; j < s_.keys; ++j) {
      const bool open = this->open(j);
      for (int v = 0; v < kVectors; ++v) {
        const Float x = load(at(j, v));
        Float found = x * push_[v];
        if (!open) {
          const Int positive = mask(j, v).positive;
          const Float pulled = s_.negatives_only ? x * -draw_[v] : found - draw_[v];
          found = positive ? pulled : found;
        }
        const Int live = draw_[v] != 0.0f;  // what does not count leaves nothing, be it a NaN
        store(at(j, v), live ? found * s_.key_factor[j] : Float{});
      }
    }
  }

  const Small& s_;
  const int64_t first_;
  float* const place_;
  Int label_[kVectors], group_[kVectors] = {}, skip_[kVectors] = {}, count_[kVectors] = {};
  int32_t low_ = 0x7FFFFFFF, high_ = -1;
  int64_t skip_low_ = INT64_MAX, skip_high_ = -1;
  Float peak_[kVectors], push_[kVectors], draw_[kVectors];
  LongSum total_, near_, pull_;
  double lse_[kTile];
};

void small_tile(const Small& s, int64_t tile) { SmallTile(s, tile).run(); }

}  // namespace
}  // namespace secl::SECL_ISA
