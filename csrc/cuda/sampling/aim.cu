// SPDX-License-Identifier: Apache-2.0
#include "select.cuh"

namespace secl::cuda::sampling {
namespace {

// The key of one of the lowest scores among the spots of one class of one image.
template <class Label>
__global__ void __launch_bounds__(kThreads) aim_kernel(Plan plan) {
  Scratch& scratch = *reinterpret_cast<Scratch*>(shared_memory());
  const int64_t part = blockIdx.x, image = part % plan.job.images;
  const int wanted = static_cast<int>(part / plan.job.images);
  const Members<Label, Spots> members(plan.job, image, Spots(plan.job, part), wanted, wanted + 1);
  const auto all = [](int32_t) { return true; };
  const List list{scratch.list, list_members(members, scratch)};
  const Threshold end =
      find_smallest(list, ScoreKey(plan.job, image), all, plan.aimed, true /* exact */, scratch);
  if (threadIdx.x == 0) plan.aims[part] = static_cast<uint32_t>(end.key);
}

}  // namespace

void launch_aim(const Plan& plan, Stream stream) {
  with_label(plan.job, [&](auto zero) {
    const Grid grid{dim3(static_cast<unsigned>(plan.parts())), dim3(kThreads), sizeof(Scratch)};
    launch(aim_kernel<decltype(zero)>, grid, stream, plan);
  });
}

}  // namespace secl::cuda::sampling
