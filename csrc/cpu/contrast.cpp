// SPDX-License-Identifier: Apache-2.0
// The contrastive loss on the CPU: the forward pass and the two backward passes.
#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "../contrast_math.h"
#include "../operations.h"
#include "blocks.h"
#include "key_sums.h"
#include "self_sweep.h"

namespace secl::cpu {
namespace {

constexpr double kLargestWeight = 0x1p100;  // times exp2 of a bounded similarity it still is a float

Tensor zeros(std::initializer_list<int64_t> size, ScalarType type) {
  const std::vector<int64_t> shape(size);
  Tensor found = torch::stable::empty(shape, type);
  return torch::stable::zero_(found);
}

// What a worker needs to finish one anchor after the other; [D] each.
struct Scratch {
  KeySums key_sums;
  std::vector<double> sum;
  std::vector<float> mean, near;
  explicit Scratch(const Role& keys)
      : key_sums(keys), sum(keys.reader.depth()), mean(sum.size()), near(sum.size()) {}
};

void reserve_factors(SortedSide& side) {
  side.factors.lse.assign(side.padded(), std::numeric_limits<float>::max());
  for (std::vector<float>* each : {&side.factors.push, &side.factors.draw, &side.factors.weight})
    each->assign(side.padded(), 0);
}

// The same for one side in both roles.
void add_self_gradient(const Problem& p, const Role& rows, float* out) {
  const BlockPairs pairs(rows.side.count);
  Sums sums = pairs.make_sums(p, true);
  sweep_self(p, rows, pairs, Operation::kSelfGradient, sums);
  for_each(pairs.blocks, worker_count(rows.side.count * p.depth), [&](int64_t, int64_t block) {
    const Slab slab{sums.output.get() + block * p.slab(pairs.size), pairs.size * p.kernel.lanes};
    unpack(p, rows.side, slab, block * pairs.size, pairs.size, out);
  });
}

// The forward pass of one call: what it writes, and the sums behind it.
class Forward {
 public:
  Forward(Problem& p, const Role& anchors, const Role& keys, float* loss, float* lse, float* pull,
          int32_t* count, float* copies, float* grad)
      : p_(p),
        anchors_(anchors),
        keys_(keys),
        loss_(loss),
        lse_(lse),
        pull_(pull),
        count_(count),
        copies_(copies),
        grad_(grad) {}

  void run(const float* known_lse /* [N] or null */) {
    given_ = known_lse != nullptr;
    if (given_) {
      for (const int64_t row : anchors_.side.index) log2_.push_back(known_lse[row] * M_LOG2E);
    } else {
      sum_denominator();
    }
    std::copy(log2_.begin(), log2_.end(), anchors_.side.factors.lse.begin());
    if (negatives() && !scan()) sweep(Operation::kPositives, near_, grad_ && (given_ || p_.bounded));
    finish();
    if (grad_ && !given_ && !p_.bounded) late_gradient();
  }

 private:
  bool negatives() const { return (p_.flags & kNegatives) != 0; }
  bool scan() const { return (p_.flags & kScan) != 0; }
  // Whether the first pass sums the keys that push.
  bool pushes() const { return grad_ && !given_ && p_.bounded; }
  int64_t place(int64_t position) const { return chains_.place(position); }

  void sweep(Operation operation, Sums& sums, bool output) {
    if (p_.is_symmetric() && p_.bounded && !grad_) {
      const BlockPairs pairs(anchors_.side.count);
      chains_.splits = 1;
      sums = pairs.make_sums(p_, false);
      return sweep_self(p_, anchors_, pairs, operation, sums);
    }
    const bool peaks = operation == Operation::kLogSumExp && !p_.bounded;
    sums = chains_.make_sums(p_, output, peaks ? -std::numeric_limits<float>::max() : 0);
    sweep_sides(p_, anchors_, keys_, chains_, operation, sums);
    chains_.join(p_, sums, peaks);
  }

