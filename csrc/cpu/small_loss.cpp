// SPDX-License-Identifier: Apache-2.0
#include "small_loss.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "parallel.h"

namespace secl::cpu {
namespace {

// In base 2: the inverse of a sum of exp2(s - maximum) times any usual weight is then a float.
constexpr double kBoundedRange = 60;
// A row in memory and 1 / its norm, both within this range, have similarities that neither overflow nor
// vanish.
constexpr float kPlainNorm = 1e10f;

// The rows that count. Anchors come class by class, so that few columns concern a tile's own classes.
std::vector<int32_t> counted(const SmallSource& from, bool sorted) {
  std::vector<int32_t> index;
  index.reserve(from.rows);
  for (int64_t row = 0; row < from.rows; ++row) {
    if (from.label[row] >= 0) index.push_back(static_cast<int32_t>(row));
  }
  const auto before = [&](int32_t a, int32_t b) {
    if (from.group && from.group[a] != from.group[b]) return from.group[a] < from.group[b];
    return from.label[a] != from.label[b] ? from.label[a] < from.label[b] : a < b;
  };
  if (sorted && !std::is_sorted(index.begin(), index.end(), before))
    std::sort(index.begin(), index.end(), before);
  return index;
}

std::vector<int32_t> taken(const int32_t* values, const std::vector<int32_t>& index, int64_t padded,
                           int32_t padding) {
  std::vector<int32_t> found(padded, padding);
  for (size_t p = 0; p < index.size(); ++p) found[p] = values[index[p]];
  return found;
}

bool is_plain(float inverse) { return inverse == 0 || (inverse > 1 / kPlainNorm && inverse < kPlainNorm); }

// Reads the norms of rows that stay where they lie; false where one does not allow it.
bool keep_in_place(const Kernels& kernel, const SmallOptions& options, const SmallSource& from,
                   SmallSide& side) {
  const int64_t depth = options.depth;
  std::atomic<bool> plain{true};
  parallel_for(0, side.count, grain(2 * depth), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const double square = kernel.square(from.in_place + row * depth, depth);
      const float inverse = square == 0 ? 0.0f : static_cast<float>(1 / std::sqrt(square));
      if (!(std::isfinite(square) && (!options.normalize || is_plain(inverse)))) plain = false;
      side.factor[row] = options.normalize ? inverse : 1.0f;
    }
  });
  if (plain) side.rows = from.in_place;
  return plain;
}

void copy_rows(const Kernels& kernel, const SmallOptions& options, const SmallSource& from, int64_t padded,
               int64_t width, SmallSide& side) {
  const int64_t depth = options.depth;
  side.copy = Buffer(padded * width);
  std::atomic<bool> finite{true};
  parallel_for(0, padded, grain(2 * depth), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      float* row = side.copy.get() + p * width;
      std::fill_n(row + (p < side.count ? depth : 0), width - (p < side.count ? depth : 0), 0.0f);
      if (p >= side.count) continue;
      from.read(side.index[p], row);
      if (options.normalize) side.inverse[p] = kernel.to_unit(row, depth);
      const bool has_norm = options.normalize && side.inverse[p] > 0;  // else it may hold anything
      if (!has_norm && !std::isfinite(kernel.square(row, depth))) finite = false;
    }
  });
  side.finite = finite;
  side.rows = side.copy.get();
}

SmallSide make_side(const Kernels& kernel, const SmallOptions& options, const SmallSource& from,
                    int64_t width, bool anchors) {
  SmallSide side;
  side.index = counted(from, anchors);
  side.count = static_cast<int64_t>(side.index.size());
  const int64_t padded = anchors ? round_up(side.count, kernel.tile) : std::max(side.count, kernel.columns);
  side.label = taken(from.label, side.index, padded, -1);
  if (from.group) side.group = taken(from.group, side.index, padded, 0);
  side.factor.assign(side.count, 1.0f);
  side.inverse.assign(side.count, 1.0f);
  const bool fits = !anchors && from.in_place && side.count == from.rows && padded == side.count;
  if (fits && width == options.depth && keep_in_place(kernel, options, from, side)) return side;
  std::fill(side.factor.begin(), side.factor.end(), 1.0f);
  copy_rows(kernel, options, from, padded, width, side);
  return side;
}

}  // namespace

SmallLoss::SmallLoss(const SmallOptions& options, const SmallSource& anchors, const SmallSource* keys,
                     const int64_t* exclude, const float* weights)
    : options_(options), alone_(keys == nullptr), width_(round_up(options.depth, kernel_.lanes)) {
  anchors_ = make_side(kernel_, options, anchors, width_, true);
  if (!alone_) keys_ = make_side(kernel_, options, *keys, width_, false);
  take_weights(weights);
  take_skips(keys, exclude);
  describe();
  run();
}

void SmallLoss::take_weights(const float* weights) {
  weighted_ = weights != nullptr;
  weight_.assign(anchors_.label.size(), 0.0f);
  for (int64_t p = 0; p < anchors_.count; ++p) weight_[p] = weights ? weights[anchors_.index[p]] : 1.0f;
  for (const float weight : weight_) {
    if (std::isfinite(weight)) largest_ = std::max<double>(largest_, std::abs(weight));
  }
  if (largest_ == 0) largest_ = 1;
  for (float& weight : weight_) weight = static_cast<float>(weight / largest_);  // no product overflows then
}

