// SPDX-License-Identifier: Apache-2.0
#include "ranks.cuh"

namespace secl::cuda::sampling {
namespace {

// The chunks of one class of one image, one a thread, by cell.
class Chunks {
 public:
  __device__ Chunks(const Plan& plan, int64_t part)
      : plan_(plan), part_(part), unit_(min(static_cast<int>(threadIdx.x), plan.units() - 1)) {}

  __device__ bool inside() const { return static_cast<int>(threadIdx.x) == unit_; }
  __device__ int unit() const { return unit_; }
  __device__ int cell() const { return unit_ / plan_.chunks; }
  __device__ bool begins_cell() const { return inside() && unit_ % plan_.chunks == 0; }
  __device__ int count(int kind, int level) const {
    return inside() ? plan_.counts_of(part_, plan_.row_of(kind, level))[unit_] : 0;
  }

 private:
  const Plan& plan_;
  const int64_t part_;
  const int unit_;
};

// Sums over the chunks of the cells before this thread's, over those of its own and over all.
struct CellSums {
  int before, own, total;
};

struct Scratch {
  int32_t upto[kThreads];
  uint32_t sums[kWarps];
};

// The whole block must call.
__device__ __forceinline__ CellSums sum_cells(const Plan& plan, const Chunks& chunks, int value,
                                              Scratch& scratch) {
  const Scan scan = scan_block(value, scratch.sums);
  scratch.upto[threadIdx.x] = static_cast<int32_t>(scan.before) + value;
  sync_block();
  const int first = chunks.cell() * plan.chunks;
  const int before = first > 0 ? scratch.upto[first - 1] : 0;
  const int own = scratch.upto[first + plan.chunks - 1] - before;
  sync_block();  // the sums may be written again
  return {before, own, static_cast<int>(scan.total)};
}

__device__ __forceinline__ int64_t draws_below(int64_t place, int64_t available, int64_t drawn,
                                               int64_t start) {
  const int64_t least = place * drawn - start + available - 1;
  return least <= 0 || available == 0 ? 0 : least / available;
}

// First place and number of a cell's draws, of those that a systematic sample of all cells takes.
struct Share {
  int32_t begin, drawn;
};

__device__ __forceinline__ Share share_of(const Sample& job, int64_t part, const CellSums& members) {
  const int64_t available = members.total, drawn = min(available, job.per_class);
  const uint64_t seed = static_cast<uint64_t>(*job.seed ^ job.stream) ^ kGolden;
  const int64_t random = mix(mix(seed) + static_cast<uint64_t>(part) * kGolden) >> 24 & 0xFFFFFF;
  const int64_t start = random * available >> 24;
  const int64_t begin = draws_below(members.before, available, drawn, start);
  const int64_t end = draws_below(int64_t{members.before} + members.own, available, drawn, start);
  return {static_cast<int32_t>(begin), static_cast<int32_t>(end - begin)};
}

// The deepest level at which the cell still has the members that are needed; else the first.
__device__ __forceinline__ int find_level(const Plan& plan, const Chunks& chunks, int kind, int need,
                                          Scratch& scratch) {
  int level = 0;
  for (int step = kLevels / 2; step > 0; step /= 2) {
    if (step >= plan.levels_of(kind)) continue;
    const int tried = level + step;
    const bool exists = tried < plan.levels_of(kind);
    const CellSums found = sum_cells(plan, chunks, exists ? chunks.count(kind, tried) : 0, scratch);
    if (exists && found.own >= need) level = tried;
  }
  return level;
}

// What a chunk lists: level and ties; `first` is how many it lists.
__device__ __forceinline__ Run run_of(const Plan& plan, const Chunks& chunks, int kind, int need,
                                      Scratch& scratch) {
  const int level = find_level(plan, chunks, kind, need, scratch);
  if (need == 0) return {0, kNoLevel, 0};
  if (kind == kChance || level != kAtAim) return {chunks.count(kind, level), level, 0};
  // Of equal scores the first in the image are taken. There is one cell, so that all threads are here.
  const int better = chunks.count(kind, kBelowAim), tied = chunks.count(kind, kAtAim) - better;
  const int all_better = sum_cells(plan, chunks, better, scratch).own;
  const int before = static_cast<int>(scan_block(tied, scratch.sums).before);
  const int ties = max(0, min(tied, need - all_better - before));
  return {better + ties, ties > 0 ? kAtAim : kBelowAim, ties};
}

__global__ void __launch_bounds__(kThreads, 1) plan_kernel(Plan plan) {
  Scratch& scratch = *reinterpret_cast<Scratch*>(shared_memory());
  const Sample& job = plan.job;
  const int64_t part = blockIdx.x, image = part % job.images, of_class = part / job.images;
  const Chunks chunks(plan, part);
  const CellSums members = sum_cells(plan, chunks, chunks.count(kChance, 0), scratch);
  const Share share = job.cells() > 1
                          ? share_of(job, part, members)
                          : Share{0, static_cast<int32_t>(min(int64_t{members.total}, job.per_class))};
  for (int kind = 0; kind < plan.kinds(); ++kind) {
    const int need = kind == kScore ? share.drawn / 2 : share.drawn;
    Run run = run_of(plan, chunks, kind, need, scratch);
    const CellSums listed = sum_cells(plan, chunks, run.first, scratch);
    const bool fits = listed.total <= plan.capacity[kind];
    run.first = static_cast<int>(scan_block(run.first, scratch.sums).before);
    if (!fits) run.level = kNoLevel;
    if (chunks.inside() && plan.runs[kind] != nullptr) {
      plan.runs[kind][(image * plan.units() + chunks.unit()) * job.num_classes + of_class] = run;
    }
    if (chunks.begins_cell()) {
      plan.lots[kind][part * job.cells() + chunks.cell()] =
          Lot{listed.before, fits ? listed.own : -1, share.begin, share.drawn};
    }
  }
}

}  // namespace

void launch_plan(const Plan& plan, Stream stream) {
  const Grid grid{dim3(static_cast<unsigned>(plan.parts())), dim3(kThreads), sizeof(Scratch)};
  launch(plan_kernel, grid, stream, plan);
}

}  // namespace secl::cuda::sampling
