// SPDX-License-Identifier: Apache-2.0
// The sigmoid loss on CUDA devices: outputs allocated, and one pass for each side.
#include "call.h"

namespace secl::cuda {
namespace {

// A number that learns stays on the device.
const float* learned(const char* name, const Maybe& number, const Tensor& like) {
  check_vector(name, number, 1, ScalarType::Float);
  check_device(name, number, like);
  return data_of<float>(number);
}

Logit logit_of(const Call& call, const SigmoidLogit& given) {
  return {static_cast<float>(call.scale), static_cast<float>(given.bias),
          learned("learned_scale", given.learned_scale, call.anchors),
          learned("learned_bias", given.learned_bias, call.anchors)};
}

}  // namespace

SigmoidState Operations::sigmoid_forward(const ContrastCall& given, const Maybe& key_inverse,
                                         const SigmoidLogit& logit) {
  const Call call(given);
  const Tensor& anchors = call.anchors;
  const int64_t count = anchors.size(0);
  check_vector("key_inverse", key_inverse, call.keys.size(0), ScalarType::Float);
  check_device("key_inverse", key_inverse, anchors);
  const bool wanted = call.has(kAnchorGradient);
  const Place place(anchors);
  Tensor loss = fresh(anchors, {count}), tilt = fresh(anchors, {count});
  Tensor counts = fresh(anchors, {count}, ScalarType::Int),
         grad = fresh(anchors, {wanted ? count : 0, call.width()});
  Job job = call.job(call.anchor_side(), call.key_side());
  job.logit = logit_of(call, logit);
  if (count == 0 || call.keys.size(0) == 0) {  // no pair, so no launch
    for (Tensor* output : {&loss, &tilt, &counts, &grad}) torch::stable::zero_(*output);
    return {loss, tilt, counts, grad};
  }
  job.columns.field[kFactor] = words(key_inverse);
  const Tensor barred = call.bar(job.rows, place.stream);
  job.loss = numbers(loss);
  job.pull = numbers(tilt);
  job.count = counts.mutable_data_ptr<int32_t>();
  job.grad = wanted ? numbers(grad) : nullptr;
  call.run(Pass::kSigmoid, job, place.stream);
  return {loss, tilt, counts, grad};
}

Tensor Operations::sigmoid_backward(const ContrastCall& given, const Tensor& weight,
                                    const SigmoidLogit& logit) {
  const Call call(given);
  check_vector("weight", weight, call.anchors.size(0), ScalarType::Float);
  check_device("weight", weight, call.anchors);
  const Place place(call.anchors);
  Tensor grad = fresh(call.keys, {call.keys.size(0), call.width()});
  Job job = call.job(call.key_side(), call.anchor_side());
  job.logit = logit_of(call, logit);
  if (call.anchors.size(0) == 0 || call.keys.size(0) == 0) return torch::stable::zero_(grad);
  job.columns.field[kUpstream] = words(weight);
  const Tensor barred = call.bar(job.columns, place.stream);
  job.rows_are_anchors = false;
  job.rows_are_keys = true;
  job.grad = numbers(grad);
  call.run(Pass::kSigmoid, job, place.stream);
  return grad;
}

}  // namespace secl::cuda
