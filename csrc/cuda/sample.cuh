// SPDX-License-Identifier: Apache-2.0
// What a block does to draw: it lists the members of a class in shared memory, and finds the k smallest of
// their keys from the top digit down; the counts of a digit say in which bin the k-th lies.
#pragma once

#include "../random.h"
#include "device.cuh"
#include "kernels.h"

namespace secl::cuda {

constexpr int kThreads = 512, kItems = 4,
              kTile = kThreads * kItems;  // a thread's items of a tile are neighbours
constexpr int kList = 16384;              // members that a block holds
constexpr int kDigit = 12, kBins = 1 << kDigit, kKeyBits = 3 * kDigit;
static_assert(kRandomBits <= kKeyBits, "a key is as long as its digits");
constexpr int32_t kEveryPixel = 0x7FFFFFFF;

struct Scratch {
  int32_t list[kList];
  int32_t bins[kBins];
  uint32_t sums[kThreads / kWarp];
  int32_t place, below, at, last;
};

__device__ __forceinline__ uint64_t seed_of(const Sample& job) {
  return static_cast<uint64_t>(*job.seed ^ job.stream);
}

struct ChanceKey {
  uint64_t mixed_seed, first_pixel;
  __device__ uint64_t operator()(int32_t pixel) const { return chance(mixed_seed, first_pixel + pixel); }
};

// A key in the order of the scores, NaN last.
struct ScoreKey {
  const float* scores;
  __device__ uint64_t operator()(int32_t pixel) const {
    const float score = scores[pixel] + 0.0f;  // -0 becomes 0
    if (score != score) return 0xFFFFFFFFu;
    const uint32_t bits = float_bits(score);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  }
};

// A part of an image: the pixels with coordinates from low on, of these sizes.
struct Box {
  int32_t low[3], size[3];
};

__device__ __forceinline__ int cells_along(const Sample& job, int axis) {
  return job.stratified && axis >= 3 - job.axes ? static_cast<int>(kCellsPerAxis) : 1;
}

// The coordinates x of a cell: floor(x * cells / size) = cell.
__device__ __forceinline__ Box cell_box(const Sample& job, int cell) {
  Box box = {};
  for (int axis = 2; axis >= 0; --axis) {
    const int cells = cells_along(job, axis), at = cell % cells;
    const int64_t size = job.size[axis];
    box.low[axis] = static_cast<int32_t>((at * size + cells - 1) / cells);
    box.size[axis] = static_cast<int32_t>(((at + 1) * size + cells - 1) / cells) - box.low[axis];
    cell /= cells;
  }
  return box;
}

__device__ __forceinline__ int cell_of(const Sample& job, int32_t pixel) {
  int found = 0, factor = 1;
  for (int axis = 2; axis >= 0; --axis) {
    const int cells = cells_along(job, axis);
    found += static_cast<int>(static_cast<int64_t>(pixel % job.size[axis]) * cells / job.size[axis]) * factor;
    pixel /= job.size[axis];
    factor *= cells;
  }
  return found;
}

// The usable pixels of one class in a box of one image, in ascending order of the pixels.
template <class Label>
class Members {
 public:
  __device__ Members(const Sample& job, const Label* labels, int64_t part, const Box& box)
      : job_(job), box_(box), first_(part / job.num_classes * job.pixels()), wanted_(part % job.num_classes) {
    labels_ = labels + first_;
    length_ = wanted_ == job.ignore_index ? 0 : box.size[0] * box.size[1] * box.size[2];
  }
  __device__ Members(const Sample& job, const Label* labels, int64_t part)
      : Members(job, labels, part, Box{{0, 0, 0}, {job.size[0], job.size[1], job.size[2]}}) {}

  __device__ int length() const { return length_; }
  __device__ bool at(int i, int32_t& pixel) const {
    const int line = i / box_.size[2], plane = line / box_.size[1];
    const int y = box_.low[1] + line - plane * box_.size[1], z = box_.low[0] + plane;
    pixel = (z * job_.size[1] + y) * job_.size[2] + box_.low[2] + i - line * box_.size[2];
    return static_cast<int64_t>(labels_[pixel]) == wanted_ &&
           (job_.eligible == nullptr || job_.eligible[first_ + pixel]);
  }

 private:
  const Sample& job_;
  const Box box_;
  const Label* labels_;
  int64_t first_, wanted_;
  int length_;
};

// Members that were listed.
struct List {
  const int32_t* pixels;
  int count;
  __device__ int length() const { return count; }
  __device__ bool at(int i, int32_t& pixel) const {
    pixel = pixels[i];
    return true;
  }
};

template <class Source, class Body>
__device__ __forceinline__ void each(const Source& source, const Body& body) {
  for (int i = threadIdx.x; i < source.length(); i += kThreads) {
    int32_t pixel;
    if (source.at(i, pixel)) body(pixel);
  }
}

// Sums over the threads before this one and over all; the whole block must call.
struct Scan {
  uint32_t before, total;
};

__device__ __forceinline__ Scan scan_block(uint32_t value, uint32_t* sums /* [warps] */) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  uint32_t inclusive = value;
#pragma unroll
  for (int lanes = 1; lanes < kWarp; lanes *= 2) {
    const uint32_t other = shuffle_up(inclusive, lanes);
    if (lane >= lanes) inclusive += other;
  }
  if (lane == kWarp - 1) sums[warp] = inclusive;
  sync_block();
  Scan scan{inclusive - value, 0};
#pragma unroll
  for (int w = 0; w < kThreads / kWarp; ++w) {
    if (w < warp) scan.before += sums[w];
    scan.total += sums[w];
  }
  sync_block();  // the sums may be written again
  return scan;
}

