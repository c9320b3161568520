// SPDX-License-Identifier: Apache-2.0
// The contrastive loss on the CPU: the forward pass and the two backward passes over blocks of rows.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "blocks.h"
#include "operations.h"

namespace secl::cpu {
namespace {

// Positive keys of one anchor: a run of positions, less those it must not see.
struct Positives {
  int64_t begin, end, count;
  int64_t skips[2];

  Positives(const SortedSide& anchors, const SortedSide& keys, int64_t row, int64_t positive_start) {
    std::tie(begin, end) = keys.positives(anchors.key[row], positive_start);
    skips[0] = anchors.skip_a[row];
    skips[1] = anchors.skip_b[row] == skips[0] ? -1 : anchors.skip_b[row];
    count = end - begin;
    for (int64_t& skip : skips) {
      if (skip < begin || skip >= end) skip = -1;
      count -= skip >= 0;
    }
  }
};

Tensor zeros(std::initializer_list<int64_t> size, ScalarType type) {
  const std::vector<int64_t> shape(size);
  Tensor found = torch::stable::empty(shape, type);
  return torch::stable::zero_(found);
}

// Sums packed keys in double precision: the sum of a class less one of its keys must not lose what is left.
struct KeySums {
  const Problem& p;
  const Columns& columns;

  void add(int64_t begin, int64_t end, double sign, double* sum /* [D] */) const {
    const int64_t strip = p.kernel.strip;
    for (int64_t low = begin; low < end;) {
      const int64_t high = std::min(end, low / strip * strip + strip);
      const float* packed = columns.strips.get() + low / strip * strip * p.depth;
      for (int64_t d = 0; d < p.depth; ++d) {
        double part = 0;
        for (int64_t lane = low % strip; lane < low % strip + high - low; ++lane)
          part += packed[d * strip + lane];
        sum[d] += sign * part;
      }
      low = high;
    }
  }

  // The positive keys of one anchor, through the sum of its class; a NaN among the unseen keys does not reach
  // it.
  void positives(const Positives& found, int64_t key, Workspace& w,
                 std::vector<double>& sum /* [D] */) const {
    if (w.summed != key) {
      std::fill(w.class_sum.begin(), w.class_sum.end(), 0.0);
      add(found.begin, found.end, 1, w.class_sum.data());
      w.summed = key;
    }
    sum = w.class_sum;
    for (const int64_t skip : found.skips) {
      if (skip >= 0) add(skip, skip + 1, -1, sum.data());
    }
    if (std::all_of(sum.begin(), sum.end(), [](double value) { return std::isfinite(value); })) return;
    std::fill(sum.begin(), sum.end(), 0.0);
    for (int64_t position = found.begin; position < found.end; ++position) {
      if (position != found.skips[0] && position != found.skips[1])
        add(position, position + 1, 1, sum.data());
    }
  }
};

// The forward pass of one call: what it writes, and what a block's sums mean.
struct Forward {
  Problem& p;
  const Columns& columns;
  float *loss, *lse, *pull;  // [N] each
  int32_t* count;            // [N]
  float* grad;               // [N, D], or null where not wanted
  const float* known;        // [N] log-sum-exp that replaces the denominator's own, or null

  void block(Workspace& w, Sweep& sweep) const {
    const bool fused = grad != nullptr && p.bounded;
    const bool negatives = sweep.negatives_only;
    sweep.total = w.total.data();
    sweep.other = w.other.data();
    use_output(sweep, fused ? w.output.get() : nullptr);
    if (known == nullptr) p.kernel.log_sum_exp(sweep);
    const int64_t rows = std::min(sweep.tiles * p.kernel.rows, sweep.rows.count - sweep.first);
    for (int64_t r = 0; r < rows; ++r) {
      if (known != nullptr) {
        w.lse[r] = known[p.anchors.index[sweep.first + r]] * M_LOG2E;
      } else {
        w.lse[r] = w.total[r] == 0 ? -HUGE_VAL : w.other[r] + std::log2(w.total[r]);
      }
      sweep.rows.lse[sweep.first + r] = static_cast<float>(w.lse[r]);
    }
    if (negatives) {
      sweep.total = w.loss.data();
      sweep.other = w.pull.data();
      use_output(sweep, fused ? w.attraction.get() : nullptr);
      p.kernel.positives(sweep);
    }
    for (int64_t r = 0; r < rows; ++r) finish(w, sweep.first + r, r, negatives, fused);
    if (grad != nullptr && !fused) late_gradient(w, sweep, rows);
  }

 private:
  void use_output(Sweep& sweep, float* output) const {
    sweep.output = output;
    if (output) std::fill(output, output + sweep.tiles * p.kernel.rows * p.stride, 0.0f);
  }