  void sum_denominator() {
    sweep(Operation::kLogSumExp, all_, pushes());
    for (int64_t p = 0; p < anchors_.side.count; ++p) {
      const double total = all_.total[place(p)], peak = p_.bounded ? p_.maximum : all_.other[place(p)];
      log2_.push_back(total == 0 ? -HUGE_VAL : peak + std::log2(total));
    }
  }

  // Anchors of one class share the sum of their positives, which is worth more than an even split.
  std::vector<Range> pieces() const {
    std::vector<Range> found;
    const std::vector<int64_t>& key = anchors_.side.key;
    for (int64_t first = 0; first < anchors_.side.count;) {
      const int64_t end = std::upper_bound(key.begin() + first, key.end(), key[first]) - key.begin();
      const Range keys = keys_.side.positives(key[first], p_.rule.positive_start);
      const int64_t size = std::max<int64_t>(256, (keys.last - keys.first) / 4);
      for (; first < end; first += size) found.push_back({first, std::min(end, first + size)});
      first = end;
    }
    return found;
  }

  void finish() {
    const std::vector<Range> runs = pieces();
    const int64_t work = anchors_.side.count * p_.depth;
    for_each(static_cast<int64_t>(runs.size()), worker_count(work), [&](int64_t, int64_t item) {
      Scratch scratch(keys_);
      for (int64_t position = runs[item].first; position < runs[item].last; ++position)
        finish(position, scratch);
    });
  }

  void finish(int64_t position, Scratch& scratch) const {
    const int64_t row = anchors_.side.index[position];
    lse_[row] = static_cast<float>(log2_[position] * M_LN2);
    if (scan()) {
      if (pushes()) write_gradient(position, 1, 0, scratch);
      return;
    }
    Positives found(anchors_.side, keys_.side, position, p_.rule.positive_start);
    if (found.count == 0) return;
    scratch.key_sums.weigh(found);
    copies_ ? void(copies_[row] = static_cast<float>(found.copies))
            : void(count_[row] = static_cast<int32_t>(found.count));
    const double share = 1.0 / found.copies;
    if (negatives()) {
      loss_[row] = static_cast<float>(near_.total[place(position)] * share);
      pull_[row] = static_cast<float>(near_.other[place(position)] * share);
    } else {
      scratch.key_sums.positives(found, scratch.sum);
      loss_[row] = all_loss(row, log2_[position], scratch.sum, share);
      pull_[row] = 1;
    }
    if (grad_ && (given_ || p_.bounded)) write_gradient(position, pull_[row], share, scratch);
  }

  // scale (push * mean of the denominator's keys - draw * sum of the attracting ones), whose sum is the
  // scratch's under "all".
  void write_gradient(int64_t position, double push, double draw, Scratch& scratch) const {
    const double total = pushes() ? all_.total[place(position)] : 0;
    push = total == 0 ? 0 : p_.scale * push / total;
    draw *= p_.scale;
    float *mean = scratch.mean.data(), *near = scratch.near.data();
    read(all_, position, push != 0, mean);
    if (negatives() || draw == 0) {
      read(near_, position, draw != 0, near);
    } else {
      for (int64_t d = 0; d < p_.depth; ++d) near[d] = static_cast<float>(-scratch.sum[d]);
    }
    p_.kernel.weighted_sum(mean, push, near, draw, p_.depth,
                           grad_ + anchors_.side.index[position] * p_.depth);
  }

  // The output of a position; zeros, be there NaNs in it, where it is not wanted.
  void read(const Sums& sums, int64_t position, bool wanted, float* to /* [D] */) const {
    std::fill_n(to, p_.depth, 0.0f);
    if (!wanted) return;
    const int64_t chain = position / chains_.size * chains_.splits;
    add_row(p_, chains_.slab(p_, sums, chain), position % chains_.size, to);
  }

