// SPDX-License-Identifier: Apache-2.0
// The contrastive loss on CUDA devices: outputs allocated, passes run.
#include <cmath>

#include "call.h"

namespace secl::cuda {
namespace {

// The anchors' fields of a gradient, one after another in memory.
Tensor make_anchor_fields(const Call& call, const Tensor& grad_loss, const Tensor& push, const Tensor& draw,
                          const Tensor& lse, Side& anchors, Stream stream) {
  const int64_t count = call.anchors.size(0);
  Tensor memory = fresh(call.anchors, {kFields, count});
  auto* base = static_cast<uint32_t*>(memory.mutable_data_ptr());
  AnchorFields fields{static_cast<int32_t>(count),
                      grad_loss.const_data_ptr<float>(),
                      grad_loss.stride(0),
                      push.const_data_ptr<float>(),
                      draw.const_data_ptr<float>(),
                      lse.const_data_ptr<float>(),
                      call.anchor_labels.const_data_ptr<int32_t>(),
                      call.exclude.has_value() ? call.exclude->const_data_ptr<int64_t>() : nullptr,
                      call.rules.scale,
                      {}};
  for (const Field field : {kLabel, kExclude, kLse, kPush, kDraw, kWeight}) {
    if (field == kLabel && call.rules.self)
      continue;  // a row that does not count as an anchor is still a key
    if (field == kExclude && !call.exclude.has_value()) continue;
    fields.field[field] = base + field * count;
    anchors.field[field] = fields.field[field];
  }
  write_anchor_fields(fields, stream);
  return memory;
}

}  // namespace

ContrastState Operations::contrast_forward(const ContrastCall& given, const Maybe& key_inverse,
                                           const Maybe& known_lse) {
  const Call call(given);
  const Tensor &anchors = call.anchors, &keys = call.keys;
  const int64_t count = anchors.size(0);
  check_vector("key_inverse", key_inverse, keys.size(0), ScalarType::Float);
  check_vector("known_lse", known_lse, count, ScalarType::Float);
  for (const Maybe* other : {&key_inverse, &known_lse}) check_device("every tensor", *other, anchors);
  const bool wanted = call.has(kAnchorGradient), scan = call.has(kScan);
  STD_TORCH_CHECK(!(known_lse.has_value() && scan), "a scan finds the log-sum-exp that known_lse gives");
  const Place place(anchors);
  Tensor loss = fresh(anchors, {count}), pull = fresh(anchors, {count});
  const bool weighted = call.rules.weighted;
  Tensor counts = fresh(anchors, {count}, weighted ? ScalarType::Float : ScalarType::Int),
         grad = fresh(anchors, {wanted ? count : 0, call.width()});
  Tensor lse = known_lse.has_value() ? torch::stable::clone(*known_lse) : fresh(anchors, {count});
  if (count == 0 || keys.size(0) == 0) {  // no pair, so no launch
    for (Tensor* output : {&loss, &pull, &counts, &grad}) torch::stable::zero_(*output);
    if (!known_lse.has_value()) torch::stable::fill_(lse, -HUGE_VAL);
    return {loss, lse, pull, counts, grad};
  }
  Job job = call.job(call.anchor_side(), call.key_side());
  job.columns.field[kFactor] = words(key_inverse);
  const Tensor barred = call.bar(job.rows, place.stream);
  job.lse = numbers(lse);
  job.grad = wanted ? numbers(grad) : nullptr;
  job.known = known_lse.has_value();
  job.mean_scale = scan ? job.rules.scale : 1;
  if (!job.known) call.run(Pass::kDenominator, job, place.stream);
  if (scan) {
    for (Tensor* unused : {&loss, &pull, &counts}) torch::stable::zero_(*unused);
  } else {
    job.loss = numbers(loss);
    job.pull = numbers(pull);
    if (weighted) {
      job.mass = numbers(counts);
    } else {
      job.count = counts.mutable_data_ptr<int32_t>();
    }
    job.rows.field[kLse] = words(lse);
    call.run(Pass::kPositive, job, place.stream);
  }
  return {loss, lse, pull, counts, grad};
}

std::tuple<Tensor, Tensor> Operations::contrast_backward(const ContrastCall& given, const Tensor& grad_loss,
                                                         const Tensor& push, const Tensor& draw,
                                                         const Tensor& lse) {
  const Call call(given);
  const Tensor &anchors = call.anchors, &keys = call.keys;
  for (const Tensor* factor : {&push, &draw, &lse})
    check_vector("push, draw and lse", *factor, anchors.size(0), ScalarType::Float);
  check_type("grad_loss", grad_loss, ScalarType::Float);
  STD_TORCH_CHECK(grad_loss.dim() == 1 && grad_loss.size(0) == anchors.size(0), "grad_loss must be [N]");
  for (const Tensor* other : {&grad_loss, &push, &draw, &lse}) check_device("every tensor", *other, anchors);
  const Place place(anchors);
  Side anchor_side = call.anchor_side(), key_side = call.key_side();
  const bool self = call.rules.self, for_anchors = self || call.has(kAnchorGradient);
  const bool for_keys = !self && call.has(kKeyGradient);
  Tensor grad_anchors = fresh(anchors, {for_anchors ? anchors.size(0) : 0, call.width()});
  Tensor grad_keys = fresh(anchors, {for_keys ? keys.size(0) : 0, call.width()});
  if (anchors.size(0) == 0 || keys.size(0) == 0) {
    for (Tensor* output : {&grad_anchors, &grad_keys}) torch::stable::zero_(*output);
    return {grad_anchors, grad_keys};
  }
  const Tensor fields = make_anchor_fields(call, grad_loss, push, draw, lse, anchor_side, place.stream);
  if (for_anchors) {
    Job job = call.job(anchor_side, self ? anchor_side : key_side);
    job.rows_are_keys = self;
    job.grad = numbers(grad_anchors);
    call.run(Pass::kGradient, job, place.stream);
  }
  if (for_keys) {
    Job job = call.job(key_side, anchor_side);
    job.rows_are_anchors = false;
    job.rows_are_keys = true;
    job.grad = numbers(grad_keys);
    call.run(Pass::kGradient, job, place.stream);
  }
  return {grad_anchors, grad_keys};
}

}  // namespace secl::cuda
