// SPDX-License-Identifier: Apache-2.0
// Few rows: a tile of anchors against all keys, from the similarities to the coefficients of the gradient.

#include "lanes.h"
#include "small.h"
#include "vectors.h"

namespace secl::SECL_ISA {
namespace {

constexpr int kSmallPanel = 96;                    // columns between two sums in double precision
constexpr int kReach = kColumns % 3 == 0 ? 3 : 4;  // columns that a pointer reaches
static_assert(kColumns % kReach == 0);

// Similarities of the tile's rows and kColumns columns, which lie as rows of `width` numbers.
SECL_OWN_REGISTERS void dot_columns(const float* rows /* [depth, kTile] */, const float* columns,
                                    int64_t width, int64_t depth, float* tile /* [kColumns, kTile] */) {
  Float sum[kColumns][kVectors] = {};
  int64_t k = 0;
  if (kByLane) {
    for (; k + kLanes <= depth; k += kLanes, rows += kLanes * kTile)
      multiply_lanes(rows, kTile, kLanes, columns + k, width, sum);
    columns += k;
  }
  const float* group[kColumns / kReach];
#pragma GCC unroll 4
  for (int c = 0; c < kColumns / kReach; ++c) group[c] = columns + kReach * c * width;
  for (; k < depth; ++k, rows += kTile) {
    Float row[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) row[v] = load(rows + v * kLanes);
#pragma GCC unroll 16
    for (int c = 0; c < kColumns; ++c) {
      const Float column = splat(group[c / kReach][c % kReach * width]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[c][v] += row[v] * column;
    }
#pragma GCC unroll 4
    for (int c = 0; c < kColumns / kReach; ++c) ++group[c];
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
template <bool kBounded, bool kNegatives>
class SmallTile {
 public:
  SmallTile(const Small& s, int64_t tile)
      : s_(s), first_(tile * kTile), place_(s.coefficients + first_ * s.places) {
    for (int v = 0; v < kVectors; ++v) {
      label_[v] = load(s.anchor_label + first_ + v * kLanes);
      if (s.anchor_group) group_[v] = load(s.anchor_group + first_ + v * kLanes);
      if (s.skip) skip_[v] = load(s.skip + first_ + v * kLanes);
      peak_[v] = splat(kBounded ? s.maximum : -kLargest);
    }
    for (int64_t i = first_; i < first_ + kTile && i < s.anchors; ++i) {
      low_ = s.anchor_label[i] < low_ ? s.anchor_label[i] : low_;
      high_ = s.anchor_label[i] > high_ ? s.anchor_label[i] : high_;
      if (!s.skip || s.skip[i] < 0) continue;
      skip_low_ = s.skip[i] < skip_low_ ? s.skip[i] : skip_low_;
      skip_high_ = s.skip[i] > skip_high_ ? s.skip[i] : skip_high_;
    }
  }

  void run(SmallPass pass) {
    if (pass == SmallPass::kSimilarities)
      return similarities(first_, [&](bool, int64_t j, int v, Float x) { store(at(j, v), x); });
    if (pass == SmallPass::kAll) {
      similarities(0, [&](bool open, int64_t j, int v, Float x) {
        if (kBounded) return exponential(open, j, v, x);
        see(open, j, v, x);
        store(at(j, v), x);
      });
    } else if (!kBounded) {
      for_pairs([&](bool open, int64_t j, int v, Float x) { see(open, j, v, x); });
    }
    if (pass != SmallPass::kAll || !kBounded)
      for_pairs([&](bool open, int64_t j, int v, Float x) { exponential(open, j, v, x); });
    for (int lane = 0; lane < kTile; ++lane) {
      const double total = total_.total[lane];
      lse_[lane] =
          total == 0 ? -__builtin_inf() : peak_[lane / kLanes][lane % kLanes] + __builtin_log2(total);
    }
    if (kNegatives) attract();
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

  // Calls body(open, j, v, similarity in base 2) for the columns from `begin` on.
  template <class Body>
  SECL_INLINE void similarities(int64_t begin, const Body& body) {
    float tile[kColumns * kTile];
    for (int64_t panel = begin + kSmallPanel; begin < s_.keys; begin += kColumns) {
      // The last columns again where fewer are left than a register tile has.
      const int64_t last = s_.keys - kColumns, from = begin < last || last < 0 ? begin : last;
      dot_columns(s_.anchor_tiles + first_ * s_.depth, s_.key_rows + from * s_.width, s_.width, s_.depth,
                  tile);
      for (int64_t j = begin; j < begin + kColumns && j < s_.keys; ++j) {
        const float factor = s_.key_factor[j] * s_.to_log2;
        const bool open = this->open(j);
        for (int v = 0; v < kVectors; ++v)
          body(open, j, v, load(tile + (j - from) * kTile + v * kLanes) * factor);
      }
      if (begin + kColumns >= panel || begin + kColumns >= s_.keys) flush(), panel += kSmallPanel;
    }
  }

  // The same for all similarities that were written before.
  template <class Body>
  SECL_INLINE void for_pairs(const Body& body) {
    for (int64_t j = 0; j < s_.keys; ++j) {
      const bool open = this->open(j);
      for (int v = 0; v < kVectors; ++v) body(open, j, v, load(at(j, v)));
      if (j % kSmallPanel == kSmallPanel - 1 || j == s_.keys - 1) flush();
    }
  }

  // Looks for the peak.
  SECL_INLINE void see(bool open, int64_t j, int v, Float x) {
    if (!open) x = denominator(mask(j, v), kNegatives) ? x : splat(-kLargest);
    x = x > kLargest ? splat(kLargest) : x;  // a finite peak leaves an infinite sum, not a NaN
    peak_[v] = x > peak_[v] ? x : peak_[v];
  }

  // Writes the term of the denominator; in place of a positive key that is none of its keys, the similarity.
  SECL_INLINE void exponential(bool open, int64_t j, int v, Float x) {
    Float e = kBounded ? exp2_bounded(x - peak_[v]) : exp2_any(x - peak_[v]), kept = e;
    if (!open) {
      const PairMask<Int> pair = mask(j, v);
      kept = e = denominator(pair, kNegatives) ? e : Float{};
      count_[v] -= pair.positive;
      if (kNegatives) {
        kept = pair.positive ? x : e;
      } else {
        near_.part[v] += pair.positive ? x : Float{};
      }
    }
    total_.part[v] += e;
    store(at(j, v), kept);
  }

  // Softplus and sigmoid of lse - s over the positives, where the sigmoid takes the place of the similarity.
  void attract() {
    Float lse[kVectors];
    for (int lane = 0; lane < kTile; ++lane)
      lse[lane / kLanes][lane % kLanes] = static_cast<float>(lse_[lane]);
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
      s_.loss[i] = kNegatives ? mean : mean_loss(lse_[lane], mean);
      const double weight = count > 0 ? static_cast<double>(s_.weight[i]) * s_.scale : 0.0;
      const double pull = kNegatives ? pull_.total[lane] * share : 1, total = total_.total[lane];
      push_[lane / kLanes][lane % kLanes] = total == 0 ? 0.0f : static_cast<float>(weight * pull / total);
      draw_[lane / kLanes][lane % kLanes] = static_cast<float>(weight * share);
    }
  }

  // Exactly 0 for a lone pair, as in the sweeps.
  double mean_loss(double lse, double mean) const {
    const double magnitude = kBounded ? 2.0 * kLn2 * s_.maximum : 0.0, own = lse < 0 ? -lse : lse;
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
          const Float pulled = kNegatives ? x * -draw_[v] : found - draw_[v];
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

template <bool kBounded>
void small_tile_of(const Small& s, int64_t tile, SmallPass pass) {
  s.negatives_only ? SmallTile<kBounded, true>(s, tile).run(pass)
                   : SmallTile<kBounded, false>(s, tile).run(pass);
}

void small_tile(const Small& s, int64_t tile, SmallPass pass) {
  s.bounded ? small_tile_of<true>(s, tile, pass) : small_tile_of<false>(s, tile, pass);
}

}  // namespace
}  // namespace secl::SECL_ISA
