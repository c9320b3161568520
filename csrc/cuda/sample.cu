// SPDX-License-Identifier: Apache-2.0
// Draws pixels by radix selection: a block draws from one class of one image, or of one cell of its grid. The
// keys come from a counter, as on the other backends, so that nothing but the seed decides.
#include "kernels.h"
#include "sample.cuh"

namespace secl::cuda {
namespace {

// How many members of the class each cell of the grid holds; what a systematic draw over all cells needs to
// know.
template <class Label>
__global__ void __launch_bounds__(kThreads) tally_kernel(Sample job, const Label* labels /* [B, pixels] */) {
  int32_t* bins = reinterpret_cast<int32_t*>(shared_memory());  // [cells]
  const int64_t part = blockIdx.x;                              // image * C + class
  const Members<Label> members(job, labels, part);
  for (int cell = threadIdx.x; cell < job.cells(); cell += kThreads) bins[cell] = 0;
  sync_block();
  each(members, [&](int32_t pixel) { atomic_add(&bins[cell_of(job, pixel)], 1); });
  sync_block();
  for (int cell = threadIdx.x; cell < job.cells(); cell += kThreads) {
    job.tally[part * job.cells() + cell] = bins[cell];
  }
}

// First place and number of this cell's draws, of those that a systematic sample of all cells takes.
struct Share {
  int64_t begin, drawn, of_class;
};

__device__ __forceinline__ int64_t draws_below(int64_t place, int64_t available, int64_t drawn,
                                               int64_t start) {
  const int64_t least = place * drawn - start + available - 1;
  return least <= 0 || available == 0 ? 0 : least / available;
}

__device__ __forceinline__ Share cell_share(const Sample& job, int64_t part, int64_t wanted, int64_t image) {
  const int32_t* tally = job.tally + part * job.cells();
  int64_t below = 0, available = 0;
  for (int cell = 0; cell < job.cells(); ++cell) {
    if (cell < static_cast<int>(blockIdx.y)) below += tally[cell];
    available += tally[cell];
  }
  const int64_t drawn = min(available, job.per_class);
  const uint64_t seed = seed_of(job) ^ kGolden;
  const int64_t random =
      mix(mix(seed) + static_cast<uint64_t>(wanted * job.images + image) * kGolden) >> 24 & 0xFFFFFF;
  const int64_t start = random * available >> 24;
  const int64_t begin = draws_below(below, available, drawn, start);
  return {begin, draws_below(below + tally[blockIdx.y], available, drawn, start) - begin, drawn};
}

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

// Draws from a list or from the image itself; the number of draws.
template <class Source>
__device__ int draw(const Sample& job, const Source& source, int available, int wanted, const Output& out,
                    Scratch& scratch) {
  const ChanceKey chance{mix(seed_of(job)), static_cast<uint64_t>(out.first_pixel)};
  const auto all = [](int32_t) { return true; };
  int written = 0;
  Threshold gone = {};
  const ScoreKey score{job.scores == nullptr ? nullptr : job.scores + out.first_pixel};
  if (job.hard) {
    const int half = min(wanted / 2, available);
    gone = take_smallest(source, score, all, half, scratch,
                         [&](int place, int32_t pixel) { out.put(place, pixel); });
    written = half;
  }
  const int rest = min(wanted, available) - written;
  const auto left = [&](int32_t pixel) { return written == 0 || !gone.takes(score(pixel), pixel); };
  take_smallest(source, chance, left, rest, scratch,
                [&](int place, int32_t pixel) { out.put(written + place, pixel); });
  return written + rest;
}

template <class Label>
__global__ void __launch_bounds__(kThreads) sample_kernel(Sample job, const Label* labels /* [B, pixels] */) {
  Scratch& scratch = *reinterpret_cast<Scratch*>(shared_memory());
  const int64_t part = blockIdx.x, image = part / job.num_classes, wanted = part % job.num_classes;
  const Share share =
      job.cells() > 1 ? cell_share(job, part, wanted, image) : Share{0, job.per_class, job.per_class};
  const int64_t first = part * job.per_class;
  const Output out{job.index + first + share.begin, job.label + first + share.begin, image * job.pixels(),
                   static_cast<int32_t>(wanted)};
  int64_t end = share.begin + share.drawn;
  if (share.drawn > 0) {
    const Members<Label> members(job, labels, part, cell_box(job, blockIdx.y));
    const int available = list_members(members, scratch);
    const int count = static_cast<int>(min(share.drawn, static_cast<int64_t>(available)));
    if (available <= kList) {
      draw(job, List{scratch.list, available}, available, count, out, scratch);
    } else {
      draw(job, members, available, count, out, scratch);
    }
    end = share.begin + count;
  }
  if (job.cells() > 1) end = share.of_class;
  if (blockIdx.y != gridDim.y - 1) return;
  for (int64_t place = end + threadIdx.x; place < job.per_class; place += kThreads) {
    job.index[first + place] = -1;
    job.label[first + place] = -1;
  }
}

template <class Label>
void launch_typed(const Sample& job, Stream stream) {
  const auto* labels = static_cast<const Label*>(job.labels);
  const dim3 parts(static_cast<unsigned>(job.images * job.num_classes), static_cast<unsigned>(job.cells()));
  if (job.cells() > 1) {
    launch(tally_kernel<Label>, Grid{dim3(parts.x), dim3(kThreads), job.cells() * sizeof(int32_t)}, stream,
           job, labels);
  }
  launch(sample_kernel<Label>, Grid{parts, dim3(kThreads), sizeof(Scratch)}, stream, job, labels);
}

}  // namespace

void launch_sample(const Sample& job, Stream stream) {
  switch (job.label_bytes) {
    case 1:
      return launch_typed<uint8_t>(job, stream);
    case 4:
      return launch_typed<int32_t>(job, stream);
    default:
      return launch_typed<int64_t>(job, stream);
  }
}

}  // namespace secl::cuda
