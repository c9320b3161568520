// SPDX-License-Identifier: Apache-2.0
#include "pixels.cuh"

namespace secl::cuda::sampling {
namespace {

__device__ __forceinline__ int32_t* bins_of(const Plan& plan, int of_class) {
  return reinterpret_cast<int32_t*>(shared_memory()) + of_class * plan.rows();
}

// Of one class in this chunk, at each level or deeper.
__device__ __forceinline__ void write_counts(const Plan& plan, const int32_t* bins, int64_t part, int unit) {
  for (int kind = 0; kind < plan.kinds(); ++kind) {
    int32_t deeper = 0;
    for (int level = plan.levels_of(kind) - 1; level >= kind /* the lowest row is shared */; --level) {
      const int row = plan.row_of(kind, level);
      deeper += bins[row];
      plan.counts_of(part, row)[unit] = deeper;
    }
  }
}

// How many members of each class one chunk of one image holds, by the level of their keys.
template <class Label>
__global__ void __launch_bounds__(kThreads, kResident) count_kernel(Plan plan) {
  const Sample& job = plan.job;
  const int64_t image = blockIdx.x;
  const int unit = static_cast<int>(blockIdx.y);
  const Box box(job, unit / plan.chunks);
  const Chunk chunk(box, unit % plan.chunks, plan.chunks);
  const ChanceKey chance(job, image);
  const ScoreKey score(job, image);
  const int classes = static_cast<int>(job.num_classes);
  for (int first = 0; first < classes; first += min(kGroup, classes - first)) {
    const int end = first + min(kGroup, classes - first);
    const Members<Label, Chunk> members(job, image, chunk, first, end);
    for (int bin = threadIdx.x; bin < (end - first) * plan.rows(); bin += kThreads) bins_of(plan, 0)[bin] = 0;
    sync_block();
    each(members, [&](int32_t pixel, int32_t label) {
      int32_t* bins = bins_of(plan, label - first);
      const int level = plan.levels > 1 ? chance_level(chance(pixel), plan.levels) : 0;
      add_count(&bins[level], 1);
      if (!job.hard) return;
      const int scored = score_level(score(pixel), plan.aims[plan.part_of(label, image)]);
      if (scored != kAll) add_count(&bins[plan.row_of(kScore, scored)], 1);
    });
    sync_block();
    for (int of_class = first + static_cast<int>(threadIdx.x); of_class < end; of_class += kThreads) {
      write_counts(plan, bins_of(plan, of_class - first), plan.part_of(of_class, image), unit);
    }
    sync_block();  // the bins may be cleared again
  }
}

}  // namespace

void launch_count(const Plan& plan, Stream stream) {
  with_label(plan.job, [&](auto zero) {
    const size_t classes = plan.job.num_classes < kGroup ? plan.job.num_classes : kGroup;
    const Grid grid{dim3(static_cast<unsigned>(plan.job.images), plan.units()), dim3(kThreads),
                    classes * plan.rows() * sizeof(int32_t)};
    launch(count_kernel<decltype(zero)>, grid, stream, plan);
  });
}

}  // namespace secl::cuda::sampling