// What a pixel is to a selection: one of those below the last key, or one at it, of which the first few are
// taken.
constexpr uint32_t kOutside = 0, kBelow = 1, kTie = 1 << 16;

// Calls put(place, pixel) for all that is below and for the first `ties` ties, places in the order of the
// source; the number below.
template <class Source, class Kind, class Put>
__device__ __forceinline__ int in_order(const Source& source, const Kind& kind, int ties, Scratch& scratch,
                                        const Put& put) {
  static_assert(kTile < kTie, "both counts of a tile fit into one word");
  int below = 0, tied = 0;
  for (int start = 0; start < source.length(); start += kTile) {
    int32_t pixels[kItems];
    uint32_t kinds[kItems], sum = 0;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int at = start + static_cast<int>(threadIdx.x) * kItems + i;
      kinds[i] = at < source.length() && source.at(at, pixels[i]) ? kind(pixels[i]) : kOutside;
      sum += kinds[i];
    }
    const Scan scan = scan_block(sum, scratch.sums);
    int my_below = below + static_cast<int>(scan.before % kTie),
        my_tied = tied + static_cast<int>(scan.before / kTie);
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (kinds[i] == kBelow) {
        put(my_below++ + min(my_tied, ties), pixels[i]);
      } else if (kinds[i] == kTie) {
        if (my_tied < ties) put(my_below + my_tied, pixels[i]);
        if (++my_tied == ties) scratch.last = pixels[i];
      }
    }
    below += static_cast<int>(scan.total % kTie);
    tied += static_cast<int>(scan.total / kTie);
  }
  return below;
}

// Lists the members, as far as the list goes; their number.
template <class Source>
__device__ __forceinline__ int list_members(const Source& source, Scratch& scratch) {
  const int count = in_order(
      source, [](int32_t) { return kBelow; }, 0, scratch,
      [&](int place, int32_t pixel) {
        if (place < kList) scratch.list[place] = pixel;
      });
  sync_block();
  return count;
}

// Where a selection ends: all keys whose high bits are below `key`, and those at it up to a pixel.
struct Threshold {
  uint64_t key;
  int shift;
  int32_t last;
  __device__ bool takes(uint64_t other, int32_t pixel) const {
    return other >> shift < key || (other >> shift == key && pixel <= last);
  }
};

// In which bin of one digit the `need`-th key lies: scratch gets that place, the keys below it and those at
// it.
__device__ __forceinline__ void find_bin(int need, Scratch& scratch) {
  constexpr int kOwn = kBins / kThreads;
  const int first = static_cast<int>(threadIdx.x) * kOwn;
  int sum = 0;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) sum += scratch.bins[first + i];
  int before = static_cast<int>(scan_block(sum, scratch.sums).before);
  if (before < need && need <= before + sum) {
    int place = first;
    for (; before + scratch.bins[place] < need; ++place) before += scratch.bins[place];
    scratch.place = place;
    scratch.below = before;
    scratch.at = scratch.bins[place];
  }
  sync_block();
}

// Puts the `need` smallest keys among those that are free, of which there are as many, in the order of the
// source.
template <class Source, class Key, class Free, class Put>
__device__ __forceinline__ Threshold take_smallest(const Source& source, const Key& key, const Free& free,
                                                   int need, Scratch& scratch, const Put& put) {
  Threshold end{0, kKeyBits, -1};
  if (need <= 0) return end;
  int at = 0x7FFFFFFF;
  while (at > need && end.shift > 0) {
    for (int bin = threadIdx.x; bin < kBins; bin += kThreads) scratch.bins[bin] = 0;
    sync_block();
    const int low = end.shift - kDigit;
    each(source, [&](int32_t pixel) {
      const uint64_t value = key(pixel);
      if (value >> end.shift == end.key && free(pixel))
        atomic_add(&scratch.bins[value >> low & (kBins - 1)], 1);
    });
    sync_block();
    find_bin(need, scratch);
    need -= scratch.below;
    at = scratch.at;
    end.key = end.key << kDigit | static_cast<uint64_t>(scratch.place);
    end.shift = low;
  }
  if (threadIdx.x == 0) scratch.last = kEveryPixel;
  sync_block();
  in_order(
      source,
      [&](int32_t pixel) {
        const uint64_t high = key(pixel) >> end.shift;
        return high > end.key || !free(pixel) ? kOutside : high < end.key ? kBelow : kTie;
      },
      need, scratch, put);
  sync_block();
  end.last = scratch.last;
  return end;
}

}  // namespace secl::cuda