  void finish(Workspace& w, int64_t position, int64_t r, bool negatives, bool fused) const {
    const Positives found(p.anchors, p.keys(), position, p.rule.positive_start);
    const int64_t row = p.anchors.index[position];
    if (known == nullptr) lse[row] = static_cast<float>(w.lse[r] * M_LN2);
    count[row] = static_cast<int32_t>(found.count);
    if (found.count == 0) return;
    const double share = 1.0 / static_cast<double>(found.count);
    std::vector<double>& sum = w.positive_sum;
    if (negatives) {
      loss[row] = static_cast<float>(w.loss[r] * share);
      pull[row] = static_cast<float>(w.pull[r] * share);
    } else {
      KeySums{p, columns}.positives(found, p.anchors.key[position], w, sum);
      const float* anchor = w.block.get() + r / p.kernel.rows * p.depth * p.kernel.rows + r % p.kernel.rows;
      double similarity = 0;
      for (int64_t d = 0; d < p.depth; ++d) similarity += anchor[d * p.kernel.rows] * sum[d];
      // Never negative, and exactly 0 for a lone pair: below the rounding of its terms the difference is
      // noise.
      const double difference = w.lse[r] * M_LN2 - p.scale * similarity * share;
      const double magnitude = std::max(std::abs(w.lse[r]), p.bounded ? 2 * p.scale : 0.0);
      const double gap = known == nullptr ? difference : std::abs(difference);  // a known one may lie below
      const bool is_noise = gap < std::numeric_limits<float>::epsilon() * magnitude;
      loss[row] = is_noise ? 0.0f : static_cast<float>(difference);
      pull[row] = 1;
    }
    if (!fused) return;
    const double push = w.total[r] == 0 ? 0 : p.scale * pull[row] / w.total[r], draw = p.scale * share;
    for (int64_t d = 0; d < p.depth; ++d) {
      const double attraction = negatives ? w.attraction.get()[r * p.stride + d] : -sum[d];
      grad[row * p.depth + d] =
          static_cast<float>(push * w.output.get()[r * p.stride + d] + draw * attraction);
    }
  }

