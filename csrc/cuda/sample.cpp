// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "tensors.h"

namespace secl::cuda {
namespace {

// Bytes of a label that the kernels read: unsigned where it is one.
int label_bytes(ScalarType type) {
  switch (type) {
    case ScalarType::Byte:
      return 1;
    case ScalarType::Int:
      return 4;
    default:
      STD_TORCH_CHECK(type == ScalarType::Long, "labels must be int64, int32 or uint8");
      return 8;
  }
}

}  // namespace

std::tuple<Tensor, Tensor> Operations::sample(const Tensor& labels, const Maybe& eligible,
                                              const Maybe& scores, const Tensor& seed, int64_t per_class,
                                              int64_t num_classes, int64_t ignore_index, int64_t strategy,
                                              int64_t stream) {
  check_sample(labels, eligible, scores, seed, per_class, num_classes);
  if (scores.has_value()) check_type("scores", *scores, ScalarType::Float);
  check_device("seed", seed, labels);
  check_device("eligible", eligible, labels);
  check_device("scores", scores, labels);
  STD_TORCH_CHECK(labels.dim() <= 4, "labels may have at most three spatial axes");
  Sample job = {};
  job.images = labels.size(0);
  job.num_classes = num_classes;
  job.per_class = per_class;
  job.ignore_index = ignore_index;
  job.stream = stream;
  job.axes = static_cast<int32_t>(labels.dim() - 1);
  std::fill(job.size, job.size + 3, 1);
  for (int axis = 0; axis < job.axes; ++axis) {
    job.size[3 - job.axes + axis] = static_cast<int32_t>(labels.size(axis + 1));
  }
  job.label_bytes = label_bytes(labels.scalar_type());
  job.stratified = strategy == kStratified;
  job.hard = strategy == kHard && scores.has_value();
  job.labels = labels.const_data_ptr();
  job.eligible = data_of<bool>(eligible);
  job.scores = data_of<float>(scores);
  job.seed = seed.const_data_ptr<int64_t>();
  const int64_t size = job.images * num_classes * per_class;
  Tensor index = torch::stable::new_empty(labels, {size}, ScalarType::Long),
         label = torch::stable::new_empty(labels, {size}, ScalarType::Int);
  if (labels.numel() == 0) {
    return {torch::stable::fill_(index, -1), torch::stable::fill_(label, -1)};
  }
  if (size == 0) return {index, label};
  Tensor scratch = torch::stable::new_empty(labels, {sample_scratch(job)}, ScalarType::Int);
  job.scratch = scratch.mutable_data_ptr<int32_t>();
  job.index = index.mutable_data_ptr<int64_t>();
  job.label = label.mutable_data_ptr<int32_t>();
  const Place place(labels);
  launch_sample(job, place.stream);
  return {index, label};
}

}  // namespace secl::cuda
