// SPDX-License-Identifier: Apache-2.0
#include "ranks.cuh"

namespace secl::cuda::sampling {
namespace {

constexpr int kHeld = 2 * kTile;  // pixels that wait to be parted by class

struct Scratch {
  int32_t held[kHeld];
  uint32_t sums[kWarps];
};
static_assert(sizeof(Scratch) % alignof(Run) == 0, "the runs lie behind it");

__device__ __forceinline__ Run* runs_of(int classes, int kind) {
  return reinterpret_cast<Run*>(shared_memory() + sizeof(Scratch)) + kind * classes;
}

// What one chunk lists of a group of classes.
template <class Label>
class Listing {
 public:
  using Source = Members<Label, Chunk>;
  __device__ Listing(const Plan& plan, int64_t image, const Chunk& chunk, int first, int classes)
      : plan_(plan),
        source_(plan.job, image, chunk, first, first + classes),
        chance_(plan.job, image),
        score_(plan.job, image),
        image_(image),
        first_(first),
        classes_(classes) {}

  __device__ void load_runs(int unit) const {
    const int64_t place = (image_ * plan_.units() + unit) * plan_.job.num_classes + first_;
    for (int kind = 0; kind < plan_.kinds(); ++kind) {
#pragma unroll 1  // the usual group is a single turn
      for (int i = threadIdx.x; i < classes_; i += kThreads) {
        runs_of(classes_, kind)[i] = plan_.runs[kind][place + i];
      }
    }
  }

  __device__ void run(Scratch& scratch) const {
    const auto kept = [&](int32_t pixel, int32_t label) {
      const bool listed = lists(kChance, pixel, label) || (plan_.job.hard && lists(kScore, pixel, label));
      return listed ? kBelow : kOutside;
    };
    int held = 0;
    for (int start = 0; start < source_.length(); start += kTile) {
      held += rank_tile(source_, start, kept, scratch.sums, [&](uint32_t, uint32_t before, int32_t pixel) {
        scratch.held[held + before] = pixel;
      });
      if (held <= kHeld - kTile && start + kTile < source_.length()) continue;
      sync_block();
      if (threadIdx.x < kWarp) part_by_class(scratch, held);
      sync_block();
      held = 0;
    }
  }

 private:
  __device__ Run& run_of(int kind, int32_t label) const { return runs_of(classes_, kind)[label - first_]; }
  __device__ int level_of(int kind, int32_t pixel, int32_t label) const {
    if (kind == kChance) return chance_level(chance_(pixel), plan_.levels);
    return score_level(score_(pixel), plan_.aims[plan_.part_of(label, image_)]);
  }
  __device__ bool lists(int kind, int32_t pixel, int32_t label) const {
    const int level = run_of(kind, label).level;
    if (level == kAll || level == kNoLevel) return level == kAll;
    return level_of(kind, pixel, label) >= level;
  }

  // By one warp: each pixel goes behind the earlier ones of its class.
  __device__ void part_by_class(const Scratch& scratch, int held) const {
    for (int start = 0; start < held; start += kWarp) {
      const int place = start + static_cast<int>(threadIdx.x % kWarp);
      const bool inside = place < held;
      const int32_t pixel = inside ? scratch.held[place] : 0;
      const int32_t label = inside ? source_.label(pixel) : first_;
#pragma unroll 1  // else it spills
      for (int kind = 0; kind < plan_.kinds(); ++kind) {
        append(kind, pixel, label, inside && lists(kind, pixel, label));
      }
    }
  }
  __device__ void append(int kind, int32_t pixel, int32_t label, bool listed) const {
    const int lane = threadIdx.x % kWarp, of_class = label - first_, alone = -1 - lane;
    const unsigned lower = (1u << lane) - 1;
    Run& run = run_of(kind, label);
    const bool tied =
        kind == kScore && listed && run.level == kAtAim && level_of(kind, pixel, label) == kAtAim;
    const unsigned ties = lanes_like(tied ? of_class : alone);
    if (tied && population(ties & lower) >= run.ties) listed = false;
    const unsigned alike = lanes_like(listed ? of_class : alone);
    if (listed) {
      int32_t* list = plan_.lists[kind] + plan_.part_of(label, image_) * plan_.capacity[kind];
      list[run.first + population(alike & lower)] = pixel;
    }
    sync_warp();
    if (listed && (alike & lower) == 0) run.first += population(alike);
    if (tied && (ties & lower) == 0) run.ties -= population(ties);
    sync_warp();
  }

  const Plan& plan_;
  const Source source_;
  const ChanceKey chance_;
  const ScoreKey score_;
  const int64_t image_;
  const int first_, classes_;
};

// The members of one chunk of one image, by class, as deep as the plan says.
template <class Label>
__global__ void __launch_bounds__(kThreads, kResident) list_kernel(Plan plan) {
  Scratch& scratch = *reinterpret_cast<Scratch*>(shared_memory());
  const int64_t image = blockIdx.x;
  const int unit = static_cast<int>(blockIdx.y);
  const Box box(plan.job, unit / plan.chunks);
  const Chunk chunk(box, unit % plan.chunks, plan.chunks);
  const int classes = static_cast<int>(plan.job.num_classes);
  for (int first = 0; first < classes; first += min(kGroup, classes - first)) {
    const Listing<Label> listing(plan, image, chunk, first, min(kGroup, classes - first));
    listing.load_runs(unit);
    sync_block();
    listing.run(scratch);
  }
}

}  // namespace

void launch_list(const Plan& plan, Stream stream) {
  with_label(plan.job, [&](auto zero) {
    const size_t classes = plan.job.num_classes < kGroup ? plan.job.num_classes : kGroup;
    const Grid grid{dim3(static_cast<unsigned>(plan.job.images), plan.units()), dim3(kThreads),
                    sizeof(Scratch) + plan.kinds() * classes * sizeof(Run)};
    launch(list_kernel<decltype(zero)>, grid, stream, plan);
  });
}

}  // namespace secl::cuda::sampling
