// SPDX-License-Identifier: Apache-2.0
// Draws pixels by radix selection. The keys come from a counter, as on the other backends, so that nothing
// but the seed decides.
#include <algorithm>
#include <cmath>

#include "plan.h"

namespace secl::cuda {
namespace sampling {
namespace {

int64_t quotient_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

// Of the largest cell.
int64_t cell_pixels(const Sample& job) {
  int64_t pixels = 1;
  for (int axis = 0; axis < 3; ++axis) pixels *= quotient_up(job.size[axis], job.cells_along(axis));
  return pixels;
}

// As many as fill a GPU, no more than a block of the plan has threads, and none with fewer pixels than
// counts.
int32_t chunks_of(const Sample& job, int64_t cell, int rows) {
  const int64_t least = std::max<int64_t>(kChunk, rows * job.num_classes), cells = job.cells();
  const int64_t most = std::min(kThreads / cells, kBlocks / (job.images * cells));
  return static_cast<int32_t>(std::max<int64_t>(1, std::min(most, quotient_up(cell, least))));
}

// Almost surely not among the `need` lowest of the image: as many as are expected among those, and five
// standard deviations more.
int32_t aimed(double need, double pixels) {
  const double expected = need * kSpots / pixels;
  return static_cast<int32_t>(std::ceil(expected + 5 * std::sqrt(expected) + 5));
}

// Lists hold about one to two times what is drawn. The deepest level of chances and the aim among the spots
// are shares of the pixels. By score no more than all pixels are kept room for, however many the classes.
int32_t capacity_of(const Sample& job, int kind) {
  const int64_t pixels = job.pixels();
  const int64_t by_chance = 4 * job.per_class + pixels / (1 << (kLevels - 2)) + 64;
  const int64_t by_score = 2 * job.per_class + pixels / std::max<int64_t>(64, job.num_classes);
  return static_cast<int32_t>(std::min(pixels, kind == kScore ? by_score : by_chance));
}

// Takes the next numbers of the scratch, on a boundary of 16 bytes.
template <class T>
T* take(Plan& plan, int64_t count) {
  int32_t* at = plan.job.scratch == nullptr ? nullptr : plan.job.scratch + plan.scratch;
  constexpr int64_t kBoundary = 16 / sizeof(int32_t);
  plan.scratch +=
      quotient_up(count * static_cast<int64_t>(sizeof(T) / sizeof(int32_t)), kBoundary) * kBoundary;
  return reinterpret_cast<T*>(at);
}

}  // namespace

Plan plan_sample(const Sample& job) {
  Plan plan = {};
  plan.job = job;
  const int64_t cell = cell_pixels(job);
  const bool lists = cell > kWhole;
  if (!lists && job.cells() == 1) return plan;
  plan.levels = lists ? kLevels : 1;
  plan.chunks = chunks_of(job, cell, plan.rows());
  plan.aimed = aimed(static_cast<double>(std::min(job.per_class / 2, job.pixels())), job.pixels());
  for (int kind = 0; kind < plan.kinds(); ++kind) {
    plan.lots[kind] = take<Lot>(plan, plan.parts() * job.cells());
    if (lists) plan.runs[kind] = take<Run>(plan, plan.parts() * plan.units());
  }
  plan.counts = take<int32_t>(plan, plan.parts() * plan.rows() * plan.units());
  if (job.hard) plan.aims = take<uint32_t>(plan, plan.parts());
  for (int kind = 0; lists && kind < plan.kinds(); ++kind) {
    plan.capacity[kind] = capacity_of(job, kind);
    plan.lists[kind] = take<int32_t>(plan, plan.parts() * plan.capacity[kind]);
  }
  return plan;
}

}  // namespace sampling

int64_t sample_scratch(const Sample& job) { return sampling::plan_sample(job).scratch; }

void launch_sample(const Sample& job, Stream stream) {
  using namespace sampling;
  const Plan plan = plan_sample(job);
  const bool lists = plan.capacity[kChance] > 0;
  if (lists && job.hard) launch_aim(plan, stream);
  if (plan.chunks > 0) {
    launch_count(plan, stream);
    launch_plan(plan, stream);
  }
  if (lists) launch_list(plan, stream);
  launch_draw(plan, stream);
}

}  // namespace secl::cuda