  // Without a bound on the similarity the gradient waits until the log-sum-exp is known.
  void late_gradient(Workspace& w, Sweep& sweep, int64_t rows) const {
    Terms& terms = p.anchors.terms;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = p.anchors.index[sweep.first + r];
      if (count[row] == 0) {
        terms.lse[sweep.first + r] = std::numeric_limits<float>::max();
        continue;
      }
      terms.push[sweep.first + r] = static_cast<float>(p.scale * pull[row]);
      terms.draw[sweep.first + r] = static_cast<float>(p.scale / count[row]);
    }
    use_output(sweep, w.output.get());
    p.kernel.gradient(sweep, true, false);
    for (int64_t r = 0; r < rows; ++r) {
      float* to = grad + p.anchors.index[sweep.first + r] * p.depth;
      std::memcpy(to, w.output.get() + r * p.stride, p.depth * sizeof(float));
    }
  }
};

void reserve_terms(SortedSide& side) {
  side.terms.lse.assign(side.padded(), std::numeric_limits<float>::max());
  side.terms.push.assign(side.padded(), 0);
  side.terms.draw.assign(side.padded(), 0);
  side.terms.weight.assign(side.padded(), 0);
}

// What each anchor's gradient is multiplied by; an anchor that does not count keeps its zeros.
void set_terms(Problem& p, const float* grad_loss, const float* push_factor, const float* draw_factor,
               const float* lse) {
  reserve_terms(p.anchors);
  Terms& terms = p.anchors.terms;
  for (int64_t position = 0; position < p.anchors.count; ++position) {
    const int64_t row = p.anchors.index[position];
    if (push_factor[row] == 0 && draw_factor[row] == 0) continue;
    const double base2 = lse[row] * M_LOG2E, push = p.scale * grad_loss[row] * push_factor[row];
    terms.lse[position] = static_cast<float>(base2);
    terms.push[position] = static_cast<float>(push);
    terms.draw[position] = static_cast<float>(p.scale * grad_loss[row] * draw_factor[row]);
    terms.weight[position] =
        push == 0 ? 0.0f : static_cast<float>(push * std::exp2(p.scale * M_LOG2E - base2));
  }
}

// Gradient of `rows`, [n, D], in the roles named.
Tensor gradient(Problem& p, const Tensor& row_tensor, SortedSide& rows, const Tensor& column_tensor,
                SortedSide& column_side, bool as_anchors, bool as_keys) {
  Tensor result = zeros({row_tensor.size(0), p.depth}, ScalarType::Float);
  float* out = result.mutable_data_ptr<float>();
  const Columns columns = pack_columns(p, RowReader(column_tensor), column_side, true);
  for_blocks(p, RowReader(row_tensor), rows, column_side, columns, [&](Workspace& w, Sweep& sweep) {
    sweep.output = w.output.get();
    std::fill(sweep.output, sweep.output + sweep.tiles * p.kernel.rows * p.stride, 0.0f);
    p.kernel.gradient(sweep, as_anchors, as_keys);
    const int64_t end = std::min(sweep.tiles * p.kernel.rows, rows.count - sweep.first);
    for (int64_t r = 0; r < end; ++r) {
      std::memcpy(out + rows.index[sweep.first + r] * p.depth, sweep.output + r * p.stride,
                  p.depth * sizeof(float));
    }
  });
  return result;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> contrast_forward(
    const Tensor& anchors, const Tensor& keys, const Tensor& anchor_labels, const Tensor& key_labels,
    const Maybe& anchor_groups, const Maybe& key_groups, const Maybe& exclude, int64_t positive_start,
    int64_t negative_stop, const Maybe& known_lse, double scale, int64_t flags) {
  const PairRule rule{exclude, positive_start, negative_stop, (flags & kSelf) != 0};
  Problem p =
      make_problem(anchors, keys, anchor_labels, key_labels, anchor_groups, key_groups, rule, scale, flags);
  reserve_terms(p.anchors);
  const bool wanted = (flags & kAnchorGradient) != 0;
  const int64_t n = anchors.size(0);
  Tensor loss = zeros({n}, ScalarType::Float), pull = zeros({n}, ScalarType::Float);
  check_vector("known_lse", known_lse, n, ScalarType::Float);
  STD_TORCH_CHECK(!(wanted && known_lse.has_value()), "known_lse leaves no pass to make the anchor gradient");
  Tensor lse = known_lse.has_value() ? torch::stable::clone(*known_lse)
                                     : torch::stable::full({n}, -HUGE_VAL, ScalarType::Float);
  Tensor count = zeros({n}, ScalarType::Int), grad = zeros({wanted ? n : 0, p.depth}, ScalarType::Float);
  const RowReader reader(anchors);
  const Columns columns = pack_columns(p, rule.self ? reader : RowReader(keys), p.keys(), wanted);
  const Forward forward{p,
                        columns,
                        loss.mutable_data_ptr<float>(),
                        lse.mutable_data_ptr<float>(),
                        pull.mutable_data_ptr<float>(),
                        count.mutable_data_ptr<int32_t>(),
                        wanted ? grad.mutable_data_ptr<float>() : nullptr,
                        known_lse.has_value() ? known_lse->const_data_ptr<float>() : nullptr};
  for_blocks(p, reader, p.anchors, p.keys(), columns,
             [&](Workspace& w, Sweep& sweep) { forward.block(w, sweep); });
  return {loss, lse, pull, count, grad};
}

std::tuple<Tensor, Tensor> contrast_backward(const Tensor& grad_loss, const Tensor& push, const Tensor& draw,
                                             const Tensor& anchors, const Tensor& keys,
                                             const Tensor& anchor_labels, const Tensor& key_labels,
                                             const Maybe& anchor_groups, const Maybe& key_groups,
                                             const Maybe& exclude, int64_t positive_start,
                                             int64_t negative_stop, const Tensor& lse, double scale,
                                             int64_t flags) {
  const PairRule rule{exclude, positive_start, negative_stop, (flags & kSelf) != 0};
  Problem p =
      make_problem(anchors, keys, anchor_labels, key_labels, anchor_groups, key_groups, rule, scale, flags);
  check_vector("grad_loss", grad_loss, anchors.size(0), ScalarType::Float);
  check_vector("push", push, anchors.size(0), ScalarType::Float);
  check_vector("draw", draw, anchors.size(0), ScalarType::Float);
  check_vector("lse", lse, anchors.size(0), ScalarType::Float);
  set_terms(p, grad_loss.const_data_ptr<float>(), push.const_data_ptr<float>(), draw.const_data_ptr<float>(),
            lse.const_data_ptr<float>());
  const auto none = [&] {
    return zeros({0, p.depth}, ScalarType::Float);
  };  // two outputs never share a tensor
  if (rule.self) return {gradient(p, anchors, p.anchors, anchors, p.anchors, true, true), none()};
  reserve_terms(p.separate_keys);
  const bool to_anchors = (flags & kAnchorGradient) != 0, to_keys = (flags & kKeyGradient) != 0;
  return {to_anchors ? gradient(p, anchors, p.anchors, keys, p.separate_keys, true, false) : none(),
          to_keys ? gradient(p, keys, p.separate_keys, anchors, p.anchors, false, true) : none()};
}

Tensor probe(const Tensor& x, std::string function) {
  check_dense("x", x, 1);
  check_type("x", x, ScalarType::Float);
  Tensor y = torch::stable::empty_like(x);
  kernels().probe(function.c_str(), x.const_data_ptr<float>(), y.mutable_data_ptr<float>(), x.size(0));
  return y;
}

}  // namespace secl::cpu