void SmallLoss::take_skips(const SmallSource* keys, const int64_t* exclude) {
  if (!alone_ && !exclude) return;
  skip_.assign(anchors_.label.size(), -1);
  if (alone_) return std::iota(skip_.begin(), skip_.begin() + anchors_.count, 0);
  std::vector<int32_t> position(keys->rows, -1);
  for (int64_t p = 0; p < keys_.count; ++p) position[keys_.index[p]] = static_cast<int32_t>(p);
  for (int64_t p = 0; p < anchors_.count; ++p) {
    const int64_t key = exclude[anchors_.index[p]];
    if (key >= 0 && key < keys->rows) skip_[p] = position[key];
  }
}

void SmallLoss::describe() {
  const SmallSide& others = alone_ ? anchors_ : keys_;
  const int64_t padded = static_cast<int64_t>(anchors_.label.size());
  const int64_t places = round_up(others.count, kernel_.lanes);
  const double maximum = options_.scale * M_LOG2E;
  loss_.resize(padded);
  count_.resize(padded);
  tiles_ = Buffer(padded * options_.depth);
  coefficients_ = Buffer(padded * places);
  const auto data = [](const std::vector<int32_t>& values) {
    return values.empty() ? nullptr : values.data();
  };
  small_ = {.anchors = anchors_.count,
            .keys = others.count,
            .depth = options_.depth,
            .width = width_,
            .places = places,
            .anchor_rows = anchors_.rows,
            .anchor_tiles = tiles_.get(),
            .key_rows = others.rows,
            .key_factor = others.factor.data(),
            .anchor_label = anchors_.label.data(),
            .key_label = others.label.data(),
            .anchor_group = data(anchors_.group),
            .key_group = data(others.group),
            .skip = data(skip_),
            .weight = weight_.data(),
            .scale = static_cast<float>(options_.scale),
            .to_log2 = static_cast<float>(maximum),
            .maximum = static_cast<float>(maximum),
            .bounded = options_.normalize && 2 * maximum < kBoundedRange && !weighted_,
            .negatives_only = options_.negatives_only,
            .gradient = options_.gradient || options_.key_gradient,
            .finite = anchors_.finite && others.finite,
            .coefficients = coefficients_.get(),
            .loss = loss_.data(),
            .count = count_.data()};
}

void SmallLoss::run() {
  constexpr int64_t kTwice = 3;  // tiles from which on half of the similarities are worth three passes
  const int64_t tiles = static_cast<int64_t>(anchors_.label.size()) / kernel_.tile;
  const int64_t workers = worker_count(product_work(small_.anchors, small_.keys, small_.depth));
  const auto pass = [&](SmallPass each) {
    for_each(tiles, workers, [&](int64_t, int64_t tile) {
      if (each != SmallPass::kRest) prepare(tile);
      kernel_.small_tile(small_, tile, each);
    });
  };
  const auto vectors = [&](auto kernel) {
    for_each(small_.places / kernel_.lanes, worker_count(small_.anchors * small_.keys),
             [&](int64_t, int64_t vector) { kernel(small_, vector); });
  };
  if (alone_ && tiles >= kTwice) {
    pass(SmallPass::kSimilarities);
    vectors(kernel_.small_flip);
    pass(SmallPass::kRest);
  } else {
    pass(SmallPass::kAll);
  }
  if (alone_ && small_.gradient) vectors(kernel_.small_mirror);
  reduce();
}

// Transposes a tile of anchors.
void SmallLoss::prepare(int64_t tile) {
  const int64_t first = tile * kernel_.tile;
  kernel_.small_pack(small_.anchor_rows + first * small_.width, small_.width, small_.depth,
                     tiles_.get() + first * small_.depth);
}

void SmallLoss::reduce() {
  double sum = 0, total = 0;
  for (int64_t p = 0; p < anchors_.count; ++p) {
    if (count_[p] == 0) continue;
    sum += loss_[p] * weight_[p];
    total += weight_[p];
  }
  factor_ = !options_.mean ? largest_ : total > 0 ? 1 / total : largest_;
  value_ = static_cast<float>(sum * factor_);
}

void SmallLoss::write_anchors(const std::function<float*(int64_t place)>& to) {
  write(anchors_, product_work(small_.anchors, small_.keys, small_.depth), to,
        [&](int64_t vector, float* output) { kernel_.small_anchors(small_, vector, output); });
}

void SmallLoss::write_keys(const std::function<float*(int64_t place)>& to) {
  write(keys_, product_work(small_.anchors, small_.keys, small_.depth), to,
        [&](int64_t vector, float* output) { kernel_.small_keys(small_, vector, output); });
}

void SmallLoss::write(const SmallSide& side, int64_t work, const std::function<float*(int64_t place)>& to,
                      const std::function<void(int64_t vector, float* output)>& product) {
  const int64_t lanes = kernel_.lanes, width = width_, depth = options_.depth;
  const float factor = static_cast<float>(factor_);
  const int64_t vectors = round_up(side.count, lanes) / lanes;
  for_each(vectors, worker_count(work), [&](int64_t, int64_t vector) {
    Buffer output(lanes * width), unit(width);
    std::fill_n(output.get(), lanes * width, 0.0f);
    product(vector, output.get());
    for (int64_t r = 0; r < lanes && vector * lanes + r < side.count; ++r) {
      const int64_t p = vector * lanes + r;
      float* row = output.get() + r * width;
      for (int64_t d = 0; d < depth; ++d) row[d] *= factor;
      if (options_.normalize) {
        for (int64_t d = 0; d < depth; ++d) unit.get()[d] = side.rows[p * width + d] * side.factor[p];
        kernel_.through_norm(row, unit.get(), side.inverse[p], depth);
      }
      std::memcpy(to(p), row, static_cast<size_t>(depth) * sizeof(float));
    }
  });
}

}  // namespace secl::cpu
