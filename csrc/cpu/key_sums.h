// SPDX-License-Identifier: Apache-2.0
// The positive keys of an anchor, and their sums through those of its class.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "blocks.h"

namespace secl::cpu {

constexpr double kCancelled = 0x1p-20;  // share that a difference of two sums must be, or it is noise

// Positive keys of one anchor: a run of positions, less those it must not see.
struct Positives {
  Range run;
  int64_t count;
  int64_t skips[2];
  double copies;         // how many keys they count as
  bool cancels = false;  // the sum of the run less the skips is noise

  Positives(const SortedSide& anchors, const SortedSide& keys, int64_t row, int64_t positive_start)
      : run(keys.positives(anchors.key[row], positive_start)), count(run.last - run.first) {
    skips[0] = anchors.skip_a[row];
    skips[1] = anchors.skip_b[row] == skips[0] ? -1 : anchors.skip_b[row];
    for (int64_t& skip : skips) {
      if (skip < run.first || skip >= run.last) skip = -1;
      count -= skip >= 0;
    }
    copies = static_cast<double>(count);
  }

  bool skipped(int64_t position) const { return position == skips[0] || position == skips[1]; }
};

// Sums keys in double precision: the sum of a class less one of its keys must not lose what is left.
class KeySums {
 public:
  explicit KeySums(const Role& keys) : keys_(keys), row_(keys.reader.depth()), class_sum_(row_.size()) {}

  // Finds how many keys the positives of one anchor count as, through the sum of its class.
  void weigh(Positives& found) {
    const std::vector<float>& copies = keys_.side.copies;
    if (copies.empty()) return;
    if (found.run.first != weighed_.first || found.run.last != weighed_.last) {
      class_copies_ = std::accumulate(copies.begin() + found.run.first, copies.begin() + found.run.last, 0.0);
      weighed_ = found.run;
    }
    found.copies = class_copies_;
    for (const int64_t skip : found.skips) found.copies -= skip >= 0 ? copies[skip] : 0;
    found.cancels = !(found.copies >= kCancelled * class_copies_);
    if (!found.cancels) return;
    found.copies = 0;
    for (int64_t p = found.run.first; p < found.run.last; ++p)
      found.copies += found.skipped(p) ? 0 : copies[p];
  }

  // The positive keys of one anchor, through the sum of its class; a NaN among the unseen keys does not reach
  // it.
  void positives(const Positives& found, std::vector<double>& sum /* [D] */) {
    if (found.run.first != summed_.first || found.run.last != summed_.last) {
      std::fill(class_sum_.begin(), class_sum_.end(), 0.0);
      for (int64_t p = found.run.first; p < found.run.last; ++p) add(p, 1, class_sum_);
      summed_ = found.run;
    }
    sum = class_sum_;
    for (const int64_t skip : found.skips) {
      if (skip >= 0) add(skip, -1, sum);
    }
    const bool finite =
        std::all_of(sum.begin(), sum.end(), [](double value) { return std::isfinite(value); });
    if (finite && !found.cancels) return;
    std::fill(sum.begin(), sum.end(), 0.0);
    for (int64_t p = found.run.first; p < found.run.last; ++p) {
      if (!found.skipped(p)) add(p, 1, sum);
    }
  }

 private:
  void add(int64_t position, double sign, std::vector<double>& sum) {
    keys_.reader.read(keys_.side.index[position], row_.data());
    if (!keys_.side.copies.empty()) sign *= keys_.side.copies[position];
    for (size_t d = 0; d < sum.size(); ++d) sum[d] += sign * row_[d];
  }

  const Role& keys_;
  std::vector<float> row_;
  std::vector<double> class_sum_;
  double class_copies_ = 0;
  Range summed_{-1, -1}, weighed_{-1, -1};
};

}  // namespace secl::cpu
