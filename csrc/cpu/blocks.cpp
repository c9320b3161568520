// SPDX-License-Identifier: Apache-2.0
// Checks one call's tensors, sorts its rows and packs its columns.
#include "blocks.h"

#include "../checks.h"
#include "../contrast_math.h"

namespace secl::cpu {
namespace {

// In base-2 exponents: float32 holds 2^-126, and the norms of low-precision rows exceed 1 a little.
constexpr double kBoundedRange = 120;

}  // namespace

Problem make_problem(const Tensor& anchors, const Tensor& keys, const Tensor& anchor_labels,
                     const Tensor& key_labels, const Maybe& anchor_groups, const Maybe& key_groups,
                     const PairRule& rule, double scale, int64_t flags) {
  check_rows("anchors", anchors);
  check_rows("keys", keys);
  const int64_t n = anchors.size(0), m = keys.size(0);
  STD_TORCH_CHECK(anchors.size(1) == keys.size(1), "anchors and keys must have the same width");
  STD_TORCH_CHECK(!rule.self || n == m, "under SELF the keys are the anchors");
  check_vector("anchor_labels", anchor_labels, n, ScalarType::Int);
  check_vector("key_labels", key_labels, m, ScalarType::Int);
  const bool grouped = anchor_groups.has_value() && key_groups.has_value();
  if (grouped) {
    check_vector("anchor_groups", anchor_groups, n, ScalarType::Int);
    check_vector("key_groups", key_groups, m, ScalarType::Int);
  }
  check_vector("exclude", rule.exclude, n, ScalarType::Long);
  Problem problem{.rule = rule, .scale = scale, .flags = flags, .depth = anchors.size(1)};
  problem.stride = round_up(problem.depth, problem.kernel.lanes);
  problem.bounded = (flags & kUnit) && 2 * scale * kLog2E < kBoundedRange;
  problem.anchors = sort_side(anchor_labels, grouped ? anchor_groups : Maybe());
  if (!rule.self) problem.separate_keys = sort_side(key_labels, grouped ? key_groups : Maybe());
  relate(problem.anchors, problem.keys(), m, rule);
  return problem;
}

Columns pack_columns(const Problem& problem, const RowReader& reader, const SortedSide& side, bool values) {
  const Kernels& kernel = problem.kernel;
  const int64_t strips = round_up(side.count, kernel.strip) / kernel.strip;
  Columns columns{make_spans(side, kernel.strip), strips * kernel.strip,
                  Buffer(strips * kernel.strip * problem.depth),
                  Buffer(values ? strips * kernel.strip * problem.stride : 0)};
  const int64_t workers = worker_count();
  const Buffer scratch(workers * problem.stride);
  for_each(strips, workers, [&](int64_t worker, int64_t strip) {
    const int64_t first = strip * kernel.strip;
    float* row = scratch.get() + worker * problem.stride;
    pack_tiles(reader, side, first, 1, kernel.strip, columns.strips.get() + first * problem.depth, row);
    if (!values) return;
    pack_values(reader, side, first, kernel.strip, columns.rows, problem.stride, kernel.strip,
                columns.values.get(), row);
  });
  return columns;
}

}  // namespace secl::cpu
