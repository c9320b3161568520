// SPDX-License-Identifier: Apache-2.0
// Sorting, relating and packing of rows.
#include "sides.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <type_traits>

#include "../checks.h"

namespace secl {
namespace {

// Longest strip, block and panel of any instruction set: every array may be read this far past its end.
constexpr int64_t kPadding = 64;

int64_t class_key(int32_t group, int32_t label) {
  return static_cast<int64_t>(group) * (int64_t{1} << 32) + label;
}

// NaN where either is one.
double larger(double a, double b) { return std::isnan(b) || a <= b ? b : a; }

template <class T>
std::vector<T> padded_copy(const SortedSide& side, const T* values /* [n] */, T padding) {
  std::vector<T> found(side.count + kPadding, padding);
  for (int64_t p = 0; p < side.count; ++p) found[p] = values[side.index[p]];
  return found;
}

void clear_row(Slab slab, int64_t depth, int64_t lanes) {
  for (int64_t d = 0; d < depth; d += lanes, slab.data += slab.step) std::fill_n(slab.data, lanes, 0.0f);
}

}  // namespace

SideView SortedSide::view() const {
  const auto floats = [](const std::vector<float>& values) {
    return values.empty() ? nullptr : values.data();
  };
  return {count,
          label.data(),
          group.data(),
          attract.data(),
          repel.data(),
          skip_a.data(),
          skip_b.data(),
          floats(factors.lse),
          floats(factors.push),
          floats(factors.draw),
          floats(factors.weight),
          floats(copies)};
}

Range SortedSide::positives(int64_t of_key, int64_t positive_start) const {
  const auto [low, high] = std::equal_range(key.begin(), key.end(), of_key);
  const int64_t begin = low - key.begin(), end = high - key.begin();
  const auto from = std::lower_bound(index.begin() + begin, index.begin() + end, positive_start);
  return {from - index.begin(), end};
}

Range SortedSide::meeting(int64_t low, int64_t high, bool same_label) const {
  constexpr int64_t kLabels = (int64_t{1} << 32) - 1;
  if (!same_label) low &= ~kLabels, high |= kLabels;
  const auto begin = std::lower_bound(key.begin(), key.end(), low);
  return {begin - key.begin(), std::upper_bound(begin, key.end(), high) - key.begin()};
}

SortedSide sort_side(const Tensor& labels, const std::optional<Tensor>& groups,
                     const std::vector<bool>& skipped) {
  SortedSide side;
  const int64_t rows = labels.size(0);
  const int32_t* label = labels.const_data_ptr<int32_t>();
  const int32_t* group = groups.has_value() ? groups->const_data_ptr<int32_t>() : nullptr;
  std::vector<std::pair<int64_t, int32_t>> order;
  order.reserve(rows);
  for (int64_t row = 0; row < rows; ++row) {
    if (label[row] >= 0 && (skipped.empty() || !skipped[row]))
      order.emplace_back(class_key(group ? group[row] : 0, label[row]), static_cast<int32_t>(row));
  }
  std::sort(order.begin(), order.end());
  side.count = static_cast<int64_t>(order.size());
  for (const auto& [key, row] : order) {
    side.key.push_back(key);
    side.index.push_back(row);
  }
  side.label = padded_copy<int32_t>(side, label, -1);
  side.group = group ? padded_copy<int32_t>(side, group, 0) : std::vector<int32_t>(side.count + kPadding, 0);
  side.attract = side.repel = std::vector<int32_t>(side.count + kPadding, 0);
  side.skip_a = side.skip_b = std::vector<int32_t>(side.count + kPadding, -1);
  return side;
}

void relate(SortedSide& anchors, SortedSide& keys, const PairRule& rule) {
  for (int64_t p = 0; p < keys.count; ++p) {
    keys.attract[p] = keys.index[p] >= rule.positive_start ? -1 : 0;
    keys.repel[p] = keys.index[p] < rule.negative_stop ? -1 : 0;
  }
  if (rule.self) std::iota(anchors.skip_a.begin(), anchors.skip_a.begin() + anchors.count, 0);
  if (!rule.exclude.has_value()) return;
  std::vector<int32_t> position(rule.key_rows, -1);
  for (int64_t p = 0; p < keys.count; ++p) position[keys.index[p]] = static_cast<int32_t>(p);
  const int64_t* exclude = rule.exclude->const_data_ptr<int64_t>();
  for (int64_t p = 0; p < anchors.count; ++p) {
    const int64_t key = exclude[anchors.index[p]];
    anchors.skip_b[p] = key >= 0 && key < rule.key_rows ? position[key] : -1;
  }
}

void weigh(SortedSide& keys, const float* weights) { keys.copies = padded_copy<float>(keys, weights, 1); }

std::vector<Span> make_spans(const SortedSide& side, int64_t size) {
  std::vector<Span> spans;
  for (int64_t begin = 0; begin < side.count; begin += size) {
    const int64_t end = std::min(begin + size, side.count);
    Span span{side.key[begin], side.key[end - 1], std::numeric_limits<int32_t>::max(), -1, true, true};
    for (int64_t p = begin; p < begin + size; ++p) {
      span.all_attract &= side.attract[p] != 0;
      span.all_repel &= side.repel[p] != 0;
      for (const int32_t skip : {side.skip_a[p], side.skip_b[p]}) {
        if (skip < 0) continue;
        span.skip_low = std::min(span.skip_low, skip);
        span.skip_high = std::max(span.skip_high, skip);
      }
    }
    spans.push_back(span);
  }
  return spans;
}

RowReader::RowReader(const Tensor& rows, const float* factors, bool halves)
    : data_(rows.const_data_ptr()),
      factors_(factors),
      halves_(halves),
      depth_(rows.size(1)),
      bytes_(depth_ * rows.element_size()) {
  switch (rows.scalar_type()) {
    case ScalarType::Half:
      wide_ = &RowReader::wide_as<torch::headeronly::Half>;
      break;
    case ScalarType::BFloat16:
      wide_ = &RowReader::wide_as<torch::headeronly::BFloat16>;
      break;
    default:
      wide_ = &RowReader::wide_as<float>;
  }
}

template <class T>
const float* RowReader::wide_as(int64_t row, float* scratch) const {
  const T* from = static_cast<const T*>(data_) + row * depth_;
  if constexpr (std::is_same_v<T, float>) {
    return from;
  } else {
    for (int64_t d = 0; d < depth_; ++d) scratch[d] = static_cast<float>(from[d]);
    return scratch;
  }
}

void RowReader::read(int64_t row, float* to) const {
  const float* from = wide(row, to);
  if (factors_ == nullptr) {
    if (from != to) std::memcpy(to, from, static_cast<size_t>(depth_) * sizeof(float));
  } else {
    for (int64_t d = 0; d < depth_; ++d) {
      const float product = from[d] * factors_[row];
      to[d] = halves_ ? static_cast<float>(torch::headeronly::BFloat16(product)) : product;
    }
  }
}

void pack_slab(const Kernels& kernel, const RowReader& reader, const SortedSide& side, int64_t first,
               int64_t rows, Slab to, float* scratch) {
  constexpr int64_t kAhead = 8;  // rows between the request and the reading
  const Slab whole = to;
  if (kernel.pair) rows = round_up(rows, kernel.chunk);
  const int64_t depth = reader.depth(), last = std::min(first + rows, side.count);
  for (int64_t p = first; p < first + rows; ++p, to.data += kernel.lanes) {
    if (p + kAhead < last) reader.prefetch(side.index[p + kAhead]);
    if (p < last) {
      kernel.spread(reader.wide(side.index[p], scratch), reader.factor(side.index[p]), depth, to);
    } else {
      clear_row(to, depth, kernel.lanes);
    }
  }
  if (kernel.pair) kernel.pair(whole, rows, round_up(depth, kernel.chunk) / kernel.chunk);
}

void pack_tiles(const Kernels& kernel, Slab from, int64_t depth, int64_t tiles, float* to) {
  const int64_t numbers =
      kernel.pair ? round_up(depth, kernel.chunk) / 2 : depth;  // pairs of halves, or floats
  for (int64_t t = 0; t < tiles; ++t, from.data += kernel.tile * kernel.lanes, to += depth * kernel.tile)
    kernel.transpose(from, numbers, to);
}

double largest_norm(const RowReader& reader, const SortedSide& side) {
  constexpr int64_t kRows = 256;
  const int64_t items = round_up(side.count, kRows) / kRows, work = side.count * reader.depth();
  std::vector<double> found(items, 0);
  for_each(items, worker_count(work), [&](int64_t, int64_t item) {
    std::vector<float> row(reader.depth());
    for (int64_t p = item * kRows; p < std::min(side.count, (item + 1) * kRows); ++p) {
      reader.read(side.index[p], row.data());
      double square = 0;
      for (const float value : row) square += static_cast<double>(value) * value;
      found[item] = larger(square, found[item]);
    }
  });
  double largest = 0;
  for (const double square : found) largest = larger(square, largest);
  return std::sqrt(largest);
}

}  // namespace secl
