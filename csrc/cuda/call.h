// SPDX-License-Identifier: Apache-2.0
// A checked call of a contrast, and the passes over it: their sides, and memory for the parts of a split one.
#pragma once

#include <algorithm>

#include "contrast.h"
#include "tensors.h"
#include "tiles.h"

namespace secl::cuda {

constexpr double kBoundedScale =
    40;  // exp(-2 * 40) is a normal fp32 number: without a maximum no pair is lost
constexpr double kLog2OfE = 1.4426950408889634;

inline Tensor fresh(const Tensor& like, std::initializer_list<int64_t> size,
                    ScalarType type = ScalarType::Float) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(size.begin(), size.size()),
                                  type);
}

inline const uint32_t* words(const Tensor& values) {
  return static_cast<const uint32_t*>(values.const_data_ptr());
}
inline const uint32_t* words(const Maybe& values) { return values.has_value() ? words(*values) : nullptr; }
inline float* numbers(Tensor& values) { return values.mutable_data_ptr<float>(); }

inline int32_t clipped(int64_t position) {
  return static_cast<int32_t>(std::clamp<int64_t>(position, 0, INT32_MAX));
}

// A checked call, and the passes over it.
struct Call : ContrastCall {
  Rules rules;

  explicit Call(const ContrastCall& call)
      : ContrastCall(call),
        rules{clipped(positive_start),
              clipped(negative_stop),
              has(kSelf),
              has(kNegatives),
              has(kUnit) && scale <= kBoundedScale && !key_weights.has_value(),
              key_weights.has_value(),
              static_cast<float>(scale),
              static_cast<float>(scale * kLog2OfE)} {
    check_call(call);
    STD_TORCH_CHECK(
        anchors.scalar_type() != ScalarType::Float,
        "the native CUDA kernels multiply float16 and bfloat16 rows on tensor cores; got float32: use "
        "backend=\"triton\" or \"reference\", or lower the rows");
    STD_TORCH_CHECK(width() <= kWidest, "the native CUDA kernels serve rows up to ", kWidest, " wide; got ",
                    width(), ": use backend=\"triton\" or \"reference\"");
    STD_TORCH_CHECK(keys.scalar_type() == anchors.scalar_type(), "anchors and keys must have one dtype");
    for (const Tensor* other : {&keys, &anchor_labels, &key_labels})
      check_device("every tensor", *other, anchors);
    for (const Maybe* other : {&anchor_groups, &key_groups, &exclude, &key_weights})
      check_device("every tensor", *other, anchors);
  }

  int64_t width() const { return anchors.size(1); }
  Number type() const { return number_of(anchors.scalar_type()); }
  Side side(const Tensor& rows, const Tensor& labels, const Maybe& groups) const {
    Side found;
    found.rows = rows.const_data_ptr();
    found.count = static_cast<int32_t>(rows.size(0));
    found.field[kLabel] = words(labels);
    if (grouped()) found.field[kGroup] = words(groups);
    return found;
  }
  Side anchor_side() const { return side(anchors, anchor_labels, anchor_groups); }
  Side key_side() const {
    Side found = side(keys, key_labels, key_groups);
    // In the place of an anchor's push: under kSelf, where keys are anchors, check_call allows no weights.
    if (rules.weighted) found.field[kMass] = words(key_weights);
    return found;
  }
  Job job(const Side& rows, const Side& columns) const {
    Job found;
    found.rows = rows;
    found.columns = columns;
    found.rules = rules;
    found.width = static_cast<int32_t>(width());
    return found;
  }

  // Puts what each anchor must not see among its fields, and gives the memory that it lies in.
  Tensor bar(Side& anchor_side, Stream stream) const {
    Tensor barred = fresh(anchors, {exclude.has_value() ? anchor_side.count : 0}, ScalarType::Int);
    if (!exclude.has_value()) return barred;
    AnchorFields fields{};
    fields.count = anchor_side.count;
    fields.exclude = exclude->const_data_ptr<int64_t>();
    fields.field[kExclude] = static_cast<uint32_t*>(barred.mutable_data_ptr());
    write_anchor_fields(fields, stream);
    anchor_side.field[kExclude] = fields.field[kExclude];
    return barred;
  }

  // Runs a pass, with memory for the parts of a split one.
  void run(Pass pass, Job job, Stream stream) const {
    job.splits = splits_of(pass, type(), job);
    if (job.splits == 1) return run_pass(pass, type(), job, stream);
    const int64_t parts = int64_t{job.splits} * job.rows.count;
    Tensor part_numbers = fresh(anchors, {pass == Pass::kGradient ? 0 : parts, 3});
    Tensor part_grad = fresh(anchors, {job.grad == nullptr ? 0 : parts, width()});
    job.part_numbers = numbers(part_numbers);
    job.part_grad = numbers(part_grad);
    run_pass(pass, type(), job, stream);
  }
};

}  // namespace secl::cuda
