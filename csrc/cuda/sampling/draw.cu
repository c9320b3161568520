// SPDX-License-Identifier: Apache-2.0
#include "select.cuh"

namespace secl::cuda::sampling {
namespace {

// Where the draws of a class go: pixels in ascending order, then the padding.
struct Output {
  int64_t* index;
  int32_t* label;
  int64_t first_pixel;
  int32_t of_class;

  __device__ void put(int64_t place, int32_t pixel) const {
    index[place] = first_pixel + pixel;
    label[place] = of_class;
  }
};

// The block that draws from one class of one image, or of one cell of its grid.
template <class Label>
class Drawing {
 public:
  __device__ Drawing(const Plan& plan, int64_t part, int cell)
      : plan_(plan),
        job_(plan.job),
        part_(part),
        image_(part % job_.images),
        class_(static_cast<int>(part / job_.images)),
        cell_(cell),
        lot_(lot_of(kChance)),
        out_{job_.index + part * job_.per_class + lot_.begin, job_.label + part * job_.per_class + lot_.begin,
             image_ * job_.pixels(), class_} {}

  __device__ void run(Scratch& scratch) const {
    int drawn = 0;
    if (lot_.drawn > 0) drawn = is_listed() ? draw_listed(scratch) : draw_cell(scratch);
    if (cell_ != job_.cells() - 1) return;
    const int64_t left = job_.per_class - lot_.begin;
    for (int64_t place = drawn + static_cast<int>(threadIdx.x); place < left; place += kThreads) {
      out_.index[place] = -1;
      out_.label[place] = -1;
    }
  }

 private:
  __device__ Lot lot_of(int kind) const {
    if (plan_.lots[kind] != nullptr) return plan_.lots[kind][part_ * job_.cells() + cell_];
    return {0, -1, 0, static_cast<int32_t>(min(job_.per_class, job_.pixels()))};
  }
  __device__ bool is_listed() const { return lot_.listed >= 0 && (!job_.hard || lot_of(kScore).listed >= 0); }
  __device__ List list_of(int kind) const {
    const Lot lot = lot_of(kind);
    return {plan_.lists[kind] + part_ * plan_.capacity[kind] + lot.first, lot.listed};
  }
  __device__ int draw_listed(Scratch& scratch) const {
    return draw(list_of(kChance), list_of(job_.hard ? kScore : kChance), lot_.drawn, scratch);
  }

  __device__ int draw_cell(Scratch& scratch) const {
    const Box box(job_, cell_);
    const Members<Label, Chunk> members(job_, image_, Chunk(box), class_, class_ + 1);
    const int available = list_members(members, scratch), drawn = min(lot_.drawn, available);
    if (available > kWhole) return draw(members, members, drawn, scratch);
    const List list{scratch.list, available};
    return draw(list, list, drawn, scratch);
  }

  // The lowest scores for half of the draws of a hard one, chance for the rest; the number of draws.
  template <class Source>
  __device__ int draw(const Source& chances, const Source& scores, int drawn, Scratch& scratch) const {
    const ChanceKey chance(job_, image_);
    const ScoreKey score(job_, image_);
    const auto all = [](int32_t) { return true; };
    const int half = job_.hard ? drawn / 2 : 0;
    const Threshold gone =
        take_smallest(scores, score, all, half, true /* exact: other pixels are held against it */, scratch,
                      [&](int place, int32_t pixel) { out_.put(place, pixel); });
    const auto left = [&](int32_t pixel) { return half == 0 || !gone.takes(score(pixel), pixel); };
    take_smallest(chances, chance, left, drawn - half, false, scratch,
                  [&](int place, int32_t pixel) { out_.put(half + place, pixel); });
    return drawn;
  }

  const Plan& plan_;
  const Sample& job_;
  const int64_t part_, image_;
  const int class_, cell_;
  const Lot lot_;
  const Output out_;
};

template <class Label>
__global__ void __launch_bounds__(kThreads, 1) draw_kernel(Plan plan) {
  Drawing<Label>(plan, blockIdx.x, static_cast<int>(blockIdx.y))
      .run(*reinterpret_cast<Scratch*>(shared_memory()));
}

}  // namespace

void launch_draw(const Plan& plan, Stream stream) {
  with_label(plan.job, [&](auto zero) {
    const dim3 blocks(static_cast<unsigned>(plan.job.images * plan.job.num_classes),
                      static_cast<unsigned>(plan.job.cells()));
    launch(draw_kernel<decltype(zero)>, Grid{blocks, dim3(kThreads), sizeof(Scratch)}, stream, plan);
  });
}

}  // namespace secl::cuda::sampling