  float all_loss(int64_t row, double log2, const std::vector<double>& sum /* [D] */, double share) const {
    std::vector<float> anchor(p_.depth);
    anchors_.reader.read(row, anchor.data());
    double similarity = 0;
    for (int64_t d = 0; d < p_.depth; ++d) similarity += anchor[d] * sum[d];
    // Exactly 0 for a lone pair: below the rounding of its terms the difference is noise. Over its own
    // denominator the loss is never negative, unless a key counts less than once.
    const double difference = log2 * M_LN2 - p_.scale * similarity * share;
    const double magnitude = std::max(std::abs(log2), p_.bounded ? 2 * M_LN2 * p_.maximum : 0.0);
    const double excess = given_ || copies_ ? std::abs(difference) : difference;
    return above_noise(excess, magnitude) == 0 ? 0.0f : static_cast<float>(difference);
  }

  // Without a bound on the similarity the gradient waits until the log-sum-exp is known.
  void late_gradient() {
    GradientFactors& factors = anchors_.side.factors;
    std::vector<int64_t> unmet;
    for (int64_t position = 0; position < anchors_.side.count; ++position) {
      const int64_t row = anchors_.side.index[position];
      const double positives = copies_ ? copies_[row] : count_[row];
      if (scan() ? log2_[position] == -HUGE_VAL : positives == 0) {
        factors.lse[position] = std::numeric_limits<float>::max();
        unmet.push_back(row);
        continue;
      }
      factors.push[position] = static_cast<float>(scan() ? p_.scale : p_.scale * pull_[row]);
      factors.draw[position] = static_cast<float>(scan() ? 0 : p_.scale / positives);
    }
    add_gradient(p_, anchors_, keys_, Operation::kAnchorGradient, grad_);
    for (const int64_t row : unmet)
      std::fill_n(grad_ + row * p_.depth, p_.depth, 0.0f);  // 0 times a NaN is one
  }

