// SPDX-License-Identifier: Apache-2.0
// The sigmoid loss on the CPU: losses and slopes with the anchors' gradient, and the keys' gradient.
#include <algorithm>
#include <vector>

#include "../checks.h"
#include "../operations.h"
#include "self_sweep.h"

namespace secl::cpu {
namespace {

Tensor zeros(std::initializer_list<int64_t> size, ScalarType type) {
  const std::vector<int64_t> shape(size);
  Tensor found = torch::stable::empty(shape, type);
  return torch::stable::zero_(found);
}

void check_numbers(const SigmoidLogit& logit) {
  STD_TORCH_CHECK(!logit.learned_scale.has_value() && !logit.learned_bias.has_value(),
                  "on a CPU scale and bias are numbers");
}

// How many pairs each anchor is in.
class PairCounts {
 public:
  explicit PairCounts(const SortedSide& keys) : keys_(keys), attract_{0}, repel_{0} {
    for (int64_t p = 0; p < keys.count; ++p) {
      attract_.push_back(attract_[p] - keys.attract[p]);
      repel_.push_back(repel_[p] - keys.repel[p]);
    }
  }

  int32_t of(const SortedSide& anchors, int64_t position) const {
    const int64_t key = anchors.key[position];
    const Range group = keys_.meeting(key, key, false), own = keys_.meeting(key, key, true);
    const auto between = [](const std::vector<int32_t>& sums, Range range) {
      return sums[range.last] - sums[range.first];
    };
    int32_t count = between(attract_, own) + between(repel_, group) - between(repel_, own);
    const int64_t skips[] = {anchors.skip_a[position], anchors.skip_b[position]};
    for (int k = 0; k < 2; ++k) {
      const int64_t skip = skips[k];
      if (skip < group.first || skip >= group.last || (k == 1 && skip == skips[0])) continue;
      const bool is_own = skip >= own.first && skip < own.last;
      count -= is_own ? -keys_.attract[skip] : -keys_.repel[skip];
    }
    return count;
  }

 private:
  const SortedSide& keys_;
  std::vector<int32_t> attract_, repel_;  // [M + 1] how many of the keys before each position do
};

// Where the sums of one position lie, and its row in which slab.
struct Place {
  int64_t number, row;
  Slab slab;
};

// Of `n` rows, what a sweep has found of those that meet a key.
template <class PlaceOf>
SigmoidState read(const Problem& p, const Role& anchors, const SortedSide& keys, const Sums& sums, int64_t n,
                  const PlaceOf& place_of) {
  Tensor loss = zeros({n}, ScalarType::Float), tilt = zeros({n}, ScalarType::Float);
  Tensor count = zeros({n}, ScalarType::Int);
  Tensor grad = zeros({sums.has_output ? n : 0, p.depth}, ScalarType::Float);
  float *losses = loss.mutable_data_ptr<float>(), *tilts = tilt.mutable_data_ptr<float>();
  float* rows = grad.mutable_data_ptr<float>();
  int32_t* met = count.mutable_data_ptr<int32_t>();
  const PairCounts counts(keys);
  const SortedSide& side = anchors.side;
  constexpr int64_t kRows = 256;
  const int64_t pieces = round_up(side.count, kRows) / kRows;
  for_each(pieces, worker_count(side.count * p.depth), [&](int64_t, int64_t piece) {
    for (int64_t q = piece * kRows; q < std::min(side.count, (piece + 1) * kRows); ++q) {
      const int64_t row = side.index[q];
      met[row] = counts.of(side, q);
      if (met[row] == 0) continue;
      const Place place = place_of(q);
      losses[row] = static_cast<float>(sums.total[place.number]);
      tilts[row] = static_cast<float>(sums.other[place.number]);
      if (sums.has_output) add_row(p, place.slab, place.row, rows + row * p.depth);
    }
  });
  return {loss, tilt, count, grad};
}

}  // namespace

SigmoidState Operations::sigmoid_forward(const ContrastCall& call, const Maybe& key_inverse,
                                         const SigmoidLogit& logit) {
  check_call(call);
  check_numbers(logit);
  check_vector("key_inverse", key_inverse, call.keys.size(0), ScalarType::Float);
  STD_TORCH_CHECK(!(key_inverse.has_value() && call.has(kSelf)),
                  "under SELF the keys are the anchors, unit rows already");
  const int64_t n = call.anchors.size(0);
  const bool wanted = call.has(kAnchorGradient);
  const RowReader anchors(call.anchors);
  const RowReader keys(call.keys, key_inverse.has_value() ? key_inverse->const_data_ptr<float>() : nullptr,
                       kernels_for(call).pair != nullptr);
  Problem p = make_problem(call, anchors, keys);
  p.bias = logit.bias;
  const Role anchor_role{anchors, p.anchors}, key_role{keys, p.keys()};
  if (p.is_symmetric()) {
    const BlockPairs pairs(p.anchors.count);
    Sums sums = pairs.make_sums(p, wanted);
    sweep_self(p, anchor_role, pairs, Operation::kSigmoid, sums);
    return read(p, anchor_role, p.anchors, sums, n, [&](int64_t position) {
      float* first = sums.output.get() + position / pairs.size * p.slab(pairs.size);
      return Place{position, position % pairs.size, {first, pairs.size * p.kernel.lanes}};
    });
  }
  const Chains chains(p.anchors.count, p.keys().count);
  Sums sums = chains.make_sums(p, wanted);
  sweep_sides(p, anchor_role, key_role, chains, Operation::kSigmoid, sums);
  chains.join(p, sums, false);
  return read(p, anchor_role, p.keys(), sums, n, [&](int64_t position) {
    const int64_t chain = position / chains.size * chains.splits;
    return Place{chains.place(position), position % chains.size, chains.slab(p, sums, chain)};
  });
}

Tensor Operations::sigmoid_backward(const ContrastCall& call, const Tensor& weight,
                                    const SigmoidLogit& logit) {
  check_call(call);
  check_numbers(logit);
  const int64_t n = call.anchors.size(0);
  check_vector("weight", weight, n, ScalarType::Float);
  const bool self = call.has(kSelf);
  const float* weights = weight.const_data_ptr<float>();
  std::vector<bool> skipped(self ? 0 : n);  // under SELF an anchor that does not count is a key still
  for (size_t row = 0; row < skipped.size(); ++row) skipped[row] = weights[row] == 0;
  const RowReader anchors(call.anchors), keys(call.keys);
  Problem p = make_problem(call, anchors, keys, skipped);
  p.bias = logit.bias;
  p.anchors.factors.push.assign(p.anchors.padded(), 0);
  for (int64_t q = 0; q < p.anchors.count; ++q) p.anchors.factors.push[q] = weights[p.anchors.index[q]];
  Tensor grad = zeros({call.keys.size(0), p.depth}, ScalarType::Float);
  add_gradient(p, {keys, p.keys()}, {anchors, p.anchors}, Operation::kSigmoidKeys,
               grad.mutable_data_ptr<float>());
  return grad;
}

}  // namespace secl::cpu