  Problem& p_;
  const Role &anchors_, &keys_;
  Chains chains_{anchors_.side.count, keys_.side.count};
  float *loss_, *lse_, *pull_;  // [N] each
  int32_t* count_;              // [N], or null where keys are weighted
  float* copies_;               // [N] the sum of their weights, or null
  float* grad_;                 // [N, D], or null where not wanted
  std::vector<double> log2_;    // [N] log-sum-exp by position, base 2
  bool given_ = false;          // the log-sum-exp is the caller's
  Sums all_, near_;             // over the denominator; over the positives
};

// What each anchor's gradient is multiplied by; an anchor that does not count keeps its zeros.
void set_factors(Problem& p, const float* grad_loss, const float* push, const float* draw, const float* lse) {
  reserve_factors(p.anchors);
  GradientFactors& factors = p.anchors.factors;
  for (int64_t position = 0; position < p.anchors.count; ++position) {
    const int64_t row = p.anchors.index[position];
    if (push[row] == 0 && draw[row] == 0) continue;
    const double base2 = lse[row] * M_LOG2E, factor = p.scale * grad_loss[row] * push[row];
    factors.lse[position] = static_cast<float>(base2);
    factors.push[position] = static_cast<float>(factor);
    factors.draw[position] = static_cast<float>(p.scale * grad_loss[row] * draw[row]);
    const double weight = factor == 0 ? 0 : factor * std::exp2(p.maximum - base2);
    factors.weight[position] = static_cast<float>(weight);
    if (!(std::abs(weight) < kLargestWeight)) p.bounded = false;
  }
}

}  // namespace

ContrastState Operations::contrast_forward(const ContrastCall& call, const Maybe& key_inverse,
                                           const Maybe& known_lse) {
  check_call(call);
  const int64_t n = call.anchors.size(0);
  check_vector("key_inverse", key_inverse, call.keys.size(0), ScalarType::Float);
  STD_TORCH_CHECK(!(key_inverse.has_value() && call.has(kSelf)),
                  "under SELF the keys are the anchors, unit rows already");
  check_vector("known_lse", known_lse, n, ScalarType::Float);
  STD_TORCH_CHECK(!(known_lse.has_value() && call.has(kScan)),
                  "a scan finds the log-sum-exp that known_lse gives");
  const RowReader anchors(call.anchors);
  const RowReader keys(call.keys, key_inverse.has_value() ? key_inverse->const_data_ptr<float>() : nullptr,
                       kernels_for(call).pair != nullptr);
  Problem p = make_problem(call, anchors, keys);
  reserve_factors(p.anchors);
  const bool wanted = call.has(kAnchorGradient);
  Tensor loss = zeros({n}, ScalarType::Float), pull = zeros({n}, ScalarType::Float);
  Tensor lse = torch::stable::full({n}, -HUGE_VAL, ScalarType::Float);
  const bool weighted = call.key_weights.has_value();
  Tensor count = zeros({n}, weighted ? ScalarType::Float : ScalarType::Int);
  Tensor grad = zeros({wanted ? n : 0, p.depth}, ScalarType::Float);
  const Role anchor_role{anchors, p.anchors}, key_role{keys, p.keys()};
  Forward forward(p, anchor_role, key_role, loss.mutable_data_ptr<float>(), lse.mutable_data_ptr<float>(),
                  pull.mutable_data_ptr<float>(), weighted ? nullptr : count.mutable_data_ptr<int32_t>(),
                  weighted ? count.mutable_data_ptr<float>() : nullptr,
                  wanted ? grad.mutable_data_ptr<float>() : nullptr);
  forward.run(known_lse.has_value() ? known_lse->const_data_ptr<float>() : nullptr);
  if (known_lse.has_value()) lse = torch::stable::clone(*known_lse);
  return {loss, lse, pull, count, grad};
}

std::tuple<Tensor, Tensor> Operations::contrast_backward(const ContrastCall& call, const Tensor& grad_loss,
                                                         const Tensor& push, const Tensor& draw,
                                                         const Tensor& lse) {
  check_call(call);
  const int64_t n = call.anchors.size(0);
  for (const auto& [name, value] :
       {std::pair{"grad_loss", &grad_loss}, {"push", &push}, {"draw", &draw}, {"lse", &lse}})
    check_vector(name, *value, n, ScalarType::Float);
  const bool self = call.has(kSelf);
  const float *pushes = push.const_data_ptr<float>(), *draws = draw.const_data_ptr<float>();
  std::vector<bool> skipped(self ? 0 : n);  // under SELF an anchor that does not count is a key still
  for (size_t row = 0; row < skipped.size(); ++row) skipped[row] = pushes[row] == 0 && draws[row] == 0;
  const RowReader anchors(call.anchors), keys(call.keys);
  Problem p = make_problem(call, anchors, keys, skipped);
  set_factors(p, grad_loss.const_data_ptr<float>(), pushes, draws, lse.const_data_ptr<float>());
  const Role anchor_role{anchors, p.anchors}, key_role{keys, p.keys()};
  const bool to_anchors = self || call.has(kAnchorGradient), to_keys = !self && call.has(kKeyGradient);
  Tensor grad_anchors = zeros({to_anchors ? n : 0, p.depth}, ScalarType::Float);
  Tensor grad_keys = zeros({to_keys ? call.keys.size(0) : 0, p.depth}, ScalarType::Float);
  float* anchor_out = grad_anchors.mutable_data_ptr<float>();
  float* key_out = self ? anchor_out : grad_keys.mutable_data_ptr<float>();
  if (p.is_symmetric()) {
    add_self_gradient(p, anchor_role, anchor_out);
    return {grad_anchors, grad_keys};
  }
  if (!self) reserve_factors(p.separate_keys);
  if (to_anchors) add_gradient(p, anchor_role, key_role, Operation::kAnchorGradient, anchor_out);
  if (to_keys || self) add_gradient(p, key_role, anchor_role, Operation::kKeyGradient, key_out);
  return {grad_anchors, grad_keys};
}

}  // namespace secl::cpu
